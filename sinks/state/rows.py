"""The rows of a flush as operators see them: numbered in the order in which they came, timed, and judged by the watermark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sinks.cdc.keys import row_numbers
from sinks.state.watermark import micros
from waxlake.stream.engine import quote_name

__all__ = ["ROW", "TIME", "Judged", "judge", "same_keys", "times_sql"]

ROW: Final = "__waxlake_row"
TIME: Final = "__waxlake_time"


@dataclass(frozen=True, slots=True)
class Judged:
    """Numbers of the rows that an operator leaves out."""

    late: pa.Array
    untimed: pa.Array


def judge(
    session: duckdb.DuckDBPyConnection,
    table: pa.Table,
    time: str | None,
    watermark: int | None,
    *,
    name: str = "judged",
    reach_us: int = 0,
) -> Judged:
    """Register the rows that are in time as a table, with ``ROW``, and ``TIME`` in microseconds.

    Args:
        session: Where.
        table: Rows.
        time: Column of the event time, or None if it does not matter.
        watermark: Watermark they are judged by, or None.
        name: Name they are registered under.
        reach_us: A row is late once the watermark is this far beyond it.
    """
    numbers = row_numbers(len(table))
    none = pa.array([], pa.int64())
    if time is None:
        session.register(name, table.append_column(ROW, numbers))
        return Judged(none, none)
    values = micros(table.column(time))
    is_timed = pc.is_valid(values)
    in_time = is_timed
    late = none
    if watermark is not None:
        is_late = pc.less(values, pa.scalar(watermark - reach_us, pa.int64()))
        late = numbers.filter(pc.fill_null(is_late, False).combine_chunks())
        in_time = pc.and_(is_timed, pc.fill_null(pc.invert(is_late), False))
    rows = table.append_column(ROW, numbers).append_column(TIME, values)
    session.register(name, rows if len(late) == 0 and values.null_count == 0 else rows.filter(in_time))
    return Judged(late, numbers.filter(pc.invert(is_timed).combine_chunks()) if values.null_count else none)


def same_keys(keys: Sequence[str], one: str, other: str) -> str:
    """Return the SQL condition that two rows have equal keys; NULLs are equal."""
    return " AND ".join(f"{one}.{quote_name(k)} IS NOT DISTINCT FROM {other}.{quote_name(k)}" for k in keys)


def times_sql(value: str, kind: pa.DataType) -> str:
    """Return the SQL of microseconds since 1970 as a time of an Arrow type."""
    if pa.types.is_date(kind):
        return f"make_timestamp({value})::DATE"
    return f"make_timestamptz({value})" if kind.tz is not None else f"make_timestamp({value})"
