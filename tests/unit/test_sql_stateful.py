"""De-duplication and joins of streams in SQL: what they become, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

import waxlake as wl
from sinks.state import Aggregate, Dedupe, Join
from tests.unit.test_sql_files import only, refused
from waxlake.pipeline.definitions import Query, Select, Stateful, WatermarkStep, Where
from waxlake.pipeline.registry import Registry
from waxlake.pipeline.stream import Stream
from waxlake.stream.errors import DefinitionError

MINUTE = 60_000_000
MARK = "WATERMARK ts DELAY OF INTERVAL 10 MINUTES"
CLICKS = f"STREAM(clicks) AS c {MARK}"
SALES = "STREAM(sales) WATERMARK at DELAY OF INTERVAL '5 minutes' s"
BOUND = 's."at" BETWEEN c.ts - INTERVAL 1 HOUR AND c.ts + INTERVAL 2 HOURS'


def stream(tmp_path: Path, query: str) -> Stream:
    _, made = only(tmp_path, f"CREATE OR REFRESH STREAMING TABLE t AS {query}")
    assert isinstance(made, Stream)
    return made


def operators(made: Stream) -> list:
    return [step.operator for step in made.branches[0].steps if isinstance(step, Stateful)]


def test_p84_distinct_is_drop_duplicates(tmp_path: Path) -> None:
    query, watermark, operator = (
        stream(tmp_path, f"SELECT DISTINCT id, ts AS seen_at FROM STREAM(clicks) {MARK} WHERE id > 0").branches[0].steps
    )
    assert isinstance(query, Query)
    assert query.text == 'SELECT id, ts AS seen_at FROM stream AS "clicks" WHERE id > 0'
    assert isinstance(watermark, WatermarkStep)
    assert (watermark.time.column, watermark.time.delay_us) == ("seen_at", 10 * MINUTE)
    assert isinstance(operator, Stateful)
    assert operator.operator == Dedupe()
    for text, kinds in (
        ("SELECT DISTINCT id FROM STREAM(clicks)", [Query, Stateful]),
        (f"SELECT DISTINCT id FROM STREAM(clicks) {MARK}", [Query, Stateful]),  # its time is not among the keys
        (f"SELECT DISTINCT * FROM STREAM(clicks) {MARK}", [Query, WatermarkStep, Stateful]),
    ):
        assert [type(step) for step in stream(tmp_path, text).branches[0].steps] == kinds


def test_p84_distinct_on_keeps_the_first_row_of_its_keys(tmp_path: Path) -> None:
    where, watermark, operator, query = (
        stream(tmp_path, f"SELECT DISTINCT ON (id, ts) id, n + 1 AS m FROM STREAM(clicks) {MARK} c WHERE c.n > 0")
        .branches[0]
        .steps
    )
    assert isinstance(where, Where)
    assert where.condition == "n > 0"
    assert isinstance(watermark, WatermarkStep)
    assert isinstance(operator, Stateful)
    assert operator.operator == Dedupe(keys=("id", "ts"))
    assert isinstance(query, Query)
    assert query.text == "SELECT id, n + 1 AS m FROM stream AS c"


@pytest.mark.parametrize(
    ("join", "how"),
    [("JOIN", "inner"), ("INNER JOIN", "inner"), ("LEFT JOIN", "left"), ("RIGHT OUTER JOIN", "right"), ("FULL JOIN", "full"),
     ("SEMI JOIN", "semi")],
)  # fmt: skip
def test_p82_a_join_of_streams(tmp_path: Path, join: str, how: str) -> None:
    made = stream(tmp_path, f"SELECT c.* FROM {CLICKS} {join} {SALES} ON c.id = s.user_id AND {BOUND}")
    assert [branch.read.name for branch in made.branches] == ["clicks", "sales"]
    assert operators(made) == [Join(on=("c.id = s.user_id",), within_us=(60 * MINUTE, 120 * MINUTE), how=how)]
    marks = [step for branch in made.branches for step in branch.steps if isinstance(step, WatermarkStep)]
    assert [(m.time.column, m.time.delay_us) for m in marks] == [("c.ts", 10 * MINUTE), ("s.at", 5 * MINUTE)]
    last = made.branches[1].steps[-1]
    assert isinstance(last, Query)
    assert last.text == "SELECT c.* FROM stream"


@pytest.mark.parametrize(
    ("condition", "span"),
    [
        ('c.ts = s."at"', (0, 0)),
        ('s."at" >= c.ts AND s."at" < c.ts + INTERVAL 1 MINUTE', (0, MINUTE - 1)),
        ('c.ts BETWEEN s."at" AND s."at" + INTERVAL 1 MINUTE', (MINUTE, 0)),
        ('s."at" > c.ts + INTERVAL 1 MINUTE AND (s."at" - INTERVAL 5 MINUTES) <= c.ts', (-MINUTE - 1, 5 * MINUTE)),
        ('"at" BETWEEN ts AND ts + INTERVAL 1 MINUTE', (0, MINUTE)),
    ],
)
def test_p82_bounds_in_time_as_they_are_written(tmp_path: Path, condition: str, span: tuple[int, int]) -> None:
    made = stream(tmp_path, f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {condition}")
    assert operators(made) == [Join(on=("c.id = s.id",), within_us=span, how="inner")]
    made = stream(tmp_path, f"SELECT id FROM {CLICKS} JOIN {SALES} USING (id) WHERE {condition} AND c.n > s.m")
    assert operators(made)[0].within_us == span
    assert "WHERE c.n > s.m" in made.branches[0].steps[-1].text


def test_p81_p82_a_join_is_aggregated_and_taken_once(tmp_path: Path) -> None:
    made = stream(
        tmp_path,
        f"SELECT window.start AS hour, c.country, count(*) AS n FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {BOUND} "
        "WHERE s.m > 0 GROUP BY c.country, window(c.ts, '1 hour')",
    )
    where, flat, operator, last = made.branches[0].steps[-4:]
    assert isinstance(where, Where)
    assert isinstance(flat, Select)
    assert flat.expressions == ('c.country AS "c.country"', '"c.ts"')
    assert isinstance(operator, Stateful)
    assert isinstance(operator.operator, Aggregate)
    assert (operator.operator.keys, operator.operator.window.column) == (("c.country",), "c.ts")
    assert last.expressions == ('"window_start" AS "hour"', '"c.country" AS "country"', '"n"')
    made = stream(tmp_path, f"SELECT DISTINCT c.id, c.ts AS at FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {BOUND}")
    assert operators(made)[1] == Dedupe()
    assert made.branches[0].steps[-1].expressions == ('"id" AS "id"', '"c.ts" AS "at"')


@pytest.mark.parametrize(
    ("query", "code", "caret", "says"),
    [
        (f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id", "JOIN_UNBOUNDED", "ON c.id", "every row of 'c' and 's'"),
        (f'SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND s."at" >= c.ts', "JOIN_UNBOUNDED", "ON c.id",
         "every row of 'c' would"),
        (f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON {BOUND}", "SQL_NOT_STREAMING", "ON s.", "no equality"),
        (f"SELECT c.id FROM {CLICKS} LEFT JOIN {SALES} ON c.id = s.id AND {BOUND} AND s.m > 1", "SQL_NOT_STREAMING", "ON c.id",
         "temporary view"),
        (f"SELECT c.id FROM {CLICKS} ANTI JOIN {SALES} ON c.id = s.id AND {BOUND}", "SQL_NOT_STREAMING", "JOIN", "ANTI"),
        (f"SELECT c.id FROM {CLICKS} CROSS JOIN {SALES}", "SQL_NOT_STREAMING", "JOIN", "CROSS"),
        (f"SELECT c.id FROM {CLICKS} JOIN STREAM(sales) s ON c.id = s.id", "WATERMARK_MISSING", "STREAM(sales)", "'s'"),
        (f"SELECT n FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {BOUND}", "SQL_AMBIGUOUS_COLUMN", "n FROM", "c.n or s.n"),
        (f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {BOUND} ORDER BY 1", "SQL_NOT_STREAMING", "ORDER", "ORDER"),
        (f"SELECT c.id FROM {CLICKS} JOIN x USING (id) JOIN {SALES} ON c.id = s.id", "SQL_TWO_STREAMS", "STREAM(sales)", "first"),
        (f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND {BOUND} JOIN STREAM(z) {MARK} ON z.id = c.id",
         "SQL_TWO_STREAMS", "STREAM(z)", "first join"),
        (f"SELECT c.id FROM {CLICKS} JOIN {SALES} ON c.id = s.id AND s.\"at\" > c.ts + INTERVAL 1 HOUR AND s.\"at\" < c.ts",
         "", "", ""),
    ],
)  # fmt: skip
def test_p82_joins_that_are_refused_show_their_place(
    tmp_path: Path, query: str, code: str, caret: str, says: str
) -> None:
    text = f"CREATE OR REFRESH STREAMING TABLE t AS\n  {query}"
    if not code:
        made = stream(tmp_path, query)
        assert sum(operators(made)[0].within_us) < 0  # told when it meets its inputs
        return
    error = refused(tmp_path, text)
    assert isinstance(error, DefinitionError)
    assert (error.code, says in str(error)) == (code, True), error
    column = f"  {query}".index(caret) + 1
    assert f"definitions.sql:2:{column}: " in str(error)
    assert error.snippet.splitlines()[1].index("^") == column + 1


def test_p80_another_dialect_quotes_names_in_its_own_way(tmp_path: Path) -> None:
    from waxlake.pipeline.dialect import translated
    from waxlake.pipeline.registry import registering
    from waxlake.pipeline.sqlfile import load_sql_file

    file = tmp_path / "d.sql"
    file.write_text(
        f"CREATE OR REFRESH STREAMING TABLE t AS SELECT c.country, count(*) AS n FROM {CLICKS} LEFT SEMI JOIN "
        "STREAM(sales) WATERMARK at DELAY OF INTERVAL 5 MINUTES AS s ON c.id = s.id "
        "AND s.at BETWEEN c.ts AND c.ts + INTERVAL 1 HOUR GROUP BY c.country, window(c.ts, '1 hour')"
    )
    registry = Registry(dialect="databricks")
    with registering(registry):
        load_sql_file(file, registry)
    [definition] = registry.datasets()
    branch = translated(definition.function().branches[0], "databricks")
    assert branch.steps[-1].expressions == ('"c.country" AS "country"', '"n"')
    assert branch.steps[-3].expressions == ('c.country AS "c.country"', '"c.ts"')


def test_p84_sql_of_python_takes_streams_too() -> None:
    made = wl.sql(f"SELECT DISTINCT id FROM STREAM(clicks) {MARK}")
    assert isinstance(made, Stream)
    assert operators(made) == [Dedupe()]
    assert not isinstance(wl.sql("SELECT * FROM streams"), Stream)
    with pytest.raises(DefinitionError, match=r"test_sql_stateful\.py:\d+: .*JOIN_UNBOUNDED") as caught:
        wl.sql(f"SELECT c.id\nFROM {CLICKS} JOIN {SALES}\nON c.id = s.id")
    assert caught.value.snippet == "  ON c.id = s.id\n  ^"
