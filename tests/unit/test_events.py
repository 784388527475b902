"""Events and the event log: what a commit becomes, nothing lost by a crash or a store in trouble, nothing twice."""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake

from sinks.delta import CommitReceipt
from waxlake.pipeline.event_table import EventTable
from waxlake.pipeline.events import (
    Event,
    EventLog,
    backfill_from_commits,
    make_event,
    progress_events,
    read_events,
)
from waxlake.stream.delta_table import METADATA_KEY, TableLocation


@pytest.fixture
def place(tmp_path: Path) -> TableLocation:
    return TableLocation(str(tmp_path / "events"), name="events")


def facts(*, rows: int = 7, skipped: list[Any] | None = None) -> dict[str, Any]:
    return {
        "read": 10,
        "rows": rows,
        "dropped": 1,
        "quarantined": 2,
        "skipped": skipped or [],
        "rules": [{"dataset": "orders", "rule": "paid", "action": "drop", "passed": 9, "failed": 1}],
        "sources": [
            {
                "source": "s",
                "partition": "0",
                "start": 0,
                "end": 10,
                "backlog": {"records": 5, "files": None, "bytes": None},
            },
            {"source": "s", "partition": "1", "start": 3, "end": 4},
        ],
    }


def receipt(
    version: int, *, table: str = "orders", flows: dict[str, Any] | None = None, size: int = 100
) -> CommitReceipt:
    metadata = {"commit_id": f"{table}-{version}", "run": "u1", "flows": flows or {table: facts()}}
    return CommitReceipt(
        table=table, version=version, rows=7, size_bytes=size, quarantined=2, duration_s=0.1, metadata=metadata
    )


def progress(version: int, **options: Any) -> list[Event]:
    return progress_events(receipt(version, **options), pipeline="p", update_id="u1")


def life(message: str = "update is RUNNING") -> Event:
    return make_event("update_progress", message, pipeline="p", update_id="u1")


def commit_rows(location: TableLocation, *flows: str) -> None:
    """Commit as a sink does, its facts in the commit's metadata."""
    known = location.exists()
    version = location.open().version() + 1 if known else 0
    metadata = {"commit_id": f"c{version}", "run": "u1", "flows": {flow: facts() for flow in flows}}
    write_deltalake(
        location.uri,
        pa.table({"a": [1]}),
        mode="append",
        commit_properties=CommitProperties(custom_metadata={METADATA_KEY: metadata} if flows else None),
    )


# -- what a commit becomes


def test_c28_p102_a_commit_becomes_one_progress_event_a_flow() -> None:
    (event,) = progress(4)

    assert (event.event_type, event.level, event.dataset, event.flow) == (
        "flow_progress",
        "METRICS",
        "orders",
        "orders",
    )
    assert event.timestamp.utcoffset() == timedelta(0)
    assert event.progress["table_version"] == 4
    assert event.progress["metrics"] == {
        "num_output_rows": 7,
        "num_output_bytes": 100,
        "num_quarantined_rows": 2,
        "num_read_records": 10,
        "backlog_records": 5,
        "backlog_files": None,
        "backlog_bytes": None,
    }
    assert event.progress["data_quality"] == {
        "dropped_records": 1,
        "expectations": [
            {"name": "paid", "dataset": "orders", "action": "drop", "passed_records": 9, "failed_records": 1}
        ],
    }
    assert event.progress["positions"][1] == {"source": "s", "partition": "1", "start": 3, "end": 4}


def test_the_bytes_of_a_commit_are_divided_among_its_flows() -> None:
    events = progress(1, flows={"a": facts(rows=1), "b": facts(rows=2), "c": facts(rows=0)}, size=100)

    sizes = [event.progress["metrics"]["num_output_bytes"] for event in events]
    assert sum(sizes) == 100
    assert sizes[2] == 0


def test_skipped_positions_are_a_data_loss() -> None:
    lost = {"source": "s", "partition": "0", "positions": [3, 9]}

    events = progress(1, flows={"f": facts(skipped=[lost])})

    assert [event.event_type for event in events] == ["flow_progress", "data_loss"]
    assert events[1].level == "WARN"
    assert events[1].details["data_loss"]["lost_positions"] == 6
    assert "3 to 9" in events[1].message


def test_events_are_ordered_and_are_json() -> None:
    events = [life() for _ in range(1000)]

    assert [e.sequence for e in events] == sorted({e.sequence for e in events})
    decoded = json.loads(progress(0)[0].to_json())
    assert decoded["timestamp"].endswith("Z")
    assert decoded["details"]["flow_progress"]["table_version"] == 0


# -- the log


def test_p101_events_come_back_as_they_were(place: TableLocation) -> None:
    log = EventLog(place)
    events = [life(), *progress(0)]
    failed = make_event(
        "flow_progress",
        "it failed",
        pipeline="p",
        update_id="u1",
        level="ERROR",
        dataset="orders",
        details={"flow_progress": {"status": "FAILED"}},
        error={"code": "X", "message": "m"},
    )
    events.append(failed)
    for event in events:
        log.on_event(event)

    assert log.close() == 0
    assert read_events(place) == events
    assert [e.id for e in read_events(place, event_type="flow_progress")] == [e.id for e in events[1:]]
    assert [e.id for e in read_events(place, limit=1)] == [failed.id]


def test_without_a_log_there_are_no_events(place: TableLocation) -> None:
    assert read_events(place) == []
    assert EventTable(place).completed_version("orders") is None


def test_one_flush_is_one_commit(place: TableLocation) -> None:
    log = EventLog(place, flush_interval_s=60)
    for version in range(50):
        log.record(progress(version)[0])
    log.close()

    assert place.open().version() == 1  # 0 created it
    assert EventTable(place).completed_version("orders") == 49


def test_several_writers_at_once_lose_nothing(place: TableLocation) -> None:
    logs = [EventLog(place, flush_interval_s=0.01) for _ in range(4)]

    def write(number: int) -> None:
        for version in range(20):
            for event in progress(version, table=f"t{number}"):
                logs[number].record(event)
            time.sleep(0.005)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [log.close() for log in logs] == [0, 0, 0, 0]
    seen = {(e.dataset, e.progress["table_version"]) for e in read_events(place)}
    assert seen == {(f"t{n}", v) for n in range(4) for v in range(20)}
    assert place.open().to_pyarrow_table().num_rows == 80


def test_a_store_in_trouble_loses_no_life_cycle_event(place: TableLocation, caplog: pytest.LogCaptureFixture) -> None:
    blocked = Path(place.uri)
    blocked.write_text("a file where the table should be")
    log = EventLog(place, flush_interval_s=0.02, capacity=3)
    events = [life(f"n{n}") for n in range(5)]
    with caplog.at_level(logging.WARNING, "waxlake.events"):
        for event in [*events, *progress(0), *progress(1)]:
            log.record(event)
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    blocked.unlink()

    assert log.close() == 0
    assert [event.id for event in read_events(place)] == [event.id for event in events]
    assert EventTable(place).completed_version("orders") is None  # left to the next start
    assert len(caplog.records) == 1


def test_close_says_what_could_not_be_written(place: TableLocation, caplog: pytest.LogCaptureFixture) -> None:
    Path(place.uri).write_text("in the way")
    log = EventLog(place, flush_interval_s=60)
    log.record(life())

    assert log.close() == 1
    assert "1 events are not in the event log" in caplog.text


def test_small_files_are_put_together(place: TableLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waxlake.pipeline.event_table._TIDY_ABOVE_FILES", 5)
    for number in range(8):
        log = EventLog(place, flush_interval_s=60)
        log.record(life(f"n{number}"))
        log.close()

    assert len(place.open().file_uris()) < 6
    assert [event.message for event in read_events(place)] == [f"n{number}" for number in range(8)]


# -- after a crash


def record(place: TableLocation, events: list[Event]) -> None:
    log = EventLog(place)
    for event in events:
        log.record(event)
    log.close()


def versions(events: list[Event]) -> list[int]:
    return [event.progress["table_version"] for event in events]


def test_missing_events_are_taken_from_the_commits(place: TableLocation, tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "orders"), name="orders")
    for _ in range(3):
        commit_rows(table, "orders")

    first = backfill_from_commits(place, table, pipeline="p")
    record(place, first[:2])
    second = backfill_from_commits(place, table, pipeline="p")
    record(place, second)

    assert versions(first) == [0, 1, 2]
    assert {event.update_id for event in first} == {"u1"}
    assert all(event.progress["metrics"]["num_output_bytes"] > 0 for event in first)
    assert versions(second) == [2]
    assert backfill_from_commits(place, table, pipeline="p") == []
    assert versions(read_events(place)) == [0, 1, 2]


def test_a_commit_reported_by_half_is_completed_and_nothing_is_twice(place: TableLocation, tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "orders"), name="orders")
    commit_rows(table, "a", "b")
    both = backfill_from_commits(place, table, pipeline="p")
    record(place, both[:1])

    record(place, backfill_from_commits(place, table, pipeline="p"))

    assert sorted(event.flow or "" for event in read_events(place)) == ["a", "b"]
    assert backfill_from_commits(place, table, pipeline="p") == []


def test_commits_of_others_and_missing_tables_are_no_events(place: TableLocation, tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "orders"), name="orders")
    assert backfill_from_commits(place, table, pipeline="p") == []
    commit_rows(table)
    assert backfill_from_commits(place, table, pipeline="p") == []


def test_a_table_created_anew_is_read_from_its_start(place: TableLocation, tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "orders"), name="orders")
    record(place, progress(40))
    commit_rows(table, "orders")

    assert versions(backfill_from_commits(place, table, pipeline="p")) == [0]


def test_a_log_that_cannot_be_read_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = TableLocation(str(tmp_path / "orders"), name="orders")
    commit_rows(table, "orders")
    broken = tmp_path / "events" / "_delta_log"
    broken.mkdir(parents=True)
    (broken / "00000000000000000000.json").write_text("{not json")

    assert backfill_from_commits(TableLocation(str(tmp_path / "events")), table, pipeline="p") == []
    assert "the event log is not completed" in caplog.text
