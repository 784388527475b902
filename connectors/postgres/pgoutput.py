"""Messages of pgoutput (protocol version 1) as Arrow columns.

The messages of many rows are parsed together, column by column, with numpy: a row costs no Python but its place in a list.
Called by the reader. Source: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.postgres.types import text_array
from waxlake.stream.changes import DELETE, INSERT, TRUNCATE, UPDATE
from waxlake.stream.errors import InternalError

__all__ = ["ChangedRows", "Relation", "RelationColumn", "RelationRows", "parse_relation", "truncate_message"]

_INSERT, _UPDATE, _DELETE, _TRUNCATE = (ord(letter) for letter in "IUDT")
_NEW, _NULL, _TEXT, _UNCHANGED, _FULL_OLD = (ord(letter) for letter in "NntuO")
_TUPLE: Final = 6  # operation, relation id, what kind of tuple follows
_NAMES: Final = pa.array([INSERT, UPDATE, DELETE, TRUNCATE])
_CODES: Final = {_INSERT: 0, _UPDATE: 1, _DELETE: 2, _TRUNCATE: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationColumn:
    """A column as the stream describes it, at that time of the table's history."""

    name: str
    type_oid: int
    modifier: int
    is_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table as the stream describes it."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]

    @property
    def label(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"


def parse_relation(payload: bytes) -> Relation:
    """Return what a relation message says."""
    (oid,) = struct.unpack_from(">I", payload, 1)
    schema, at = _text(payload, 5)
    name, at = _text(payload, at)
    identity, (count,) = chr(payload[at]), struct.unpack_from(">H", payload, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        flags = payload[at]
        column, at = _text(payload, at + 1)
        type_oid, modifier = struct.unpack_from(">Ii", payload, at)
        at += 8
        columns.append(RelationColumn(name=column, type_oid=type_oid, modifier=modifier, is_key=bool(flags & 1)))
    return Relation(oid=oid, schema=schema or "pg_catalog", name=name, identity=identity, columns=tuple(columns))


def _text(payload: bytes, at: int) -> tuple[str, int]:
    end = payload.index(b"\0", at)
    return payload[at:end].decode(), end + 1


def truncate_message(relation: Relation) -> bytes:
    """Return a truncate of one table, in the shape of a row of NULLs."""
    count = len(relation.columns)
    return b"T" + struct.pack(">I", relation.oid) + b"N" + struct.pack(">H", count) + b"n" * count


@dataclass(slots=True)
class RelationRows:
    """Row messages of one table, as they came, and the commits they belong to.

    Attributes:
        relation: The table.
        messages: Payloads of insert, update, delete and truncate messages.
        indexes: Order of each within its commit.
        runs: (number of rows, commit LSN, commit time in µs since 2000) of each commit, in order.
        begin: Rows that were there when the commit in progress began.
    """

    relation: Relation
    messages: list[bytes] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    begin: int = 0
    commit: int = -1

    def split(self, row: int) -> RelationRows:
        """Cut off and return the rows from ``row`` on, which have no run yet."""
        rest = RelationRows(self.relation, self.messages[row:], self.indexes[row:], commit=self.commit)
        del self.messages[row:], self.indexes[row:]
        return rest


@dataclass(slots=True)
class _Tuples:
    """Values of one tuple of each message: kind, first byte and length, each of shape (n_columns, n_rows)."""

    kinds: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray


class ChangedRows:
    """Change rows of one table, parsed; a change of the key is two of them.

    Args:
        rows: The messages.
        keys: Columns of the key, for a table whose stream marks all columns as such (identity FULL).

    Attributes:
        source_rows: For each change row, the message it came from, shape (n_rows,).
        indexes: ``_change_index`` of each: even, and one more for the insert of a changed key.
    """

    def __init__(self, rows: RelationRows, keys: Collection[str]) -> None:
        self._relation = relation = rows.relation
        is_key = [c.name in keys if relation.identity == "f" else c.is_key for c in relation.columns]
        self._keys = [index for index, flag in enumerate(is_key) if flag]
        count = len(rows.messages)
        lengths = np.fromiter(map(len, rows.messages), np.int64, count)
        joined = b"".join([*rows.messages, b"\0" * 8])
        self._buffer = np.frombuffer(joined, np.uint8)
        self._words = np.ndarray((len(joined) - 3,), ">u4", joined, strides=(1,))
        offsets = np.zeros(count, np.int64)
        np.cumsum(lengths[:-1], out=offsets[1:])
        self._operations = self._buffer[offsets]
        self._tags = self._buffer[offsets + 5]
        self._first = self._parse(offsets + _TUPLE)
        self._second = self._parse_second()
        self._lay_out(np.asarray(rows.indexes, np.int64))

    @property
    def types(self) -> pa.Array:
        """``_change_type`` of each change row."""
        return _NAMES.take(pa.array(self._codes))

    def column(self, index: int) -> pa.Array:
        """Return the texts of one column, NULL where it is NULL or was not sent."""
        kinds, starts, lengths = (self._chosen(name, index) for name in ("kinds", "starts", "lengths"))
        if self._old_full.any():
            fill = (kinds == _UNCHANGED) & self._old_full
            kinds = np.where(fill, self._first.kinds[index][self.source_rows], kinds)
            starts = np.where(fill, self._first.starts[index][self.source_rows], starts)
            lengths = np.where(fill, self._first.lengths[index][self.source_rows], lengths)
        return text_array(self._buffer, starts, lengths, kinds != _TEXT)

    def unchanged(self) -> pa.Array:
        """Return the names of columns that were not sent because they did not change; NULL where there are none."""
        names = pa.array([column.name for column in self._relation.columns], pa.string())
        missing = np.stack([self._chosen("kinds", i) == _UNCHANGED for i in range(len(names))], axis=1)
        missing[self._old_full] = False
        counts = missing.sum(axis=1)
        kind = pa.list_(pa.string())
        if not counts.any():
            return pa.nulls(len(counts), kind)
        offsets = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=offsets[1:])
        validity = pa.py_buffer(np.packbits(counts > 0, bitorder="little").tobytes())
        values = names.take(pa.array(np.nonzero(missing)[1]))
        return pa.Array.from_buffers(kind, len(counts), [validity, pa.py_buffer(offsets)], children=[values])

    def _parse(self, at: np.ndarray) -> _Tuples:
        columns, rows = len(self._relation.columns), len(at)
        kinds, starts, lengths = (np.zeros((columns, rows), kind) for kind in (np.uint8, np.int64, np.int64))
        if rows:
            counts = self._buffer[at].astype(np.int64) << 8 | self._buffer[at + 1]
            if (counts != columns).any():
                raise InternalError(
                    f"cannot parse changes of {self._relation.label}",
                    code="POSTGRES_PROTOCOL",
                    found=f"{counts[counts != columns][0]} columns",
                    expected=str(columns),
                )
        at = at + 2
        for column in range(columns):
            kind = self._buffer[at]
            has_value = kind == _TEXT
            length = np.where(has_value, self._words[at + 1], 0).astype(np.int64)
            kinds[column], starts[column], lengths[column] = kind, at + 5, length
            at = at + 1 + np.where(has_value, 4 + length, 0)
        return _Tuples(kinds, starts, lengths, at)

    def _parse_second(self) -> _Tuples | None:
        """Parse the new tuple where an old one stood before it."""
        has_old = (self._operations == _UPDATE) & (self._tags != _NEW)
        if not has_old.any():
            return None
        part = self._parse(self._first.ends[has_old] + 1)
        shape = self._first.kinds.shape
        whole = _Tuples(
            np.zeros(shape, np.uint8), np.zeros(shape, np.int64), np.zeros(shape, np.int64), self._first.ends
        )
        for name in ("kinds", "starts", "lengths"):
            getattr(whole, name)[:, has_old] = getattr(part, name)
        return whole

    def _lay_out(self, indexes: np.ndarray) -> None:
        """Decide which tuple makes which change row."""
        moved = self._has_moved_key()
        counts = 1 + moved.astype(np.int64)
        self.source_rows = np.repeat(np.arange(len(moved)), counts)
        operations = self._operations[self.source_rows].copy()
        is_second_of_two = np.zeros(len(operations), bool)
        if moved.any():
            is_second_of_two[1:] = self.source_rows[1:] == self.source_rows[:-1]
            is_moved = moved[self.source_rows]
            operations[is_moved] = np.where(is_second_of_two[is_moved], _INSERT, _DELETE)
        codes = np.zeros(256, np.int8)
        for operation, code in _CODES.items():
            codes[operation] = code
        self._codes = codes[operations]
        has_old = (self._operations == _UPDATE) & (self._tags != _NEW)
        self._is_new = has_old[self.source_rows] & (operations != _DELETE)
        self._old_full = self._is_new & (self._tags == _FULL_OLD)[self.source_rows]
        self.indexes = indexes[self.source_rows] * 2 + is_second_of_two

    def _has_moved_key(self) -> np.ndarray:
        """Return which updates changed the key. The old row is there when it did, and always under identity FULL."""
        has_old: np.ndarray = (self._operations == _UPDATE) & (self._tags != _NEW)
        if self._second is None:
            return has_old
        rows = np.nonzero(has_old)[0]
        differs = np.zeros(len(rows), bool)
        for key in self._keys:
            old, new = (
                text_array(self._buffer, t.starts[key][rows], t.lengths[key][rows], t.kinds[key][rows] != _TEXT)
                for t in (self._first, self._second)
            )
            both = pc.fill_null(pc.not_equal(old, new), False).to_numpy(zero_copy_only=False)
            one = (self._first.kinds[key] == _NULL)[rows] != (self._second.kinds[key] == _NULL)[rows]
            differs |= (both | one) & (self._second.kinds[key][rows] != _UNCHANGED)
        moved: np.ndarray = has_old.copy()
        moved[rows] = differs
        return moved

    def _chosen(self, name: str, column: int) -> np.ndarray:
        values: np.ndarray = getattr(self._first, name)[column][self.source_rows]
        if self._second is None:
            return values
        chosen: np.ndarray = np.where(self._is_new, getattr(self._second, name)[column][self.source_rows], values)
        return chosen
