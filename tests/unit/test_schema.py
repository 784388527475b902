from __future__ import annotations

import time
from decimal import Decimal

import pyarrow as pa
import pytest

from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import cast_exact, compare_schemas, delta_schema

UTC = pa.timestamp("us", tz="UTC")


def cast(values: pa.Array, kind: pa.DataType, *, nullable: bool = True) -> pa.Table:
    table = pa.table({"x": values})
    return cast_exact(table, pa.schema([pa.field("x", kind, nullable)]), what="table 'silver.t'")


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (pa.uint8(), pa.int16()),
        (pa.uint32(), pa.int64()),
        (pa.uint64(), pa.decimal128(20, 0)),
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.binary(16), pa.binary()),
        (pa.timestamp("ns", tz="Europe/Paris"), UTC),
        (pa.timestamp("s"), pa.timestamp("us")),
        (pa.float16(), pa.float32()),
        (pa.date64(), pa.date32()),
        (pa.decimal256(30, 2), pa.decimal128(30, 2)),
        (pa.large_list(pa.uint8()), pa.list_(pa.int16())),
        (pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (pa.map_(pa.large_string(), pa.uint8()), pa.map_(pa.string(), pa.int16())),
        (pa.struct([("a", pa.uint16())]), pa.struct([("a", pa.int32())])),
        (pa.uuid(), pa.binary()),
    ],
)
def test_a_type_becomes_the_one_delta_holds(kind, stored):
    assert delta_schema(pa.schema([("x", kind)])) == pa.schema([("x", stored)])


@pytest.mark.parametrize(
    "kind", [pa.time64("us"), pa.duration("s"), pa.month_day_nano_interval(), pa.null(), pa.decimal256(50, 2)]
)
def test_a_type_delta_lacks_names_column_and_remedy(kind):
    with pytest.raises(SchemaError, match=r"'s\.x'.*Cast it|'s\.x'.*CAST") as error:
        delta_schema(pa.schema([("s", pa.struct([("x", kind)]))]))
    assert error.value.code == "SCHEMA_TYPE"


def test_names_that_differ_in_case_do_not_fit_one_table():
    with pytest.raises(SchemaError, match="'id' and 'ID'"):
        delta_schema(pa.schema([("id", pa.int8()), ("ID", pa.int8())]))


def test_only_comments_stay_of_the_metadata():
    field = pa.field("x", pa.int8(), metadata={"comment": "c", "PARQUET:field_id": "1"})
    assert delta_schema(pa.schema([field], metadata={"pandas": "{}"})).field(0).metadata == {b"comment": b"c"}


D = Decimal


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pa.array([2.0, None]), pa.int64(), [2, None]),
        (pa.array([2**53]), pa.float64(), [2.0**53]),
        (pa.array([0.5]), pa.float32(), [0.5]),
        (pa.array([float("nan")]), pa.float32(), ["nan"]),
        (pa.array([2**64 - 1], pa.uint64()), pa.decimal128(20, 0), [D(2**64 - 1)]),
        (pa.array([5]), pa.decimal128(3, 1), [D("5.0")]),
        (pa.array([0.1]), pa.decimal128(10, 2), [D("0.10")]),
        (pa.array([D("1.50")]), pa.decimal128(10, 1), [D("1.5")]),
        (pa.array([D("2.00")]), pa.int32(), [2]),
        (pa.array([D("0.5")]), pa.float64(), [0.5]),
        (pa.array([None]), pa.int32(), [None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string(), ["a", None, "a"]),
        (pa.array([[1], None, [2, None]], pa.large_list(pa.int64())), pa.list_(pa.int8()), [[1], None, [2, None]]),
        (
            pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
            pa.map_(pa.string(), pa.int32()),
            [[("a", 1)], None],
        ),
        (pa.array([{"b": 1}, None]), parse_ddl("s STRUCT<a STRING, b INT>").field(0).type, [{"a": None, "b": 1}, None]),
        (pa.array([1000], pa.timestamp("ns")).cast(pa.int64()), pa.int64(), [1000]),
    ],
)
def test_values_that_survive_are_cast(values, kind, expected):
    found = cast(values, kind).column("x")
    assert found.type == kind
    assert [str(v) if v != v else v for v in found.to_pylist()] == expected


def test_slices_keep_their_rows():
    values = pa.array([[9], [1], None, [2, 3]]).slice(1)
    assert cast(values, pa.list_(pa.int8())).column("x").to_pylist() == [[1], None, [2, 3]]
    structs = pa.array([{"a": 9}, None, {"a": 1}]).slice(1)
    assert cast(structs, pa.struct([("a", pa.int8())])).column("x").to_pylist() == [None, {"a": 1}]


@pytest.mark.parametrize(
    ("values", "kind", "sample"),
    [
        (pa.array([1.0, 1.5, 2.5]), pa.int64(), "1.5"),
        (pa.array([float("nan")]), pa.int64(), "nan"),
        (pa.array([0, 2**53 + 1]), pa.float64(), str(2**53 + 1)),
        (pa.array([2**31]), pa.int32(), str(2**31)),
        (pa.array([2**64 - 1], pa.uint64()), pa.int64(), str(2**64 - 1)),
        (pa.array([0.1]), pa.float32(), "0.1"),
        (pa.array([1e300]), pa.float32(), "1e+300"),
        (pa.array([0.125]), pa.decimal128(10, 2), "0.125"),
        (pa.array([D("1.25")]), pa.decimal128(10, 1), "1.25"),
        (pa.array([D("12345.6")]), pa.decimal128(5, 1), "12345.6"),
        (pa.array([D("0.12345678901234567890")]), pa.float64(), "0.12345678901234567890"),
        (pa.array([1_001], pa.timestamp("ns")), pa.timestamp("us"), "1970-01-01 00:00:00.000001001"),
        (pa.array([1], pa.date64()), pa.date32(), "1970-01-01"),
        (pa.array([[1], [300]]), pa.list_(pa.int8()), "300"),
    ],
)
def test_a_value_that_would_change_is_refused(values, kind, sample):
    with pytest.raises(SchemaError) as error:
        cast(values, kind)
    assert error.value.code == "SCHEMA_LOSSY_CAST"
    for part in ("'x'", "silver.t", sample, str(kind)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array(["12"]), pa.int64()),
        (pa.array([12]), pa.string()),
        (pa.array([True]), pa.int64()),
        (pa.array([1]), pa.bool_()),
        (pa.array([1], pa.timestamp("us")), UTC),
        (pa.array([1], UTC), pa.timestamp("us")),
        (pa.array([1], UTC), pa.date32()),
        (pa.array(["2024-01-01"]), pa.date32()),
        (pa.array([b"x"]), pa.string()),
        (pa.array([1]), pa.list_(pa.int64())),
        (pa.array([{"z": 1}]), pa.struct([("a", pa.int64())])),
    ],
)
def test_types_that_do_not_convert_are_refused(values, kind):
    with pytest.raises(SchemaError) as error:
        cast(values, kind)
    assert error.value.code == "SCHEMA_MISMATCH"
    assert str(values.type) in str(error.value)


def test_columns_are_ordered_and_filled():
    table = pa.table({"b": [1], "a": ["x"]})
    found = cast_exact(table, parse_ddl("a STRING, c DATE, b BIGINT"), what="t")
    assert found.to_pylist() == [{"a": "x", "c": None, "b": 1}]


def test_a_column_too_many_or_too_few():
    table = pa.table({"a": [1], "b": [1]})
    with pytest.raises(SchemaError, match="SCHEMA_MISMATCH") as error:
        cast_exact(table, parse_ddl("a BIGINT"), what="t")
    assert error.value.facts["column"] == "b"
    with pytest.raises(SchemaError, match="SCHEMA_NULL"):
        cast_exact(table, parse_ddl("a BIGINT, b BIGINT, c INT NOT NULL"), what="t")


@pytest.mark.parametrize(
    ("ddl", "rows"),
    [
        ("x BIGINT NOT NULL", [1, None]),
        ("x STRUCT<a: BIGINT NOT NULL>", [None, {"a": None}]),
        ("x ARRAY<BIGINT NOT NULL>", [None, [1, None]]),
        ("x MAP<STRING, BIGINT NOT NULL>", [None, [("k", None)]]),
    ],
)
def test_null_where_none_may_be(ddl, rows):
    target = parse_ddl(ddl)
    loose = parse_ddl(ddl.replace(" NOT NULL", ""))
    with pytest.raises(SchemaError, match="SCHEMA_NULL"):
        cast_exact(pa.table({"x": rows}, schema=loose), target, what="t")
    fine = pa.table({"x": rows[:1]}, schema=loose)
    assert cast_exact(fine, target, what="t").column("x").to_pylist() == rows[:1]


def test_an_empty_table_casts_as_well():
    table = pa.table({"x": pa.array([], pa.int8())})
    assert cast_exact(table, parse_ddl("x BIGINT"), what="t").schema == parse_ddl("x BIGINT")


def test_equal_types_cost_no_copy_and_no_time():
    table = pa.table({"x": pa.array(range(1_000_000)), "y": pa.array(["a"] * 1_000_000)})
    assert cast_exact(table, table.schema, what="t") is table
    turned = cast_exact(table, parse_ddl("y STRING, x BIGINT NOT NULL"), what="t")
    assert turned.column("x").chunk(0).buffers()[1].address == table.column("x").chunk(0).buffers()[1].address
    started = time.perf_counter()
    for _ in range(100):
        cast_exact(table, table.schema, what="t")
    assert time.perf_counter() - started < 0.1


def test_schemas_compare_by_name_and_type():
    stored = parse_ddl("a INT, b STRING, c DATE, Same INT")
    change = compare_schemas(stored, parse_ddl("b BIGINT, d DOUBLE, a INT, same INT"))
    assert change.added == (pa.field("d", pa.float64()),)
    assert change.missing == ("c",)
    assert change.changed == (("b", pa.string(), pa.int64()),)
    assert change.recased == (("Same", "same"),)
    assert change
    assert not compare_schemas(stored, stored)
