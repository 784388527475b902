"""How far a pipeline is behind the binlogs that it reads. Called by `waxlake status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.definitions import DatabaseRead

if TYPE_CHECKING:
    from connectors.mysql.status import BinlogStatus
    from waxlake.pipeline.graph import Graph
    from waxlake.pipeline.status import TableStatus

__all__ = ["pipeline_binlogs"]


def pipeline_binlogs(graph: Graph, tables: Sequence[TableStatus]) -> list[BinlogStatus]:
    """Return the binlogs that a pipeline reads, one a source.

    Args:
        graph: The pipeline.
        tables: Its tables, with their positions.

    Raises:
        ExternalError: A server cannot be asked.
    """
    reads = [branch.read for d in graph.datasets.values() for flow in d.flows for branch in flow.branches]
    found: dict[str, BinlogStatus] = {}
    for read in reads:
        if not isinstance(read, DatabaseRead) or not read.settings.label.startswith("mysql:"):
            continue
        connector: Any = read.settings.connector(graph.spec.ledger_location)
        if connector.name not in found:
            held = [(p.source, p.partition, p.position) for table in tables for p in table.positions]
            found[connector.name] = connector.status(held)
    return [found[name] for name in sorted(found)]
