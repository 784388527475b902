"""The order of a graph's datasets, upstream first; circles and streams of what is not append-only are errors.

Called by the resolver, with the graph otherwise complete.
"""

from __future__ import annotations

from collections.abc import Sequence

from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.graph import Flow, Graph
from waxlake.pipeline.stateful_steps import replaces_rows
from waxlake.pipeline.table_reads import takes_changes
from waxlake.stream.errors import DefinitionError

__all__ = ["circle", "upstream_first"]


def upstream_first(graph: Graph) -> tuple[str, ...]:
    """Return the names upstream first; a cycle is an error, and so is a stream of what is not append-only."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            raise circle([*path[path.index(name) :], name], graph.datasets[name].where)
        path.append(name)
        for upstream in graph.upstream(name):
            visit(upstream)
        path.pop()
        order.append(name)

    for name in graph.datasets:
        visit(name)
    for dataset in graph.datasets.values():
        for flow in dataset.flows:
            _check_streamable(graph, flow)
    return tuple(order)


def _check_streamable(graph: Graph, flow: Flow) -> None:
    reads = [branch.read for branch in flow.branches]
    changing = {read.name for read in reads if isinstance(read, TableRead) and takes_changes(read)}
    for name in flow.inputs:
        if name in changing:
            continue
        upstream = graph.datasets.get(name)
        if upstream is not None and upstream.kind == "materialized_view":
            raise DefinitionError(
                f"flow '{flow.name}' cannot stream from materialized view '{name}'",
                where=flow.where,
                code="STREAM_OF_MATERIALIZED_VIEW",
                found="a view whose rows are replaced at each refresh",
                remedy="Read its changes with read_change_feed=True, or read it with wl.read or wl.sql",
            )
        if upstream is not None and upstream.kind == "table" and upstream.definition.is_merged:
            raise DefinitionError(
                f"flow '{flow.name}' cannot stream from '{name}': changes are merged into it",
                where=flow.where,
                code="STREAM_OF_MERGED_TABLE",
                found="a table whose rows are updated and deleted",
                remedy="Read its changes with read_change_feed=True, or read it with wl.read or wl.sql",
            )
        if upstream is not None and upstream.kind == "table" and any(map(replaces_rows, upstream.flows)):
            raise DefinitionError(
                f"flow '{flow.name}' cannot stream from '{name}': its aggregates are kept up to date",
                where=flow.where,
                code="STREAM_OF_MERGED_TABLE",
                found="a table whose rows are replaced (mode='update')",
                remedy="Read it with wl.read or wl.sql, or aggregate in windows with mode='append'",
            )
        if upstream is None and name == "query":
            raise DefinitionError(
                f"flow '{flow.name}' streams from a batch query", where=flow.where, code="BATCH_FOR_STREAMING_TABLE"
            )


def circle(path: Sequence[str], where: str) -> DefinitionError:
    """Return the error of datasets that read each other in a circle: ``path``, whose last name is also an earlier one."""
    return DefinitionError(
        "datasets read each other in a circle",
        where=where,
        code="CYCLE",
        found=" → ".join(path),
        remedy="Let one of them read a table outside the circle",
    )
