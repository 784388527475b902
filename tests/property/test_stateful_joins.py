"""The law of joins and of keyed state: what comes out is what one query, or one model, says of all rows at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.state import EventTime, Input, Join, MapWithState
from tests.property.state_bench import Bench

SECOND = 1_000_000
DELAY, WITHIN, FAR = 4, 5, 10_000
ZONED = pa.timestamp("us", "UTC")
LEFT = pa.schema([("k", pa.string()), ("ts", ZONED), ("a", pa.int64())])
RIGHT = pa.schema([("k", pa.string()), ("rts", ZONED), ("b", pa.int64())])
QUERIES = {
    "inner": "SELECT a, b FROM l JOIN r ON {on}",
    "left": "SELECT a, b FROM l LEFT JOIN r ON {on}",
    "right": "SELECT a, b FROM l RIGHT JOIN r ON {on}",
    "full": "SELECT a, b FROM l FULL JOIN r ON {on}",
    "semi": "SELECT a FROM l SEMI JOIN r ON {on}",
}
ON = f"l.k = r.k AND abs(epoch_us(l.ts) - epoch_us(r.rts)) <= {WITHIN * SECOND}"
Row = tuple[str | None, int | None, int]


def rows(schema: pa.Schema, items: list[Row]) -> pa.Table:
    times = pa.array([None if at is None else at * SECOND for _, at, _ in items], pa.int64()).cast(ZONED)
    keys, numbers = pa.array([i[0] for i in items], pa.string()), pa.array([i[2] for i in items], pa.int64())
    return pa.table([keys, times, numbers], schema=schema)


@st.composite
def streams(draw: st.DrawFn, sides: int) -> list[list[Row]]:
    found, number = [], 0
    for _ in range(sides):
        high, items = 100, []
        for step in draw(st.lists(st.integers(-DELAY, 5), max_size=14)):
            high = max(high, high + step)
            number += 1
            key = draw(st.sampled_from(["a", "b", "b", None]))
            items.append((key, high + min(step, 0), number))
        found.append(items)
    return found


def cuts(data: st.DataObject, items: list[Row]) -> list[list[Row]]:
    edges = [0, *sorted(data.draw(st.tuples(*[st.integers(0, len(items))] * 2))), len(items)]
    return [items[edges[i] : edges[i + 1]] for i in range(3)]


@settings(max_examples=12, deadline=None)
@given(data=st.data(), sides=streams(2), how=st.sampled_from(sorted(QUERIES)))
def test_p82_joins_equal_a_batch_query(data: st.DataObject, sides: list[list[Row]], how: str) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        left = Input(schema=LEFT, time=EventTime(column="ts", delay_us=DELAY * SECOND))
        right = Input(schema=RIGHT, time=EventTime(column="rts", delay_us=DELAY * SECOND))
        bench = Bench(folder, Join(on=("k",), within_us=WITHIN * SECOND, how=how), (left, right))
        again = data.draw(st.integers(0, 3))
        for part, (ls, rs) in enumerate(zip(*(cuts(data, items) for items in sides), strict=True)):
            bench.send((0, 0, rows(LEFT, ls)), (1, 0, rows(RIGHT, rs)))
            if part == again:
                bench.restart()
        untimed = [("a", None, 900)]
        bench.send(
            (0, 0, rows(LEFT, [("end", FAR, -1), *untimed])), (1, 0, rows(RIGHT, [("end", 2 * FAR, -2), *untimed]))
        )
        session = duckdb.connect()
        session.register("l", rows(LEFT, [*sides[0], *untimed]))
        session.register("r", rows(RIGHT, [*sides[1], *untimed]))
        expected = session.sql(QUERIES[how].format(on=ON)).fetchall()
        names = ["a"] if how == "semi" else ["a", "b"]
        found = [
            tuple(row[name] for name in names)
            for row in bench.rows().to_pylist()
            if row["a"] != -1 and row.get("b") != -2
        ]
        assert sorted(map(repr, found)) == sorted(map(repr, expected))
    finally:
        shutil.rmtree(folder)


OUT = pa.schema([("k", pa.string()), ("n", pa.int64()), ("total", pa.int64())])
HELD = pa.schema([("total", pa.int64())])


def running(rows: pa.Table, state: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Number the rows of each key; what has timed out is put out as -1."""
    totals = {row["k"]: row["total"] for row in state.to_pylist() if not row["timed_out"]}
    out = [{"k": row["k"], "n": -1, "total": row["total"]} for row in state.to_pylist() if row["timed_out"]]
    for row in rows.to_pylist():
        totals[row["k"]] = totals.get(row["k"], 0) + 1
        out.append({"k": row["k"], "n": row["a"], "total": totals[row["k"]]})
    new = [{"k": k, "total": n} for k, n in totals.items()]
    return pa.Table.from_pylist(out, OUT), pa.Table.from_pylist(new, pa.schema([("k", pa.string()), *HELD]))


@settings(max_examples=8, deadline=None)
@given(data=st.data(), sides=streams(1))
def test_p85_keyed_state_follows_the_model(data: st.DataObject, sides: list[list[Row]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        source = Input(schema=LEFT, time=EventTime(column="ts", delay_us=DELAY * SECOND))
        operator = MapWithState(function=running, keys=("k",), schema=OUT, state_schema=HELD, timeout_us=1000 * SECOND)
        bench = Bench(folder, operator, (source,))
        for part in cuts(data, sides[0]):
            bench.send((0, 0, rows(LEFT, part)))
            if data.draw(st.integers(0, 3)) == 0:
                bench.restart()
        bench.send((0, 0, rows(LEFT, [("end", FAR, 0)])))
        totals: dict[Any, int] = {}
        expected = [("end", 0, 1)]
        for key, _, number in sides[0]:
            totals[key] = totals.get(key, 0) + 1
            expected.append((key, number, totals[key]))
        expected += [(key, -1, total) for key, total in totals.items()]
        found = [tuple(row.values()) for row in bench.rows().to_pylist()]
        assert sorted(map(repr, found)) == sorted(map(repr, expected))
        assert bench.manifest()["tables"]["keys"]["rows"] == 1
    finally:
        shutil.rmtree(folder)
