"""Debezium's events as change rows: envelopes, types, positions, and what is rescued."""

from __future__ import annotations

import base64
import json
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import waxlake as wl
from connectors.debezium import DebeziumDecoder, DebeziumSettings
from waxlake.pipeline.transform import Transform
from waxlake.stream.errors import DefinitionError, UsageError

WORD = "__debezium_unavailable_value"
COLUMNS = "id BIGINT, name STRING, amount DECIMAL(12, 2), at TIMESTAMP, day DATE, clock STRING"
TYPES = {
    "id": {"type": "int64"},
    "name": {"type": "string"},
    "amount": {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
    "at": {"type": "int64", "name": "io.debezium.time.MicroTimestamp"},
    "day": {"type": "int32", "name": "io.debezium.time.Date"},
    "clock": {"type": "int64", "name": "io.debezium.time.MicroTime"},
}


def schema_of(types: dict[str, dict[str, Any]]) -> dict[str, Any]:
    image = {"type": "struct", "optional": True, "fields": [{**how, "field": name} for name, how in types.items()]}
    return {"type": "struct", "fields": [{**image, "field": "before"}, {**image, "field": "after"}], "name": "Envelope"}


def unscaled(number: int) -> str:
    return base64.b64encode(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)).decode()


def event(op: str, row: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    source = {"connector": "postgresql", "db": "app", "schema": "public", "table": "orders", "lsn": 250, "ts_ms": 1_000}
    source |= {"sequence": '["200","250"]'} | more.pop("source", {})
    images = {"before": row, "after": None} if op == "d" else {"before": None, "after": row}
    return {**images, "source": source, "op": op, "ts_ms": 2_000, "transaction": None, **more}


def text(record: object) -> str:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False)


def decode(*records: object, **options: Any) -> list[dict[str, Any]]:
    """Return the rows of records; one that is neither text nor bytes nor None is written as JSON."""
    raw = [r if r is None or isinstance(r, (bytes, str)) else text(r) for r in records]
    values = pa.array([r.encode() if isinstance(r, str) else r for r in raw], pa.binary())
    table = pa.table({"value": values, "_offset": pa.array(range(70, 70 + len(raw)), pa.int64())})
    settings = DebeziumSettings.build("test", {"schema": COLUMNS, **options})
    found = DebeziumDecoder(settings).decode(table)
    promised = DebeziumDecoder(settings).decode(table.slice(0, 0))
    assert found.schema.equals(promised.schema)
    return found.to_pylist()


def test_c19_each_operation_gives_its_change_with_the_right_image() -> None:
    rows = decode(
        event("r", {"id": 1}), event("c", {"id": 2}), event("u", {"id": 3}), event("d", {"id": 4}), event("t")
    )
    assert [(row["_change_type"], row["id"]) for row in rows] == [
        ("read", 1),
        ("insert", 2),
        ("update", 3),
        ("delete", 4),
        ("truncate", None),
    ]
    assert all(row["_rescued_data"] is None and row["_table"] == "public.orders" for row in rows)
    assert rows[0]["_commit_timestamp"] == datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)


def test_values_are_exact_by_the_schema_that_an_event_carries() -> None:
    row = {
        "id": 7,
        "name": 'é"\n',
        "amount": unscaled(-123_456),
        "at": 1_700_000_000_123_456,
        "day": 19_000,
        "clock": 3_661_000_001,
    }
    wrapped = {"schema": schema_of(TYPES), "payload": event("c", row)}
    swapped = {"payload": event("c", row), "schema": schema_of(TYPES)}
    spaced = json.dumps(wrapped)
    followed = {**wrapped, "more": 1}
    for found in decode(wrapped, swapped, spaced, followed, wrapped):
        assert found["amount"] == Decimal("-1234.56")
        assert found["at"] == datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=timezone.utc)
        assert (found["day"], found["clock"], found["name"]) == (date(2022, 1, 8), "01:01:01.000001", 'é"\n')
        assert found["_rescued_data"] is None


@pytest.mark.parametrize(
    ("kind", "value", "column", "expected"),
    [
        ("io.debezium.time.Timestamp", 1_500, "at TIMESTAMP", datetime(1970, 1, 1, 0, 0, 1, 500_000, timezone.utc)),
        ("org.apache.kafka.connect.data.Timestamp", -1, "at TIMESTAMP_NTZ", datetime(1969, 12, 31, 23, 59, 59, 999_000)),
        ("io.debezium.time.NanoTimestamp", 1_000, "at TIMESTAMP", datetime(1970, 1, 1, 0, 0, 0, 1, timezone.utc)),
        ("io.debezium.time.MicroTimestamp", 5, "at STRING", "1970-01-01T00:00:00.000005"),
        ("io.debezium.time.MicroTimestamp", 5, "at BIGINT", 5),
        ("ZonedTimestamp", "1970-01-01T01:00:00+01:00", "at TIMESTAMP", datetime(1970, 1, 1, tzinfo=timezone.utc)),
        ("org.apache.kafka.connect.data.Date", -1, "at DATE", date(1969, 12, 31)),
        ("io.debezium.time.Time", 1, "at STRING", "00:00:00.001000"),
        ("io.debezium.time.NanoTime", 2_000, "at STRING", "00:00:00.000002"),
        ("org.apache.kafka.connect.data.Decimal", unscaled(10**20), "at DECIMAL(38, 2)", Decimal(10**18)),
        ("org.apache.kafka.connect.data.Decimal", unscaled(-5), "at STRING", "-0.05"),
        ("org.apache.kafka.connect.data.Decimal", unscaled(250), "at DOUBLE", 2.5),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 3, "value": unscaled(1_500)}, "at DECIMAL(9, 2)", Decimal("1.5")),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 9, "value": unscaled(1)}, "at STRING", "0.000000001"),
        ("io.debezium.data.geometry.Point", {"x": 1.5, "y": 2.0, "wkb": "AQ=="}, "at STRING", '{"x":1.5,"y":2.0,"wkb":"AQ=="}'),
        ("io.debezium.data.Json", '{"a": 1}', "at STRING", '{"a": 1}'),
        ("io.debezium.data.Bits", "AQI=", "at BINARY", b"\x01\x02"),
    ],
)  # fmt: skip
def test_types(kind: str, value: object, column: str, expected: object) -> None:
    types = {"id": {"type": "int64"}, "at": {"type": "x", "name": kind, "parameters": {"scale": "2"}}}
    wrapped = {"schema": schema_of(types), "payload": event("c", {"id": 1, "at": value})}
    (row,) = decode(wrapped, schema=f"id BIGINT, {column}")
    assert (row["at"], row["_rescued_data"]) == (expected, None)


@pytest.mark.parametrize(
    ("kind", "value", "column"),
    [
        ("NanoTimestamp", 1_001, "at TIMESTAMP"),  # digits below a microsecond
        ("MicroTimestamp", 9_223_372_036_825_200_000, "at TIMESTAMP"),  # Postgres' infinity
        ("Timestamp", 9_223_372_036_854_775_807, "at TIMESTAMP"),
        ("MicroTimestamp", "soon", "at TIMESTAMP"),
        ("MicroTime", 86_400_000_000, "at STRING"),
        ("Date", 2_147_483_647, "at DATE"),
        ("Decimal", "?!", "at DECIMAL(9, 2)"),
        ("Decimal", unscaled(10**11), "at DECIMAL(9, 2)"),
        ("Decimal", base64.b64encode(b"\x01" * 17).decode(), "at DECIMAL(38, 2)"),
        ("VariableScaleDecimal", {"scale": 3, "value": unscaled(1)}, "at DECIMAL(9, 2)"),
    ],
)
def test_a_value_that_the_column_cannot_hold_is_rescued(kind: str, value: object, column: str) -> None:
    types = {"id": {"type": "int64"}, "at": {"type": "x", "name": f"a.b.{kind}", "parameters": {"scale": "2"}}}
    good = {"schema": schema_of(types), "payload": event("c", {"id": 1, "at": None, "more": "x"})}
    bad = {"schema": schema_of(types), "payload": event("c", {"id": 2, "at": value, "more": "x"})}
    first, second = decode(good, bad, schema=f"id BIGINT, {column}")
    assert json.loads(first["_rescued_data"]) == {"more": "x"}
    assert (second["id"], second["at"]) == (2, None)
    assert json.loads(second["_rescued_data"]) == {"at": value, "more": "x"}


def test_without_a_schema_units_come_from_the_declaration_and_are_never_guessed() -> None:
    row = {"id": 1, "amount": unscaled(150), "at": 1_500, "day": 3}
    (guessless,) = decode(event("c", row))
    assert (guessless["amount"], guessless["at"]) == (Decimal("1.50"), None)
    assert json.loads(guessless["_rescued_data"]) == {"at": 1_500, "day": 3}
    (told,) = decode(event("c", row), types={"at": "io.debezium.time.Timestamp", "day": "Date"})
    assert (told["at"].microsecond, told["day"], told["_rescued_data"]) == (500_000, date(1970, 1, 4), None)
    (plain,) = decode(event("c", {"id": 1, "amount": "1.50"}), decimal_handling_mode="string")
    assert plain["amount"] == Decimal("1.50")


def test_a_schema_that_changes_within_a_batch_is_followed_record_by_record() -> None:
    millis = {**TYPES, "at": {"type": "int64", "name": "io.debezium.time.Timestamp"}}
    rows = decode(
        {"schema": schema_of(TYPES), "payload": event("c", {"id": 1, "at": 1_000_000})},
        {"schema": schema_of(millis), "payload": event("c", {"id": 2, "at": 1_000})},
        event("c", {"id": 3, "at": "1970-01-01T00:00:01Z"}),
        {"schema": schema_of(TYPES), "payload": event("c", {"id": 4, "at": 1_000_000})},
    )
    assert [(row["id"], row["at"].timestamp()) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_what_is_no_change_of_a_row_gives_no_row() -> None:
    assert not decode(
        None,
        "null",
        {"schema": schema_of(TYPES), "payload": None},
        {"schema": None, "payload": None},
        {"ts_ms": 1},
        {"status": "BEGIN", "id": "571", "event_count": None},
        {"source": {"connector": "mysql"}, "databaseName": "app", "ddl": "CREATE TABLE t (id INT)", "tableChanges": []},
        {"op": "m", "message": {"prefix": "p", "content": "AQ=="}, "source": {}},
    )


def test_what_is_no_envelope_is_rescued_whole_and_in_its_place() -> None:
    strange = [
        "nope",
        b"\xff\xfe",
        "[1]",
        {"id": 1},
        event("x", {"id": 1}),
        event("c"),
        event("d"),
        event("c", {"id": 1}) | {"after": 5},
        '{"schema":{"fields":[]},"payload":{"op"',
        {"schema": schema_of(TYPES), "payload": 3},
    ]
    rows = decode(*[r for bad in strange for r in (event("c", {"id": 9}), bad)])
    assert [row["id"] for row in rows] == [9, None] * len(strange)
    assert [row["_offset"] for row in rows] == list(range(70, 70 + 2 * len(strange)))
    for row, bad in zip(rows[1::2], strange, strict=True):
        assert (row["_change_type"], row["_commit_position"], row["_table"]) == (None, None, None)
        rescued = json.loads(row["_rescued_data"])
        if isinstance(bad, dict):
            assert rescued == bad
        elif isinstance(bad, bytes):
            assert rescued == {"_raw_base64": "//4="}
        else:
            assert rescued == {"_raw": bad}


def test_a_value_that_did_not_change_is_null_and_named() -> None:
    coded = base64.b64encode(WORD.encode()).decode()
    columns = "id BIGINT, name STRING, doc BINARY, tags ARRAY<STRING>, `a/b` STRING, more STRING"
    rows = decode(
        event("u", {"id": 1, "name": WORD, "doc": coded, "tags": [WORD], "a/b": WORD, "more": f"not {WORD}"}),
        event("u", {"id": 2, "name": "x"}),
        event("u", {"id": 3, "name": None, "more": WORD}),
        event("u", {"id": 4, "name": "y", "more": f"not {WORD}"}),
        schema=columns,
    )
    assert [row["_unchanged"] for row in rows] == [["name", "doc", "tags", "a/b"], None, ["more"], None]
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    assert (rows[0]["name"], rows[0]["doc"], rows[0]["tags"], rows[0]["more"]) == (None, None, None, f"not {WORD}")
    assert all(row["_rescued_data"] is None for row in rows)
    (other,) = decode(event("u", {"id": 1, "name": "?"}), unavailable_value_placeholder="?")
    assert other["_unchanged"] == ["name"]


@pytest.mark.parametrize(
    ("source", "transaction", "table", "position", "index"),
    [
        ({}, None, "public.orders", 200, 250),
        ({"sequence": '[null,"250"]'}, None, "public.orders", 250, 250),
        ({"sequence": None}, None, "public.orders", 250, 250),
        ({}, {"id": "1", "total_order": 3, "data_collection_order": 1}, "public.orders", 200, 2),
        ({"connector": "mysql", "schema": None, "file": "bin.000003", "pos": 9, "row": 4}, None, "app.orders", (3 << 36) + 9, 4),
        ({"connector": "mariadb", "schema": None, "file": "m-bin.12", "pos": 1, "row": 0}, None, "app.orders", (12 << 36) + 1, 0),
        ({"connector": "oracle", "scn": "77", "commit_scn": "88"}, None, "public.orders", 88, 0),
        ({"connector": "sqlserver", "commit_lsn": "00000027:00000ac0:0002"}, None, "public.orders", 70, 0),
        ({"connector": "mongodb", "table": None, "schema": None, "collection": "c"}, None, "app.c", 70, 0),
    ],
)  # fmt: skip
def test_positions_of_each_database(
    source: dict[str, Any], transaction: object, table: str, position: int, index: int
) -> None:
    (row,) = decode(event("c", {"id": 1}, source=source, transaction=transaction))
    assert (row["_table"], row["_commit_position"], row["_change_index"]) == (table, position, index)


def test_tables_are_chosen_by_name_and_a_dot_is_a_dot() -> None:
    names = ["orders", "order_items", "publicXorders"]
    records = [event("c", {"id": i}, source={"table": name}) for i, name in enumerate(names)]
    assert [row["id"] for row in decode(*records, tables="public.orders")] == [0]
    assert [row["id"] for row in decode(*records, tables=["public.order*"])] == [0, 1]
    assert [row["id"] for row in decode(*records, "nope", tables=["x.y"])] == [None]


def test_no_digit_is_lost_whatever_the_producer_writes() -> None:
    digits = "12345678901234567890.123456789012345678"
    record = text(event("c", {"id": 1, "name": "N", "more": "M"})).replace('"N"', digits).replace('"M"', "1e400")
    (row,) = decode(record)
    assert (row["name"], row["_rescued_data"]) == (digits, '{"more":1e400}')


@pytest.mark.parametrize("wrapped", [False, True])
def test_events_that_a_source_took_apart_already(wrapped: bool) -> None:
    decoder = DebeziumDecoder(DebeziumSettings.build("test", {"schema": "id BIGINT, at TIMESTAMP"}))
    body = event("c", {"id": 5, "at": 1})
    if wrapped:
        columns = {"payload": [text(body), None], "schema": [text(schema_of(TYPES)), None]}
    else:
        columns = {name: [v if name == "op" else text(v), None] for name, v in body.items() if name != "ts_ms"}
    (row,) = decoder.decode(pa.table({**columns, "_rescued_data": pa.nulls(2, pa.string())})).to_pylist()
    assert (row["id"], row["_change_type"], row["_table"]) == (5, "insert", "public.orders")
    assert (row["at"] is None) is not wrapped


def test_what_the_source_could_not_read_stays_rescued() -> None:
    decoder = DebeziumDecoder(DebeziumSettings.build("test", {"schema": "id BIGINT"}))
    records = pa.table({"value": pa.nulls(1, pa.string()), "_rescued_data": ['{"_raw_base64": "/w=="}']})
    (row,) = decoder.decode(records).to_pylist()
    assert row["_rescued_data"] == '{"_raw_base64": "/w=="}'


def flow(stream: wl.Stream, source: pa.Table, hidden: tuple[str, ...] = ("_offset",)) -> Transform:
    made = Transform(
        flow="orders",
        dataset="orders",
        steps=stream.branches[0].steps,
        expectations=(),
        source=source.slice(0, 0),
        hidden=hidden,
        statics=(),
        tables=lambda name: None,
    )
    made.compile()
    return made


def test_in_a_flow_the_metadata_of_changes_stays_out_unless_selected() -> None:
    source = pa.table({"value": [text(event("d", {"id": 3}))], "_offset": pa.array([8], pa.int64())})
    changes = wl.read_debezium(wl.read_stream("events"), schema="id BIGINT, name STRING")
    plain = flow(changes, source).apply(source, lambda name: None).table
    assert plain.to_pylist() == [{"id": 3, "name": None, "_rescued_data": None}]
    chosen = changes.where("_change_type = 'delete'").select("*", "_table", "_offset AS at")
    (row,) = flow(chosen, source).apply(source, lambda name: None).table.to_pylist()
    assert row == {"id": 3, "name": None, "_rescued_data": None, "_table": "public.orders", "at": 8}


def test_a_dry_run_finds_what_cannot_work() -> None:
    with pytest.raises(DefinitionError, match=r"test_debezium.py:\d+.*DEBEZIUM_SCHEMA_MISSING"):
        wl.read_debezium(wl.read_stream("events"))
    with pytest.raises(DefinitionError, match="Did you mean 'tables'"):
        wl.read_debezium(wl.read_stream("events"), schema="id INT", table="x")
    with pytest.raises(DefinitionError, match="ARGUMENT_INVALID"):
        wl.read_debezium(wl.read("events"), schema="id INT")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"test_debezium.py:\d+.*column `value`.*DEBEZIUM_INPUT"):
        flow(wl.read_debezium(wl.read_stream("events"), schema="id INT"), pa.table({"id": pa.array([1])}), ())
    with pytest.raises(UsageError, match="DEBEZIUM_SCHEMA_RESERVED"):
        DebeziumSettings.build("test", {"schema": "_table STRING"})
    with pytest.raises(UsageError, match=r"Did you mean 'at'.*DEBEZIUM_TYPES"):
        DebeziumSettings.build("test", {"schema": "at TIMESTAMP", "types": {"att": "Timestamp"}})
    with pytest.raises(UsageError, match="MicroTimestamp"):
        DebeziumSettings.build("test", {"schema": "at TIMESTAMP", "types": {"at": "MicroTimestmp"}})
