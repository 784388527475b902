"""What of an update is tried again: only what failed for a reason that may pass, and what waited for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from waxlake.pipeline.events import read_events
from waxlake.pipeline.selection import is_stored
from waxlake.stream.errors import UsageError, WaxlakeError

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.graph import Graph
    from waxlake.pipeline.spec import Spec

__all__ = ["back_off_s", "failed_tables", "survivors", "to_retry"]

_DOUBLINGS: Final = 100  # a continuous run tries again for ever, and numbers end


def to_retry(graph: Graph, failures: Mapping[str, WaxlakeError], skipped: Collection[str]) -> tuple[str, ...]:
    """Return the tables to bring up to date once more: none that failed for good, and none that depends on one."""
    lost = _lost(graph, failures)
    return tuple(name for name in graph.order if name not in lost and (name in failures or name in skipped))


def survivors(checked: CheckedGraph, failures: Mapping[str, WaxlakeError]) -> tuple[str, ...]:
    """Return the tables of the update that can go on: all but those that failed for good, and those that depend on them."""
    lost = _lost(checked.graph, failures)
    return tuple(
        name
        for name in checked.graph.order
        if is_stored(checked.graph, name) and checked.is_selected(name) and name not in lost
    )


def _lost(graph: Graph, failures: Mapping[str, WaxlakeError]) -> frozenset[str]:
    lost = {name for name, error in failures.items() if not error.is_retryable}
    for name in graph.order:
        if lost.intersection(graph.upstream(name)):
            lost.add(name)
    return frozenset(lost)


def back_off_s(spec: Spec, attempt: int) -> float:
    """Return the seconds to wait before a retry, the first being 0."""
    return float(min(spec.retry_wait * 2.0 ** min(attempt, _DOUBLINGS), spec.retry_max_wait))


def failed_tables(spec: Spec, graph: Graph) -> tuple[str, ...]:
    """Return the tables that failed or were skipped in the last update; all if it failed as a whole.

    Raises:
        UsageError: ``NOTHING_FAILED``: the last update has no failed table. Not retryable.
        ExternalError: The event log cannot be read.
    """
    types = ("create_update", "update_progress", "flow_progress")
    events = [event for event in read_events(spec.events_location(), event_type=types) if event.pipeline == spec.name]
    started = [event.update_id for event in events if event.event_type == "create_update"]
    last = [event for event in events if started and event.update_id == started[-1]]
    statuses: dict[str, str] = {}
    state = ""
    for event in last:
        if event.event_type == "update_progress":
            state = str((event.details.get("update_progress") or {}).get("state", state))
        elif event.dataset and "status" in event.progress:
            statuses[event.dataset] = str(event.progress["status"])
    stored = [name for name in graph.order if graph.datasets[name].kind in ("table", "materialized_view")]
    failed = tuple(name for name in stored if statuses.get(name) in ("FAILED", "SKIPPED"))
    if failed or state not in ("COMPLETED", "CANCELED"):
        return failed or tuple(stored)
    raise UsageError(
        "--refresh-failed has nothing to do",
        code="NOTHING_FAILED",
        found=f"the last update is {state}" if state else "no update yet",
        expected="an update with tables that failed or were skipped",
    )
