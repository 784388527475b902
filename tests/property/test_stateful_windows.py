"""The law of windows: the table is what DuckDB says of all rows at once, however they are cut, interleaved and restarted."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.state import Aggregate, EventTime, Input, Window
from sinks.state import windows as window_module
from tests.property.state_bench import Bench

SCHEMA = pa.schema(
    [("k", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("v", pa.int64()), ("x", pa.float64()), ("b", pa.bool_())]
)
SECOND = 1_000_000
DELAY = 7
FAR = 10_000
COMBINED = (
    ("n", "count(*)"),
    ("filled", "count(v)"),
    ("total", "sum(v)"),
    ("mean", "avg(v)"),
    ("span", "max(v) - min(v)"),
    ("big", "count(*) FILTER (WHERE v > 3)"),
    ("all_b", "bool_and(b)"),
)
KEPT = (("n", "count(*)"), ("median", "median(x)"), ("kinds", "count(DISTINCT v)"), ("spread", "stddev_pop(x)"))
Row = tuple[str | None, int, int | None, float | None, bool | None]


def rows(items: list[Row]) -> pa.Table:
    columns = [pa.array([item[i] for item in items], SCHEMA.field(i).type) for i in (0, 2, 3, 4)]
    times = pa.array([item[1] * SECOND for item in items], pa.int64()).cast(SCHEMA.field("ts").type)
    return pa.table([columns[0], times, *columns[1:]], schema=SCHEMA)


def windows(kind: str, size: int, every: int, items: list[Row]) -> list[tuple[int, int, Row]]:
    """Return every row with the beginning and end of each window it is in."""
    found = []
    if kind != "session":
        for item in items:
            start = item[1] - item[1] % every
            while start + size > item[1]:
                found.append((start, start + size, item))
                start -= every
        return found
    for key in {item[0] for item in items}:
        session: list[Row] = []
        for item in [*sorted((i for i in items if i[0] == key), key=lambda i: i[1]), None]:
            if session and (item is None or item[1] >= session[-1][1] + size):
                found += [(session[0][1], session[-1][1] + size, member) for member in session]
                session = []
            if item is not None:
                session.append(item)
    return found


def batch(kind: str, size: int, every: int, items: list[Row], aggregates: Any) -> list[Any]:
    placed = windows(kind, size, every, items)
    table = rows([row for _, _, row in placed])
    table = table.append_column("a", pa.array([a for a, _, _ in placed], pa.int64()))
    table = table.append_column("z", pa.array([z for _, z, _ in placed], pa.int64()))
    session = duckdb.connect()
    session.register("placed", table)
    made = ", ".join(f"{sql} AS {name}" for name, sql in aggregates)
    return session.sql(f"SELECT k, a, z, {made} FROM placed GROUP BY k, a, z").fetchall()


def comparable(values: list[Any]) -> list[str]:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 6)
        return int(value) if isinstance(value, Decimal) else value

    return sorted(repr(tuple(plain(value) for value in row)) for row in values)


def found_rows(bench: Bench, aggregates: Any) -> list[Any]:
    if not bench.location.exists():
        return []
    found = []
    for row in bench.rows().to_pylist():
        span = [math.floor(row[name].timestamp()) for name in ("window_start", "window_end")]
        found.append([row["k"], *span, *(row[name] for name, _ in aggregates)])
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[list[Row]]:
    """Two partitions, each never further behind its own latest row than the delay."""
    partitions = []
    for _ in range(2):
        high, items = 100, []
        for step in draw(st.lists(st.integers(-DELAY, 6), max_size=16)):
            high = max(high, high + step)
            value = draw(st.sampled_from([None, 1, 4, 9]))
            key, flag = draw(st.sampled_from(["a", "b", None])), draw(st.sampled_from([True, False, None]))
            items.append((key, high + min(step, 0), value, None if value is None else value / 3, flag))
        partitions.append(items)
    return partitions


@pytest.fixture(autouse=True, scope="module")
def folding_early() -> Iterator[None]:
    """Let partial rows be made one long before there are many."""
    before, window_module._FOLD_ROWS = window_module._FOLD_ROWS, 3
    yield
    window_module._FOLD_ROWS = before


@settings(max_examples=14, deadline=None)
@given(
    data=st.data(),
    partitions=streams(),
    shape=st.sampled_from([("tumbling", 5, 5), ("sliding", 10, 3), ("sliding", 3, 7), ("session", 4, 0)]),
    aggregates=st.sampled_from([COMBINED, KEPT]),
    mode=st.sampled_from(["append", "update"]),
)
def test_p81_windows_equal_a_batch_query(
    data: st.DataObject, partitions: list[list[Row]], shape: tuple[str, int, int], aggregates: Any, mode: str
) -> None:
    kind, size, every = shape
    if every > size:
        every = size  # windows with holes between them are tumbling windows that leave rows out: not offered
    if kind == "session":
        mode = "append"
    folder = Path(tempfile.mkdtemp())
    try:
        window = Window(kind=kind, column="ts", size_us=size * SECOND, every_us=every * SECOND)
        bench = Bench(
            folder,
            Aggregate(keys=("k",), window=window, aggregates=aggregates, mode=mode),
            (Input(schema=SCHEMA, time=EventTime(column="ts", delay_us=DELAY * SECOND)),),
            partitions=2,
        )
        cuts = [[0, *sorted(data.draw(st.tuples(*[st.integers(0, len(p))] * 2))), len(p)] for p in partitions]
        again = data.draw(st.integers(0, 5))
        for part in range(3):
            bench.send(*((0, n, rows(p[cuts[n][part] : cuts[n][part + 1]])) for n, p in enumerate(partitions)))
            if part == again:
                bench.restart()
        expected = batch(kind, size, every, [i for items in partitions for i in items], aggregates)
        if mode == "append":
            bench.send((0, 0, rows([("end", FAR, 1, 1.0, True)])), (0, 1, rows([("end", FAR, 1, 1.0, True)])))
        assert comparable(found_rows(bench, aggregates)) == comparable(expected)
        if mode == "append":
            assert bench.manifest()["tables"]["groups"]["rows"] <= 2 * -(-size // max(1, every or size))
    finally:
        shutil.rmtree(folder)
