"""What a TABLE_MAP event says about the rows that follow it: names, types and how many bytes each value takes.

Servers repeat it for each statement; parsed maps are kept by their bytes. ``binlog_row_metadata=FULL`` is needed: without it
a map has no names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import pymysqlreplication.constants.FIELD_TYPE as TYPE

from connectors.mysql.charsets import decode_text, is_supported
from connectors.mysql.columns import Column, decimal_bytes, unsupported
from waxlake.stream.errors import TerminalError

__all__ = ["Layout", "TableMap", "parse_table_map"]

_SIGNEDNESS, _DEFAULT_CHARSET, _COLUMN_CHARSET, _NAMES, _SET_VALUES, _ENUM_VALUES = 1, 2, 3, 4, 5, 6
_PRIMARY_KEY, _KEY_WITH_PREFIX, _ENUM_DEFAULT_CHARSET, _ENUM_CHARSET = 8, 9, 10, 11
_BLOB_COMPRESSED, _VARCHAR_COMPRESSED = 140, 141
_INTEGER_BYTES: Final = {TYPE.TINY: 1, TYPE.SHORT: 2, TYPE.INT24: 3, TYPE.LONG: 4, TYPE.LONGLONG: 8}
_NUMERIC: Final = frozenset({*_INTEGER_BYTES, TYPE.NEWDECIMAL, TYPE.FLOAT, TYPE.DOUBLE, TYPE.YEAR})
_META_BYTES: Final = {
    **dict.fromkeys((TYPE.FLOAT, TYPE.DOUBLE, TYPE.BLOB, TYPE.GEOMETRY, TYPE.JSON), 1),
    **dict.fromkeys((TYPE.TIMESTAMP2, TYPE.DATETIME2, TYPE.TIME2, _BLOB_COMPRESSED), 1),
    **dict.fromkeys((TYPE.VARCHAR, TYPE.VAR_STRING, TYPE.STRING, TYPE.ENUM, TYPE.SET), 2),
    **dict.fromkeys((TYPE.NEWDECIMAL, TYPE.BIT, _VARCHAR_COMPRESSED), 2),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a column's value lies in a row: ``fixed`` bytes, or a length of ``prefix`` bytes and then the value."""

    column: Column
    fixed: int = 0
    prefix: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMap:
    """The structure of a table at one place of the binlog.

    Attributes:
        schema: Database.
        table: Table.
        layouts: Its columns, in order.
        keys: Indexes of the primary key's columns.
    """

    schema: str
    table: str
    layouts: tuple[Layout, ...]
    keys: tuple[int, ...]

    @property
    def name(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.table}"


class _Bytes:
    """Reads length-coded parts one after the other."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        first = self.take(1)[0]
        if first < 251:
            return first
        return int.from_bytes(self.take({252: 2, 253: 3, 254: 8}[first]), "little")

    def numbers(self, end: int) -> list[int]:
        found = []
        while self.at < end:
            found.append(self.number())
        return found


def table_name(body: bytes) -> tuple[str, str]:
    """Return (schema, table) of a TABLE_MAP body, without looking at the rest."""
    at = 9 + body[8]
    return body[9:at].decode(), body[at + 2 : at + 2 + body[at + 1]].decode()


@lru_cache(maxsize=4096)
def parse_table_map(body: bytes, charset_of: Callable[[int], str], is_mariadb: bool) -> TableMap:
    """Return the structure in a TABLE_MAP event's body, its table id and flags left off.

    Args:
        body: The event after table id and flags, without checksum.
        charset_of: Collation id to the name of its character set.
        is_mariadb: Whether a MariaDB server wrote it.

    Raises:
        SchemaError: A type that cannot be read. Not retryable.
        TerminalError: ``MYSQL_METADATA_MISSING``. Not retryable.
    """
    read = _Bytes(body)
    schema = read.take(read.take(1)[0]).decode()
    read.take(1)
    table = read.take(read.take(1)[0]).decode()
    read.take(1)
    types = read.take(read.number())
    meta_end = read.number() + read.at
    metas = [read.take(_META_BYTES.get(kind, 0)) for kind in types]
    read.at = meta_end
    read.take((len(types) + 7) // 8)  # which columns may be NULL
    extra: dict[int, bytes] = {}
    while read.at < len(body):
        kind = read.take(1)[0]
        extra[kind] = read.take(read.number())
    names = _names(extra, f"{schema}.{table}")
    if len(names) != len(types):
        raise _no_metadata(f"{schema}.{table}")
    real = [_real_type(kind, meta) for kind, meta in zip(types, metas, strict=True)]
    facts = _Facts(real, extra, charset_of, is_mariadb)
    layouts = tuple(_layout(names[i], real[i], metas[i], facts.of(i), f"{schema}.{table}") for i in range(len(types)))
    return TableMap(schema=schema, table=table, layouts=layouts, keys=_keys(extra))


def _no_metadata(table: str) -> TerminalError:
    return TerminalError(
        f"cannot read the changes of table '{table}'",
        code="MYSQL_METADATA_MISSING",
        found="row events without column names",
        expected="binlog_row_metadata=FULL when the rows were changed",
        remedy="SET GLOBAL binlog_row_metadata=FULL (and in the server's configuration), then load the table anew",
    )


def _names(extra: Mapping[int, bytes], table: str) -> list[str]:
    if _NAMES not in extra:
        raise _no_metadata(table)
    read, names = _Bytes(extra[_NAMES]), []
    while read.at < len(read.data):
        names.append(read.take(read.number()).decode())
    return names


def _keys(extra: Mapping[int, bytes]) -> tuple[int, ...]:
    if _PRIMARY_KEY in extra:
        return tuple(_Bytes(extra[_PRIMARY_KEY]).numbers(len(extra[_PRIMARY_KEY])))
    with_prefix = extra.get(_KEY_WITH_PREFIX, b"")
    return tuple(_Bytes(with_prefix).numbers(len(with_prefix))[::2])


def _real_type(kind: int, meta: bytes) -> int:
    return meta[0] if kind == TYPE.STRING and meta[0] in (TYPE.ENUM, TYPE.SET) else kind


class _Facts:
    """What the optional metadata says of each column."""

    def __init__(
        self, types: list[int], extra: Mapping[int, bytes], charset_of: Callable[[int], str], is_mariadb: bool
    ) -> None:
        texts = [TYPE.STRING, TYPE.VAR_STRING, TYPE.VARCHAR, TYPE.BLOB, _BLOB_COMPRESSED, _VARCHAR_COMPRESSED]
        if is_mariadb:
            texts.append(TYPE.GEOMETRY)
        self._charset_of = charset_of
        self._unsigned = _bits(extra.get(_SIGNEDNESS, b""), [i for i, t in enumerate(types) if t in _NUMERIC])
        self._collations = {
            **_charsets(extra, _DEFAULT_CHARSET, _COLUMN_CHARSET, [i for i, t in enumerate(types) if t in texts]),
            **_charsets(
                extra,
                _ENUM_DEFAULT_CHARSET,
                _ENUM_CHARSET,
                [i for i, t in enumerate(types) if t in (TYPE.ENUM, TYPE.SET)],
            ),
        }
        self._members = {
            **_members(extra.get(_ENUM_VALUES, b""), [i for i, t in enumerate(types) if t == TYPE.ENUM]),
            **_members(extra.get(_SET_VALUES, b""), [i for i, t in enumerate(types) if t == TYPE.SET]),
        }

    def of(self, index: int) -> tuple[bool, str, tuple[str, ...]]:
        """Return (is unsigned, character set, members) of a column."""
        collation = self._collations.get(index)
        charset = "binary" if collation is None else self._charset_of(collation)
        members = tuple(
            decode_text(m, charset if is_supported(charset) else "utf8mb4") for m in self._members.get(index, ())
        )
        return index in self._unsigned, charset, members


def _bits(data: bytes, columns: list[int]) -> set[int]:
    return {column for i, column in enumerate(columns) if i // 8 < len(data) and data[i // 8] & 0x80 >> i % 8}


def _charsets(extra: Mapping[int, bytes], default: int, each: int, columns: list[int]) -> dict[int, int]:
    if each in extra:
        return dict(zip(columns, _Bytes(extra[each]).numbers(len(extra[each])), strict=False))
    data = extra.get(default, b"")
    if not data:
        return {}
    numbers = _Bytes(data).numbers(len(data))
    others = dict(zip(numbers[1::2], numbers[2::2], strict=False))
    return {column: others.get(i, numbers[0]) for i, column in enumerate(columns)}


def _members(data: bytes, columns: list[int]) -> dict[int, list[bytes]]:
    read, found = _Bytes(data), {}
    for column in columns:
        if read.at < len(data):
            found[column] = [read.take(read.number()) for _ in range(read.number())]
    return found


def _layout(name: str, kind: int, meta: bytes, facts: tuple[bool, str, tuple[str, ...]], table: str) -> Layout:
    """Return one column; ``kind`` is its type with enum and set told from strings."""
    is_unsigned, charset, members = facts
    if kind in _INTEGER_BYTES:
        size = _INTEGER_BYTES[kind]
        return Layout(Column(name=name, kind="int", size=size, is_unsigned=is_unsigned), fixed=size)
    if kind == TYPE.NEWDECIMAL:
        column = Column(name=name, kind="decimal", precision=meta[0], scale=meta[1])
        return Layout(column, fixed=decimal_bytes(meta[0], meta[1]))
    if kind in (TYPE.ENUM, TYPE.SET):
        name_of = "enum" if kind == TYPE.ENUM else "set"
        column = Column(name=name, kind=name_of, size=meta[1], charset=charset, members=members)  # type: ignore[arg-type]
        return Layout(column, fixed=meta[1])
    if kind == TYPE.BIT:
        bits = meta[1] * 8 + meta[0]
        return Layout(Column(name=name, kind="bit", size=bits), fixed=(bits + 7) // 8)
    if kind in _TEMPORAL:
        column, size = _TEMPORAL[kind]
        scale = meta[0] if meta else 0
        return Layout(replace(column, name=name, scale=scale), fixed=size + (scale + 1) // 2)
    if kind in _SIMPLE:
        column, size = _SIMPLE[kind]
        return Layout(column.renamed(name), fixed=size)
    return _variable(name, kind, meta, charset, table)


_TEMPORAL: Final = {
    TYPE.TIMESTAMP2: (Column(name="", kind="timestamp"), 4),
    TYPE.DATETIME2: (Column(name="", kind="datetime"), 5),
    TYPE.TIME2: (Column(name="", kind="time"), 3),
}
_SIMPLE: Final = {
    TYPE.FLOAT: (Column(name="", kind="float"), 4),
    TYPE.DOUBLE: (Column(name="", kind="double"), 8),
    TYPE.YEAR: (Column(name="", kind="year"), 1),
    TYPE.DATE: (Column(name="", kind="date"), 3),
    TYPE.NEWDATE: (Column(name="", kind="date"), 3),
}


def _variable(name: str, kind: int, meta: bytes, charset: str, table: str) -> Layout:
    """Return a column whose values differ in length."""
    size = 0
    if kind == TYPE.STRING:
        longest = (((meta[0] << 8 | meta[1]) >> 4 & 0x300) ^ 0x300) + meta[1]
        prefix, size = (2 if longest > 255 else 1), longest
    elif kind in (TYPE.VARCHAR, TYPE.VAR_STRING):
        prefix = 2 if int.from_bytes(meta, "little") > 255 else 1
    elif kind in (TYPE.BLOB, TYPE.GEOMETRY, TYPE.JSON):
        prefix = meta[0]
    else:
        raise unsupported(table, name, f"type {kind} of a binlog event")
    if kind == TYPE.JSON:
        return Layout(Column(name=name, kind="json"), prefix=prefix)
    if charset == "binary" or kind == TYPE.GEOMETRY:
        return Layout(Column(name=name, kind="bytes", size=size), prefix=prefix)
    if not is_supported(charset):
        raise unsupported(table, name, f"character set {charset}")
    return Layout(Column(name=name, kind="text", charset=charset), prefix=prefix)
