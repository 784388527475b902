"""Values of a database driver to Arrow, and cursors to text and back.

A value that a column cannot hold exactly becomes NULL and goes to ``_rescued_data``: SQLite keeps any value in any column.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from waxlake.stream.errors import TerminalError, shorten

__all__ = ["RESCUED", "Cursor", "decode_cursor", "encode_cursor", "fingerprints", "look_back", "to_table"]

RESCUED: Final = "_rescued_data"
Cursor = Any
"""A value of a cursor column, as the driver gives it: int, float, Decimal, str, date or datetime."""

_TIME_LOOK_BACK_S = 60.0
_NUMBER_LOOK_BACK = 1_000


def to_table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return rows of a driver as a table with ``_rescued_data`` behind the columns of ``schema``."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays: list[pa.Array] = []
    lost: dict[int, dict[str, Any]] = {}
    for field, values in zip(schema, columns, strict=False):
        convert = _CONVERT.get(_kind(field.type))
        try:
            given = values if convert is None else [None if v is None else convert(v) for v in values]
            arrays.append(_exact(given, field.type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError, ArithmeticError):
            array, bad = _one_by_one(values, field.type, convert)
            arrays.append(array)
            for row in bad:
                lost.setdefault(row, {})[field.name] = _plain(values[row])
    rescued: list[str | None] = [None] * len(rows)
    for row, found in lost.items():
        rescued[row] = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return pa.table([*arrays, pa.array(rescued, pa.string())], schema=pa.schema([*schema, (RESCUED, pa.string())]))


def _exact(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind) and any(isinstance(v, Decimal) for v in values):
        values = [None if v is None else float(v) for v in values]
    if pa.types.is_integer(kind) and any(isinstance(v, (float, Decimal)) for v in values):
        whole = [None if v is None else int(v) for v in values]
        if any(v is not None and v != w for v, w in zip(values, whole, strict=True)):
            raise ValueError("a fraction")
        values = whole
    if pa.types.is_decimal(kind):
        values = [v if v is None or isinstance(v, Decimal) else Decimal(str(v)) for v in values]
        return pa.array(values, pa.decimal128(38, kind.scale)).cast(kind)
    return pa.array(values, kind)


def _one_by_one(
    values: Sequence[Any], kind: pa.DataType, convert: Callable[[Any], Any] | None
) -> tuple[pa.Array, list[int]]:
    kept, bad = [], []
    for row, value in enumerate(values):
        try:
            given = value if convert is None or value is None else convert(value)
            kept.append(_exact([given], kind)[0].as_py())
        except (pa.ArrowException, ValueError, TypeError, OverflowError, ArithmeticError):
            kept.append(None)
            bad.append(row)
    return pa.array(kept, kind), bad


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz else "timestamp_ntz"
    return "decimal" if pa.types.is_decimal(kind) else str(kind)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_text)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    if not isinstance(value, datetime):
        raise TypeError("no time")
    return value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)


def _local_moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    if not isinstance(value, datetime) or value.tzinfo is not None:
        raise TypeError("no local time")
    return value


def _day(value: Any) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value)
    if isinstance(value, datetime) or not isinstance(value, date):
        raise TypeError("no date")
    return value


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise TypeError("no truth value")


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise TypeError("no bytes")


_CONVERT: Final[dict[str, Callable[[Any], Any]]] = {
    "string": _text,
    "timestamp": _moment,
    "timestamp_ntz": _local_moment,
    "date32[day]": _day,
    "bool": _truth,
    "binary": _bytes,
}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) or value is None else _text(value)


def fingerprints(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> np.ndarray:
    """Return a number for each row that stands for its content, the same in every process, shape (n_rows,), int64.

    Args:
        table: The rows.
        connection: The caller's own, in UTC.
    """
    if not len(table):
        return np.zeros(0, np.int64)
    name = "t"
    while name in {column.lower() for column in table.column_names}:  # the name of a column would stand for that alone
        name += "_"
    connection.register(name, table)
    try:
        found = connection.sql(f"SELECT md5_number_lower(to_json({name})::VARCHAR) AS h FROM {name}").to_arrow_table()
        return np.asarray(found.column("h").combine_chunks().to_numpy(zero_copy_only=False)).view(np.int64)
    finally:
        connection.unregister(name)


# -- cursors -----------------------------------------------------------------------------------------------------


def encode_cursor(value: Cursor) -> str:
    """Return a cursor as text that ``decode_cursor`` reads back."""
    for tag, kind in _TAGS.items():
        if type(value) is kind:
            return json.dumps([tag, value if tag in "isf" else _text(value)])
    raise TerminalError(
        "cannot read by this cursor",
        code="QUERY_CURSOR_TYPE",
        found=f"{type(value).__name__} {shorten(value, 40)}",
        expected="a number, a date, a time or a text",
        remedy="Choose another column, or a query that casts it",
    )


def decode_cursor(text: str) -> Cursor:
    """Return the cursor that ``encode_cursor`` wrote."""
    tag, value = json.loads(text)
    if tag in "isf":
        return value
    if tag == "n":
        return Decimal(value)
    return datetime.fromisoformat(value) if tag == "t" else date.fromisoformat(value)


_TAGS: Final = {"i": int, "s": str, "f": float, "n": Decimal, "t": datetime, "d": date}


def look_back(cursor: Cursor, distance: float | None) -> Cursor:
    """Return the cursor from which a poll has to look again."""
    if isinstance(cursor, bool):
        return cursor
    if isinstance(cursor, (int, float, Decimal)):
        number: Any = cursor
        return number - type(cursor)(_NUMBER_LOOK_BACK if distance is None else distance)
    span = timedelta(seconds=_TIME_LOOK_BACK_S if distance is None else distance)
    try:
        if isinstance(cursor, datetime):
            return cursor - span
        if isinstance(cursor, date):
            return cursor - timedelta(days=-(-span // timedelta(days=1)))
        return _earlier_text(cursor, span)
    except OverflowError:
        return cursor


def _earlier_text(cursor: str, span: timedelta) -> str:
    """Return a time written as text, as SQLite keeps it, that much earlier in the same spelling; else the text itself."""
    try:
        moment = datetime.fromisoformat(cursor.replace("Z", "+00:00"))
    except ValueError:
        return cursor
    if len(cursor) < 19:
        return (moment - span).date().isoformat() if len(cursor) == 10 else cursor
    earlier = (moment - span).replace(tzinfo=None)
    unit = "microseconds" if "." in cursor else "seconds"
    text = earlier.isoformat(cursor[10], unit)
    return text[: cursor.index(".") + 1 + _digits(cursor)] if "." in cursor else text


def _digits(text: str) -> int:
    fraction = text.partition(".")[2]
    count = 0
    while count < min(len(fraction), 6) and fraction[count].isdigit():
        count += 1
    return count
