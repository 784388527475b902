"""What streams hold that they should not: times in the far future, rows without a key or a time, one key with most rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from sinks.state import Aggregate, Dedupe, EventTime, Input, Join, Operator, Window
from tests.property.state_bench import Bench

SECOND = 1_000_000
ZONED = pa.timestamp("us", "UTC")
LEFT = pa.schema([("k", pa.string()), ("ts", ZONED), ("a", pa.int64())])
RIGHT = pa.schema([("k", pa.string()), ("rts", ZONED), ("b", pa.int64())])
INPUTS = tuple(
    Input(schema=schema, time=EventTime(column=column, delay_us=5 * SECOND, ahead_us=60 * SECOND))
    for schema, column in ((LEFT, "ts"), (RIGHT, "rts"))
)
PER_MINUTE = Aggregate(
    keys=("k",),
    window=Window(kind="tumbling", column="ts", size_us=60 * SECOND, every_us=60 * SECOND),
    aggregates=(("n", "count(*)"), ("total", "sum(a)")),
)
JOIN = Join(on=("k",), within_us=(0, SECOND), how="left")
OPERATORS = {"dedupe": Dedupe(keys=("k", "a"), within_us=SECOND), "window": PER_MINUTE, "join": JOIN}


def rows(schema: pa.Schema, keys: list[Any], seconds: list[Any], numbers: list[int]) -> pa.Table:
    times = pa.array([None if s is None else s * SECOND for s in seconds], pa.int64()).cast(ZONED)
    return pa.table([pa.array(keys, pa.string()), times, pa.array(numbers, pa.int64())], schema=schema)


def bench(folder: Path, operator: Operator) -> Bench:
    return Bench(folder, operator, INPUTS if isinstance(operator, Join) else INPUTS[:1])


def facts(made: Bench) -> dict[str, Any]:
    found: dict[str, Any] = made.location.open().history(1)[0]["waxlake"]["flows"]["f"]
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_p80_bad_input_a_time_in_the_far_future_does_not_close_time(tmp_path: Path, name: str) -> None:
    made = bench(tmp_path, OPERATORS[name])
    far = int(time.time()) + 10**6
    both = [(1, 0, rows(RIGHT, ["x"], [100], [1]))] if name == "join" else []
    made.send((0, 0, rows(LEFT, ["x", "x", "y"], [100, far, far], [1, 2, 3])), *both)
    assert (facts(made)["future"], facts(made)["watermark_us"]) == (2, 95 * SECOND)
    made.send((0, 0, rows(LEFT, ["z"], [101], [4])))
    assert facts(made)["late"] == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_p80_bad_input_rows_without_a_key_or_a_time(tmp_path: Path, name: str) -> None:
    made = bench(tmp_path, OPERATORS[name])
    given = rows(LEFT, [None, None, "x", None], [100, 100, None, None], [1, 1, 2, 3])
    both = [(1, 0, rows(RIGHT, [None, "x"], [100, None], [1, 2]))] if name == "join" else []
    made.send((0, 0, given), *both)
    assert facts(made)["untimed"] == {"dedupe": 2, "window": 2, "join": 1}[name]
    end = [(1, 0, rows(RIGHT, ["end"], [9000], [9]))] if name == "join" else []
    made.send((0, 0, rows(LEFT, ["end"], [9000], [9])), *end)
    found = [row for row in made.rows().to_pylist() if row["k"] != "end"]
    if name == "dedupe":  # NULLs are equal
        assert [(row["k"], row["a"]) for row in found] == [(None, 1)]
    elif name == "window":  # NULL is a group
        assert [(row["k"], row["n"]) for row in found] == [(None, 2)]
    else:  # NULL matches nothing, and the left rows stay
        assert sorted((row["a"], row["b"]) for row in found) == [(1, None), (1, None), (2, None), (3, None)]


@pytest.mark.parametrize("name", OPERATORS)
def test_p85_bad_input_one_key_holds_nine_of_ten_rows(tmp_path: Path, name: str) -> None:
    made = bench(tmp_path, OPERATORS[name])
    keys = ["hot" if i % 10 else f"cold{i % 70}" for i in range(8_000)]
    left = rows(LEFT, keys, [1000 + i // 20 for i in range(8_000)], [i % 7 for i in range(8_000)])
    right = rows(RIGHT, keys, [1000 + i // 20 for i in range(8_000)], list(range(8_000)))
    for start in range(0, 8_000, 2_000):
        both = [(1, 0, right.slice(start, 2_000))] if name == "join" else []
        made.send((0, 0, left.slice(start, 2_000)), *both)
    end = [(1, 0, rows(RIGHT, ["end"], [90_000], [9]))] if name == "join" else []
    made.send((0, 0, rows(LEFT, ["end"], [90_000], [9])), *end)
    session = duckdb.connect()
    session.register("l", left)
    session.register("r", right)
    query = {
        "window": "SELECT k, epoch(ts)::BIGINT // 60 AS w, count(*) AS n, sum(a)::BIGINT AS t FROM l GROUP BY k, w",
        "join": "SELECT l.k, a, b FROM l LEFT JOIN r ON l.k = r.k AND rts BETWEEN ts AND ts + INTERVAL 1 SECOND",
    }.get(name)
    session.register("made", made.rows().filter(pc.not_equal(made.rows().column("k"), "end")))
    if query is None:  # the first of a key stays, and after it one that is more than a second later
        assert session.sql("SELECT count(*) FROM made WHERE k = 'hot'").fetchall() == [(7 * 200,)]
        return
    shown = {"window": "k, epoch(window_start)::BIGINT // 60, n, total::BIGINT", "join": "k, a, b"}[name]
    session.execute(f"CREATE TABLE found AS SELECT {shown} FROM made")
    session.execute(f"CREATE TABLE said AS {query}")
    for one, other in (("found", "said"), ("said", "found")):
        assert session.sql(f"FROM {one} EXCEPT ALL FROM {other}").fetchall() == []
