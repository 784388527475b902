"""Stateful operators as they are written: what they become, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import waxlake as wl
from sinks.state import Aggregate, Dedupe, EventTime, Input, Join, Window
from sinks.state.partials import partials_of
from sinks.state.watermark import Watermark
from tests.unit.test_sql_files import only, refused
from waxlake.pipeline.definitions import Drop, Select, Stateful, WatermarkStep, Where
from waxlake.pipeline.stateful_steps import split_steps
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import DefinitionError, UserError

MINUTE = 60_000_000
SCHEMA = pa.schema([("k", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("v", pa.int64())])
TIMED = Input(schema=SCHEMA, time=EventTime(column="ts", delay_us=MINUTE))


def events() -> wl.Stream:
    return wl.read_stream("events")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: events().with_watermark("ts", "soon"), "delay"),
        (lambda: events().with_watermark("ts", "1 minute", late="keep"), "late"),
        (lambda: events().drop_duplicates([]), "keys"),
        (lambda: events().drop_duplicates("k", within="0 s"), "within"),
        (lambda: events().group_by("k", window="1 minute"), "window"),
        (lambda: events().group_by("k").agg(), "aggregate"),
        (lambda: wl.sliding("ts", "1 minute", every="2 minutes"), "every"),
        (lambda: events().join(events(), on="k", how="anti"), "how"),
        (lambda: events().join(wl.read("x"), on="k"), "name a table in .sql()"),
    ],
)
def test_arguments_that_cannot_be(make: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=r"\[ARGUMENT_INVALID\]") as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("operator", "inputs", "code", "said"),
    [
        (Join(on=("k",), within_us=None), (TIMED, TIMED), "JOIN_UNBOUNDED", "for ever"),
        (Join(on=("k",), within_us=1), (TIMED, Input(schema=SCHEMA)), "WATERMARK_MISSING", "right side"),
        (Join(on=("k",), within_us=1), (TIMED, TIMED), "DUPLICATE_COLUMN", "Rename"),
        (Dedupe(keys=("q",)), (TIMED,), "UNKNOWN_COLUMN", "'q'"),
        (Dedupe(keys=("k",), within_us=1), (Input(schema=SCHEMA),), "WATERMARK_MISSING", "with_watermark"),
        (Aggregate(keys=("k",), window=None, aggregates=(("n", "count(*)"),)), (TIMED,), "WINDOW_MISSING", "update"),
        (Aggregate(keys=("k",), window=None, aggregates=(("n", "sum(w)"),), mode="update"), (TIMED,), "UNKNOWN_COLUMN", "w"),
        (Aggregate(keys=("k",), window=None, aggregates=(("k", "sum(v)"),), mode="update"), (TIMED,), "DUPLICATE_COLUMN", "k"),
        (
            Aggregate(
                keys=(), window=Window(kind="session", column="ts", size_us=1, every_us=0), aggregates=(("n", "count(*)"),),
                mode="update",
            ),
            (TIMED,), "NOT_AVAILABLE", "append",
        ),
        (
            Aggregate(keys=(), window=Window(kind="tumbling", column="v", size_us=1, every_us=1), aggregates=(("n", "max(v)"),)),
            (TIMED,), "EVENT_TIME_TYPE", "TIMESTAMP",
        ),
    ],
)  # fmt: skip
def test_p82_operators_that_do_not_fit_their_inputs(operator: Any, inputs: Any, code: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        operator.bind(inputs)
    assert caught.value.code == code
    assert said in str(caught.value)


def test_aggregates_that_combine_are_kept_as_partial_values_and_others_as_rows() -> None:
    combined = partials_of((("n", "count(*)"), ("m", "avg(v) + 1"), ("f", "sum(v) FILTER (WHERE v > 1)")), SCHEMA)
    assert not combined.keeps_rows
    assert len(combined.columns) == 4
    for text in ("median(v)", "count(DISTINCT v)", "list(v ORDER BY ts)", "arg_max(k, ts)", "stddev(v)", "max(v, 2)"):
        kept = partials_of((("n", "count(*)"), ("x", text)), SCHEMA)
        assert kept.keeps_rows, text
        names = [name for name, _ in kept.columns]
        assert names == [name for name in SCHEMA.names if name in names]  # the same in every process


def test_p80_sql_with_a_watermark(tmp_path: Path) -> None:
    _, stream = only(
        tmp_path,
        """CREATE OR REFRESH STREAMING TABLE t AS SELECT country, window.start AS begins, count(*) AS n, sum(e.v) AS total
        FROM STREAM(events) WATERMARK ts DELAY OF INTERVAL 10 MINUTES e WHERE e.v > 0
        GROUP BY country, window(ts, '1 hour', '30 minutes')""",
    )
    where, watermark, operator, select = stream.branches[0].steps
    assert isinstance(where, Where)
    assert where.condition == "v > 0"
    assert isinstance(watermark, WatermarkStep)
    assert watermark.time.delay_us == 10 * MINUTE
    assert isinstance(operator, Stateful)
    assert operator.operator == Aggregate(
        keys=("country",),
        window=Window(kind="sliding", column="ts", size_us=60 * MINUTE, every_us=30 * MINUTE),
        aggregates=(("n", "COUNT(*)"), ("total", "SUM(v)")),
    )
    assert isinstance(select, Select)
    assert select.expressions == ('"country" AS "country"', '"window_start" AS "begins"', '"n"', '"total"')


@pytest.mark.parametrize(
    "query",
    [
        "SELECT DISTINCT k, count(*) AS n FROM STREAM(e) WATERMARK ts DELAY OF INTERVAL 1 MINUTE GROUP BY k",
        "SELECT DISTINCT k FROM STREAM(e) ORDER BY k",
        "SELECT DISTINCT ON (upper(k)) k FROM STREAM(e)",
        "SELECT k, count(*) FROM STREAM(e) WATERMARK ts DELAY OF INTERVAL 1 MINUTE GROUP BY k",
        "SELECT k, count(*) AS n FROM STREAM(e) WATERMARK ts DELAY OF INTERVAL 1 MINUTE GROUP BY k HAVING n > 1",
        "SELECT count(*) AS n FROM STREAM(e) WATERMARK ts DELAY OF INTERVAL 1 MINUTE GROUP BY upper(k)",
        "SELECT k, count(*) AS n FROM STREAM(e) WATERMARK ts DELAY OF INTERVAL 1 MINUTE JOIN x USING (k) GROUP BY k",
    ],
)
def test_p80_sql_that_has_no_last_answer(tmp_path: Path, query: str) -> None:
    error = refused(tmp_path, f"CREATE OR REFRESH STREAMING TABLE t AS {query}")
    assert error.code == "SQL_NOT_STREAMING"


def test_operators_one_after_the_other_are_parts_of_a_flow() -> None:
    stream = events().drop_duplicates("k").where("v > 0").with_watermark("ts", "1 minute").select("v")
    split = split_steps(stream.drop_duplicates().drop("v").branches[0].steps, ())
    assert (split.before, split.operator.operator) == ((), Dedupe(keys=("k",)))
    assert split.watermark.time.column == "ts"  # it begins where the sources are known
    (further,) = split.chain
    assert [type(step) for step in further.between] == [Where, Select]
    assert (further.operator.operator, [type(step) for step in split.after]) == (Dedupe(), [Drop])


def batch(partition: str, *seconds: int | None, is_end: bool = False) -> MicroBatch:
    times = pa.array([None if s is None else s * 1_000_000 for s in seconds], pa.int64()).cast(SCHEMA.field("ts").type)
    table = pa.table([pa.nulls(len(seconds), pa.string()), times, pa.nulls(len(seconds), pa.int64())], schema=SCHEMA)
    return MicroBatch(table=table, source="s", partition=partition, start=0, end=1, partition_count=2, is_end=is_end)


def test_p80_the_watermark_waits_for_every_partition_but_not_for_idle_ones() -> None:
    time = EventTime(column="ts", delay_us=10_000_000, idle_s=60)
    mark = Watermark()
    now = {"now_s": 5000.0, "clock_s": 0.0}
    mark.note(batch("a", 100, 120), time, **now)
    assert mark.advance(**now) is None  # the other one has not shown yet
    mark.note(batch("b"), time, **now)
    assert mark.advance(**now) is None  # it may still have older rows
    mark.note(batch("b", 90, None), time, **now)
    assert mark.advance(**now) == 80_000_000
    mark.note(batch("a", 300), time, now_s=5000.0, clock_s=61.0)
    assert mark.advance(now_s=5000.0, clock_s=61.0) == 290_000_000  # b is idle
    mark.note(batch("b", 100), time, now_s=5000.0, clock_s=62.0)
    assert mark.advance(now_s=5000.0, clock_s=62.0) == 290_000_000  # it never goes back
    again = Watermark()
    again.restore(mark.to_json())
    again.note(batch("a", 400), time, now_s=9000.0, clock_s=0.0)
    again.note(batch("b", is_end=True), time, now_s=9000.0, clock_s=0.0)
    assert again.advance(now_s=9000.0, clock_s=0.0) == 390_000_000  # b ended, and its last rows are long ago


def test_p86_the_first_load_can_be_held_until_it_is_whole() -> None:
    time = EventTime(column="ts", delay_us=0, holds_first_load=True)
    mark, now = Watermark(), {"now_s": 5000.0, "clock_s": 0.0}
    for partition in ("a", "b"):
        mark.note(batch(partition), time, **now)
        mark.note(batch(partition, 900), time, **now)
    mark.note(batch("a", is_end=True), time, **now)
    assert mark.advance(**now) is None
    mark.note(batch("b", 100), time, **now)
    mark.note(batch("b"), time, **now)  # nothing to read any more, in a continuous run
    assert mark.advance(**now) == 900_000_000
    again = Watermark()
    again.restore(mark.to_json())
    again.note(batch("a", 950), time, **now)
    again.note(batch("b", 960), time, **now)
    assert again.advance(**now) == 950_000_000


def test_p80_times_in_the_far_future_are_counted_and_do_not_move_the_watermark() -> None:
    time = EventTime(column="ts", delay_us=0)
    mark = Watermark()
    for partition in ("a", "b"):
        mark.note(batch(partition, 100, 10**9), time, now_s=1000.0, clock_s=0.0)
    assert mark.advance(now_s=1000.0, clock_s=0.0) == 100_000_000
    assert mark.future == 2
