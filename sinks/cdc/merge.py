"""The merge of one flush: which files hold the keys, what becomes of their rows, and the files that take their place.

Copy on write: files without a row that changes stay; of the others, rows that stay are copied one row group at a time, so
memory follows the batch and two row groups, not the table. Small files are taken along and sorted by key, in the same commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from sinks.cdc.current import CurrentInputs, apply_current
from sinks.cdc.history import HistoryInputs, apply_history
from sinks.cdc.keys import KeyIndex, row_numbers
from sinks.cdc.outcome import FILE, KEY, ROW, Outcome
from sinks.cdc.rewrite import LANES, Rewrite, rewrite_files
from sinks.cdc.rules import (
    END_AT,
    KIND,
    SEQUENCE,
    TRUNCATED,
    UNSET,
    TargetShape,
)
from sinks.cdc.state import EventState
from sinks.delta.files import StoredFile, stored_files
from sinks.delta.parquet import DataFileWriter
from sinks.delta.stored import FileReader, may_hold
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.engine import open_session, select_list
from waxlake.stream.schema import no_rows

__all__ = ["Merged", "Merger"]

_MIN_FILE_BYTES = 8 << 20
_ROW_GROUP_BYTES = 4 << 20
_MAX_FILE_BYTES = 512 << 20
_FILES_WANTED = 500
_SMALL_FILES = 16
_COMPACTION_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge wants committed.

    Attributes:
        adds: New data files.
        removes: Data files that they replace.
        state: Number of the state's new manifest, None if the state stays.
        upserted: Flow number to rows inserted or updated.
        deleted: Flow number to rows deleted or closed.
    """

    adds: Sequence[AddAction]
    removes: Sequence[StoredFile]
    state: int | None
    upserted: Mapping[int, int]
    deleted: Mapping[int, int]


@dataclass(slots=True)
class Merger:
    """Merges prepared changes into one target. Used by one thread.

    Args:
        location: The target.
        shape: Its shape.
        state: Its state, loaded for the snapshot that is merged into.
        partition_by: Partition columns.
    """

    location: TableLocation
    shape: TargetShape
    state: EventState
    partition_by: tuple[str, ...] = ()
    _session: duckdb.DuckDBPyConnection | None = None
    _reader: FileReader = field(init=False)
    _files: list[StoredFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = FileReader(self.location, self.shape.stored)

    @property
    def session(self) -> duckdb.DuckDBPyConnection:
        """The SQL session of the thread that merges."""
        if self._session is None:
            self._session = open_session()
        return self._session

    def merge(self, handle: DeltaTable, changes: pa.Table) -> Merged:
        """Write the files that apply the changes to a snapshot; nothing is committed.

        Args:
            handle: The snapshot.
            changes: Prepared changes, in any order.

        Raises:
            ExternalError: A file cannot be read or written.
        """
        self._files = stored_files(handle)
        is_truncate = pc.equal(changes.column(KIND), TRUNCATED)
        truncates = changes.filter(is_truncate).select([SEQUENCE])
        changes = changes.filter(pc.invert(is_truncate))
        outcome = self._current(changes, truncates) if self.shape.scd_type == 1 else self._history(changes, truncates)
        return self._written(outcome, self._state_events(outcome, truncates))

    def close(self) -> None:
        """Free the SQL session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- type 1

    def _current(self, changes: pa.Table, truncates: pa.Table) -> Outcome:
        names = [*self.shape.keys, *self.shape.hidden.names]
        keys = self._touched_keys(changes, truncates)
        index = KeyIndex(keys)
        stored: list[pa.Table] = []
        for number in self._candidates(index):
            rows, ids = index.rows_in(self._reader.keys(self._files[number], names))
            if len(rows):
                hidden = self._reader.keys(self._files[number], names).select(self.shape.hidden.names).take(rows)
                stored.append(_placed(hidden, number, rows).append_column(KEY, ids))
        schema = pa.schema([*self.shape.hidden, (FILE, pa.int64()), (ROW, pa.int64()), (KEY, pa.int64())])
        held = pa.concat_tables(stored).cast(schema) if stored else no_rows(schema)
        floor = pa.concat_tables([self.state.truncates(), truncates])
        inputs = CurrentInputs(
            keys=self._named(keys, index),
            changes=changes.append_column(KEY, index.ids.slice(0, len(changes))),
            stored=held,
            events=self.state.events(index),
            truncates=floor,
            content=lambda positions: self._content(held.take(positions)),
        )
        outcome = apply_current(self.session, self.shape, inputs)
        if len(truncates):
            self._truncate(outcome, floor)
        return outcome

    def _touched_keys(self, changes: pa.Table, truncates: pa.Table) -> pa.Table:
        """Return the keys of the changes, and those of stored rows that a truncate may concern in part only."""
        keys = changes.select(self.shape.keys)
        if not (self.shape.is_partial and len(truncates)):
            return keys
        names = [*self.shape.keys, *self.shape.hidden.names]
        mixed = [
            rows.filter(pc.is_valid(rows.column(UNSET))) for rows in (self._reader.keys(f, names) for f in self._files)
        ]
        return pa.concat_tables([keys, *(rows.select(self.shape.keys) for rows in mixed)])

    def _named(self, keys: pa.Table, index: KeyIndex) -> pa.Table:
        """Return each key once, with its number."""
        self.session.register("every_key", keys.append_column(KEY, index.ids))
        columns = select_list(self.shape.keys)
        named: pa.Table = self.session.sql(f"SELECT DISTINCT {KEY}, {columns} FROM every_key").to_arrow_table()
        return named

    def _content(self, rows: pa.Table) -> pa.Table:
        """Return the values of stored rows, in their order; each file is read once."""
        rows = rows.select([FILE, ROW]).append_column("order", row_numbers(len(rows)))
        parts, orders = [], []
        for number in rows.column(FILE).unique().to_pylist():
            wanted = rows.filter(pc.equal(rows.column(FILE), number))
            parts.append(self._reader.columns(self._files[number], self.shape.names).take(wanted.column(ROW)))
            orders.append(wanted.column("order"))
        if not parts:
            return no_rows(self.shape.columns)
        order = pa.chunked_array([chunk for column in orders for chunk in column.chunks])
        return pa.concat_tables(parts).take(pc.array_sort_indices(order.combine_chunks()))

    def _truncate(self, outcome: Outcome, floor: pa.Table) -> None:
        """Drop every row whose sequence is not above the last truncate."""
        names = [*self.shape.keys, *self.shape.hidden.names]
        drops = [outcome.drops]
        self.session.register("floor", floor)
        for number, file in enumerate(self._files):
            keys = self._reader.keys(file, names).select([SEQUENCE])
            self.session.register("rows", keys.append_column(ROW, row_numbers(len(keys))))
            gone = self.session.sql(
                f"SELECT {number}::BIGINT AS {FILE}, {ROW} FROM rows "
                f"WHERE coalesce({SEQUENCE} <= (SELECT max({SEQUENCE}) FROM floor), true)"
            ).to_arrow_table()
            drops.append(gone)
        before = len(outcome.drops)
        every = pa.concat_tables([table.select([FILE, ROW]) for table in drops])
        outcome.drops = every.group_by([FILE, ROW]).aggregate([])
        lost = len(outcome.drops) - before
        outcome.deleted = {**outcome.deleted, 0: outcome.deleted.get(0, 0) + lost}

    # -- type 2

    def _history(self, changes: pa.Table, truncates: pa.Table) -> Outcome:
        keys = changes.select(self.shape.keys)
        if len(truncates):
            keys = pa.concat_tables([keys, *(self._reader.columns(file, self.shape.keys) for file in self._files)])
        index = KeyIndex(keys)
        stored = []
        names = [*self.shape.keys, END_AT]
        arrivals = pa.concat_tables([changes.select([SEQUENCE]), truncates])
        earliest = _lowest(arrivals, self.session)
        for number in self._candidates(index):
            file = self._files[number]
            if _ended_before(file, earliest):
                continue
            rows, ids = index.rows_in(self._reader.keys(file, names))
            if len(rows):
                versions = self._reader.columns(file, self.shape.stored.names).take(rows)
                stored.append(_placed(versions, number, rows).append_column(KEY, ids))
        schema = pa.schema([*self.shape.stored, (FILE, pa.int64()), (ROW, pa.int64()), (KEY, pa.int64())])
        inputs = HistoryInputs(
            keys=self._named(keys, index),
            changes=changes.append_column(KEY, index.ids.slice(0, len(changes))),
            stored=pa.concat_tables(stored).cast(schema) if stored else no_rows(schema),
            events=self.state.events(index),
            truncates=pa.concat_tables([self.state.truncates(), truncates]),
            arrivals=arrivals,
        )
        return apply_history(self.session, self.shape, inputs)

    # -- both

    def _candidates(self, index: KeyIndex) -> list[int]:
        """Return the numbers of the files that may hold one of the keys."""
        values = index.bounds()
        return [n for n, file in enumerate(self._files) if may_hold(file, self.shape.keys, values)]

    def _state_events(self, outcome: Outcome, truncates: pa.Table) -> list[pa.Table]:
        kinds = pa.repeat(pa.scalar(TRUNCATED, pa.int8()), len(truncates))
        marks = truncates.append_column(KIND, kinds)
        return [table for table in (outcome.events, marks) if len(table)]

    def _written(self, outcome: Outcome, events: Sequence[pa.Table]) -> Merged:
        target_bytes = self._target_bytes()
        touched = sorted(outcome.drops.column(FILE).unique().to_pylist())
        small = self._small_files(touched, target_bytes, has_rows=bool(len(outcome.rows)))
        is_large = len(touched) > 1 and 4 * sum(self._files[number].size_bytes for number in touched) >= target_bytes
        writers = [self._writer(target_bytes) for _ in range(LANES if is_large else 1)]
        self._reader.forget(self._files[number] for number in (*touched, *small))
        try:
            rewrite_files(self._reader, self._rewrites(outcome, touched), writers, target_bytes)
            self._write_new(writers[0], outcome, touched, small)
            adds = [add for writer in writers for add in writer.finish()]
        except BaseException:
            for writer in writers:
                writer.abandon()
            raise
        state = self.state.write(events) if events else None
        return Merged(
            adds=adds,
            removes=[self._files[number] for number in (*touched, *small)],
            state=state,
            upserted=outcome.upserted,
            deleted=outcome.deleted,
        )

    def _target_bytes(self) -> int:
        """Return the size of a file to aim for: larger for larger tables, so that there are not too many of them."""
        stored = 4 * sum(file.size_bytes for file in self._files)
        return min(_MAX_FILE_BYTES, max(_MIN_FILE_BYTES, stored // _FILES_WANTED))

    def _small_files(self, touched: Sequence[int], target_bytes: int, *, has_rows: bool) -> list[int]:
        """Return untouched small files to be written anew together, once there are many of them."""
        limit = target_bytes // 16
        small = [n for n, file in enumerate(self._files) if file.size_bytes < limit and n not in touched]
        if not has_rows or len(small) < _SMALL_FILES:
            return []
        chosen, size = [], 0
        for number in sorted(small, key=lambda n: self._files[n].size_bytes):
            size += self._files[number].size_bytes
            if size * 4 > _COMPACTION_BYTES:
                break
            chosen.append(number)
        return chosen

    def _writer(self, target_bytes: int) -> DataFileWriter:
        return DataFileWriter(
            self.location, partition_by=self.partition_by, row_group_bytes=_ROW_GROUP_BYTES, file_bytes=target_bytes
        )

    def _rewrites(self, outcome: Outcome, touched: Sequence[int]) -> list[Rewrite]:
        """Return what becomes of each file in which a row changes."""
        drops = outcome.drops.select([FILE, ROW]).sort_by([(FILE, "ascending"), (ROW, "ascending")])
        places, dropped = drops.column(FILE).to_numpy(), drops.column(ROW).to_numpy()
        rewrites = []
        for number in touched:
            here = outcome.rows.filter(pc.equal(outcome.rows.column(FILE), number))
            first, last = np.searchsorted(places, number), np.searchsorted(places, number, side="right")
            rows = self._ordered(here.select(self.shape.stored.names))
            rewrites.append(Rewrite(self._files[number], dropped[first:last], rows))
        return rewrites

    def _write_new(
        self, writer: DataFileWriter, outcome: Outcome, touched: Sequence[int], small: Sequence[int]
    ) -> None:
        """Write the rows of new keys, and with them the content of small files, in the order of the keys."""
        column = outcome.rows.column(FILE)
        is_new = pc.invert(pc.is_in(column, value_set=pa.array(touched, pa.int64())))
        new = outcome.rows.filter(is_new).select(self.shape.stored.names).cast(self.shape.stored)
        if small:
            names = self.shape.stored.names
            new = pa.concat_tables([new, *(self._reader.columns(self._files[number], names) for number in small)])
        _append_sliced(writer, self._ordered(new))

    def _ordered(self, rows: pa.Table) -> pa.Table:
        keys = [(name, "ascending") for name in self.shape.keys]
        return rows.cast(self.shape.stored).sort_by(keys) if len(rows) > 1 else rows.cast(self.shape.stored)


def _append_sliced(writer: DataFileWriter, rows: pa.Table) -> None:
    """Hand rows to the writer in pieces, so that it ends files where they are large enough."""
    if len(rows):
        step = max(1, len(rows) * _ROW_GROUP_BYTES // max(1, rows.nbytes))
        for start in range(0, len(rows), step):
            writer.append(rows.slice(start, step))


def _placed(rows: pa.Table, number: int, positions: pa.Array) -> pa.Table:
    """Return stored rows with the number of their file and their own."""
    files = pa.repeat(pa.scalar(number, pa.int64()), len(rows))
    return rows.append_column(FILE, files).append_column(ROW, positions)


def _lowest(sequences: pa.Table, session: duckdb.DuckDBPyConnection) -> object:
    """Return the earliest sequence; None if there is none, or if it is a time that Python does not have."""
    session.register("sequences", sequences)
    low = session.sql(f"SELECT min({SEQUENCE}) AS low FROM sequences").to_arrow_table().column("low")[0]
    try:
        return low.as_py()
    except OverflowError:
        return None


def _ended_before(file: StoredFile, sequence: object) -> bool:
    """Return whether every version of a file ended before a sequence: no change from then on concerns them."""
    if sequence is None or file.nulls.get(END_AT) != 0 or END_AT not in file.high:
        return False
    try:
        return bool(file.high[END_AT] < sequence)
    except TypeError:
        return False
