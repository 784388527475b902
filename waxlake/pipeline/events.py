"""The event log: what runs say about themselves, as a Delta table.

``EventLog`` is a listener of a run and never stops the data. What a crash kept out of it is taken from the tables' own
commits by ``backfill_from_commits``, so its quality figures agree with the data.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from datetime import timezone
from typing import Any

from waxlake.pipeline.commits import Commit, commits_since
from waxlake.pipeline.event import EVENT_TYPES, Event, Level, make_event, progress_events
from waxlake.pipeline.event_table import EventTable
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import WaxlakeError
from waxlake.stream.settings import redact

__all__ = [
    "EVENT_TYPES",
    "Event",
    "EventLog",
    "Level",
    "backfill_from_commits",
    "make_event",
    "progress_events",
    "read_events",
]

_log = logging.getLogger("waxlake.events")
_MAX_WAIT_S = 10.0


class EventLog:
    """Keeps events in a Delta table. A listener: ``on_event`` takes an event, never waits and never raises.

    One background thread appends what has come in, one commit a flush. When the store is in trouble, it is tried again
    until ``close``; meanwhile progress events beyond ``capacity`` are left out (the next start takes them from the
    commits), life-cycle events never.

    Args:
        location: The events table; created when it is not there.
        flush_interval_s: Seconds between two flushes.
        capacity: Progress events held in memory.
    """

    def __init__(self, location: TableLocation, *, flush_interval_s: float = 1.0, capacity: int = 10_000) -> None:
        self._table, self._interval_s, self._capacity = EventTable(location), flush_interval_s, capacity
        self._lock = threading.Lock()
        self._queue: list[Event] = []
        self._pending: list[Event] = []
        self._incomplete: set[str] = set()
        self._seen: dict[str, tuple[int, int]] = {}
        self._complete: dict[str, int] = {}
        self._closing = threading.Event()
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name="event-log", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Take one event; safe from any thread."""
        with self._lock:
            if event.is_commit and event.dataset:
                if event.dataset in self._incomplete or len(self._queue) + len(self._pending) >= self._capacity:
                    self._incomplete.add(event.dataset)
                    return
                self._note_version(event.dataset, event)
            self._queue.append(event)

    on_event = record

    def close(self, timeout_s: float = 10.0) -> int:
        """Write what is left and stop; a warning says what could not be written.

        Args:
            timeout_s: Seconds after which a store that does not answer is given up.

        Returns:
            Events that are not in the table. Progress is completed from the commits at the next start.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        with self._lock:
            lost = len(self._queue) + len(self._pending)
            if lost:
                _log.warning("%d events are not in the event log at %s", lost, self._table.location.uri)
            self._queue, self._pending = [], []
        return lost

    def _note_version(self, dataset: str, event: Event) -> None:
        """Remember up to which version every flow of a commit has been reported."""
        version, seen = int(event.progress["table_version"]), 1
        if dataset in self._seen and self._seen[dataset][0] == version:
            seen = self._seen[dataset][1] + 1
        self._seen[dataset] = (version, seen)
        if seen >= int(event.progress.get("flows_in_commit", 1)):
            self._complete[dataset] = version

    def _work(self) -> None:
        wait_s = self._interval_s
        while not self._closing.wait(wait_s):
            wait_s = self._interval_s if self._flush() else min(max(wait_s * 2, 0.1), _MAX_WAIT_S)
        if not self._flush():
            time.sleep(0.2)
            self._flush()
        self._table.tidy()

    def _flush(self) -> bool:
        """Append what has come in; return whether the table took it."""
        with self._lock:
            self._pending += self._queue
            self._queue = []
            batch, versions = list(self._pending), dict(self._complete)
            self._complete = {}
        if not batch:
            return True
        try:
            self._table.append([_row(event) for event in batch], versions)
        except Exception as exc:  # noqa: BLE001 - the boundary of a thread: an event log in trouble must never stop the data
            with self._lock:
                self._complete = {**versions, **self._complete}
            if not self._has_warned:
                _log.warning("the event log is not written at the moment; trying again: %s", exc)
                self._has_warned = True
            return False
        self._has_warned = False
        with self._lock:
            self._pending = self._pending[len(batch) :]
        return True


def _row(event: Event) -> dict[str, Any]:
    return {
        **event.to_dict(),
        "timestamp": event.timestamp,
        "details": json.dumps(dict(event.details), default=str, ensure_ascii=False),
        "error": None if event.error is None else json.dumps(redact(event.error), default=str, ensure_ascii=False),
    }


def read_events(
    location: TableLocation, *, event_type: str | Sequence[str] | None = None, limit: int | None = None
) -> list[Event]:
    """Return events in their order, each once; the newest ``limit`` if given. Without a log: none.

    Raises:
        ExternalError: The log cannot be read.
    """
    types = [event_type] if isinstance(event_type, str) else event_type
    rows = EventTable(location).rows(event_types=types)
    unique = list({row["id"]: row for row in rows}.values())
    chosen = unique if limit is None else unique[max(0, len(unique) - limit) :]
    return [
        Event(
            **{
                **row,
                "timestamp": row["timestamp"].astimezone(timezone.utc),
                "details": json.loads(row["details"] or "{}"),
                "error": json.loads(row["error"]) if row["error"] else None,
            }
        )
        for row in chosen
    ]


def backfill_from_commits(
    events_location: TableLocation, table_location: TableLocation, *, pipeline: str, limit: int = 1000
) -> list[Event]:
    """Return the events of a table's commits that a crash kept out of the event log, to be recorded by the caller.

    Called at the start of a run for each stored table. The event log holds, as a ``txn`` for each table, the version up
    to which it is complete, so that nothing is read when nothing is missing.

    Args:
        events_location: The event log; it need not exist.
        table_location: The table; its name is the dataset.
        pipeline: Pipeline name.
        limit: Commits looked at, at most.
    """
    try:
        if not table_location.exists():
            return []
        done = EventTable(events_location).completed_version(table_location.label)
        commits = commits_since(table_location, -1 if done is None else done, limit=limit)
    except WaxlakeError as error:
        _log.warning("the event log is not completed: %s", error)
        return []
    told = [commit for commit in commits if not commit.is_refill]  # those that filled it were reported by their update
    return [event for commit in told for event in _events_of(commit, table_location.label, pipeline)]


def _events_of(commit: Commit, table: str, pipeline: str) -> list[Event]:
    return progress_events(
        commit.receipt(table), pipeline=pipeline, update_id=commit.run, committed_at=commit.committed_at
    )
