"""From row events to change rows: one Arrow table a table and batch, in the order of the log."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.mysql.arrays import from_numbers
from connectors.mysql.binary_values import decode_column
from connectors.mysql.client import SourceTable
from connectors.mysql.columns import Column
from connectors.mysql.log import RowsEvent, Truncation
from connectors.mysql.table_map import TableMap
from connectors.mysql.walk import Images, walk_rows
from waxlake.stream.changes import (
    CHANGE_COLUMNS,
    CHANGE_INDEX,
    CHANGE_TABLE,
    CHANGE_TYPE,
    COMMIT_POSITION,
    COMMIT_TIMESTAMP,
    DELETE,
    INSERT,
    TRUNCATE,
    UNCHANGED_COLUMNS,
    UPDATE,
)
from waxlake.stream.errors import SourceChanged, TerminalError
from waxlake.stream.schema import cast_exact, no_rows

__all__ = ["ChangeRows", "RowDecoder", "change_columns", "full_schema"]

Integers = npt.NDArray[np.int64]
_RAW_KINDS = frozenset({"uuid", "inet4", "inet6"})


@dataclass(frozen=True, slots=True)
class ChangeRows:
    """Change rows of one table.

    Attributes:
        rows: The rows.
        ends: Position after the transaction of each row.
    """

    rows: pa.Table
    ends: Integers


def full_schema(table: SourceTable) -> pa.Schema:
    """Return every column a batch of a table may have, metadata columns last."""
    return pa.schema([*(column.field for column in table.columns), *CHANGE_COLUMNS])


def change_columns(
    types: pa.Array, positions: Integers, indexes: Integers, seconds: Integers, table: str
) -> dict[str, pa.Array]:
    """Return the metadata columns of change rows."""
    count = len(types)
    none = np.zeros(count, np.bool_)
    return {
        CHANGE_TYPE: types,
        COMMIT_POSITION: from_numbers(positions, none, pa.int64()),
        CHANGE_INDEX: from_numbers(indexes, none, pa.int64()),
        COMMIT_TIMESTAMP: from_numbers(seconds * 1_000_000, none, pa.timestamp("us", tz="UTC")),
        CHANGE_TABLE: pa.repeat(pa.scalar(table), count),
        UNCHANGED_COLUMNS: pa.nulls(count, pa.list_(pa.string())),
    }


class RowDecoder:
    """Decodes the changes of one table.

    Args:
        table: The table as the plan knows it.
        names: Columns that batches have, in order.
        remember: Told of columns that the plan does not know, by table: the next plan will.
    """

    def __init__(
        self, table: SourceTable, names: Sequence[str], remember: Callable[[str, Sequence[Column]], None]
    ) -> None:
        self._table, self._remember = table, remember
        schema = full_schema(table)
        self.schema = pa.schema([schema.field(name) for name in names])
        self._columns = {column.name: column for column in table.columns}

    def decode(self, changes: Sequence[RowsEvent | Truncation]) -> ChangeRows:
        """Return the change rows of events, in their order.

        Raises:
            SourceChanged: ``SOURCE_COLUMNS_CHANGED``: the table has columns that the plan does not know. Not retryable, but
                planning again is.
            TerminalError: ``MYSQL_BINLOG_CORRUPT``. Not retryable.
        """
        parts: list[ChangeRows] = []
        for layout, group in itertools.groupby(changes, lambda c: c.layout if isinstance(c, RowsEvent) else None):
            if layout is None:
                parts.append(self._truncations([c for c in group if isinstance(c, Truncation)]))
            else:
                parts.append(self._rows(layout, [c for c in group if isinstance(c, RowsEvent)]))
        if not parts:
            return ChangeRows(no_rows(self.schema), np.zeros(0, np.int64))
        return ChangeRows(pa.concat_tables([p.rows for p in parts]), np.concatenate([p.ends for p in parts]))

    def _truncations(self, events: Sequence[Truncation]) -> ChangeRows:
        numbers = np.array([[e.commit_position, e.timestamp_s, e.end] for e in events], np.int64)
        metadata = change_columns(
            pa.repeat(pa.scalar(TRUNCATE), len(events)),
            numbers[:, 0],
            np.zeros(len(events), np.int64),
            numbers[:, 1],
            self._table.full_name,
        )
        return ChangeRows(self._assembled({}, metadata, len(events)), numbers[:, 2])

    def _rows(self, layout: TableMap, events: Sequence[RowsEvent]) -> ChangeRows:
        images = self._walked(layout, events)
        picked, types = self._picked(layout, events, images)
        event = images.event[picked]
        numbers = np.array([[e.commit_position, e.index, e.timestamp_s, e.end] for e in events], np.int64)[event]
        metadata = change_columns(
            types,
            numbers[:, 0],
            numbers[:, 1] + images.number[picked],
            numbers[:, 2],
            self._table.full_name,
        )
        images = _subset(images, picked)
        data: dict[str, pa.Array] = {}
        for i, item in enumerate(layout.layouts):
            declared = self._declared(item.column)
            if declared is not None and declared.name in self.schema.names:
                data[declared.name] = decode_column(images, i, _read_as(item.column, declared), item.fixed)
        return ChangeRows(self._assembled(data, metadata, len(picked)), numbers[:, 3])

    def _declared(self, column: Column) -> Column | None:
        """Return the column as the plan knows it; None for one that is left out on purpose."""
        declared = self._columns.get(column.name)
        if declared is None and column.name not in self._table.left_out:
            self._remember(self._table.full_name, [column])
            raise SourceChanged(
                f"cannot go on with table '{self._table.full_name}'",
                code="SOURCE_COLUMNS_CHANGED",
                found=f"a new column '{column.name}'",
                expected=", ".join(self._columns),
                remedy="The table was altered. Run again: the new column is taken from its first row on",
            )
        return declared

    def _walked(self, layout: TableMap, events: Sequence[RowsEvent]) -> Images:
        sizes = np.array([len(e.body) for e in events], np.int64)
        ends = np.cumsum(sizes)
        starts = ends - sizes + np.array([e.start for e in events], np.int64)
        data = events[0].body if len(events) == 1 else b"".join([e.body for e in events])
        try:
            return walk_rows(data, starts, ends, layout.layouts)
        except ValueError as exc:
            raise TerminalError(
                f"cannot read the changes of table '{self._table.full_name}'",
                code="MYSQL_BINLOG_CORRUPT",
                found=str(exc),
                expected="row events that fit the table map before them",
            ) from exc

    def _picked(self, layout: TableMap, events: Sequence[RowsEvent], images: Images) -> tuple[Integers, pa.Array]:
        """Return which images become rows, and of which type.

        Of an update it is what the row became; if the key changed, or there is none, also what it was, as a delete.
        """
        codes = np.array([_CODES[e.kind] for e in events], np.int8)[images.event]
        if not (codes == 1).any():
            return np.arange(len(codes)), _TYPES.take(pa.array(codes))
        before = np.flatnonzero((codes == 1) & (images.number % 2 == 0))
        is_moved = np.ones(len(before), np.bool_) if not self._key(layout) else self._moved(layout, images, before)
        codes[before] = np.where(is_moved, 2, -1)
        codes[before[is_moved] + 1] = 0
        picked = np.flatnonzero(codes >= 0)
        return picked, _TYPES.take(pa.array(codes[picked]))

    def _key(self, layout: TableMap) -> list[int]:
        names = [item.column.name for item in layout.layouts]
        return [names.index(name) for name in self._table.key if name in names]

    def _moved(self, layout: TableMap, images: Images, before: Integers) -> npt.NDArray[np.bool_]:
        """Return for which updates the key is another one afterwards."""
        moved = np.zeros(len(before), np.bool_)
        for i in self._key(layout):
            item = layout.layouts[i]
            old = decode_column(_subset(images, before), i, item.column, item.fixed)
            new = decode_column(_subset(images, before + 1), i, item.column, item.fixed)
            moved |= ~pc.equal(old, new).fill_null(False).to_numpy(zero_copy_only=False)
        return moved

    def _assembled(self, data: dict[str, pa.Array], metadata: dict[str, pa.Array], count: int) -> pa.Table:
        columns, fields = [], []
        for item in self.schema:
            values = data.get(item.name, metadata.get(item.name))
            if values is None:
                values = pa.nulls(count, item.type)
            columns.append(values)
            fields.append(pa.field(item.name, values.type, metadata=item.metadata))
        rows = pa.Table.from_arrays(columns, schema=pa.schema(fields))
        return cast_exact(rows, self.schema, what=f"the columns of table '{self._table.full_name}'")


_CODES = {"insert": 0, "update": 1, "delete": 2}
_TYPES = pa.array([INSERT, UPDATE, DELETE])


def _read_as(found: Column, declared: Column) -> Column:
    """Return a column as its bytes are to be read: the binlog calls some types of MariaDB a string of bytes."""
    if declared.kind in _RAW_KINDS and found.kind in ("bytes", "text"):
        return replace(found, kind=declared.kind)
    return found


def _subset(images: Images, picked: Integers) -> Images:
    if len(picked) == len(images.event) and (
        len(picked) == 0 or (int(picked[-1]) == len(picked) - 1 and int(picked[0]) == 0)
    ):
        return images
    return Images(
        data=images.data,
        event=images.event[picked],
        number=images.number[picked],
        nulls=images.nulls[:, picked],
        starts=images.starts[:, picked],
        sizes=[None if sizes is None else sizes[picked] for sizes in images.sizes],
    )
