"""Text to typed values by exact rules: what does not fit becomes NULL and is reported, never rounded or guessed.

Called by the csv format for each column, and by inference to find the narrowest type that holds a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["convert_text", "has_text_form", "infer_text_type"]

_INTEGER: Final = r"^[+-]?[0-9]+$"
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOT_FINITE: Final = r"^([+-]?(inf|infinity)|nan)$"
_PLAIN_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$"
_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIME: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?)?)?"
_ZONE: Final = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_EXTRA_DIGITS: Final = r"(\.[0-9]{6})0+"

_EXACT: Final = Context(prec=80, traps=[Inexact, InvalidOperation])
_NO_NUMBERS: Final = (pa.bool_(), pa.date32(), pa.timestamp("us", tz="UTC"))
_Convert = Callable[[pa.Array, pa.DataType], tuple[pa.Array, pa.Array]]
_Cast = Callable[[pa.Array], pa.Array]


def has_text_form(kind: pa.DataType) -> bool:
    """Return whether a field of delimited text can hold the type."""
    return not pa.types.is_nested(kind)


def convert_text(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Return typed values and which of them were lost, both of the shape of ``texts``.

    Blank text is NULL except for STRING and BINARY. White space around a value of another type does not count.

    Args:
        texts: Strings, NULL included.
        kind: A type for which ``has_text_form`` is true.
    """
    if pa.types.is_string(kind):
        return texts, pa.repeat(False, len(texts))
    if pa.types.is_binary(kind):
        return texts.cast(pa.binary()), pa.repeat(False, len(texts))
    fast = _fast(texts, kind)
    if fast is not None:
        return fast, pa.repeat(False, len(texts))
    trimmed = pc.ascii_trim_whitespace(texts)
    trimmed = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    values = _convert(trimmed, kind)
    lost = pc.and_(trimmed.is_valid(), values.is_null())
    return values, lost


def infer_text_type(
    texts: pa.Array, convert: _Convert = convert_text, others: Sequence[pa.DataType] = _NO_NUMBERS
) -> pa.DataType:
    """Return the narrowest of BIGINT, DOUBLE and ``others`` that holds all texts and gives them back, else STRING.

    Numbers with leading zeros, such as post codes, stay STRING; so does a column without any value.

    Args:
        texts: A sample.
        convert: How text becomes values.
        others: BOOLEAN, DATE and TIMESTAMP, or fewer.
    """
    present = texts.drop_null()
    present = present.filter(pc.not_equal(present, ""))
    if not len(present):
        return pa.string()
    has_code = pc.any(pc.match_substring_regex(present, r"^\s*[+-]?0[0-9]")).as_py()
    numbers = () if has_code else (pa.int64(), pa.float64())
    for kind in (*numbers, *others):
        values, lost = convert(present, kind)
        if not pc.any(lost).as_py() and values.null_count == 0:
            return kind
    return pa.string()


def _fast(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Return the values where Arrow's own parser takes every text and means by it what we do; None otherwise."""
    types = pa.types
    try:
        if types.is_integer(kind):  # the parser takes hexadecimal too
            return None if pc.any(pc.match_substring(texts, "x", ignore_case=True)).as_py() else texts.cast(kind)
        if types.is_floating(kind):
            values = texts.cast(kind)
            return None if pc.any(pc.invert(pc.is_finite(values))).as_py() else values
        if types.is_date(kind):
            return texts.cast(kind)
        if types.is_timestamp(kind):
            return _fast_timestamps(texts, kind)
    except (pa.ArrowInvalid, OverflowError):
        pass
    return None


def _fast_timestamps(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    first = texts[pc.index(texts.is_valid(), True).as_py()].as_py() if texts.null_count < len(texts) else None
    if kind.tz is not None and (first is None or first.endswith("Z") or first[-6:-5] in ("+", "-")):
        return texts.cast(kind)
    return texts.cast(pa.timestamp("us")).cast(kind)


def _convert(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    types = pa.types
    if types.is_integer(kind):
        return _by_cast(_matching(texts, _INTEGER), kind)
    if types.is_floating(kind):
        return _floats(texts, kind)
    if types.is_decimal(kind):
        return _decimals(_matching(texts, _PLAIN_NUMBER), kind)
    if types.is_boolean(kind):
        return _matching(pc.ascii_lower(texts), "^(true|false)$").cast(pa.bool_())
    if types.is_date(kind):
        return _by_cast(_matching(texts, _DATE), kind)
    return _timestamps(texts, kind)


def _matching(texts: pa.Array, pattern: str) -> pa.Array:
    return pc.if_else(pc.match_substring_regex(texts, pattern), texts, pa.scalar(None, pa.string()))


def _by_cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_integer(kind):
        texts = pc.replace_substring_regex(texts, r"^\+", "")
    return _cast_or_null(texts, lambda part: part.cast(kind), kind)


def _cast_or_null(texts: pa.Array, cast: _Cast, kind: pa.DataType) -> pa.Array:
    """Cast by halves around the values that cannot be cast; those become NULL."""
    try:
        return cast(texts)
    except (pa.ArrowInvalid, OverflowError):
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast_or_null(part, cast, kind) for part in (texts[:half], texts[half:])])


def _floats(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    numbers = pc.replace_substring_regex(_matching(texts, _NUMBER), r"^\+", "")
    values = _cast_or_null(numbers, lambda part: part.cast(kind), kind)
    values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, kind))  # 1e999 is not infinity
    odd = _matching(pc.ascii_lower(texts), _NOT_FINITE)
    if odd.null_count == len(odd):
        return values
    names = {None: None, "nan": float("nan"), "-inf": float("-inf"), "-infinity": float("-inf")}
    return pc.coalesce(values, pa.array([names.get(text, float("inf")) for text in odd.to_pylist()], kind))


def _decimals(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    def cast(part: pa.Array) -> pa.Array:
        return part.cast(kind) if len(part) != 1 else pa.array([_exact_decimal(part[0].as_py(), kind)], kind)

    return _cast_or_null(texts, cast, kind)


def _exact_decimal(text: str | None, kind: pa.DataType) -> Decimal | None:
    if text is None:
        return None
    try:
        scaled = _EXACT.scaleb(Decimal(text), kind.scale)
        whole = scaled.to_integral_value(context=_EXACT)
    except (InvalidOperation, Inexact):
        return None
    fits = scaled == whole and abs(whole) < 10**kind.precision
    return _EXACT.scaleb(whole, -kind.scale) if fits else None


def _timestamps(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    naive = pa.timestamp("us")
    texts = pc.replace_substring_regex(texts, _EXTRA_DIGITS + "($|Z|[+-])", r"\1\2")
    local = _by_cast(_matching(texts, _TIME + "$"), naive)
    if kind.tz is None:
        return local
    zoned = _matching(texts, _TIME + _ZONE + "$")
    values = local.cast(pa.timestamp("us", tz="UTC"))
    if zoned.null_count < len(zoned):
        values = pc.coalesce(values, _by_cast(zoned, kind))
    return values
