"""One JSON record at a time, exactly: the reference for what a record means against a schema.

``JsonDecoder`` sends here the few rows that its engines cannot vouch for: malformed text, values of another type, digits that
a double would lose. The engines must agree with this module on every row that they keep.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

__all__ = ["MAX_DEPTH", "ExactDecoder", "is_deep"]

MAX_DEPTH = 200
_SIGNIFICANT = 15  # decimal digits that a double always holds
_EPOCH = date(1970, 1, 1).toordinal()
_DAYS_400_YEARS = 146_097
_INT_BITS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}
_CONTROL = re.compile(r'["\\\x00-\x1f]')
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPENING, _CLOSING = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_TIMESTAMP = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<hour>\d\d)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?)?"
    r"(?P<zone>Z|(?P<sign>[+-])(?P<zone_hour>\d\d)(?::?(?P<zone_minute>\d\d))?)?)?",
    re.ASCII,
)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


class _Object(list):  # type: ignore[type-arg]
    """A JSON object as its (key, value) pairs, in order, with duplicates."""

    __slots__ = ()


class _Mismatch(Exception):  # noqa: N818 - control flow within this module, never seen outside
    """The value does not fit the type."""


class _Duplicate(Exception):  # noqa: N818 - as above
    """A declared key occurs twice."""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and Infinity are not JSON


_PARSER = json.JSONDecoder(
    object_pairs_hook=_Object, parse_float=_Number, parse_int=_Number, parse_constant=_refuse, strict=True
)


def is_deep(value: bytes) -> bool:
    """Return whether the text nests deeper than ``MAX_DEPTH``; such a record is kept whole, not decoded."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    signs = np.frombuffer(_STRING.sub(b"", value), np.uint8)
    steps = np.isin(signs, _OPENING).astype(np.int64) - np.isin(signs, _CLOSING)
    return bool(steps.cumsum().max(initial=0) > MAX_DEPTH)


class ExactDecoder:
    """Decode records in Python. Roughly 100,000 rows per second; exact in every case."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._types = {field.name: field.type for field in schema}

    def decode(self, values: Sequence[bytes]) -> list[pa.Array]:
        """Return one array per column and the rescued text as the last one, one row per value."""
        columns: dict[str, list[Any]] = {name: [] for name in self._types}
        rescued: list[str | None] = []
        for value in values:
            row, rest = self._decode(value)
            rescued.append(rest)
            for name, column in columns.items():
                column.append(row.get(name))
        arrays = [pa.array(columns[name], kind) for name, kind in self._types.items()]
        return [*arrays, pa.array(rescued, pa.string())]

    def _decode(self, value: bytes) -> tuple[dict[str, Any], str | None]:
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            encoded = base64.b64encode(value).decode("ascii")
            return {}, _dumps(_Object([("_raw_base64", encoded)]))
        raw = _Object([("_raw", text)])
        record = None if is_deep(value) else _parse(text)
        if record is None:
            return {}, _dumps(raw)
        try:
            row, rest = self._split(record)
            return row, (_dumps(rest) if rest else None)
        except _Duplicate:
            return self._split(_last_wins(record))[0], _dumps(raw)

    def _split(self, record: _Object) -> tuple[dict[str, Any], _Object]:
        return _split(record, self._types)


def _parse(text: str) -> _Object | None:
    """Return the one object that ``text`` is, or None."""
    try:
        record = _PARSER.decode(text)
        if "\\u" in text:
            _dumps(record).encode("utf-8")  # a lone surrogate is no text
    except ValueError:  # malformed; UnicodeEncodeError is one as well
        return None
    return record if isinstance(record, _Object) else None


def _last_wins(value: Any) -> Any:
    if isinstance(value, _Object):
        return _Object((key, _last_wins(item)) for key, item in dict(value).items())
    return [_last_wins(item) for item in value] if isinstance(value, list) else value


def _split(record: _Object, types: dict[str, pa.DataType]) -> tuple[dict[str, Any], _Object]:
    """Return the declared values and what is left over: undeclared fields and values of another type."""
    row: dict[str, Any] = {}
    rest = _Object()
    for key, value in record:
        kind = types.get(key)
        if kind is None:
            rest.append((key, value))
            continue
        if key in row:
            raise _Duplicate
        try:
            row[key], left = _fit(value, kind)
        except _Mismatch:
            row[key], left = None, value
        if left is not None:
            rest.append((key, left))
    return row, rest


def _fit(value: Any, kind: pa.DataType) -> tuple[Any, Any]:
    """Return the value as ``kind`` and, of a STRUCT, the part that does not fit (else None)."""
    if value is None:
        return None, None
    if pa.types.is_struct(kind):
        if not isinstance(value, _Object):
            raise _Mismatch
        row, rest = _split(value, {field.name: field.type for field in kind})
        return row, rest or None
    if pa.types.is_list(kind):
        if not isinstance(value, list) or isinstance(value, _Object):
            raise _Mismatch
        return [_whole(item, kind.value_type) for item in value], None
    if pa.types.is_map(kind):
        return _map(value, kind), None
    return _scalar(value, kind), None


def _whole(value: Any, kind: pa.DataType) -> Any:
    fitted, left = _fit(value, kind)
    if left is not None:
        raise _Mismatch  # inside an array there is no place to keep the rest
    return fitted


def _map(value: Any, kind: pa.DataType) -> list[tuple[str, Any]]:
    if not isinstance(value, _Object) or not pa.types.is_string(kind.key_type):
        raise _Mismatch
    if len({key for key, _ in value}) < len(value):
        raise _Mismatch
    return [(key, _whole(item, kind.item_type)) for key, item in value]


def _scalar(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    is_text = isinstance(value, str) and not isinstance(value, _Number)
    if types.is_string(kind):
        return value if is_text else _dumps(value)
    if types.is_boolean(kind):
        if isinstance(value, bool):
            return value
        raise _Mismatch
    if types.is_decimal(kind) and isinstance(value, str):
        return _decimal(value, kind)
    if isinstance(value, _Number):
        return _number(value, kind)
    if not is_text:
        raise _Mismatch
    return _from_text(value, kind)


def _number(value: _Number, kind: pa.DataType) -> Any:
    if pa.types.is_integer(kind):
        return _integer(value, _INT_BITS[kind])
    if not pa.types.is_floating(kind):
        raise _Mismatch
    double = float(value)
    number = pa.scalar(str(value)).cast(kind).as_py() if pa.types.is_float32(kind) and math.isfinite(double) else double
    if not math.isfinite(number):
        raise _Mismatch
    return number


def _integer(text: str, bits: int) -> int:
    number = Decimal(text)
    if number and not -40 < number.adjusted() < 20:
        raise _Mismatch
    if number != number.to_integral_value():
        raise _Mismatch
    whole = int(number)
    if not -(1 << bits) <= whole < 1 << bits:
        raise _Mismatch
    return whole


def _decimal(text: str, kind: pa.DataType) -> Decimal:
    if not _DECIMAL.fullmatch(text):
        raise _Mismatch
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).rstrip("0")
    exponent = int(exponent) + len(digits) - len(significant)
    unscaled = significant.lstrip("0")
    if not unscaled:
        return Decimal(0)
    if exponent < -kind.scale or len(unscaled) + exponent > kind.precision - kind.scale:
        raise _Mismatch
    return Decimal((sign, tuple(map(int, unscaled)), exponent))


def _from_text(text: str, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return _timestamp(text, has_zone=kind.tz is not None)
    if pa.types.is_date(kind):
        return _days(text)
    if pa.types.is_binary(kind):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise _Mismatch from exc
    raise _Mismatch


def _days(text: str) -> int:
    match = _DATE.fullmatch(text)
    if match is None:
        raise _Mismatch
    year, month, day = map(int, match.groups())
    try:  # Python has no year 0; the calendar repeats every 400 years
        days = date(year or 400, month, day).toordinal() - _EPOCH
    except ValueError as exc:
        raise _Mismatch from exc
    return days if year else days - _DAYS_400_YEARS


def _timestamp(text: str, *, has_zone: bool) -> int:
    """Return microseconds since the epoch; ISO 8601 as Arrow reads it, and up to nine digits of a second."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None or (match["zone"] and not has_zone):
        raise _Mismatch
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    zone_hour, zone_minute = int(match["zone_hour"] or 0), int(match["zone_minute"] or 0)
    fraction = (match["fraction"] or "").ljust(9, "0")
    if hour > 23 or max(minute, second, zone_minute) > 59 or zone_hour > 23 or fraction[6:] != "000":
        raise _Mismatch
    offset_minutes = (zone_hour * 60 + zone_minute) * (-1 if match["sign"] == "-" else 1)
    seconds = _days(match["date"]) * 86_400 + hour * 3_600 + (minute - offset_minutes) * 60 + second
    return seconds * 1_000_000 + int(fraction[:6])


def _dumps(value: Any) -> str:
    """Write JSON the way DuckDB does: no spaces, text unescaped, numbers with all their digits."""
    if isinstance(value, _Number):
        return _canonical(value)
    if isinstance(value, str):
        return '"' + _CONTROL.sub(_escape, value) + '"'
    if isinstance(value, _Object):
        return "{" + ",".join([f"{_dumps(key)}:{_dumps(item)}" for key, item in value]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_dumps(item) for item in value]) + "]"
    return "null" if value is None else "true" if value else "false"


def _escape(match: re.Match[str]) -> str:
    sign = match[0]
    return _SHORT_ESCAPES.get(sign) or f"\\u{ord(sign):04X}"


def _canonical(number: str) -> str:
    """Drop a fraction's trailing zeros where a double holds all digits; else the number stays as it was written."""
    if "e" in number or "E" in number or "." not in number:
        return "0" if number == "-0" else number
    whole, _, fraction = number.lstrip("-").partition(".")
    if len(whole) + len(fraction) > _SIGNIFICANT or fraction.startswith("000000"):
        return number
    return number.rstrip("0") + ("0" if number.endswith("0") and not fraction.rstrip("0") else "")
