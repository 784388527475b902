from __future__ import annotations

import urllib.request

import pytest

from waxlake.pipeline.event import make_event
from waxlake.pipeline.metrics import MetricsListener
from waxlake.stream.errors import TerminalError

COMMIT = {
    "flow_progress": {
        "status": "RUNNING",
        "table_version": 7,
        "metrics": {
            "num_output_rows": 5,
            "num_output_bytes": 100,
            "num_quarantined_rows": 1,
            "num_read_records": 8,
            "backlog_records": 40,
        },
        "data_quality": {
            "dropped_records": 2,
            "expectations": [{"name": "paid", "action": "drop", "passed_records": 6, "failed_records": 2}],
        },
    }
}


def send(listener: MetricsListener, details: dict[str, object], level: str = "METRICS") -> None:
    event = make_event(
        "flow_progress", "", pipeline="p", update_id="u", dataset="orders", flow="orders", level=level, details=details
    )
    listener.on_event(event)


def test_commits_are_added_up_and_served() -> None:
    listener = MetricsListener(0)
    send(listener, COMMIT)
    send(listener, COMMIT)
    send(listener, {"flow_progress": {"status": "FAILED"}}, "ERROR")
    send(listener, {"flow_progress": {"status": "RETRYING"}}, "WARN")
    with urllib.request.urlopen(f"http://127.0.0.1:{listener.port}/metrics") as answer:
        text = answer.read().decode()
    for line in [
        'waxlake_rows_total{table="orders"} 10.0',
        'waxlake_rows_dropped_total{table="orders"} 4.0',
        'waxlake_rows_quarantined_total{table="orders"} 2.0',
        'waxlake_backlog_records{table="orders"} 40.0',
        'waxlake_table_version{table="orders"} 7.0',
        'waxlake_rule_violations_total{action="drop",rule="paid",table="orders"} 4.0',
        'waxlake_failures_total{table="orders"} 1.0',
        'waxlake_retries_total{table="orders"} 1.0',
    ]:
        assert line in text


def test_a_taken_port_is_an_error_with_a_remedy() -> None:
    listener = MetricsListener(0)
    with pytest.raises(TerminalError, match="METRICS_PORT"):
        MetricsListener(listener.port)
