"""Which flows of a run read together: one read of a source serves all that ask the same of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.definitions import MapBatches, TableRead, located
from waxlake.stream.source import Connector, Sharing

__all__ = ["SourceGroup", "calls_functions", "is_view", "source_groups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGroup:
    """Flows that share one read.

    Attributes:
        key: Name of the read within the run; the same in every process.
        flows: The flows; their reads and gates are equal, or they take parts of one shared source.
        connector: The source of all of them.
        gates: Datasets that must be up to date before a triggered run reads.
    """

    key: str
    flows: tuple[CheckedFlow, ...]
    connector: Connector
    gates: tuple[str, ...] = ()

    @property
    def columns(self) -> frozenset[str]:
        """Source columns that any flow uses."""
        return frozenset().union(*(part.columns for part in self.flows))

    @property
    def is_once(self) -> bool:
        """Whether its flows end for good when they have read what the source holds."""
        return self.flows[0].flow.once

    @property
    def is_view(self) -> bool:
        """Whether it is the query of a materialized view."""
        return is_view(self.flows[0])


def source_groups(checked: CheckedGraph) -> list[SourceGroup]:
    """Return the reads of a pipeline; flows with an equal read and equal gates share one, and parts of a shared source do.

    Raises:
        UserError: Reads of one shared source contradict each other. Not retryable.
    """
    grouped: list[list[CheckedFlow]] = []
    for part in checked.selected_flows:
        for group in grouped:
            if _shares_read(group[0], part) and not _reads_alone(checked, group[0], part):
                group.append(part)
                break
        else:
            grouped.append([part])
    return [
        SourceGroup(
            key=f"read_{i:03d}", flows=tuple(group), connector=_group_connector(group), gates=_gates(checked, group)
        )
        for i, group in enumerate(grouped)
    ]


def _shares_read(one: CheckedFlow, other: CheckedFlow) -> bool:
    if one.flow.once != other.flow.once:
        return False
    if isinstance(one.connector, Sharing):
        return isinstance(other.connector, Sharing) and one.connector.source_key() == other.connector.source_key()
    return one.read == other.read and one.gates == other.gates and one.fixed == other.fixed


def _reads_alone(checked: CheckedGraph, one: CheckedFlow, other: CheckedFlow) -> bool:
    """Return whether two flows read a table each by itself: one that may be slow would hold back the other."""
    if not isinstance(one.read, TableRead):
        return False
    return any(
        calls_functions(part) or checked.graph.datasets[part.flow.target].definition.sink is not None
        for part in (one, other)
    )


def calls_functions(part: CheckedFlow) -> bool:
    """Return whether the work of a flow is a user's, and takes as long as that takes."""
    return any(isinstance(step, MapBatches) for step in part.transform.steps)


def _group_connector(group: Sequence[CheckedFlow]) -> Connector:
    first = group[0].connector
    if isinstance(first, Sharing) and len(group) > 1:
        with located(group[0].flow.where):
            return first.together([part.connector for part in group[1:]])
    return first


def _gates(checked: CheckedGraph, group: Sequence[CheckedFlow]) -> tuple[str, ...]:
    """Return what a read waits for. What it feeds itself, by another of its parts, it cannot wait for."""
    gates = tuple(dict.fromkeys(name for part in group for name in part.gates))
    if not isinstance(group[0].connector, Sharing):
        return gates
    fed = {part.flow.target for part in group}
    for name in checked.graph.order:
        if fed.intersection(checked.graph.upstream(name)):
            fed.add(name)
    return tuple(name for name in gates if name not in fed)


def is_view(part: CheckedFlow) -> bool:
    """Return whether a flow is the query of a materialized view."""
    return isinstance(part.read, TableRead) and part.read.name.startswith("view:")
