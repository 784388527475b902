"""Rows of a query's text protocol to Arrow arrays: what ``SELECT`` of a column means, and its values, a column at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.mysql.arrays import from_bytes
from connectors.mysql.columns import Column

__all__ = ["decode_rows", "key_expression", "key_literal", "quote", "select_expression"]

_PADDING = 16
_NULL = 0xFB
_PREFIXES: Final = {0xFC: 2, 0xFD: 3, 0xFE: 8}


def quote(name: str) -> str:
    """Return a name as it is written in a statement."""
    return "`" + name.replace("`", "``") + "`"


def select_expression(column: Column) -> str:
    """Return what to select so that the text of a value is exact."""
    name = quote(column.name)
    if column.kind == "float":
        return f"{name} + 0.0e0"  # else the server rounds to six digits
    return f"{name} + 0" if column.kind == "bit" else name


def key_literal(value: bytes | None, column: Column) -> str:
    """Return the SQL literal of a key's value that was selected by ``key_expression``."""
    if value is None:
        return "NULL"
    if column.kind in ("int", "decimal", "bit", "year", "enum", "set", "float", "double"):
        return value.decode()
    if column.kind == "bytes":
        return f"x'{value.hex()}'"
    return "'" + value.decode().replace("\\", "\\\\").replace("'", "''") + "'"


def key_expression(column: Column) -> str:
    """Return what a key's column is compared and ordered by."""
    return f"({quote(column.name)} + 0)" if column.kind in ("enum", "set") else quote(column.name)


def decode_rows(payloads: Sequence[bytes], columns: Sequence[Column]) -> tuple[list[pa.Array], list[bytes | None]]:
    """Return the values of result rows by column, and the raw values of the last row.

    Args:
        payloads: Row packets, in order.
        columns: What was selected, in order; its text as ``select_expression`` makes it.
    """
    data = np.frombuffer(b"".join(payloads) + bytes(_PADDING), np.uint8)
    sizes = np.fromiter((len(p) for p in payloads), np.int64, len(payloads))
    at = np.cumsum(sizes) - sizes
    arrays: list[pa.Array] = []
    last: list[bytes | None] = []
    for column in columns:
        starts, lengths, nulls = _lengths(data, at)
        at = starts + lengths
        raw = from_bytes(data, starts, lengths, nulls, pa.binary() if column.kind == "bytes" else pa.string())
        arrays.append(_cast(raw, column))
        end = int(starts[-1] + lengths[-1]) if len(starts) else 0
        last.append(None if not len(starts) or nulls[-1] else data[int(starts[-1]) : end].tobytes())
    return arrays, last


def _lengths(
    data: npt.NDArray[np.uint8], at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return (first byte, bytes, is NULL) of the length-coded values at ``at``."""
    first = data[at].astype(np.int64)
    nulls = first == _NULL
    lengths, starts = np.where(nulls, 0, first), at + 1
    for mark, count in _PREFIXES.items():
        long = np.flatnonzero(first == mark)
        if len(long):
            lengths[long] = sum(data[at[long] + 1 + i].astype(np.int64) << 8 * i for i in range(count))
            starts[long] += count
    return starts, lengths, nulls


def _cast(raw: pa.Array, column: Column) -> pa.Array:
    kind = column.arrow
    if raw.type == kind:
        return raw
    if column.kind == "bit" and kind == pa.bool_():
        return pc.equal(raw, "1")
    if column.kind in ("date", "datetime", "timestamp"):
        return _temporal(raw, kind)
    return pc.cast(raw, kind)


def _temporal(raw: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return dates and times; a zero date, or a day that its month has not got, is NULL."""
    day = pc.utf8_slice_codeunits(raw, 0, 10)
    is_zero = pc.match_substring_regex(day, "^0000|-00")
    raw = pc.if_else(is_zero, pa.scalar(None, pa.string()), raw)
    target: Any = pa.timestamp("us") if pa.types.is_timestamp(kind) else kind
    try:
        values = pc.cast(raw, target)
    except pa.ArrowInvalid:  # ALLOW_INVALID_DATES lets 2024-02-31 in
        values = pa.array([_or_none(text, target) for text in raw.to_pylist()], target)
    return pc.assume_timezone(values, "UTC") if kind.equals(pa.timestamp("us", tz="UTC")) else values


def _or_none(text: str | None, kind: pa.DataType) -> Any:
    try:
        return pc.cast(pa.scalar(text, pa.string()), kind).as_py()
    except pa.ArrowInvalid:
        return None
