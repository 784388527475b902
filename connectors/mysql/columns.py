"""A column of MySQL and the Arrow type that holds all its values; the same whether it is seen in the catalog or in the binlog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa

from connectors.mysql.charsets import is_supported
from waxlake.stream.errors import SchemaError

__all__ = ["Column", "Kind", "column_from_catalog", "decimal_bytes"]

Kind = Literal[
    "int", "float", "double", "decimal", "bit", "year", "date", "datetime", "timestamp", "time",
    "text", "bytes", "enum", "set", "json", "uuid", "inet4", "inet6",
]  # fmt: skip

_INTEGERS: Final = {"tinyint": 1, "smallint": 2, "mediumint": 3, "int": 4, "bigint": 8}
_SIGNED: Final = {1: pa.int8(), 2: pa.int16(), 3: pa.int32(), 4: pa.int32(), 8: pa.int64()}
_UNSIGNED: Final = {1: pa.int16(), 2: pa.int32(), 3: pa.int32(), 4: pa.int64(), 8: pa.decimal128(20, 0)}
_PLAIN: Final = {
    "float": pa.float32(),
    "double": pa.float64(),
    "year": pa.int16(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "bytes": pa.binary(),
}
_TEXTS: Final = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_BYTES: Final = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
_GEOMETRIES: Final = (
    "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection",
    "geomcollection",
)  # fmt: skip
_MAX_PRECISION = 38
_LEFTOVER_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
_MEMBER = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: Its name.
        kind: What its values are.
        size: Bytes of an integer, an enum or a set; bits of a BIT; bytes of a fixed-length BINARY (0: not fixed).
        is_unsigned: Whether a number has no sign.
        precision: Digits of a decimal.
        scale: Digits after the point of a decimal; digits of a second for temporal types.
        charset: Character set of a text, enum or set.
        members: Members of an enum or set, in order.
    """

    name: str
    kind: Kind
    size: int = 0
    is_unsigned: bool = False
    precision: int = 0
    scale: int = 0
    charset: str = "utf8mb4"
    members: tuple[str, ...] = ()

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that holds every value; a value without an Arrow counterpart (a zero date) is NULL."""
        if self.kind == "int":
            return (_UNSIGNED if self.is_unsigned else _SIGNED)[self.size]
        if self.kind == "decimal":
            is_small = self.precision <= _MAX_PRECISION
            return pa.decimal128(self.precision, self.scale) if is_small else pa.string()
        if self.kind == "bit":
            return pa.bool_() if self.size == 1 else pa.int64() if self.size < 64 else pa.decimal128(20, 0)
        return _PLAIN.get(self.kind, pa.string())

    @property
    def field(self) -> pa.Field:
        """The Arrow field; nullable, since a zero date, a dropped column and a key-only delete are NULL."""
        return pa.field(self.name, self.arrow)

    def renamed(self, name: str) -> Column:
        """Return the column under another name."""
        return replace(self, name=name)


def decimal_bytes(precision: int, scale: int) -> int:
    """Return how many bytes a DECIMAL takes in a row event."""
    whole = precision - scale
    return whole // 9 * 4 + _LEFTOVER_BYTES[whole % 9] + scale // 9 * 4 + _LEFTOVER_BYTES[scale % 9]


def column_from_catalog(row: Mapping[str, Any], table: str) -> Column:
    """Return a column as ``information_schema.columns`` describes it.

    Raises:
        SchemaError: ``MYSQL_TYPE_UNSUPPORTED``. Not retryable.
    """
    name, data_type, full = str(row["COLUMN_NAME"]), str(row["DATA_TYPE"]).lower(), str(row["COLUMN_TYPE"])
    charset = str(row["CHARACTER_SET_NAME"] or "utf8mb4")
    if data_type in _INTEGERS:
        return Column(name=name, kind="int", size=_INTEGERS[data_type], is_unsigned="unsigned" in full.lower())
    if data_type == "decimal":
        precision, scale = int(row["NUMERIC_PRECISION"]), int(row["NUMERIC_SCALE"])
        return Column(name=name, kind="decimal", precision=precision, scale=scale)
    if data_type in ("datetime", "timestamp", "time"):
        return Column(name=name, kind=data_type, scale=int(row["DATETIME_PRECISION"] or 0))  # type: ignore[arg-type]
    if data_type in ("float", "double", "year", "date", "json", "uuid", "inet4", "inet6"):
        return Column(name=name, kind=data_type)  # type: ignore[arg-type]
    if data_type == "bit":
        return Column(name=name, kind="bit", size=int(row["NUMERIC_PRECISION"]))
    if data_type in ("enum", "set"):
        members = tuple(found[1].replace("''", "'") for found in _MEMBER.finditer(full))
        return Column(name=name, kind=data_type, charset=charset, members=members)  # type: ignore[arg-type]
    if data_type in _BYTES or data_type in _GEOMETRIES:
        size = int(row["CHARACTER_MAXIMUM_LENGTH"] or 0) if data_type == "binary" else 0
        return Column(name=name, kind="bytes", size=size)
    if data_type in _TEXTS and is_supported(charset):
        return Column(name=name, kind="text", charset=charset)
    raise unsupported(table, name, full if data_type not in _TEXTS else f"{full} in character set {charset}")


def unsupported(table: str, column: str, found: str) -> SchemaError:
    """Return the error for a column that cannot be read."""
    return SchemaError(
        f"cannot read column '{column}' of table '{table}'",
        code="MYSQL_TYPE_UNSUPPORTED",
        found=found,
        remedy="Leave it out with exclude_columns, or change its type",
    )
