"""Reads the tables of one slot: first loads and changes, side by side, as micro-batches of one partition each.

A table has two partitions. Its changes: a position is an LSN; every commit whose record begins before it was emitted. Its
first load: a position is a chunk's number, or ``LOADED``. Tables share the stream, but each has its own position in it: what
a table holds already is not emitted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from connectors.postgres.catalog import SourceTable
from connectors.postgres.ledger import KnownColumn, SourceLedger
from connectors.postgres.load import LOADED, Chunk, Loader
from connectors.postgres.pgoutput import ChangedRows, Relation, RelationRows
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.stream import ChangeStream, Segment
from connectors.postgres.types import PostgresType, decode_as
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.changes import CHANGE_COLUMNS, CHANGE_TYPE, READ, TRUNCATE
from waxlake.stream.errors import SourceChanged, TerminalError
from waxlake.stream.schema import no_rows
from waxlake.stream.source import PartitionPlan, SourcePlan

__all__ = ["PostgresReader"]

_WAIT_S: Final = 0.05
_ADVANCE_S: Final = 0.5
_EPOCH_2000_US: Final = 946_684_800_000_000


class PostgresReader:
    """Reads the tables of a plan.

    Args:
        settings: The source.
        plan: What to read.
        tables: Its tables, by oid.
        ledger: Where chunks end, and columns are remembered.
        resolve: Finds the type of a column that the catalog does not have.
        columns: Columns that somebody uses.
        is_reload: Whether tables are loaded again after a slot was lost: a truncate comes first.

    Guarantee: every row of a first load and every change once per run, changes in the order of commits.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        plan: SourcePlan,
        tables: Mapping[int, SourceTable],
        ledger: SourceLedger,
        *,
        source_key: str,
        resolve: Callable[[int, int], PostgresType],
        columns: frozenset[str],
        is_reload: bool,
        on_stream: Callable[[ChangeStream | None], None],
    ) -> None:
        self._settings, self._plan, self._ledger = settings, plan, ledger
        self._source_key, self._resolve, self._columns = source_key, resolve, columns
        self._is_reload, self._on_stream = is_reload, on_stream
        self._tables = {oid: table for oid, table in tables.items() if table.partition in plan.partitions}
        self._positions = {key: part.read_from for key, part in plan.partitions.items()}
        self._reached = min((self._positions[t.partition] for t in self._tables.values()), default=0)
        self._target: int | None = max(
            (part.mark for part in self._stream_parts().values() if part.mark is not None), default=None
        )
        self._partial: set[int] = set()
        self._advanced_at_s = time.monotonic()
        self._server = 0
        self._check_fences()
        keyed, keyless = self._loads()
        self._first = Loader(settings, ledger, plan.identity, keyless)
        self._later = Loader(settings, ledger, plan.identity, keyed)
        self._stream: ChangeStream | None = None
        self._has_started = False

    @property
    def is_done(self) -> bool:
        """Whether loads are complete, and changes were read up to the mark and up to the last snapshot of a load."""
        if self._target is None or not (self._first.is_done and self._later.is_done):
            return False
        return all(self._positions[key] >= self._target for key in self._stream_parts())

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each partition."""
        return dict(self._positions)

    def read(self) -> Sequence[MicroBatch]:
        """Return what is ready: tables without a key first, then chunks and changes as they come.

        Raises:
            TransientError: The server is away, or the slot is in use. Retryable.
            SourceMoved: ``POSTGRES_SLOT_LOST``. Not retryable.
            SourceChanged: A table has columns that the plan does not know. Planning again settles it.
        """
        if not self._has_started:
            self._has_started = True
            self._first.start()
        if not self._first.is_done:
            return self._chunk(self._first.take(_WAIT_S))
        if self._stream is None:
            self._open_stream()
        assert self._stream is not None
        batches = self._chunk(self._later.take(0)) if not self._later.is_done else []
        segment = self._stream.take(0 if batches else _WAIT_S)
        if segment is not None:
            batches += self._changes(segment)
        return [*batches, *self._advance_now_and_then()]

    def close(self) -> None:
        """End the threads and free the slot. Never raises."""
        self._on_stream(None)
        for part in (self._first, self._later, self._stream):
            if part is not None:
                part.close()

    def _stream_parts(self) -> dict[str, PartitionPlan]:
        return {t.partition: self._plan.partitions[t.partition] for t in self._tables.values()}

    def _check_fences(self) -> None:
        for table in self._tables.values():
            load = self._plan.partitions.get(table.load_partition)
            if not table.key and load is not None and load.start < LOADED and load.fences:
                raise TerminalError(
                    f"cannot add a flow that reads {table.name} beside one that has its rows already",
                    code="POSTGRES_SECOND_FLOW",
                    found="a table without a key",
                    remedy="Give the new flow a slot of its own, or read the first flow's table with wl.read_stream",
                )

    def _loads(self) -> tuple[list[tuple[SourceTable, int]], list[tuple[SourceTable, int]]]:
        keyed: list[tuple[SourceTable, int]] = []
        keyless: list[tuple[SourceTable, int]] = []
        for table in self._tables.values():
            start = self._positions.get(table.load_partition, LOADED)
            if start < LOADED:
                (keyed if table.key else keyless).append((table, start))
        return keyed, keyless

    def _open_stream(self) -> None:
        publications = []
        if any(table.key for table in self._tables.values()):
            publications.append(self._settings.publication_name)
        if any(not table.key for table in self._tables.values()):
            publications.append(self._settings.append_publication_name)
        start = min(self._positions[table.partition] for table in self._tables.values())
        stream = ChangeStream(self._settings, publications, self._tables, start)
        stream.start()
        self._stream, self._reached = stream, start
        self._on_stream(stream)
        self._later.start()

    # First loads

    def _chunk(self, chunk: Chunk | None) -> list[MicroBatch]:
        if chunk is None:
            return []
        table, batches = chunk.table, []
        if self._target is not None:
            self._target = max(self._target, chunk.snapshot)
        start = self._positions[table.load_partition]
        rows = self._loaded_rows(chunk, is_first=chunk.start == 0 and table.oid not in self._partial)
        if not table.key:
            if table.oid not in self._partial:
                self._partial.add(table.oid)
            if chunk.end == chunk.start:
                return [self._batch(table.load_partition, start, start, rows, is_partial=True)]
            # One commit holds all pieces and lets the stream go on behind the snapshot.
            self._partial.discard(table.oid)
            batches.append(self._batch(table.load_partition, start, start, no_rows(rows.schema), is_partial=True))
            batches += self._empty_up_to(table, chunk.snapshot)
        self._positions[table.load_partition] = chunk.end
        return [*batches, self._batch(table.load_partition, start, chunk.end, rows)]

    def _loaded_rows(self, chunk: Chunk, *, is_first: bool) -> pa.Table:
        table, count = chunk.table, chunk.rows.num_rows
        made = {
            "_change_type": pa.repeat(READ, count),
            "_commit_position": pa.repeat(pa.scalar(chunk.snapshot - 1, pa.int64()), count),
            "_change_index": pa.repeat(pa.scalar(0, pa.int64()), count),
            "_table": pa.repeat(table.name, count),
        }
        rows = self._with_changes(table, chunk.rows, made)
        if not (is_first and self._is_reload):
            return rows
        begin = self._plan.partitions[table.partition].start
        nothing = pa.table([pa.nulls(1, f.type) for f in table.schema], schema=table.schema.remove_metadata())
        made = {
            "_change_type": pa.array([TRUNCATE]),
            "_commit_position": pa.array([begin - 1], pa.int64()),
            "_change_index": pa.array([0], pa.int64()),
            "_table": pa.array([table.name]),
        }
        return pa.concat_tables([self._with_changes(table, nothing, made), rows])

    # Changes

    def _changes(self, segment: Segment) -> list[MicroBatch]:
        batches: list[MicroBatch] = []
        self._server = max(self._server, segment.server)
        grouped: dict[int, list[pa.Table]] = {}
        for rows in segment.rows:
            table = self._tables[rows.relation.oid]
            self._check_columns(table, rows.relation)
            grouped.setdefault(table.oid, []).append(self._change_rows(table, rows))
        for oid, parts in grouped.items():
            table = self._tables[oid]
            changed = pa.concat_tables(parts)
            if segment.is_partial:
                batches += self._piece(table, changed, segment.position)
            else:
                batches += self._whole(table, changed, segment.position)
        if not segment.is_partial:
            for oid in self._partial - set(grouped):
                batches += self._empty_up_to(self._tables[oid], segment.position)
            self._partial.clear()
        self._reached = max(self._reached, segment.position)
        return batches

    def _piece(self, table: SourceTable, changed: pa.Table, commit: int) -> list[MicroBatch]:
        """Return rows of a commit that has not ended here; a table that holds the commit already gets none."""
        if self._positions[table.partition] > commit:
            return []
        before = self._empty_up_to(table, commit)
        self._partial.add(table.oid)
        return [*before, self._batch(table.partition, commit, commit, self._narrowed(changed), is_partial=True)]

    def _whole(self, table: SourceTable, changed: pa.Table, end: int) -> list[MicroBatch]:
        """Return rows of whole commits, cut at the stored positions of flows that share the read."""
        position = self._positions[table.partition]
        if end <= position:
            return []
        commits = changed.column("_commit_position").to_numpy()
        fences = [f for f in self._plan.partitions[table.partition].fences if position < f < end]
        batches = []
        for start, stop in pairwise([position, *fences, end]):
            first, last = np.searchsorted(commits, [start, stop])
            rows = self._narrowed(changed.slice(first, last - first))
            batches.append(self._batch(table.partition, start, stop, rows))
        self._positions[table.partition] = end
        return batches

    def _empty_up_to(self, table: SourceTable, end: int) -> list[MicroBatch]:
        """Return batches of no rows that move a table's position; nothing for one that is there."""
        if end <= self._positions[table.partition]:
            return []
        return self._whole(table, table.empty(), end)

    def _advance_now_and_then(self) -> list[MicroBatch]:
        """Move tables without changes on, so that their positions do not hold the slot back."""
        is_at_end = self._target is not None and self._reached >= self._target
        now_s = time.monotonic()
        if self._partial or not (is_at_end or now_s - self._advanced_at_s >= _ADVANCE_S):
            return []
        self._advanced_at_s = now_s
        return [batch for table in self._tables.values() for batch in self._empty_up_to(table, self._reached)]

    def _change_rows(self, table: SourceTable, rows: RelationRows) -> pa.Table:
        parsed = ChangedRows(rows, table.key)
        counts = np.array([count for count, _, _ in rows.runs], np.int64)
        runs = np.repeat(np.arange(len(counts)), counts)[parsed.source_rows]
        commits = np.array([commit for _, commit, _ in rows.runs], np.int64)[runs]
        times = np.array([at for _, _, at in rows.runs], np.int64)[runs] + _EPOCH_2000_US
        there = {column.name: (index, column) for index, column in enumerate(rows.relation.columns)}
        columns = []
        for column in table.columns:
            if column.name not in there:
                columns.append(pa.nulls(len(commits), column.type.arrow))
                continue
            index, described = there[column.name]
            kind = self._stream_type(table, described.name, described.type_oid, described.modifier)
            what = f"column {column.name} of {table.name}"
            columns.append(decode_as(parsed.column(index), kind, column.type, what=what))
        made = {
            CHANGE_TYPE: parsed.types,
            "_commit_position": pa.array(commits),
            "_change_index": pa.array(parsed.indexes),
            "_commit_timestamp": pa.array(times).cast(pa.timestamp("us", "UTC")),
            "_table": pa.repeat(rows.relation.label, len(commits)),
            "_unchanged": parsed.unchanged(),
        }
        return self._with_changes(table, pa.table(columns, names=[c.name for c in table.columns]), made)

    def _stream_type(self, table: SourceTable, name: str, oid: int, modifier: int) -> PostgresType:
        if self._settings.is_text(table.name, name):
            return PostgresType(name="text")
        return self._resolve(oid, modifier)

    def _check_columns(self, table: SourceTable, relation: Relation) -> None:
        """Stop where the stream has columns that the plan does not know; they are remembered, and planned next."""
        known = {column.name for column in table.columns}
        new = [column for column in relation.columns if column.name not in known]
        if not new:
            return
        added = [KnownColumn(name=c.name, type=self._stream_type(table, c.name, c.type_oid, c.modifier)) for c in new]
        self._ledger.add_columns(self._source_key, table.oid, len(table.columns), added)
        raise SourceChanged(
            f"the columns of {table.name} have changed",
            code="SOURCE_COLUMNS_CHANGED",
            found=", ".join(column.name for column in new),
            expected=", ".join(sorted(known)),
            remedy="Run again: the new columns are added to the tables",
        )

    def _with_changes(self, table: SourceTable, rows: pa.Table, made: Mapping[str, pa.Array]) -> pa.Table:
        for item in CHANGE_COLUMNS:
            values = made.get(item.name)
            values = pa.nulls(rows.num_rows, item.type) if values is None else values
            rows = rows.append_column(pa.field(item.name, item.type), values)
        return rows

    def _narrowed(self, rows: pa.Table) -> pa.Table:
        """Leave out change columns that nobody uses."""
        unused = [name for name in CHANGE_COLUMNS.names if name not in self._columns]
        return rows.drop_columns(unused) if unused else rows

    def _batch(self, partition: str, start: int, end: int, rows: pa.Table, *, is_partial: bool = False) -> MicroBatch:
        backlog = Backlog(size_bytes=max(0, self._server - end)) if end < LOADED and ":" not in partition else None
        return MicroBatch(
            table=self._narrowed(rows) if CHANGE_TYPE in rows.column_names else rows,
            source=self._plan.identity,
            partition=partition,
            start=start,
            end=end,
            read=rows.num_rows,
            backlog=backlog,
            is_partial=is_partial,
        )
