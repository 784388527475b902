"""A source for a hand-written Bytewax dataflow: it makes its own plan when Bytewax builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from waxlake.stream.batch import MicroBatch
from waxlake.stream.partitioned_source import PartitionedSource
from waxlake.stream.source import Connector, Relocating, SourceState, plan_partitions

__all__ = ["Positions", "StandaloneSource"]

Positions = Mapping[str, int] | Callable[[SourceState], Mapping[str, int]]
"""Stored position of each partition key, or a function from what the source holds to them."""


class StandaloneSource(FixedPartitionedSource[MicroBatch, None]):
    """A connector as an input of a hand-written dataflow; connectors derive their public source from it.

    The source is asked when Bytewax builds the dataflow, not before.

    Args:
        connector: The source.
        positions: Positions that the target holds; none starts where the source says.
        is_bounded: End at what the source holds when the dataflow is built.
        columns: Metadata columns that are wanted besides the others.
    """

    def __init__(
        self, connector: Connector, *, positions: Positions | None, is_bounded: bool, columns: tuple[str, ...] = ()
    ) -> None:
        self.connector = connector
        self._positions, self._is_bounded, self._columns = positions, is_bounded, columns
        self._source: PartitionedSource | None = None

    def list_parts(self) -> list[str]:
        """Return the groups of partitions; Bytewax calls it on every worker."""
        return self._opened().list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> StatefulSourcePartition[MicroBatch, None]:
        """Build the reader of one group; Bytewax calls it on the worker that owns the group."""
        return self._opened().build_part(step_id, for_part, resume_state)

    def _opened(self) -> PartitionedSource:
        if self._source is None:
            connector = self.connector
            state = connector.inspect()
            stored = self._positions(state) if callable(self._positions) else self._positions
            plan = plan_partitions(
                state, [stored or {}], on_data_loss=connector.on_data_loss, is_bounded=self._is_bounded
            )
            if isinstance(connector, Relocating):
                connector.settle(plan)
            names = {*connector.empty().column_names} - {*connector.metadata_columns}
            self._source = PartitionedSource(
                connector=connector,
                plan=plan,
                columns=frozenset({*names, *self._columns}),
                group_count=len(plan.partitions),
            )
        return self._source
