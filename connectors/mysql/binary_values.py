"""From bytes of row events to Arrow arrays, a column at a time."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.mysql.arrays import from_bytes, from_flags, from_limbs, from_numbers
from connectors.mysql.charsets import decode_text, is_utf8, keeps_ascii
from connectors.mysql.columns import Column
from connectors.mysql.walk import Images

__all__ = ["decode_column", "format_time"]

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_LEFTOVER_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decode_column(images: Images, index: int, column: Column, fixed: int) -> pa.Array:
    """Return the values of one column of all images, shape (n_images,).

    Args:
        images: Where the values lie.
        index: Which column.
        column: What its values are; its type is that of the array.
        fixed: Bytes of each value; 0 where they differ.
    """
    nulls, starts, sizes = images.nulls[index], images.starts[index], images.sizes[index]
    if sizes is not None:
        return _decode_variable(images.data, starts, sizes, nulls, column)
    raw = images.data[starts[:, None] + np.arange(fixed)]
    return _FIXED[column.kind](raw, nulls, column)


def _little(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return little-endian numbers of up to 8 bytes."""
    wide = np.zeros((len(raw), 8), np.uint8)
    wide[:, : raw.shape[1]] = raw
    return wide.view("<u8").reshape(-1)


def _big(raw: npt.NDArray[np.uint8]) -> Integers:
    """Return big-endian numbers of up to 8 bytes."""
    wide = np.zeros((len(raw), 8), np.uint8)
    wide[:, 8 - raw.shape[1] :] = raw
    return wide.view(">i8").reshape(-1).astype(np.int64)


def _integers(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    values = _little(raw)
    if column.is_unsigned:
        if column.size == 8:
            return from_limbs(values, np.zeros_like(values), nulls, column.arrow)
        return _narrow(values.view(np.int64), nulls, column.arrow)
    shift = np.int64(64 - 8 * column.size)
    return _narrow(values.view(np.int64) << shift >> shift, nulls, column.arrow)


def _narrow(values: Integers, nulls: Mask, kind: pa.DataType) -> pa.Array:
    return from_numbers(values.astype(kind.to_pandas_dtype()), nulls, kind)


def _floats(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    return from_numbers(raw.view("<f4" if column.kind == "float" else "<f8").reshape(-1), nulls, column.arrow)


def _bits(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    values = _big(raw)
    if column.size == 1:
        return from_flags(values != 0, nulls)
    if column.size < 64:
        return from_numbers(values, nulls, pa.int64())
    low = values.view(np.uint64)
    return from_limbs(low, np.zeros_like(low), nulls, column.arrow)


def _years(raw: npt.NDArray[np.uint8], nulls: Mask, _: Column) -> pa.Array:
    values = raw[:, 0].astype(np.int16)
    return from_numbers(np.where(values == 0, 0, values + 1900).astype(np.int16), nulls, pa.int16())


def _days(year: Integers, month: Integers, day: Integers) -> tuple[Integers, Mask]:
    """Return (days since 1970, whether there is no such day)."""
    months = (year - 1970) * 12 + month - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    after = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    days = first + day - 1
    return days, (month < 1) | (month > 12) | (day < 1) | (days >= after)


def _dates(raw: npt.NDArray[np.uint8], nulls: Mask, _: Column) -> pa.Array:
    packed = _little(raw).view(np.int64)
    days, is_zero = _days(packed >> 9, packed >> 5 & 15, packed & 31)
    return from_numbers(days.astype(np.int32), nulls | is_zero, pa.date32())


def _fraction(raw: npt.NDArray[np.uint8]) -> Integers | int:
    """Return microseconds of the bytes that follow the seconds."""
    return _big(raw) * 10 ** (6 - 2 * raw.shape[1]) if raw.shape[1] else 0


def _datetimes(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    packed = _big(raw[:, :5]) - 0x8000000000
    date, time = packed >> 17, packed & 0x1FFFF
    days, is_zero = _days((date >> 5) // 13, (date >> 5) % 13, date & 31)
    seconds = days * 86400 + (time >> 12) * 3600 + (time >> 6 & 63) * 60 + (time & 63)
    return from_numbers(seconds * 1_000_000 + _fraction(raw[:, 5:]), nulls | is_zero, column.arrow)


def _timestamps(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    seconds, fraction = _big(raw[:, :4]), _fraction(raw[:, 4:])
    return from_numbers(seconds * 1_000_000 + fraction, nulls | (seconds + fraction == 0), column.arrow)


def _times(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    count = raw.shape[1] - 3
    packed = _big(raw) - (0x800000 << 8 * count)
    size = np.abs(packed)
    whole = size >> 8 * count
    micros = (size & (1 << 8 * count) - 1) * 10 ** (6 - 2 * count) if count else np.zeros_like(size)
    seconds = (whole >> 12 & 0x3FF) * 3600 + (whole >> 6 & 63) * 60 + (whole & 63)
    total = np.where(packed < 0, -1, 1) * (seconds * 1_000_000 + micros)
    return format_time(from_numbers(total, nulls, pa.int64()), column.scale)


def format_time(micros: pa.Array, scale: int) -> pa.Array:
    """Return microseconds as MySQL writes a TIME: ``-12:00:01.50``, hours up to 838."""
    total = micros.to_numpy(zero_copy_only=False) if not micros.null_count else micros.fill_null(0).to_numpy()
    size = np.abs(total)
    parts = [
        pc.if_else(pa.array(total < 0), "-", ""),
        _padded(size // 3_600_000_000, 2),
        pa.scalar(":"),
        _padded(size // 60_000_000 % 60, 2),
        pa.scalar(":"),
        _padded(size // 1_000_000 % 60, 2),
    ]
    if scale:
        parts += [pa.scalar("."), _padded(size % 1_000_000 // 10 ** (6 - scale), scale)]
    text = pc.binary_join_element_wise(*parts, "")
    return pc.if_else(micros.is_valid(), text, pa.scalar(None, pa.string()))


def _padded(values: Integers, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(values).cast(pa.string()), width=width, padding="0")


def _members(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    values = _little(raw).view(np.int64)
    if column.kind == "enum":
        texts = pa.array(["", *column.members], pa.string())
        places = np.where((values > len(column.members)) | nulls, 0, values)
    else:
        found, places = np.unique(values, return_inverse=True)
        texts = pa.array(
            [",".join(m for i, m in enumerate(column.members) if v >> i & 1) for v in found.tolist()], pa.string()
        )
    return texts.take(from_numbers(places.astype(np.int64), nulls, pa.int64()))


def _decimals(raw: npt.NDArray[np.uint8], nulls: Mask, column: Column) -> pa.Array:
    raw = raw.copy()
    is_negative = raw[:, 0] & 0x80 == 0
    raw[:, 0] ^= 0x80
    raw[is_negative] = ~raw[is_negative]
    groups = list(_digit_groups(raw, column))
    if column.precision > 38:
        return _long_decimals(groups, is_negative, nulls, column)
    limbs = [np.zeros(len(raw), np.uint64) for _ in range(4)]
    for digits, group in groups:
        carry, mask = group.astype(np.uint64), np.uint64(0xFFFFFFFF)
        for i in range(4):
            product = limbs[i] * np.uint64(10**digits) + carry
            limbs[i], carry = product & mask, product >> np.uint64(32)
    low, high = limbs[0] | limbs[1] << np.uint64(32), limbs[2] | limbs[3] << np.uint64(32)
    negated = ~low + np.uint64(1)
    high = np.where(is_negative, ~high + (negated == 0).astype(np.uint64), high)
    return from_limbs(np.where(is_negative, negated, low), high, nulls, column.arrow)


def _digit_groups(raw: npt.NDArray[np.uint8], column: Column) -> Any:
    """Yield (digits, values) of each group of a DECIMAL, the highest first."""
    whole, at = column.precision - column.scale, 0
    for digits in (whole % 9, *[9] * (whole // 9), *[9] * (column.scale // 9), column.scale % 9):
        size = _LEFTOVER_BYTES[digits]
        if size:
            yield digits, _big(raw[:, at : at + size])
            at += size


def _long_decimals(groups: list[tuple[int, Integers]], is_negative: Mask, nulls: Mask, column: Column) -> pa.Array:
    """Return decimals of more than 38 digits as text."""
    texts: list[str | None] = []
    for row, is_null in enumerate(nulls.tolist()):
        if is_null:
            texts.append(None)
            continue
        digits = "".join(str(int(values[row])).rjust(count, "0") for count, values in groups)
        whole, rest = digits[: len(digits) - column.scale], digits[len(digits) - column.scale :]
        text = (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")
        texts.append(f"-{text}" if is_negative[row] else text)
    return pa.array(texts, pa.string())


_FIXED: Final[dict[str, Callable[[npt.NDArray[np.uint8], Mask, Column], pa.Array]]] = {
    "int": _integers,
    "float": _floats,
    "double": _floats,
    "decimal": _decimals,
    "bit": _bits,
    "year": _years,
    "date": _dates,
    "datetime": _datetimes,
    "timestamp": _timestamps,
    "time": _times,
    "enum": _members,
    "set": _members,
}


def _decode_variable(
    data: npt.NDArray[np.uint8], starts: Integers, sizes: Integers, nulls: Mask, column: Column
) -> pa.Array:
    if column.kind == "text" and is_utf8(column.charset):
        return from_bytes(data, starts, sizes, nulls, pa.string())
    raw = from_bytes(data, starts, sizes, nulls, pa.binary())
    if column.kind == "bytes":
        return _zero_padded(raw, sizes, nulls, column.size) if column.size else raw
    if column.kind == "text":
        return _foreign_text(raw, column.charset)
    return pa.array([None if value is None else _PARSED[column.kind](value) for value in raw.to_pylist()], pa.string())


def _zero_padded(raw: pa.Array, sizes: Integers, nulls: Mask, size: int) -> pa.Array:
    """Return values of a BINARY(n) with the zero bytes at their ends, which the binlog leaves out."""
    if (sizes[~nulls] == size).all():
        return raw
    return pa.array([None if value is None else value.ljust(size, b"\0") for value in raw.to_pylist()], pa.binary())


def _foreign_text(raw: pa.Array, charset: str) -> pa.Array:
    if keeps_ascii(charset) and not (np.frombuffer(raw.buffers()[2] or b"", np.uint8) >= 128).any():
        return raw.cast(pa.string())
    return pa.array([None if value is None else decode_text(value, charset) for value in raw.to_pylist()], pa.string())


def _json(value: bytes) -> str:
    """Return MySQL's binary JSON as text; MariaDB's JSON is text anyway."""
    from pymysqlreplication.json_binary import parse_json

    return json.dumps(_plain(parse_json(value[0], value[1:])), ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value.ljust(16, b"\0")))


def _inet4(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, value.ljust(4, b"\0"))


def _inet6(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, value.ljust(16, b"\0"))


_PARSED: Final[dict[str, Callable[[bytes], str]]] = {
    "json": _json,
    "uuid": _uuid,
    "inet4": _inet4,
    "inet6": _inet6,
}
