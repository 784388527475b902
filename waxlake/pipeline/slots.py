"""The replication slots that a pipeline reads. Called by `waxlake status` and `waxlake slots`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.definitions import DatabaseRead
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from connectors.postgres.slots import SlotStatus
    from waxlake.pipeline.graph import Graph

__all__ = ["drop_pipeline_slot", "pipeline_slots"]


def pipeline_slots(graph: Graph, *, only_used: bool) -> list[SlotStatus]:
    """Return the slots that a pipeline reads, or all slots of its databases.

    Raises:
        ExternalError: A server cannot be asked.
    """
    found: dict[tuple[str, str], SlotStatus] = {}
    for settings in _settings(graph):
        from connectors.postgres.slots import slot_statuses

        for status in slot_statuses(settings, only_used=only_used):
            key = (status.server, status.slot)
            if key not in found or status.is_used:
                found[key] = status
    return [found[key] for key in sorted(found)]


def drop_pipeline_slot(graph: Graph, name: str) -> str:
    """Drop a slot of a database that the pipeline reads; return a sentence that says what was done.

    Raises:
        UsageError: No such slot. Not retryable.
        TerminalError: Somebody reads it. Not retryable.
    """
    from connectors.postgres.slots import drop_slot

    for settings in _settings(graph):
        if drop_slot(settings, name):
            return f"dropped slot {name}"
    known = [status.slot for status in pipeline_slots(graph, only_used=False)]
    raise UsageError(f"no slot {name!r}", code="SLOT_UNKNOWN", remedy=nearest(name, known) if known else "")


def _settings(graph: Graph) -> Iterator[Any]:
    """Return the settings of PostgreSQL reads, one a slot."""
    reads = [branch.read for d in graph.datasets.values() for flow in d.flows for branch in flow.branches]
    seen = set()
    for read in reads:
        if isinstance(read, DatabaseRead) and read.settings.label.startswith("postgres:"):
            settings: Any = read.settings
            key = (settings.dsn.get_secret_value(), settings.slot)
            if key not in seen:
                seen.add(key)
                yield settings
