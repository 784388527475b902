"""What changed in a flow's definition since its table's last commit, and what that means for the rows already there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltalake import DeltaTable

from waxlake.pipeline.events import Event, read_events
from waxlake.pipeline.fingerprint import ASPECTS, flow_fingerprint, flow_text
from waxlake.pipeline.graph import Dataset, Flow
from waxlake.stream.position import definition_app_id

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.graph import Graph

__all__ = ["Change", "FlowHistory", "definition_changes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One aspect of a definition that is not what it was.

    Attributes:
        code: ``QUERY_CHANGED``, ``SOURCES_CHANGED``, ``EXPECTATIONS_CHANGED``, ``SCHEMA_CHANGED``, ``KEYS_CHANGED``,
            ``PARTITIONING_CHANGED``; ``DEFINITION_CHANGED`` where the event log no longer knows the old one.
        aspect: ``query`` and so on; empty if it is not known which.
        diff: Lines that went (``- ``) and came (``+ ``).
        meaning: What an update does with it, and what stays as it is.
    """

    code: str
    aspect: str
    diff: tuple[str, ...] = ()
    meaning: str = ""


@dataclass(slots=True)
class FlowHistory:
    """What the event log remembers of the flows of a pipeline; read when first needed.

    Args:
        graph: The pipeline as it is now.
    """

    graph: Graph
    _events: list[Event] | None = None
    _by_fingerprint: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def text(self, flow: str, fingerprint: int) -> Mapping[str, Any] | None:
        """Return the definition behind a fingerprint; None if the event log does not have it."""
        self._read()
        return self._by_fingerprint.get((flow, fingerprint))

    def gone(self) -> list[str]:
        """Return what became of flows of the last update that are no longer defined, and what to do."""
        now = {flow.name: flow for dataset in self.graph.datasets.values() for flow in dataset.flows}
        return [self._vanished(event, now) for event in self._last_update() if event.flow and event.flow not in now]

    def _vanished(self, event: Event, now: Mapping[str, Flow]) -> str:
        inputs = set((event.details.get("flow_definition") or {}).get("inputs") or ())
        known = {other.flow for other in self._last_update()}
        for flow in now.values():
            if flow.name in known or set(flow.inputs) != inputs or not inputs:
                continue
            if flow.target == event.dataset:
                return (
                    f"flow '{event.flow}' is gone, and flow '{flow.name}' reads the same sources into table "
                    f"'{flow.target}': if it was renamed, it would read them from the beginning and store every row again. "
                    f"Keep the name, with name='{event.flow}', to go on where it stood"
                )
            if event.dataset not in self.graph.datasets:
                return (
                    f"table '{event.dataset}' is gone, and table '{flow.target}' is filled from the same sources: if it was "
                    f"renamed, it begins empty and reads them from the beginning. Keep the name '{event.dataset}', or "
                    "leave it so and delete the old table's folder"
                )
        return f"flow '{event.flow}' into table '{event.dataset}' is gone: its rows and positions stay, nothing is read for it"

    def _last_update(self) -> list[Event]:
        events = [event for event in self._read() if event.pipeline == self.graph.spec.name]
        return [event for event in events if event.update_id == events[-1].update_id]

    def _read(self) -> list[Event]:
        if self._events is None:
            self._events = read_events(self.graph.spec.events_location(), event_type="flow_definition")
            for event in self._events:
                facts = event.details.get("flow_definition") or {}
                if event.flow and facts.get("fingerprint") is not None:
                    self._by_fingerprint[event.flow, int(facts["fingerprint"])] = facts.get("definition") or {}
        return self._events


def definition_changes(
    checked: CheckedGraph, dataset: Dataset, flow: Flow, handle: DeltaTable, history: FlowHistory
) -> list[Change]:
    """Return what changed in a flow since it last committed to its table; nothing for one that never did."""
    now = flow_text(checked, dataset, flow)
    stored = handle.transaction_version(definition_app_id(flow.name))
    if stored is None or stored == flow_fingerprint(now):
        return []
    before = history.text(flow.name, stored)
    if before is None:
        return [Change(code="DEFINITION_CHANGED", aspect="", meaning=_meaning(dataset, "query"))]
    return list(_compared(dataset, before, now))


_MEANING = {
    "query": "Rows read from now on go through the new one; rows that are there keep the old one. "
    "waxlake run --full-refresh {table} applies it to all",
    "expectations": "Rows read from now on are checked by the new rules; rows that are there are not checked again. "
    "waxlake run --full-refresh {table} applies them to all",
    "sources": "The update refuses it (FLOW_SOURCES_CHANGED): positions belong to the old sources. Feed the table from a "
    "further source with wl.append_flow, or give the flow a new name to start anew",
    "schema": "New columns are added with the first rows that have them, and are NULL in older ones; a column of another "
    "type is refused (SCHEMA_CHANGED). waxlake run --full-refresh {table} applies it to all",
    "keys": "Changes read from now on are merged by the new ones; rows that are there were merged by the old ones. "
    "waxlake run --full-refresh {table} merges everything anew",
    "partitioning": "The stored table keeps its partitioning. waxlake run --full-refresh {table} changes it",
}
_VIEW_MEANING = "The view is computed anew from its inputs as they are now"


def _meaning(dataset: Dataset, aspect: str) -> str:
    if dataset.kind == "sink":
        return "What is handed over from now on follows the new one"
    return _MEANING[aspect].format(table=dataset.name) if dataset.kind == "table" else _VIEW_MEANING


def _compared(dataset: Dataset, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    for aspect in ASPECTS:
        old, new = _lines(before.get(aspect)), _lines(now[aspect])
        if old == new:
            continue
        meaning = _meaning(dataset, aspect)
        diff = tuple(line for line in difflib.ndiff(old, new) if line[:2] in ("- ", "+ "))
        yield Change(code=f"{aspect.upper()}_CHANGED", aspect=aspect, diff=diff, meaning=meaning)


def _lines(value: Any) -> Sequence[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [f"{key} {item}" for key, item in value.items() if item not in (None, [], False)]
    return [line for item in value for line in str(item).splitlines()]
