"""Makes change rows: from messages of the stream, and from chunks of a first load. Used by the reader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc

from connectors.postgres.catalog import SourceTable
from connectors.postgres.client import connect
from connectors.postgres.ledger import KnownColumn, SourceLedger
from connectors.postgres.load import Chunk, current_rows
from connectors.postgres.pgoutput import ChangedRows, Relation, RelationRows
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.types import PostgresType, decode_as
from waxlake.stream.changes import (
    CHANGE_COLUMNS,
    CHANGE_INDEX,
    CHANGE_TABLE,
    CHANGE_TYPE,
    COMMIT_POSITION,
    COMMIT_TIMESTAMP,
    INSERT,
    READ,
    TRUNCATE,
    UNCHANGED_COLUMNS,
)
from waxlake.stream.errors import SourceChanged, TransientError

__all__ = ["RowMaker"]

_EPOCH_2000_US: Final = 946_684_800_000_000
_EPOCH_BITS: Final = 52  # 4 PiB of log


class RowMaker:
    """Makes change rows of the tables of one source.

    Args:
        settings: The source.
        ledger: Where columns are remembered.
        source_key: The database, as the ledger knows it.
        resolve: Finds a type by oid and modifier.
        columns: Columns that somebody uses; change columns that nobody does are left out.
        epoch: How often the source was begun anew: in ``_commit_position`` it comes before the position in the log, so what
            follows sorts after all that was there, also where the new server's log is shorter.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        ledger: SourceLedger,
        source_key: str,
        resolve: Callable[[int, int], PostgresType],
        columns: frozenset[str],
        *,
        epoch: int,
    ) -> None:
        self._settings, self._ledger, self._source_key, self._resolve = settings, ledger, source_key, resolve
        self._connection: Any = None
        self._base = epoch << _EPOCH_BITS
        self._unused = [name for name in CHANGE_COLUMNS.names if name not in columns]

    def changed(self, table: SourceTable, rows: RelationRows) -> pa.Table:
        """Return the change rows of messages, all change columns with them.

        Raises:
            SourceChanged: The stream has columns that the plan does not know.
            TerminalError: ``POSTGRES_VALUE``, ``POSTGRES_TYPE_CHANGED``. Not retryable.
        """
        self._check_columns(table, rows.relation)
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
            kind = self._type_of(table, described.name, described.type_oid, described.modifier)
            what = f"column {column.name} of {table.name}"
            columns.append(decode_as(parsed.column(index), kind, column.type, what=what))
        made = {
            CHANGE_TYPE: parsed.types,
            COMMIT_POSITION: pa.array(commits),
            CHANGE_INDEX: pa.array(parsed.indexes),
            COMMIT_TIMESTAMP: pa.array(times).cast(pa.timestamp("us", "UTC")),
            CHANGE_TABLE: pa.repeat(rows.relation.label, len(commits)),
            UNCHANGED_COLUMNS: parsed.unchanged(),
        }
        made_rows = _with_changes(pa.table(columns, names=[c.name for c in table.columns]), made)
        return self._completed(table, made_rows, {n: parsed.column(i) for n, (i, _) in there.items() if n in table.key})

    def _completed(self, table: SourceTable, rows: pa.Table, keys: Mapping[str, pa.Array]) -> pa.Table:
        """Ask the table for values that were not sent with a new key: nobody has the row of that key yet.

        The value is that of now. It is the one that was not sent, or one that a later change brings; a row that is gone by now
        has a later change too. With REPLICA IDENTITY FULL the old row has the value, and nothing is asked.
        """
        is_open = pc.and_(pc.equal(rows.column(CHANGE_TYPE), INSERT), pc.is_valid(rows.column(UNCHANGED_COLUMNS)))
        if not pc.any(is_open).as_py() or len(keys) < len(table.key) or not table.key:
            return rows
        texts = [keys[name].filter(is_open.combine_chunks()).to_pylist() for name in table.key]
        current = self._looked_up(table, list(zip(*texts, strict=True)))
        places = {key: place for place, key in enumerate(_keys(current, table.key))}
        wanted = [places.get(key) for key in _keys(rows.filter(is_open), table.key)]
        is_found = pa.array([place is not None for place in wanted])
        found = pc.replace_with_mask(is_open.combine_chunks(), is_open.combine_chunks(), is_found)
        taken = current.take(pa.array([place for place in wanted if place is not None], pa.int64()))
        open_columns = {n for names in rows.column(UNCHANGED_COLUMNS).filter(is_open).to_pylist() for n in names}
        for name in open_columns & {column.name for column in table.columns}:
            place = rows.column_names.index(name)
            values = pc.replace_with_mask(
                rows.column(name).combine_chunks(), found, taken.column(name).combine_chunks()
            )
            rows = rows.set_column(place, rows.schema.field(name), values)
        place = rows.column_names.index(UNCHANGED_COLUMNS)
        left = pa.array(
            [None if is_now_known else names for is_now_known, names in
             zip(found.to_pylist(), rows.column(UNCHANGED_COLUMNS).to_pylist(), strict=True)],
            pa.list_(pa.string()),
        )  # fmt: skip
        return rows.set_column(place, rows.schema.field(UNCHANGED_COLUMNS), left)

    def _looked_up(self, table: SourceTable, keys: Sequence[Sequence[str]]) -> pa.Table:
        if self._connection is None:
            self._connection = connect(self._settings.dsn.get_secret_value())
        try:
            return current_rows(self._connection, table, keys)
        except TransientError:
            self.close()
            raise

    def close(self) -> None:
        """Free the connection for looking things up. Never raises."""
        if self._connection is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
        self._connection = None

    def loaded(self, chunk: Chunk) -> pa.Table:
        """Return the rows of a chunk as they were just before its snapshot's position."""
        count = chunk.rows.num_rows
        made = {
            CHANGE_TYPE: pa.repeat(READ, count),
            COMMIT_POSITION: pa.repeat(pa.scalar(chunk.snapshot - 1, pa.int64()), count),
            CHANGE_INDEX: pa.repeat(pa.scalar(0, pa.int64()), count),
            CHANGE_TABLE: pa.repeat(chunk.table.name, count),
        }
        return _with_changes(chunk.rows, made)

    def truncate(self, table: SourceTable, position: int) -> pa.Table:
        """Return a truncate: what a table held before it is loaded again."""
        columns = [pa.nulls(1, column.type.arrow) for column in table.columns]
        made = {
            CHANGE_TYPE: pa.array([TRUNCATE]),
            COMMIT_POSITION: pa.array([position], pa.int64()),
            CHANGE_INDEX: pa.array([0], pa.int64()),
            CHANGE_TABLE: pa.array([table.name]),
        }
        return _with_changes(pa.table(columns, names=[c.name for c in table.columns]), made)

    def narrowed(self, rows: pa.Table) -> pa.Table:
        """Leave out change columns that nobody uses, and let positions be those of the epoch."""
        if self._base:
            place = rows.column_names.index(COMMIT_POSITION)
            positions = pc.add(rows.column(COMMIT_POSITION), pa.scalar(self._base, pa.int64()))
            rows = rows.set_column(place, rows.schema.field(COMMIT_POSITION), positions)
        return rows.drop_columns(self._unused) if self._unused else rows

    def _type_of(self, table: SourceTable, name: str, oid: int, modifier: int) -> PostgresType:
        if self._settings.is_text(table.name, name):
            return PostgresType(name="text")
        return self._resolve(oid, modifier)

    def _check_columns(self, table: SourceTable, relation: Relation) -> None:
        """Stop where the stream has columns that the plan does not know; they are remembered, and planned next."""
        known = {column.name for column in table.columns}
        new = [column for column in relation.columns if column.name not in known]
        if not new:
            return
        added = [KnownColumn(name=c.name, type=self._type_of(table, c.name, c.type_oid, c.modifier)) for c in new]
        self._ledger.add_columns(self._source_key, table.oid, len(table.columns), added)
        raise SourceChanged(
            f"the columns of {table.name} have changed",
            code="SOURCE_COLUMNS_CHANGED",
            found=", ".join(column.name for column in new),
            expected=", ".join(sorted(known)),
            remedy="The plan is made anew, and the new columns are added to the tables",
        )


def _keys(rows: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))


def _with_changes(rows: pa.Table, made: Mapping[str, pa.Array]) -> pa.Table:
    for item in CHANGE_COLUMNS:
        values = made.get(item.name)
        values = pa.nulls(rows.num_rows, item.type) if values is None else values
        rows = rows.append_column(pa.field(item.name, item.type), values)
    return rows
