"""Types of PostgreSQL as Arrow types, and columns of text decoded in bulk: the same way for the first load and the stream.

Both arrive as the text that the type's output function makes under fixed session settings (``SESSION``), so a value is the
same whichever way it came. Types that Arrow or Delta cannot hold exactly stay text. docs/postgres.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.stream.errors import SchemaError, TerminalError, shorten
from waxlake.stream.schema import cast_exact

__all__ = ["SESSION", "PostgresType", "decode_as", "decode_column", "text_array"]

SESSION: Final = {
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
}
"""Settings of every session that values are read in."""

_NUMBERS: Final = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "oid": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
}
_OTHERS: Final = {
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_MAX_PRECISION: Final = 38
_EPOCH: Final = date(1970, 1, 1)
_INFINITE_DATE: Final = {"infinity": date(9999, 12, 31), "-infinity": date(1, 1, 1)}
_INFINITE_TIME: Final = {"infinity": datetime(9999, 12, 31, 23, 59, 59, 999999), "-infinity": datetime(1, 1, 1)}  # noqa: DTZ001
_DATE: Final = re.compile(r"(\d+)-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:\+00)?)?( BC)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresType:
    """A column's type, domains resolved.

    Attributes:
        name: Name in ``pg_type``, that of the element for an array.
        modifier: ``atttypmod``; -1 for none.
        is_array: Whether it is an array of that type.
    """

    name: str
    modifier: int = -1
    is_array: bool = False

    @property
    def element(self) -> PostgresType:
        """The type of an array's elements."""
        return PostgresType(name=self.name, modifier=self.modifier)

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that holds its values exactly; text where none does."""
        if self.is_array:
            return pa.list_(self.element.arrow)
        if self.name == "numeric" and self.modifier >= 4:
            return self._decimal()
        return _NUMBERS.get(self.name) or _OTHERS.get(self.name) or pa.string()

    def _decimal(self) -> pa.DataType:
        packed = self.modifier - 4
        precision, scale = packed >> 16 & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024
        if scale < 0:
            precision, scale = precision - scale, 0
        precision = max(precision, scale)
        return pa.decimal128(precision, scale) if precision <= _MAX_PRECISION else pa.string()


def text_array(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray, is_null: np.ndarray) -> pa.Array:
    """Return the pieces of a byte buffer as an Arrow text array, copied in bulk.

    Args:
        buffer: Bytes, shape (n_bytes,).
        starts: First byte of each value, shape (n_rows,).
        lengths: Bytes of each value; 0 for NULL.
        is_null: Which values are NULL.

    Returns:
        ``string`` values, shape (n_rows,); 2 GiB at most.
    """
    count = len(starts)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    index = np.repeat(starts - offsets[:-1], lengths)
    index += np.arange(total)
    validity = None
    if is_null.any():
        validity = pa.py_buffer(np.packbits(~is_null, bitorder="little").tobytes())
    values = pa.py_buffer(buffer[index])
    return pa.Array.from_buffers(pa.string(), count, [validity, pa.py_buffer(offsets.astype(np.int32)), values])


def decode_column(texts: pa.Array, kind: PostgresType, *, what: str) -> pa.Array:
    """Return a column of texts as values of its Arrow type.

    Args:
        texts: ``string`` values as the server wrote them.
        kind: The column's type.
        what: The column, for errors.

    Raises:
        TerminalError: ``POSTGRES_VALUE``: a value that the type cannot hold, such as an array of two dimensions. Not
            retryable.
    """
    try:
        return _decode(texts, kind)
    except (pa.ArrowException, ValueError, OverflowError) as exc:
        raise TerminalError(
            f"cannot decode {what}",
            code="POSTGRES_VALUE",
            found=shorten(" ".join(str(exc).split())),
            expected=f"values of {kind.arrow}",
            remedy="Name the column in text_columns= to take it as text, under a new table",
        ) from exc


def decode_as(texts: pa.Array, kind: PostgresType, wanted: PostgresType, *, what: str) -> pa.Array:
    """Return a column of texts as values of the type it had when it was first seen.

    Args:
        texts: ``string`` values as the server wrote them.
        kind: The type they have.
        wanted: The type the table was made with.
        what: The column, for errors.

    Raises:
        TerminalError: ``POSTGRES_VALUE``: a value that its type, or after a change of type the first one, cannot hold. Not
            retryable.
    """
    if kind.arrow == wanted.arrow:
        return decode_column(texts, kind, what=what)
    if pa.types.is_string(wanted.arrow):
        return texts
    try:
        values = pa.table({"v": decode_column(texts, kind, what=what)})
        return cast_exact(values, pa.schema([pa.field("v", wanted.arrow)]), what=what).column(0).combine_chunks()
    except SchemaError as exc:
        raise TerminalError(
            f"cannot go on with {what}: its type was changed to {kind.name}",
            code="POSTGRES_TYPE_CHANGED",
            found=exc.found,
            expected=f"values that {wanted.arrow} holds, the type its tables have",
            remedy="Delete the tables it feeds, and the ledger, to fill them anew with the new type",
        ) from exc


def _decode(texts: pa.Array, kind: PostgresType) -> pa.Array:
    if kind.is_array:
        return _decode_arrays(texts, kind)
    target = kind.arrow
    decoder = _DECODERS.get(kind.name)
    if pa.types.is_decimal(target):
        nan = pc.equal(texts, "NaN")
        return pc.if_else(nan, pa.scalar(None, pa.string()), texts).cast(target)
    if decoder is not None:
        return decoder(texts)
    if pa.types.is_string(target):
        texts.validate(full=True)
        return texts
    return texts.cast(target)


def _decode_bool(texts: pa.Array) -> pa.Array:
    return pc.equal(texts, "t")


def _decode_bytes(texts: pa.Array) -> pa.Array:
    """Decode hexadecimal text in one go: the digits of all values together."""
    digits = pc.utf8_slice_codeunits(texts, 2, None) if len(texts) else texts
    lengths = pc.fill_null(pc.binary_length(digits), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths // 2, out=offsets[1:])
    joined = digits.buffers()[2]
    raw = b""
    if joined is not None:
        first, last = _value_range(digits)
        raw = bytes.fromhex(joined.slice(first, last - first).to_pybytes().decode())
    validity = pa.py_buffer(np.packbits(pc.is_valid(texts).to_numpy(zero_copy_only=False), bitorder="little").tobytes())
    return pa.Array.from_buffers(pa.binary(), len(texts), [validity, pa.py_buffer(offsets), pa.py_buffer(raw)])


def _value_range(texts: pa.Array) -> tuple[int, int]:
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return int(offsets[0]), int(offsets[-1])


def _decode_dates(texts: pa.Array) -> pa.Array:
    return _decode_calendar(texts, pa.date32(), lambda plain: plain.cast(pa.date32()), _days)


def _decode_timestamps(texts: pa.Array) -> pa.Array:
    return _decode_calendar(texts, pa.timestamp("us"), lambda plain: plain.cast(pa.timestamp("us")), _microseconds)


def _decode_instants(texts: pa.Array) -> pa.Array:
    def cast(plain: pa.Array) -> pa.Array:
        return pc.utf8_slice_codeunits(plain, 0, -3).cast(pa.timestamp("us"))  # "+00": sessions are in UTC

    values = _decode_calendar(texts, pa.timestamp("us"), cast, _microseconds)
    return values.cast(pa.int64()).cast(pa.timestamp("us", "UTC"))


def _decode_calendar(
    texts: pa.Array, kind: pa.DataType, cast: Callable[[pa.Array], pa.Array], odd: Callable[[str], int]
) -> pa.Array:
    """Cast what is a plain date of four-digit year in bulk; infinities, years before 1 and above 9999 one by one."""
    is_odd = pc.fill_null(
        pc.invert(pc.and_(pc.equal(pc.find_substring(texts, "-"), 4), pc.invert(pc.ends_with(texts, "C")))), False
    )
    if not pc.any(is_odd).as_py():
        return cast(texts)
    integer = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    plain = cast(pc.if_else(is_odd, pa.scalar(None, pa.string()), texts)).cast(integer)
    odd_values = pa.array([odd(text) for text in texts.filter(is_odd).to_pylist()], integer)
    return pc.replace_with_mask(plain, is_odd, odd_values).cast(kind)


def _days(text: str) -> int:
    if text in _INFINITE_DATE:
        return (_INFINITE_DATE[text] - _EPOCH).days
    return _parsed(text)[0]


def _microseconds(text: str) -> int:
    infinite = _INFINITE_TIME.get(text)
    if infinite is not None:
        return (infinite.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(
            microseconds=1
        )
    days, microseconds = _parsed(text)
    total = days * 86_400_000_000 + microseconds
    if not -(2**63) <= total < 2**63:
        raise OverflowError(f"{text} is outside the range of timestamps")
    return total


def _parsed(text: str) -> tuple[int, int]:
    """Return days since 1970 (proleptic Gregorian) and microseconds of the day."""
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no date")
    year = int(found[1])
    if found[8]:
        year = 1 - year
    cycles, rest = divmod(year - 1, 400)
    days = date(rest + 1, int(found[2]), int(found[3])).toordinal() + cycles * 146_097
    seconds = 0
    if found[4]:
        seconds = int(found[4]) * 3600 + int(found[5]) * 60 + int(found[6])
    return days - _EPOCH.toordinal(), seconds * 1_000_000 + int((found[7] or "").ljust(6, "0")[:6])


_DECODERS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "bool": _decode_bool,
    "bytea": _decode_bytes,
    "date": _decode_dates,
    "timestamp": _decode_timestamps,
    "timestamptz": _decode_instants,
}


def _decode_arrays(texts: pa.Array, kind: PostgresType) -> pa.Array:
    """Decode ``{a,b}``: in bulk where nothing is quoted, else one by one; elements in bulk."""
    is_quoted = pc.match_substring_regex(texts, r'["\\\[]|^\{.*\{')
    if pc.any(is_quoted).as_py():
        lists = [None if text is None else _parse_array(text) for text in texts.to_pylist()]
        offsets = np.zeros(len(lists) + 1, np.int32)
        np.cumsum([0 if items is None else len(items) for items in lists], out=offsets[1:])
        elements = pa.array([item for items in lists if items for item in items], pa.string())
    else:
        inner = pc.utf8_slice_codeunits(texts, 1, -1)
        split = pc.split_pattern(inner, ",")
        is_empty = pc.fill_null(pc.equal(inner, ""), True).to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(split)
        lengths = pc.fill_null(pc.list_value_length(split), 0).to_numpy(zero_copy_only=False)
        kept = np.repeat(~is_empty, lengths)
        flat = flat.filter(pa.array(kept))
        elements = pc.if_else(pc.equal(flat, "NULL"), pa.scalar(None, pa.string()), flat)
        offsets = np.zeros(len(texts) + 1, np.int32)
        np.cumsum(np.where(is_empty, 0, lengths), out=offsets[1:])
    validity = pa.py_buffer(np.packbits(pc.is_valid(texts).to_numpy(zero_copy_only=False), bitorder="little").tobytes())
    values = _decode(elements, kind.element)
    return pa.Array.from_buffers(kind.arrow, len(texts), [validity, pa.py_buffer(offsets)], children=[values])


_TOKEN: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,{}"]+)|([,{}])', re.DOTALL)


def _parse_array(text: str) -> list[str | None]:
    """Return the elements of one array literal, NULL as None.

    Raises:
        ValueError: It has more than one dimension.
    """
    body = text.partition("=")[2] if text.startswith("[") else text
    if body.startswith("{{") or re.match(r"\[\d+:\d+\]\[", text):
        raise ValueError(f"an array of several dimensions: {shorten(text, 60)}")
    items: list[str | None] = []
    for quoted, bare, _ in _TOKEN.findall(body[1:-1]):
        if bare:
            items.append(None if bare == "NULL" else bare)
        elif _ == "":
            items.append(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
    return items
