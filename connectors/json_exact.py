"""One JSON record at a time, exactly: the reference for what a record means against a schema.

``JsonDecoder`` sends here the few rows that its engines cannot vouch for: malformed text, values that do not fit, digits that
a double would lose. The engines must agree with this module on every row that they keep.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from json.encoder import encode_basestring
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

__all__ = ["MAX_DEPTH", "ExactDecoder", "is_deep", "is_record"]

MAX_DEPTH = 200
_SIGNIFICANT = 15  # decimal digits that a double always holds
_EPOCH = date(1970, 1, 1).toordinal()
_DAYS_400_YEARS = 146_097
_INT_BITS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPENING, _CLOSING = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)
_RARE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")  # written in hexadecimal, by DuckDB in upper case
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?"
    r"(Z|([+-])(\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)

_NOT_FINITE = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "+Infinity": math.inf,
    "INF": math.inf,
    "+INF": math.inf,
    "-Infinity": -math.inf,
    "-INF": -math.inf,
}

_Fit = Callable[[Any], tuple[Any, Any]]


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


class _Object(list):  # type: ignore[type-arg]
    """A JSON object as its (key, value) pairs, in order, with duplicates."""

    __slots__ = ()


class _Mismatch(Exception):
    """The value does not fit the type."""


class _Duplicate(Exception):
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


def is_record(value: bytes) -> bool:
    """Return whether the text is one JSON object, however deep and whatever keys it repeats."""
    try:
        return _parse(value.decode("utf-8")) is not None
    except (UnicodeDecodeError, RecursionError):
        return False


class ExactDecoder:
    """Decode records in Python: slow, and exact in every case.

    Args:
        schema: Columns.
        takes_names: Whether FLOAT and DOUBLE take the texts NaN, Infinity and -Infinity.
    """

    def __init__(self, schema: pa.Schema, *, takes_names: bool = False) -> None:
        self._types = {field.name: field.type for field in schema}
        self._fits = {field.name: _fit_for(field.type, takes_names) for field in schema}

    def decode(self, values: Sequence[bytes]) -> list[pa.Array]:
        """Return one array per column and the rescued text as the last one, one row per value."""
        decoded = [self._decode(value) for value in values]
        columns = [pa.array([row.get(name) for row, _ in decoded], kind) for name, kind in self._types.items()]
        return [*columns, pa.array([rescued for _, rescued in decoded], pa.string())]

    def _decode(self, value: bytes) -> tuple[dict[str, Any], str | None]:
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            return {}, _dumps(_Object([("_raw_base64", base64.b64encode(value).decode("ascii"))]))
        record = None if is_deep(value) else _parse(text)
        if record is None:
            return {}, _dumps(_Object([("_raw", text)]))
        try:
            row, rest = _split(record, self._fits)
            return row, (_dumps(rest) if rest else None)
        except _Duplicate:
            return _split(_last_wins(record), self._fits)[0], _dumps(_Object([("_raw", text)]))


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


def _split(record: _Object, fits: Mapping[str, _Fit]) -> tuple[dict[str, Any], _Object]:
    """Return the declared values and what is left over: undeclared fields and values that do not fit."""
    row: dict[str, Any] = {}
    rest = _Object()
    for key, value in record:
        fit = fits.get(key)
        if fit is None:
            rest.append((key, value))
            continue
        if key in row:
            raise _Duplicate
        try:
            row[key], left = (None, None) if value is None else fit(value)
        except _Mismatch:
            row[key], left = None, value
        if left is not None:
            rest.append((key, left))
    return row, rest


def _fit_for(kind: pa.DataType, takes_names: bool) -> _Fit:
    """Return the function that makes a value, never None, a ``kind``: the value, and what of a STRUCT is left over."""
    if pa.types.is_struct(kind):
        return partial(_fit_struct, {field.name: _fit_for(field.type, takes_names) for field in kind})
    if pa.types.is_list(kind):
        return partial(_fit_list, _fit_for(kind.value_type, takes_names))
    if pa.types.is_map(kind):
        return partial(_fit_map, _fit_for(kind.item_type, takes_names), pa.types.is_string(kind.key_type))
    scalar = _scalar_for(kind)
    if takes_names and pa.types.is_floating(kind):
        scalar = partial(_number_or_name, scalar)
    return lambda value: (scalar(value), None)


def _number_or_name(scalar: Callable[[Any], Any], value: Any) -> Any:
    return _NOT_FINITE[value] if type(value) is str and value in _NOT_FINITE else scalar(value)


def _fit_struct(fits: Mapping[str, _Fit], value: Any) -> tuple[Any, Any]:
    if not isinstance(value, _Object):
        raise _Mismatch
    row, rest = _split(value, fits)
    return row, rest or None


def _fit_list(fit: _Fit, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list) or isinstance(value, _Object):
        raise _Mismatch
    return [_whole(fit, item) for item in value], None


def _fit_map(fit: _Fit, has_text_keys: bool, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, _Object) or not has_text_keys or len({key for key, _ in value}) < len(value):
        raise _Mismatch
    return [(key, _whole(fit, item)) for key, item in value], None


def _whole(fit: _Fit, value: Any) -> Any:
    fitted, left = (None, None) if value is None else fit(value)
    if left is not None:
        raise _Mismatch  # inside an array there is no place to keep the rest
    return fitted


def _scalar_for(kind: pa.DataType) -> Callable[[Any], Any]:
    if kind in _INT_BITS:
        return partial(_integer, _INT_BITS[kind])
    if pa.types.is_decimal(kind):
        return partial(_decimal, kind.precision, kind.scale)
    if pa.types.is_timestamp(kind):
        return partial(_timestamp, kind.tz is not None)
    return _SCALARS[kind]


def _string(value: Any) -> str:
    return value if type(value) is str else _dumps(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Mismatch


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    raise _Mismatch


def _number(value: Any) -> _Number:
    if type(value) is _Number:
        return value
    raise _Mismatch


def _finite(number: float) -> float:
    if math.isfinite(number):
        return number
    raise _Mismatch


def _double(value: Any) -> float:
    return _finite(float(_number(value)))


def _float(value: Any) -> float:
    _double(value)
    return _finite(pa.scalar(str(value)).cast(pa.float32()).as_py())  # rounds once, as Arrow's reader does


def _integer(bits: int, value: Any) -> int:
    text = _number(value)
    number = Decimal(text)
    if number and not 0 <= number.adjusted() < 20:
        raise _Mismatch
    whole = int(number)
    if whole != number or not -(1 << bits) <= whole < 1 << bits:
        raise _Mismatch
    return whole


def _decimal(precision: int, scale: int, text: Any) -> Decimal:
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise _Mismatch
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).rstrip("0")
    exponent = int(exponent) + len(digits) - len(significant)
    unscaled = significant.lstrip("0")
    if not unscaled:
        return Decimal(0)
    if exponent < -scale or len(unscaled) + exponent > precision - scale:
        raise _Mismatch
    return Decimal((sign, tuple(map(int, unscaled)), exponent))


def _binary(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _Mismatch from exc


def _date(value: Any) -> int:
    days = _days(_text(value))
    if days is None:
        raise _Mismatch
    return days


@lru_cache(maxsize=4096)
def _days(text: str) -> int | None:
    """Return days since the epoch, or None if ``text`` is no date."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day = map(int, match.groups())
    try:  # Python has no year 0; the calendar repeats every 400 years
        days = date(year or 400, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    return days if year else days - _DAYS_400_YEARS


def _timestamp(has_zone: bool, value: Any) -> int:
    """Return microseconds since the epoch; ISO 8601 as Arrow reads it, and up to nine digits of a second."""
    match = _TIMESTAMP.fullmatch(_text(value))
    if match is None or (match[6] and not has_zone):
        raise _Mismatch
    day, hour, minute, second, fraction, _, sign, zone_hour, zone_minute = match.groups("0")
    days, digits = _days(day), fraction.ljust(9, "0")
    if days is None or digits[6:] != "000":
        raise _Mismatch
    if max(hour, zone_hour) > "23" or max(minute, second, zone_minute) > "59":
        raise _Mismatch
    offset_minutes = int(zone_hour) * 60 + int(zone_minute)
    minutes = int(hour) * 60 + int(minute) - (-offset_minutes if sign == "-" else offset_minutes)
    return (days * 86_400 + minutes * 60 + int(second)) * 1_000_000 + int(digits[:6])


_SCALARS: dict[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _string,
    pa.bool_(): _boolean,
    pa.float32(): _float,
    pa.float64(): _double,
    pa.date32(): _date,
    pa.binary(): _binary,
}


def _dumps(value: Any) -> str:
    """Write JSON the way DuckDB does: no spaces, text unescaped, numbers with all their digits."""
    if isinstance(value, str):
        return _canonical(value) if type(value) is _Number else _quoted(value)
    if isinstance(value, _Object):
        return "{" + ",".join([f"{_quoted(key)}:{_dumps(item)}" for key, item in value]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_dumps(item) for item in value]) + "]"
    return "null" if value is None else "true" if value else "false"


def _quoted(text: str) -> str:
    if not _RARE.search(text):
        return encode_basestring(text)
    parts = [f"\\u{ord(sign):04X}" if _RARE.match(sign) else encode_basestring(sign)[1:-1] for sign in text]
    return '"' + "".join(parts) + '"'


def _canonical(number: str) -> str:
    """Drop a fraction's trailing zeros where a double holds all digits; else the number stays as it was written."""
    if "e" in number or "E" in number or "." not in number:
        return "0" if number == "-0" else number
    whole, _, fraction = number.lstrip("-").partition(".")
    if len(whole) + len(fraction) > _SIGNIFICANT or fraction.startswith("000000"):
        return number
    return number.rstrip("0") + ("0" if number.endswith("0") and not fraction.rstrip("0") else "")
