"""Progress listeners: what people and machines read, and that a reader who leaves stops nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from waxlake.pipeline.events import Event, make_event
from waxlake.pipeline.progress import JsonProgress, LineProgress, Listener, TerminalProgress


def event(event_type: str, message: str = "", *, update_id: str = "u1", **options: Any) -> Event:
    return make_event(event_type, message or event_type, pipeline="p", update_id=update_id, **options)


def commit(
    rows: int, *, table: str = "orders", failed: int = 1, backlog: int | None = 40, update_id: str = "u1"
) -> Event:
    progress = {
        "status": "RUNNING",
        "metrics": {
            "num_output_rows": rows,
            "num_quarantined_rows": 2,
            "num_read_records": rows + 3,
            "backlog_records": backlog,
            "backlog_files": None,
            "backlog_bytes": None,
        },
        "data_quality": {
            "dropped_records": 1,
            "expectations": [
                {"name": "paid", "dataset": table, "action": "drop", "passed_records": rows, "failed_records": failed}
            ],
        },
        "table_version": 1,
    }
    return event(
        "flow_progress",
        level="METRICS",
        dataset=table,
        flow=table,
        details={"flow_progress": progress},
        update_id=update_id,
    )


def ended(state: str = "COMPLETED") -> Event:
    details = {"update_progress": {"state": state, "duration_s": 3.25}}
    return event("update_progress", f"update is {state}", details=details)


def tell(listener: Listener, *events: Event) -> None:
    for one in events:
        listener.on_event(one)
    listener.close()


def test_lines_are_few_and_end_in_a_summary() -> None:
    out = io.StringIO()

    tell(LineProgress(out), event("create_update", "update u1 starts"), *(commit(1000) for _ in range(5)), ended())

    lines = out.getvalue().splitlines()
    assert lines[0].endswith("update u1 starts")
    assert lines[1:] == [
        "update completed in 3.2 s",
        "  orders         5,000 rows, 5 dropped, 10 quarantined",
        "            rule paid (drop): 5 of 5,005 rows broke it",
    ]


def test_a_line_about_a_table_comes_every_few_seconds() -> None:
    out = io.StringIO()
    listener = LineProgress(out, interval_s=0.05)
    listener.on_event(commit(10))
    time.sleep(0.06)
    listener.on_event(commit(10))
    listener.on_event(commit(10))

    assert out.getvalue().splitlines()[0].endswith("orders: 20 rows, 2 violations, 40 records to go")
    assert len(out.getvalue().splitlines()) == 1


def test_warnings_and_failures_are_always_shown() -> None:
    out = io.StringIO()
    failed = event(
        "flow_progress", "disk full", level="ERROR", dataset="a", details={"flow_progress": {"status": "FAILED"}}
    )
    lost = event("data_loss", "3 lost", level="WARN", dataset="b", details={"data_loss": {"lost_positions": 3}})

    tell(LineProgress(out), failed, lost, commit(5, table="b"), ended("FAILED"))

    text = out.getvalue()
    assert "ERROR disk full" in text
    assert "WARN 3 lost" in text
    assert "update failed in" in text
    assert "0 rows, failed" in text
    assert "3 positions lost at the source" in text


def test_events_that_complete_the_log_are_not_counted() -> None:
    out = io.StringIO()

    tell(LineProgress(out), event("create_update"), commit(999, update_id="u0"), commit(5), ended())

    assert "5 rows" in out.getvalue()
    assert "999" not in out.getvalue()


def test_nothing_new_is_said_in_one_line() -> None:
    out = io.StringIO()

    tell(LineProgress(out), event("create_update"), ended())

    assert out.getvalue().splitlines()[-1] == "update completed in 3.2 s: nothing new"


def test_json_is_one_event_a_line_and_nothing_else() -> None:
    out = io.StringIO()

    tell(JsonProgress(out), event("create_update"), commit(5), ended())

    assert [json.loads(line)["event_type"] for line in out.getvalue().splitlines()] == [
        "create_update",
        "flow_progress",
        "update_progress",
    ]


def test_a_short_run_draws_nothing() -> None:
    out = io.StringIO()

    tell(TerminalProgress(out), event("create_update"), commit(1000), ended())

    assert out.getvalue().splitlines()[0] == "update completed in 3.2 s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_run_is_drawn_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    listener = TerminalProgress(out, show_after_s=0)
    listener.on_event(event("create_update"))
    listener.on_event(commit(1234))
    deadline = time.monotonic() + 10
    while "1,234" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    listener.on_event(event("flow_progress", "try again", level="WARN", dataset="orders"))
    listener.on_event(ended())
    listener.close()

    text = out.getvalue()
    assert "rows/s" in text
    assert "40 records" in text
    assert "WARN try again" in text
    assert text.splitlines()[-1].strip().startswith("rule paid")


@pytest.mark.parametrize("listener", ["JsonProgress", "LineProgress", "TerminalProgress"])
def test_a_reader_who_leaves_stops_nothing(listener: str) -> None:
    script = f"""
import sys
from waxlake.pipeline.events import make_event
from waxlake.pipeline.progress import {listener}
sys.stdin.readline()
listener = {listener}()
for n in range(1000):
    listener.on_event(make_event("create_update", "x" * 100, pipeline="p", update_id="u"))
listener.close()
sys.stderr.write("reached the end")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"go\n", timeout=60)

    assert errors.decode() == "reached the end"
    assert process.returncode == 0


def test_a_closed_stream_is_no_error() -> None:
    out = io.StringIO()
    listener = LineProgress(out)
    out.close()

    tell(listener, event("create_update"), ended())
