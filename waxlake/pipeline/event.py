"""One event of a run, and how a commit becomes events. Made by a run, handed to its listeners, kept by the event log."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from sinks.delta.protocol import CommitReceipt

__all__ = ["EVENT_TYPES", "Event", "Level", "make_event", "progress_events"]

Level = Literal["INFO", "WARN", "ERROR", "METRICS"]
EVENT_TYPES = (
    "create_update",
    "update_progress",
    "flow_progress",
    "flow_definition",
    "dataset_definition",
    "operation_progress",
    "planning_information",
    "data_loss",
    "schema_evolution",
    "user_action",
    "expectation_violation",
)
_IDS = uuid.UUID("5d6c9f0e-3c0f-4f0b-9b1e-7a4c0b6f1f63")
_KINDS = ("upserted", "deleted", "late", "untimed", "future", "state")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        id: Unique; the same for the same commit and flow, whoever reports it.
        sequence: Microseconds since 1970, made unique within a process: the order of events.
        timestamp: When, aware, in UTC.
        event_type: One of ``EVENT_TYPES``.
        level: ``INFO``, ``WARN``, ``ERROR`` or ``METRICS``.
        message: For people.
        pipeline: Pipeline name.
        update_id: The update it belongs to.
        dataset: Table or view, or None.
        flow: Flow, or None.
        details: Figures, under a key equal to the event type.
        error: ``code`` and ``message``, or None.
    """

    id: str
    sequence: int
    timestamp: datetime
    event_type: str
    level: str
    message: str
    pipeline: str
    update_id: str
    dataset: str | None = None
    flow: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "sequence": self.sequence,
            "timestamp": self.timestamp.isoformat().replace("+00:00", "Z"),
            "event_type": self.event_type,
            "level": self.level,
            "message": self.message,
            "pipeline": self.pipeline,
            "update_id": self.update_id,
            "dataset": self.dataset,
            "flow": self.flow,
            "details": dict(self.details),
            "error": None if self.error is None else dict(self.error),
        }

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_dict(), default=str, ensure_ascii=False)

    @property
    def progress(self) -> Mapping[str, Any]:
        """``details.flow_progress``, or nothing."""
        progress: Mapping[str, Any] = self.details.get("flow_progress") or {}
        return progress

    @property
    def is_commit(self) -> bool:
        """Whether it reports what one flow had in one commit."""
        return self.event_type == "flow_progress" and "table_version" in self.progress


class _Sequence:
    """Gives out increasing numbers close to the clock."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            return self._last


_sequence = _Sequence()


def make_event(
    event_type: str,
    message: str,
    *,
    pipeline: str,
    update_id: str,
    level: str = "INFO",
    dataset: str | None = None,
    flow: str | None = None,
    details: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> Event:
    """Return an event of now."""
    sequence = _sequence.next()
    return Event(
        id=str(uuid.uuid4()),
        sequence=sequence,
        timestamp=_EPOCH + timedelta(microseconds=sequence),
        event_type=event_type,
        level=level,
        message=message,
        pipeline=pipeline,
        update_id=update_id,
        dataset=dataset,
        flow=flow,
        details=dict(details or {}),
        error=error,
    )


def progress_events(
    receipt: CommitReceipt, *, pipeline: str, update_id: str, committed_at: datetime | None = None
) -> list[Event]:
    """Return what one commit is to the event log: a ``flow_progress`` a flow, and what was skipped as ``data_loss``.

    Args:
        receipt: The commit.
        pipeline: Pipeline name.
        update_id: The update that committed.
        committed_at: When, if not now.
    """
    flows: Mapping[str, Any] = receipt.metadata.get("flows") or {}
    sizes = _shares(receipt.size_bytes, [int(facts.get("rows", 0)) for facts in flows.values()])
    events = []
    for (flow, facts), size in zip(flows.items(), sizes, strict=True):
        origin = {"pipeline": pipeline, "update_id": update_id, "dataset": receipt.table, "flow": flow}
        commit = f"{receipt.metadata.get('commit_id') or uuid.uuid4().hex}/{flow}"
        events.append(
            _commit_event(
                "flow_progress",
                f"table {receipt.table}: {facts.get('rows', 0):,} rows at version {receipt.version}",
                "METRICS",
                _progress(receipt, facts, size, len(flows)),
                commit,
                committed_at,
                origin,
            )
        )
        if "refresh" in facts:
            events.append(
                _commit_event(
                    "planning_information",
                    f"view {receipt.table}: {_refresh(facts['refresh'])}",
                    "INFO",
                    {"refresh": facts["refresh"], "table_version": receipt.version},
                    f"{commit}/refresh",
                    committed_at,
                    origin,
                )
            )
        for number, lost in enumerate(facts.get("skipped") or ()):
            events.append(
                _commit_event(
                    "data_loss",
                    f"table {receipt.table}: {_loss(lost)}",
                    "WARN",
                    {**lost, **_extent(lost), "table_version": receipt.version},
                    f"{commit}/lost/{number}",
                    committed_at,
                    origin,
                )
            )
    return events


def _refresh(facts: Mapping[str, Any]) -> str:
    """Return how a view was refreshed, for people."""
    if facts["mode"] == "FULL":
        return f"recomputed in full, {facts['reason']}{': ' + facts['detail'] if facts['detail'] else ''}"
    return (
        f"refreshed incrementally ({facts['technique']}), {facts['rows_added']:,} rows came and {facts['rows_removed']:,} went "
        f"for {facts['changed_bytes']:,} of {facts['input_bytes']:,} bytes of its inputs"
    )


def _extent(lost: Mapping[str, Any]) -> dict[str, int]:
    """Return how much was lost: positions of a file are not dense, so it counts as one."""
    start, end = lost["positions"]
    return {"left_out_files": 1} if "file" in lost else {"lost_positions": end - start}


def _loss(lost: Mapping[str, Any]) -> str:
    if "file" in lost:
        return f"file '{lost['file']}' is left out, as its source's options ask: {lost['error']}"
    start, end = lost["positions"]
    return (
        f"positions {start} to {end} of {lost['source']} partition {lost['partition']} were gone at the source and were "
        "skipped, as on_data_loss='skip' asks"
    )


def _commit_event(
    event_type: str,
    message: str,
    level: str,
    details: dict[str, Any],
    key: str,
    at: datetime | None,
    origin: Mapping[str, Any],
) -> Event:
    sequence = _sequence.next() if at is None else (at - _EPOCH) // timedelta(microseconds=1)
    return Event(
        id=str(uuid.uuid5(_IDS, key)),
        sequence=sequence,
        timestamp=_EPOCH + timedelta(microseconds=sequence),
        event_type=event_type,
        level=level,
        message=message,
        details={event_type: details},
        **origin,
    )


def _progress(receipt: CommitReceipt, facts: Mapping[str, Any], size_bytes: int, flow_count: int) -> dict[str, Any]:
    sources = facts.get("sources") or []
    return {
        "status": "RUNNING",
        "metrics": {
            "num_output_rows": facts.get("rows", 0),
            "num_output_bytes": size_bytes,
            "num_quarantined_rows": facts.get("quarantined", 0),
            **{f"num_{kind}_rows": facts[kind] for kind in _KINDS if kind in facts},
            "num_read_records": facts.get("read", 0),
            "backlog_records": _backlog(sources, "records"),
            "backlog_files": _backlog(sources, "files"),
            "backlog_bytes": _backlog(sources, "bytes"),
        },
        "data_quality": {
            "dropped_records": facts.get("dropped", 0),
            "expectations": [
                {
                    "name": rule["rule"],
                    "dataset": rule["dataset"],
                    "action": rule["action"],
                    "passed_records": rule["passed"],
                    "failed_records": rule["failed"],
                }
                for rule in facts.get("rules") or ()
            ],
        },
        "positions": [
            {"source": s["source"], "partition": s["partition"], "start": s["start"], "end": s["end"]} for s in sources
        ],
        "table_version": receipt.version,
        "flows_in_commit": flow_count,
    }


def _backlog(sources: Sequence[Mapping[str, Any]], kind: str) -> int | None:
    """Return the sum over partitions; None when no partition can tell."""
    known = [value for s in sources if (value := (s.get("backlog") or {}).get(kind)) is not None]
    return sum(known) if known else None


def _shares(total: int, rows: Sequence[int]) -> list[int]:
    """Divide the bytes of a commit among its flows by their rows; the shares add up to the total."""
    if not rows:
        return []
    whole = sum(rows)
    shares = [total * n // whole if whole else 0 for n in rows]
    shares[rows.index(max(rows))] += total - sum(shares)
    return shares
