"""DeltaSink: a Bytewax output that appends MicroBatches to one Delta table, exactly once.

One sink partition per table is its only committer. It buffers, writes Parquet ahead, and commits when a batch of rows is
large or old enough, whatever the length of a Bytewax epoch; it never commits in ``close``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from deltalake.transaction import AddAction

from sinks.delta.compaction import sorted_rows
from sinks.delta.constraints import check_rows, constraints_of
from sinks.delta.files import StoredFile
from sinks.delta.maintenance import Maintenance
from sinks.delta.parquet import DataFileWriter
from sinks.delta.protocol import Committer, Move
from sinks.delta.quarantine import Quarantine, finish_quarantine
from sinks.delta.tally import CommitTally
from sinks.delta.target import DeltaTarget, FlushPolicy, SinkControl
from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import arrow_schema, delta_errors, stored_position
from waxlake.stream.errors import PositionMoved, WaxlakeError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.growth import merge_schemas
from waxlake.stream.position import app_id, note_app_id
from waxlake.stream.schema import cast_exact, compare_schemas, delta_schema
from waxlake.stream.table_properties import order_columns

__all__ = ["DeltaSink", "Output", "RowStore", "TableWriter"]

_REST = 5.0  # times the last commit's duration


@dataclass(slots=True)
class DeltaSink(FixedPartitionedSink[MicroBatch, None]):
    """A Bytewax output onto one Delta table.

    Items are ``(key, MicroBatch)``; any key does, there is one partition.

    Args:
        target: The table.
        flow: Flow name for batches that carry none; part of the app id, so keep it.
        flush: When to commit.
        control: How the run watches it.

    Guarantee: exactly once per (flow, source, partition, position), through any crash.
    """

    target: DeltaTarget
    flow: str = "flow"
    flush: FlushPolicy = field(default_factory=FlushPolicy)
    control: SinkControl = field(default_factory=SinkControl)

    def list_parts(self) -> list[str]:
        """Return the single partition: one committer per table."""
        return ["table"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the committer; Bytewax calls it when the first item arrives."""
        return TableWriter(self)

    def stored(self, source: str, partition: str) -> int | None:
        """Return the position that the table holds for a source partition; None if it has none or does not exist."""
        if not self.target.location.exists():
            return None
        return stored_position(self.target.location.open(), app_id(self.flow, source, partition))


class RowStore(Protocol):
    """Where a writer keeps the rows of the next commit."""

    rows: int
    size_bytes: int
    partition_by: tuple[str, ...]

    def append(self, table: pa.Table) -> None:
        """Take rows."""
        ...

    def abandon(self) -> None:
        """Forget everything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a flush commits besides positions.

    Attributes:
        adds: New data files.
        removes: Data files that they replace.
        versions: Further app ids to store.
        facts: Flow name to facts for the commit's metadata.
        rows: Rows in ``adds``, if not all that were kept.
    """

    adds: Sequence[AddAction]
    removes: Sequence[StoredFile] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: int | None = None


class TableWriter(StatefulSinkPartition[MicroBatch, None]):
    """The one committer of a table in this run.

    Attributes:
        leaves_small_files: Whether maintenance has to put its files together; some writers do it as they go.
    """

    leaves_small_files: ClassVar[bool] = True

    def __init__(self, sink: DeltaSink) -> None:
        self._sink, self._target, self._policy = sink, sink.target, sink.flush
        self._clock = Clock()
        self._committer: Committer | None = None
        self._rows: RowStore = self._row_store()
        self._maintained: Maintenance | None = None
        self._maintained_quarantine: Maintenance | None = None
        self._rejected: DataFileWriter | None = None
        self._rejected_schema: pa.Schema | None = None
        self._schema = pa.schema([])
        self._replacement: pa.Table | None = None
        self._growth: pa.Table | None = None
        self._moves: dict[str, Move] = {}
        self._identities: dict[str, int] = {}
        self._endings: dict[str, int] = {}
        self._tally = CommitTally()
        self._since_s: float | None = None
        self._moved_since_s: float | None = None
        self._flushed_at_s, self._flush_took_s = -math.inf, 0.0
        self._ended: dict[tuple[str, str], set[str]] = {}
        self._reached: dict[tuple[str, str], set[str]] = {}
        self._is_ending = False
        self._partial: set[str] = set()
        self._released: list[str] = []
        self._has_failed = False

    def write_batch(self, values: list[MicroBatch]) -> None:
        """Take batches; commit if that made a flush due. Only then are they out of their source's budget."""
        try:
            for batch in values:
                self._guarded_take(batch)
            self._guarded_flush()
        finally:
            for batch in values:
                ByteBudget.give_back(batch.budget, batch.cost_bytes)

    def snapshot(self) -> None:
        """An epoch ended: commit what a partition that has ended left here."""
        self._is_ending = self._is_ending or bool(self._ended)
        self._guarded_flush()

    def close(self) -> None:
        """Drop what is not committed; it will be read again."""
        self._rows.abandon()
        if self._rejected is not None:
            self._rejected.abandon()

    def _guarded_take(self, batch: MicroBatch) -> None:
        if self._has_failed:
            return
        try:
            with delta_errors(f"write table '{self._target.location.label}'"):
                self._take(batch)
        except WaxlakeError as error:
            self._fail(error)

    def _guarded_flush(self) -> None:
        if self._has_failed:
            return
        try:
            if self._is_due():
                started_s = self._clock.now_s()
                with delta_errors(f"write table '{self._target.location.label}'"):
                    self._flush()
                self._flush_took_s = self._clock.now_s() - started_s
        except WaxlakeError as error:
            self._fail(error)

    def _fail(self, error: WaxlakeError) -> None:
        self._has_failed = True
        self.close()
        if not self._sink.control.on_error(error):
            raise error

    def _take(self, batch: MicroBatch) -> None:
        committer = self._opened(batch)
        flow = batch.flow or self._sink.flow
        app = app_id(flow, batch.source, batch.partition)
        if batch.is_last:
            self._note_end(flow, batch)
        if not self._admit(committer, app, batch):
            return
        if self._sink.control.judge is not None and batch.table.num_rows:
            batch = self._sink.control.judge(batch, committer.handle)
        is_growth = self._grows(batch.table) and not self._partial and not batch.is_partial
        if is_growth:
            self._flush()  # in the schema that the table has
        is_whole = is_growth or self._target.replaces
        rows = batch.table if is_whole else self._fitted(committer, batch.table, flow)  # may commit what came before
        self._note_move(committer, app, batch)
        self._identities.update(self._sink.control.identities.get(flow, {}))
        self._identities.update({note_app_id(app, name): value for name, value in batch.notes.items()})
        self._tally.add(batch, flow)
        self._keep(batch, rows, is_growth=is_growth)
        if is_growth:
            self._flush()
            self._read_schema(committer)

    def _check(self, rows: pa.Table) -> None:
        """Stop if rows that are to be written break a constraint of the table."""
        assert self._committer is not None
        constraints = constraints_of(self._committer.handle.metadata().configuration)
        check_rows(rows, constraints, self._target.location.label)

    def _keep(self, batch: MicroBatch, rows: pa.Table, *, is_growth: bool) -> None:
        """Keep the rows of a batch for the next commit."""
        self._check(rows)
        if self._target.replaces:
            if batch.end > batch.start:
                assert self._committer is not None
                properties = self._committer.handle.metadata().configuration
                self._replacement = sorted_rows(rows, order_columns(properties))
        elif is_growth:
            grown = merge_schemas(self._schema, delta_schema(rows.schema))
            self._growth = cast_exact(rows, grown, what=f"table '{self._target.location.label}'")
        else:
            self._rows.append(rows)
        if batch.rejected is not None and batch.rejected.num_rows:
            self._reject(batch.rejected)
        self._released += [path for path in batch.released if path not in self._released]
        if batch.table.num_rows or batch.rejected is not None or self._replacement is not None:
            self._since_s = self._since_s or self._clock.now_s()

    def _note_move(self, committer: Committer, app: str, batch: MicroBatch) -> None:
        """Note how far the batch moves its partition, and whether what it belongs to has ended."""
        if batch.is_partial:
            self._partial.add(app)
        elif batch.end > batch.start:
            self._partial.discard(app)
        move = self._moves.get(app)
        start = move.start if move else committer.stored(app)
        if start != batch.end:
            self._moves[app] = Move(start=start, end=batch.end)
            self._moved_since_s = self._moved_since_s or self._clock.now_s()

    def _admit(self, committer: Committer, app: str, batch: MicroBatch) -> bool:
        """Return whether the batch is new; stop if it neither follows the position nor ends before it."""
        pending = self._moves.get(app)
        position = pending.end if pending else committer.stored(app)
        if position is None or batch.start == position:
            return True
        if batch.end <= position:
            return False
        kind = "overlaps" if batch.start < position else "leaves a gap after"
        raise PositionMoved(
            f"cannot append to table '{self._target.location.label}': a batch {kind} what it holds",
            code="COMMIT_CONFLICT" if batch.start < position else "POSITION_GAP",
            found=f"positions {batch.start} to {batch.end} of {batch.source} partition {batch.partition}",
            expected=f"a batch that starts at {position}",
            remedy="Another run moved this table meanwhile. Run again: it goes on from the table's own positions",
        )

    def _row_store(self) -> RowStore:
        return DataFileWriter(self._target.location)

    def _new_schema(self, batch: MicroBatch) -> pa.Schema:
        """Return the columns of the table if it has to be created."""
        return delta_schema(batch.table.schema)

    def _opened(self, batch: MicroBatch) -> Committer:
        if self._committer is None:
            location = self._target.location
            if not location.exists():
                location.create(self._new_schema(batch), partition_by=self._target.partition_by)
            if self._target.quarantine is not None and self._target.quarantine.exists():
                finish_quarantine(location, self._target.quarantine)
            control = self._sink.control
            self._committer = Committer(location, control.run_id, control.run_number, self._target.fence_app)
            self._read_schema(self._committer)
            self._rows.partition_by = tuple(self._committer.handle.metadata().partition_columns)
        return self._committer

    def _read_schema(self, committer: Committer) -> None:
        self._schema = arrow_schema(committer.handle)

    def _grows(self, table: pa.Table) -> bool:
        """Return whether rows have columns, or nested fields, that the table lacks: both go into one commit, alone."""
        if self._target.replaces or not table.num_rows or table.schema.equals(self._schema):
            return False
        change = compare_schemas(self._schema, delta_schema(table.schema))
        return bool(change.added or change.grown)

    def _fitted(self, committer: Committer, table: pa.Table, flow: str) -> pa.Table:
        """Return the rows in the table's schema; columns the table lacks are added to it first."""
        if table.num_rows == 0 or table.schema.equals(self._schema):
            return table
        if self._grows(table):  # in the middle of what has to be committed as a whole
            committer.add_columns(delta_schema(table.schema))
            self._read_schema(committer)
        return cast_exact(table, self._schema, what=f"table '{self._target.location.label}'")

    def _reject(self, rejected: pa.Table) -> None:
        if self._target.quarantine is None:
            raise AssertionError("rejected rows for a table without a quarantine table")
        if self._rejected is None:
            self._rejected = DataFileWriter(self._target.quarantine)
            self._rejected_schema = arrow_schema(self._target.quarantine.open())
        assert self._rejected_schema is not None
        self._rejected.append(
            cast_exact(rejected, self._rejected_schema, what=f"table '{self._target.quarantine.label}'")
        )

    def _note_end(self, flow: str, batch: MicroBatch) -> None:
        ended = self._ended.setdefault((flow, batch.source), set())
        ended.add(batch.partition)
        if batch.is_end:
            self._reached.setdefault((flow, batch.source), set()).add(batch.partition)
            if len(self._reached[flow, batch.source]) >= batch.partition_count:
                self._endings |= self._sink.control.endings.get((flow, batch.source), {})
        self._is_ending = self._is_ending or len(ended) >= batch.partition_count

    def _is_due(self) -> bool:
        if not (self._moves or self._endings) or self._partial:
            return False
        if self._is_ending or self._tally.files >= self._policy.max_files:
            return True
        now_s = self._clock.now_s()
        if self._since_s is None:
            return now_s - (self._moved_since_s or now_s) >= self._policy.max_idle_s
        is_rested = now_s - self._flushed_at_s >= max(self._policy.max_age_s, _REST * self._flush_took_s)
        return (
            self._rows.rows >= self._policy.max_rows
            or self._rows.size_bytes >= self._policy.max_bytes
            or now_s - self._since_s >= self._policy.max_age_s
            or (self._policy.is_prompt and is_rested)
        )

    def _output(self, committer: Committer) -> Output:
        """Return what the rows kept so far come to, written and ready to be committed; forget them."""
        assert isinstance(self._rows, DataFileWriter)
        return Output(adds=self._rows.finish())

    def _side_output(self) -> Quarantine | None:
        """Return what the quarantine table gets and loses, written and ready to be committed."""
        location, adds, rows = self._target.quarantine, [], 0
        if location is None:
            return None
        if self._rejected is not None and self._rejected.rows:
            rows = 0 if self._released else self._rejected.rows
            adds = self._rejected.finish()
        released, self._released = self._released, []
        return Quarantine(location=location, adds=adds, rows=rows, removes=released) if adds or released else None

    def _committed(self, output: Output) -> None:
        """An output is durable."""

    def _facts(self, output: Output) -> dict[str, Any]:
        facts = self._tally.facts()
        for flow, more in output.facts.items():
            facts["flows"].get(flow, {}).update(more)
        return facts

    def _flush(self) -> None:
        """Commit everything taken so far."""
        if self._committer is None or not (self._moves or self._endings):
            return
        rows = self._rows.rows if self._growth is None else self._growth.num_rows
        output = self._output(self._committer)
        quarantine = self._side_output()
        receipt = self._committer.commit(
            output.adds,
            self._moves,
            rows=rows if output.rows is None else output.rows,
            identities={**self._identities, **self._endings, **output.versions},
            quarantine=quarantine,
            metadata=self._facts(output),
            replacement=self._replacement,
            removes=output.removes,
            growth=self._growth,
        )
        self._committed(output)
        self._moves, self._tally, self._replacement, self._growth = {}, CommitTally(), None, None
        self._since_s = self._moved_since_s = None
        self._flushed_at_s = self._clock.now_s()
        self._is_ending, self._endings = False, {}
        self._sink.control.on_commit(receipt)
        if self._target.shares_source:
            failpoint("between-tables")
        self._maintain(max(len(output.adds), receipt.rows > 0), quarantine)

    def _maintain(self, files: int, quarantine: Quarantine | None) -> None:
        """Keep the table, and its quarantine table, in shape between two commits."""
        assert self._committer is not None
        if not (self._sink.control.maintains and self._target.is_maintained):
            return
        if self._maintained is None:
            compacts = self.leaves_small_files and not self._target.replaces
            self._maintained = self._maintenance(self._committer, compacts=compacts)
        self._maintained.after_commit(files)
        if quarantine is not None and quarantine.adds:
            if self._maintained_quarantine is None:
                control = self._sink.control
                committer = Committer(quarantine.location, control.run_id, control.run_number)
                self._maintained_quarantine = self._maintenance(committer, compacts=True)
            self._maintained_quarantine.after_commit(len(quarantine.adds))

    def _maintenance(self, committer: Committer, *, compacts: bool) -> Maintenance:
        control, name = self._sink.control, committer.location.label
        return Maintenance(
            committer=committer,
            compacts=compacts,
            needed=lambda: control.needed(name),
            report=control.on_maintenance,
        )
