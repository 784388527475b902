"""MergeSink: a Bytewax output that applies changes to one Delta table, exactly once.

It takes, keeps and commits batches as ``DeltaSink`` does; only what a flush writes differs. Crash points are those of an
append: output, state, positions and fence are one log entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import ClassVar

import duckdb
import pyarrow as pa

from sinks.cdc.merge import Merged, Merger
from sinks.cdc.rules import END_AT, START_AT, BoundRules, ChangeRules, TargetShape
from sinks.cdc.state import DEFAULT_RETENTION, STATE_APP_ID, EventState
from sinks.delta.constraints import constraints_of
from sinks.delta.protocol import Committer
from sinks.delta.sink import DeltaSink, Output, TableWriter
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import stored_position
from waxlake.stream.engine import open_session
from waxlake.stream.errors import UsageError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import cast_exact, delta_schema

__all__ = ["RETENTION_PROPERTY", "MergeSink"]

RETENTION_PROPERTY = "pipelines.cdc.tombstoneGCThresholdInSeconds"


@dataclass(slots=True)
class MergeSink(DeltaSink):
    """A Bytewax output that merges change rows into one Delta table.

    Items are ``(key, MicroBatch)`` of change rows, in any order.

    Args:
        rules: What the changes mean: of all flows, or of each by name.
        hidden: Columns of the change rows that the table does not get unless ``column_list`` names them.
        shape: What all flows agree on; None finds it from the batches.

    Guarantee: the table and its state are the same function of the changes whatever their order, their batches and their
    repetitions, for changes no later than the retention; exactly once per (flow, source, partition, position).
    """

    rules: ChangeRules | Mapping[str, ChangeRules] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    shape: TargetShape | None = None

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the committer; Bytewax calls it when the first item arrives."""
        return _MergeWriter(self)

    def rules_of(self, flow: str) -> ChangeRules:
        """Return the rules of a flow."""
        return self.rules if isinstance(self.rules, ChangeRules) else self.rules[flow]


@dataclass(slots=True)
class _Changes:
    """The prepared changes of the next commit."""

    rows: int = 0
    size_bytes: int = 0
    partition_by: tuple[str, ...] = ()
    tables: list[pa.Table] = field(default_factory=list)

    def append(self, table: pa.Table) -> None:
        if table.num_rows:
            self.tables.append(table)
            self.rows += table.num_rows
            self.size_bytes += table.nbytes

    def abandon(self) -> None:
        self.tables, self.rows, self.size_bytes = [], 0, 0


class _MergeWriter(TableWriter):
    """The one committer of a merged table in this run."""

    leaves_small_files: ClassVar[bool] = False

    def __init__(self, sink: MergeSink) -> None:
        super().__init__(sink)
        self._merge_sink = sink
        self._bound: dict[str, list[BoundRules]] = {}
        self._shape = sink.shape
        self._flows: list[str] = []
        self._merger: Merger | None = None
        self._session: duckdb.DuckDBPyConnection | None = None
        self._state_number: int | None = None

    def close(self) -> None:
        """Drop what is not committed; it will be read again."""
        super().close()
        if self._merger is not None:
            self._merger.close()
            self._merger = None
        if self._session is not None:
            self._session.close()
            self._session = None

    def _row_store(self) -> _Changes:
        return _Changes()

    def _check(self, rows: pa.Table) -> None:
        """Stop if the table has constraints: they are about its rows, which only the merge makes."""
        assert self._committer is not None
        constraints = constraints_of(self._committer.handle.metadata().configuration)
        if constraints:
            raise UsageError(
                f"cannot merge into table '{self._target.location.label}'",
                code="CONSTRAINT_INVALID",
                found=f"the constraint {next(iter(constraints))!r}",
                expected="none: a merge does not check them",
                remedy="Drop it, and give the flow a rule instead",
            )

    def _new_schema(self, batch: MicroBatch) -> pa.Schema:
        if self._shape is None:
            self._bind(batch.flow or self._sink.flow, batch.table.schema)
        assert self._shape is not None
        return self._shape.table

    def _bind(self, flow: str, schema: pa.Schema) -> BoundRules:
        """Return the rules of a flow for the columns that its batches have now."""
        schema = delta_schema(schema)
        bound = next((b for b in self._bound.setdefault(flow, []) if b.source.equals(schema)), None)
        if bound is None:
            bound = self._merge_sink.rules_of(flow).bind(schema, hidden=self._merge_sink.hidden)
            self._bound[flow].append(bound)
            self._shape = bound.shape if self._shape is None else self._shape.joined(bound.shape)
            if flow not in self._flows:
                self._flows.append(flow)
        return bound

    def _close_merger(self) -> None:
        if self._merger is not None:
            self._merger.close()
            self._merger = None

    def _grows(self, table: pa.Table) -> bool:
        """Return False: changes are not rows of the table, and ``_fitted`` adds the columns that they need."""
        return False

    def _fitted(self, committer: Committer, table: pa.Table, flow: str) -> pa.Table:
        """Return the changes as the merge takes them; columns the table lacks are added to it first."""
        if table.num_rows == 0:
            return table
        bound = self._bind(flow, table.schema)
        if self._session is None:
            self._session = open_session()
        prepared = bound.prepare(self._session, table, self._flows.index(flow))
        if any(name not in self._schema.names for name in bound.shape.table.names):
            self._require_history(bound.shape)
            committer.add_columns(bound.shape.table)
            self._read_schema(committer)
        stored = {item.name: item for item in self._schema}
        wanted = [stored.get(item.name, item).with_nullable(True) for item in prepared.schema]
        return cast_exact(prepared, pa.schema(wanted), what=f"table '{self._target.location.label}'")

    def _require_history(self, shape: TargetShape) -> None:
        if shape.scd_type == 2 and START_AT not in self._schema.names:
            raise UsageError(
                f"table '{self._target.location.label}' does not hold a history",
                code="AUTO_CDC_TARGET_TYPE",
                found=f"no column {START_AT}",
                expected="a table that was filled as SCD type 2",
                remedy="Delete the table to fill it anew, or use another one",
            )

    def _opened_merger(self) -> Merger:
        """Return the merger, for the columns that the table has now."""
        assert self._shape is not None
        location = self._target.location
        span = (START_AT, END_AT) if self._shape.scd_type == 2 else ()
        columns = pa.schema([f.with_nullable(True) for f in self._schema if f.name not in span])
        shape = replace(self._shape, columns=columns)
        if self._merger is None or self._merger.shape != shape:
            self._close_merger()
            state = EventState(location, shape, retention=self._retention())
            self._merger = Merger(location, shape, state, partition_by=self._rows.partition_by)
        return self._merger

    def _retention(self) -> timedelta:
        assert self._committer is not None
        said = dict(self._committer.handle.metadata().configuration).get(RETENTION_PROPERTY)
        if said is None:
            return DEFAULT_RETENTION
        try:
            return timedelta(seconds=float(said))
        except (ValueError, OverflowError):
            raise UsageError(
                f"table '{self._target.location.label}' has a property that is no number",
                code="OPTION_INVALID",
                found=f"{RETENTION_PROPERTY} = {said!r}",
                expected="seconds",
            ) from None

    def _output(self, committer: Committer) -> Output:
        assert isinstance(self._rows, _Changes)
        tables = self._rows.tables
        self._rows.abandon()
        if not tables:
            return Output(adds=[])
        merger = self._opened_merger()
        handle = committer.refresh()
        merger.state.load(stored_position(handle, STATE_APP_ID) or 0)
        failpoint("merge-begun")
        changes = pa.concat_tables(tables, promote_options="default").select(merger.shape.changes.names)
        merged = merger.merge(handle, changes.cast(merger.shape.changes))
        self._state_number = merged.state
        versions = {} if merged.state is None else {STATE_APP_ID: merged.state}
        return Output(adds=merged.adds, removes=merged.removes, versions=versions, facts=self._counts(merged))

    def _counts(self, merged: Merged) -> dict[str, dict[str, int]]:
        return {
            flow: {"upserted": merged.upserted.get(number, 0), "deleted": merged.deleted.get(number, 0)}
            for number, flow in enumerate(self._flows)
        }

    def _committed(self, output: Output) -> None:
        if self._merger is not None and self._state_number is not None:
            self._merger.state.committed(self._state_number)
        self._state_number = None
