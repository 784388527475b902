"""Debezium's types: which JSON value stands for a column, and how it becomes a value of the declared type, exactly.

Only types whose JSON value is not the value itself are named here (``SEMANTIC_TYPES``); every other one, such as
``ZonedTimestamp``, ``Uuid``, ``Json`` or ``Enum``, is read as any JSON value is. A value that cannot be converted becomes
NULL, and the caller rescues it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["SEMANTIC_TYPES", "Semantic", "Wire", "semantic_of", "short_name", "wire_of"]

_MICROS: Final = {"Timestamp": (1000, 1), "MicroTimestamp": (1, 1), "NanoTimestamp": (1, 1000)}
_TIMES: Final = {"Time": (1000, 1), "MicroTime": (1, 1), "NanoTime": (1, 1000)}
_DECIMALS: Final = ("Decimal", "VariableScaleDecimal")

SEMANTIC_TYPES: Final = (*_MICROS, *_TIMES, "Date", *_DECIMALS)
"""Short names, of ``io.debezium.time``, ``io.debezium.data`` and ``org.apache.kafka.connect.data`` alike."""

_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_DAY_US = 86_400_000_000
_MOST_BYTES = 16
_VARIABLE_SCALE = pa.struct([("scale", pa.int32()), ("value", pa.string())])

Convert = Callable[[pa.Array], pa.Array]


@dataclass(frozen=True, slots=True)
class Semantic:
    """What Debezium says a column is.

    Attributes:
        name: One of ``SEMANTIC_TYPES``.
        scale: Scale of a ``Decimal``; None if it is not known.
    """

    name: str
    scale: int | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """How a column is read from JSON.

    Attributes:
        type: Type to read it as.
        convert: Makes the declared type of it, NULL where that cannot be done; None if it is that type already.
    """

    type: pa.DataType
    convert: Convert | None = None


def short_name(name: str) -> str:
    """Return the last part of a type's full name."""
    return name.rpartition(".")[2]


def wire_of(kind: pa.DataType, semantic: Semantic | None, connection: duckdb.DuckDBPyConnection) -> Wire:
    """Return how to read a column of a declared type from the JSON of a type of Debezium's.

    Args:
        kind: Declared type.
        semantic: What Debezium says the column is.
        connection: The decoder's own; conversions use it.
    """
    if semantic is None:
        return Wire(kind)
    name = semantic.name
    if name in _MICROS and (pa.types.is_timestamp(kind) or pa.types.is_string(kind)):
        return Wire(pa.int64(), lambda values: _timestamps(values, kind, *_MICROS[name]))
    if name in _TIMES and pa.types.is_string(kind):
        return Wire(pa.int64(), lambda values: _times(values, *_TIMES[name]))
    if name == "Date" and (pa.types.is_date(kind) or pa.types.is_string(kind)):
        return Wire(pa.int32(), lambda values: _dates(values, kind))
    if name in _DECIMALS and _holds_decimals(kind):
        if name == "VariableScaleDecimal":
            return Wire(_VARIABLE_SCALE, lambda values: _variable_decimals(values, kind, connection))
        scale = semantic.scale if semantic.scale is not None else getattr(kind, "scale", None)
        if scale is not None:
            return Wire(pa.string(), lambda values: _decimals(values, kind, scale, connection))
    return Wire(kind)


def _holds_decimals(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_decimal(kind) or pa.types.is_string(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind)
    )


def _where(keep: np.ndarray, values: pa.Array) -> pa.Array:
    """Return the values with NULL wherever ``keep`` is false."""
    return values if keep.all() else pc.if_else(pa.array(keep), values, pa.scalar(None, values.type))


def _scaled(values: pa.Array, factor: int, divisor: int, low: int, high: int) -> pa.Array:
    """Return numbers in microseconds; NULL below ``low``, above ``high`` and where digits would be lost."""
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    fits = (numbers >= -(-low * divisor // factor)) & (numbers <= high * divisor // factor) & (numbers % divisor == 0)
    return _where(fits & ~_nulls(values), pa.array(np.where(fits, numbers, 0) * factor // divisor, pa.int64()))


def _nulls(values: pa.Array) -> np.ndarray:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def _timestamps(values: pa.Array, kind: pa.DataType, factor: int, divisor: int) -> pa.Array:
    micros = _scaled(values, factor, divisor, _FIRST_US, _LAST_US)
    if pa.types.is_string(kind):
        return pc.strftime(micros.cast(pa.timestamp("us")), format="%Y-%m-%dT%H:%M:%S")
    return micros.cast(kind)


def _times(values: pa.Array, factor: int, divisor: int) -> pa.Array:
    return _scaled(values, factor, divisor, 0, _DAY_US - 1).cast(pa.time64("us")).cast(pa.string())


def _dates(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return _scaled(values.cast(pa.int64()), 1, 1, _FIRST_DAY, _LAST_DAY).cast(pa.int32()).cast(pa.date32()).cast(kind)


def _decimals(texts: pa.Array, kind: pa.DataType, scale: int, connection: duckdb.DuckDBPyConnection) -> pa.Array:
    return _cast_each(_from_unscaled(_from_base64(texts, connection), scale), kind)


def _variable_decimals(values: pa.Array, kind: pa.DataType, connection: duckdb.DuckDBPyConnection) -> pa.Array:
    scales, unscaled = values.field("scale"), _from_base64(values.field("value"), connection)
    made: pa.Array = pa.nulls(len(values), kind)
    for scale in scales.drop_null().unique().to_pylist():
        mask = pc.and_(pc.equal(scales, scale).fill_null(False), pc.is_valid(values))
        found = _cast_each(_from_unscaled(unscaled.filter(mask), scale), kind)
        made = pc.replace_with_mask(made, mask, found)
    return made


def _from_base64(texts: pa.Array, connection: duckdb.DuckDBPyConnection) -> pa.Array:
    """Return the bytes of base64 texts; NULL for what is none."""
    connection.register("texts", pa.table({"v": texts}))
    try:
        found = connection.sql("SELECT try(from_base64(v)) AS b FROM texts").to_arrow_table().column("b")
        return found.combine_chunks().cast(pa.binary())
    finally:
        connection.unregister("texts")


def _from_unscaled(values: pa.Array, scale: int) -> pa.Array:
    """Return decimals of big-endian two's complement integers; NULL for none, or one beyond 38 digits."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1].astype(int)
    buffer = values.buffers()[2]
    data = np.zeros(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
    lengths = np.diff(offsets)
    wide = np.zeros((len(values), _MOST_BYTES), np.uint8)
    for length in np.unique(lengths):
        if 0 < length <= _MOST_BYTES:
            rows = np.flatnonzero(lengths == length)
            raw = data[offsets[rows][:, None] + np.arange(length)]
            wide[rows] = np.where(raw[:, :1] >= 0x80, 0xFF, 0)
            wide[rows, _MOST_BYTES - length :] = raw
    little = np.ascontiguousarray(wide[:, ::-1])
    made = pa.Array.from_buffers(pa.decimal128(38, scale), len(values), [None, pa.py_buffer(little.tobytes())])
    fits = (lengths > 0) & (lengths <= _MOST_BYTES) & ~_nulls(values)
    if (lengths == _MOST_BYTES).any():  # 16 bytes hold more than 38 digits
        most = Decimal(10) ** 38 - 1
        for row in np.flatnonzero(lengths == _MOST_BYTES):
            fits[row] &= abs(int.from_bytes(bytes(wide[row]), "big", signed=True)) <= most
    return _where(fits, made)


def _cast_each(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the values cast; NULL for those that the type does not hold exactly."""
    if pa.types.is_string(kind):
        return _plain_texts(values)
    if pa.types.is_floating(kind):
        return values.cast(pa.float64()).cast(kind)
    try:
        return values.cast(kind)
    except pa.ArrowInvalid:
        return pa.array([_cast_one(value, kind) for value in values], kind)


def _plain_texts(values: pa.Array) -> pa.Array:
    """Return decimals as text with all their digits and no exponent."""
    texts = values.cast(pa.string())
    if pc.any(pc.match_substring(texts, "E")).as_py():
        return pa.array([None if value is None else format(value, "f") for value in values.to_pylist()], pa.string())
    return texts


def _cast_one(value: pa.Scalar, kind: pa.DataType) -> Any:
    try:
        return value.cast(kind).as_py()
    except pa.ArrowInvalid:
        return None


def semantic_of(field: Mapping[str, Any]) -> Semantic | None:
    """Return what a field of a Connect schema is, or None if its JSON value is the value itself."""
    name = short_name(str(field.get("name") or ""))
    if name not in SEMANTIC_TYPES:
        return None
    scale = (field.get("parameters") or {}).get("scale")
    try:
        return Semantic(name, None if scale is None else int(scale))
    except (TypeError, ValueError):
        return Semantic(name)
