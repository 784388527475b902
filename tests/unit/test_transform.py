"""What a flow does to one micro-batch: steps, metadata columns, expectations."""

from __future__ import annotations

from datetime import datetime, timezone

import pyarrow as pa
import pytest

import waxlake as wl
from waxlake.pipeline.definitions import Expectation
from waxlake.pipeline.stream import Stream
from waxlake.pipeline.transform import Outcome, Transform
from waxlake.stream import engine
from waxlake.stream.errors import DefinitionError, ExpectationFailed, SchemaError, UserError

ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3, 4], pa.int64()),
        "amount": [10.0, -5.0, None, 40.0],
        "_offset": pa.array([100, 101, 102, 103], pa.int64()),
        "_key": pa.array([b"a", b"b", b"c", b"d"]),
    }
)
COUNTRIES = pa.table(
    {"id": pa.array([1, 2], pa.int64()), "name": ["one", "two"], "_offset": pa.array([0, 0], pa.int64())}
)


def rule(name: str, sql: str, action: str = "warn") -> Expectation:
    return Expectation(name=name, sql=sql, action=action, where="rules.py:1")  # type: ignore[arg-type]


def transform(stream: Stream, *rules: Expectation, schema: pa.Schema | None = None) -> Transform:
    made = Transform(
        flow="orders",
        dataset="orders",
        steps=stream.branches[0].steps,
        expectations=rules,
        source=ROWS.slice(0, 0),
        hidden=("_offset", "_key"),
        statics=("countries", "ref.countries"),
        tables=lambda name: COUNTRIES,
        schema=schema,
    )
    made.compile()
    return made


def apply(stream: Stream, *rules: Expectation, schema: pa.Schema | None = None) -> Outcome:
    return transform(stream, *rules, schema=schema).apply(ROWS, lambda name: COUNTRIES)


SOURCE = wl.read_stream("source")


def test_metadata_columns_stay_out_unless_selected() -> None:
    assert apply(SOURCE).table.column_names == ["id", "amount"]
    assert apply(SOURCE.where("_offset > 101")).table.to_pydict() == {"id": [3, 4], "amount": [None, 40.0]}
    assert apply(SOURCE.select("*", "_offset AS o")).table.column("o").to_pylist() == [100, 101, 102, 103]
    assert apply(SOURCE.select("_offset", "id")).table.column_names == ["_offset", "id"]
    assert apply(SOURCE.with_columns(_offset="_offset + 1")).table.column("_offset").to_pylist() == [101, 102, 103, 104]
    assert apply(SOURCE.sql("SELECT *, _offset FROM stream")).table.column_names == ["id", "amount", "_offset"]
    assert apply(SOURCE.sql("SELECT s.*, s._key FROM stream AS s")).table.column_names == ["id", "amount", "_key"]
    assert apply(SOURCE.where("id > 0").sql("WITH a AS (SELECT * FROM stream) SELECT * FROM a")).table.column_names == [
        "id",
        "amount",
    ]


def test_map_batches_sees_the_visible_columns() -> None:
    seen: list[list[str]] = []

    def note(table: pa.Table) -> pa.Table:
        seen.append(table.column_names)
        return table.append_column("n", pa.repeat(table.num_rows, table.num_rows).cast(pa.int64()))

    outcome = apply(SOURCE.map_batches(note).where("id < 3"))
    assert outcome.table.column("n").to_pylist() == [4, 4]
    assert set(map(tuple, seen)) == {("id", "amount")}


def test_steps_run_in_order_and_replace_in_place() -> None:
    stream = SOURCE.with_columns(amount="coalesce(amount, 0)", twice="amount * 2").where("twice IS NOT NULL").drop("id")
    table = apply(stream).table
    assert table.column_names == ["amount", "twice"]
    assert table.column("amount").to_pylist() == [10.0, -5.0, 40.0]


@pytest.mark.parametrize("name", ["countries", "ref.countries", '"ref"."countries"'])
def test_static_tables_are_joined_by_name(name: str) -> None:
    stream = SOURCE.sql(f"SELECT s.id, c.name FROM stream AS s LEFT JOIN {name} AS c USING (id) ORDER BY s.id")
    assert apply(stream).table.column("name").to_pylist() == ["one", "two", None, None]


def test_rules_count_null_as_broken_and_do_what_they_say() -> None:
    rules = [
        rule("warned", "amount > 0"),
        rule("dropped", "amount IS NOT NULL", "drop"),
        rule("kept apart", "amount > 0", "quarantine"),
    ]
    outcome = apply(SOURCE, *rules)
    assert outcome.table.column("id").to_pylist() == [1, 4]
    assert [(c.rule, c.action, c.passed, c.failed) for c in outcome.rules] == [
        ("warned", "warn", 2, 2),
        ("dropped", "drop", 3, 1),
        ("kept apart", "quarantine", 2, 2),
    ]
    assert outcome.rejected is not None
    assert outcome.rejected.column("id").to_pylist() == [2, 3]
    assert outcome.rejected.column("_failed_rules").to_pylist() == [
        ["warned", "kept apart"],
        ["warned", "dropped", "kept apart"],
    ]
    assert outcome.dropped == 0, "a row that a quarantine rule rejects is never dropped"


def test_dropped_rows_are_counted() -> None:
    outcome = apply(SOURCE, rule("positive", "amount > 0", "drop"))
    assert (outcome.table.num_rows, outcome.dropped, outcome.rejected) == (2, 2, None)


def test_a_failed_rule_names_itself_and_a_row() -> None:
    with pytest.raises(ExpectationFailed) as failed:
        apply(SOURCE, rule("positive", "amount > 0", "fail"))
    assert failed.value.code == "EXPECTATION_FAILED"
    assert "'id': 2" in str(failed.value)
    assert "positive" in str(failed.value)


def test_a_rule_may_quote_and_collide() -> None:
    outcome = apply(SOURCE.select("id", "id AS passed"), rule('it\'s "odd"', "id <> 2", "quarantine"))
    assert outcome.rejected is not None
    assert outcome.rejected.column("_failed_rules").to_pylist() == [['it\'s "odd"']]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (SOURCE.where("amonut > 1"), "UNKNOWN_COLUMN"),
        (SOURCE.select("nope"), "UNKNOWN_COLUMN"),
        (SOURCE.drop("nope"), "UNKNOWN_COLUMN"),
        (SOURCE.sql("SELECT nope FROM stream"), "UNKNOWN_COLUMN"),
        (SOURCE.where("id >"), "SQL_SYNTAX"),
        (SOURCE.map_batches(lambda table: None), "MAP_BATCHES_RETURN_TYPE"),
        (SOURCE.map_batches(lambda table: 1 / 0), "MAP_BATCHES_FAILED"),
    ],
)
def test_a_wrong_step_is_found_without_data_and_names_its_line(stream: Stream, code: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        transform(stream)
    assert refused.value.code == code
    assert "test_transform.py:" in str(refused.value)


def test_a_wrong_rule_names_itself() -> None:
    with pytest.raises(DefinitionError, match=r"rules.py:1: expectation 'typo'.*amonut"):
        transform(SOURCE, rule("fine", "id > 0"), rule("typo", "amonut > 0"))


def test_a_value_that_does_not_fit_stops_the_flow() -> None:
    with pytest.raises(UserError, match="SQL_FAILED"):
        apply(SOURCE.with_columns(n="CAST(_key AS VARCHAR)::INT"))


def test_types_are_those_that_delta_holds() -> None:
    stream = SOURCE.sql("SELECT sum(id) AS total, count(*) AS n, TIMESTAMPTZ '2026-01-01 00:00:00Z' AS at FROM stream")
    made = transform(stream)
    assert made.output.field("total").type == pa.int64()
    assert made.output.field("at").type == pa.timestamp("us", "UTC")
    table = made.apply(ROWS, lambda name: COUNTRIES).table
    assert table.to_pylist() == [{"total": 10, "n": 4, "at": datetime(2026, 1, 1, tzinfo=timezone.utc)}]


def test_a_declared_schema_never_loses_a_digit() -> None:
    declared = pa.schema([("id", pa.int64()), ("amount", pa.int64())])
    whole = apply(SOURCE.where("id <> 9"), schema=declared)
    assert whole.table.column("amount").to_pylist() == [10, -5, None, 40]
    with pytest.raises(SchemaError, match="SCHEMA_LOSSY_CAST"):
        apply(SOURCE.with_columns(amount="amount + 0.5"), schema=declared)
    with pytest.raises(DefinitionError, match="SCHEMA_MISMATCH"):
        transform(SOURCE.with_columns(extra="1"), schema=declared)


def test_no_rows_cost_no_query() -> None:
    made = transform(SOURCE.where("id > 0"))
    assert made.apply(ROWS.slice(0, 0), lambda name: COUNTRIES).table.schema == made.output


def test_a_flow_without_sql_opens_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(engine, "open_session", refuse)
    made = Transform(
        flow="orders",
        dataset="orders",
        steps=SOURCE.branches[0].steps,
        expectations=(),
        source=ROWS.slice(0, 0),
        hidden=(),
        statics=(),
        tables=lambda name: COUNTRIES,
    )
    made.compile()
    assert made.apply(ROWS, lambda name: COUNTRIES).table.to_pylist() == ROWS.to_pylist()
