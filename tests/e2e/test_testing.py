"""`wl.testing`, as users test their pipelines with it: no process, no broker, no network."""

from __future__ import annotations

import types
from datetime import date, datetime, timezone
from pathlib import Path

import pyarrow as pa
import pytest

import waxlake as wl
from waxlake.stream.errors import DefinitionError, ExpectationFailed, SchemaError, UsageError

ORDERS = """
import waxlake as wl

@wl.table
@wl.expect("has_customer", "customer IS NOT NULL")
@wl.expect_or_drop("positive", "amount > 0")
@wl.expect_or_quarantine("known_country", "country IN ('DE', 'NL')")
def paid():
    return wl.read_kafka("orders", "broker:9092", schema="id BIGINT, customer STRING, country STRING, amount DOUBLE")

@wl.materialized_view
def revenue():
    return wl.sql("SELECT country, sum(amount) AS total, max(current_date) AS day FROM paid GROUP BY country")

@wl.table
def large():
    return wl.read_stream("paid").where("amount > 100").sql(
        "SELECT s.id, c.name, now() AS seen_at FROM stream AS s JOIN countries AS c ON s.country = c.code"
    )

@wl.table
def countries():
    return wl.read_postgres("postgresql://nowhere/shop", "public.countries").select("code", "name")
"""
COUNTRIES = [{"code": "DE", "name": "Germany"}, {"code": "NL", "name": "Netherlands"}]


def order(number: int, country: str = "DE", amount: float = 10.0, customer: str | None = "ada") -> dict[str, object]:
    return {"id": number, "customer": customer, "country": country, "amount": amount}


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    file = tmp_path / "orders.py"
    file.write_text(ORDERS)
    return file


def test_p77_a_pipeline_runs_in_process_with_rows_in_place_of_its_sources(orders: Path) -> None:
    result = wl.testing.run(
        orders,
        {
            "kafka:orders": [order(1), order(2, amount=-1.0), order(3, "XX"), order(4, "NL", 500.0, None)],
            "countries": COUNTRIES,
        },
        now="2026-03-01T12:00:00Z",
    )
    assert sorted(result) == ["countries", "large", "paid", "paid_quarantine", "revenue"]
    wl.testing.assert_rows(result["paid"], [{"id": 1}, {"id": 4}])
    wl.testing.assert_rows(result.quarantine("paid"), [{"id": 3, "_failed_rules": ["known_country"]}])
    day = date(2026, 3, 1)
    wl.testing.assert_rows(
        result["revenue"],
        [{"country": "DE", "total": 10.0, "day": day}, {"country": "NL", "total": 500.0, "day": day}],
    )
    seen_at = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    assert result.rows("large") == [{"id": 4, "name": "Netherlands", "seen_at": seen_at}]
    metrics = result.metrics("paid")
    assert (metrics.written, metrics.dropped, metrics.quarantined) == (2, 1, 1)
    assert metrics.expectations["has_customer"] == wl.testing.RuleMetrics(passed=3, failed=1, action="warn")
    assert result.events_of("update_progress")[-1].details["update_progress"]["state"] == "COMPLETED"


def test_w02_what_is_given_later_is_read_later_and_once(orders: Path) -> None:
    pipeline = wl.testing.Pipeline(orders, rows_per_batch=2)
    first = pipeline.run({"orders": [order(n) for n in range(5)]}, until="revenue", now="2026-03-01")
    second = pipeline.run({"orders": [order(7)]}, until="revenue", now="2026-03-02")
    third = pipeline.run(until="revenue")
    assert [len(r["paid"]) for r in (first, second, third)] == [5, 6, 6]
    assert [r.metrics("paid").written for r in (first, second, third)] == [5, 1, 0]
    assert [r["revenue"]["day"].to_pylist() for r in (first, second)] == [[date(2026, 3, 1)], [date(2026, 3, 2)]]


def test_w01_nothing_is_read_over_the_network_and_a_forgotten_source_is_named(orders: Path) -> None:
    with pytest.raises(UsageError, match=r"'paid' reads kafka:orders.*TEST_INPUT_MISSING"):
        wl.testing.run(orders, {"countries": COUNTRIES})
    with pytest.raises(UsageError, match=r"nothing reads the input 'order'.*TEST_INPUT_UNKNOWN"):
        wl.testing.run(orders, {"order": [order(1)], "countries": COUNTRIES})
    with pytest.raises(UsageError, match="UNKNOWN_DATASET"):
        wl.testing.run(orders, {"orders": []}, until="revenues")


def test_rows_are_typed_as_the_source_types_them(orders: Path) -> None:
    result = wl.testing.run(
        orders, {"kafka:orders": [{**order(1), "amount": "much", "vat": 7}, b"{no json"]}, until="paid"
    )
    rescued = result.quarantine("paid")["_rescued_data"].to_pylist() + result["paid"]["_rescued_data"].to_pylist()
    assert rescued == ['{"_raw":"{no json"}']  # the other one has no amount, and is dropped
    assert result.metrics("paid").dropped == 1


def test_a_dataset_is_the_rows_given_for_it(orders: Path) -> None:
    paid = wl.testing.rows("id BIGINT, country STRING, amount DOUBLE", [{"id": 1, "country": "XX", "amount": 101}])
    result = wl.testing.run(orders, {"paid": paid, "countries": [{"code": "XX", "name": "nowhere"}]}, until="large")
    assert result["large"]["name"].to_pylist() == ["nowhere"]
    with pytest.raises(UsageError, match=r"found .*much.*TEST_ROWS_INVALID"):
        wl.testing.rows("id BIGINT", [{"id": "much"}])


def test_the_same_name_for_a_table_and_its_topic_has_to_be_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "same.py"
    file.write_text(
        "import waxlake as wl\n@wl.table\ndef orders():\n"
        "    return wl.read_kafka('orders', 'broker:9092', schema='id BIGINT').where('id > 1')\n"
    )
    rows = [{"id": 1}, {"id": 2}]
    with pytest.raises(UsageError, match=r"'table:orders'.*'kafka:orders'.*TEST_INPUT_AMBIGUOUS"):
        wl.testing.run(file, {"orders": rows})
    assert wl.testing.run(file, {"kafka:orders": rows})["orders"]["id"].to_pylist() == [2]
    assert wl.testing.run(file, {"table:orders": rows})["orders"]["id"].to_pylist() == [1, 2]


def test_errors_are_the_usual_ones(tmp_path: Path) -> None:
    file = tmp_path / "bad.sql"
    file.write_text(
        "CREATE STREAMING TABLE t (CONSTRAINT c EXPECT (n > 0) ON VIOLATION FAIL UPDATE) AS SELECT * FROM STREAM s;"
    )
    with pytest.raises(ExpectationFailed, match=r"'c' of 't'"):
        wl.testing.run(file, {"s": [{"n": 1}, {"n": -1}]})
    with pytest.raises(DefinitionError, match="UNKNOWN_COLUMN"):
        wl.testing.run(file, {"s": [{"m": 1}]})
    with pytest.raises(SchemaError, match="SCHEMA_TYPE"):
        wl.testing.run(file, {"s": [{"n": None}]})


def test_files_views_and_a_whole_project(tmp_path: Path) -> None:
    (tmp_path / "waxlake.yml").write_text("name: p\nstorage: s3://real/lake\nconfiguration: {inbox: 's3://real/in'}\n")
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "tables.py").write_text(
        """
import waxlake as wl

@wl.table(path="s3://real/elsewhere")
def landed():
    return wl.read_files(wl.conf("inbox"), "csv").select("*", "_metadata.file_name AS file")

@wl.temporary_view
def even():
    return wl.sql("SELECT * FROM landed WHERE n % 2 = 0")

@wl.materialized_view
def total():
    return wl.sql("SELECT sum(n) AS n FROM even")

@wl.materialized_view
def all_files():
    return wl.read_files(wl.conf("inbox"), "csv")
"""
    )
    given = [{"n": n, "_metadata": {"file_name": "a.csv"}} for n in range(4)]
    pipeline = wl.testing.Pipeline(tmp_path)
    result = pipeline.run({"files:s3://real/in": given})
    assert result["landed"]["file"].to_pylist() == ["a.csv"] * 4
    assert (result.rows("total"), len(result["all_files"])) == ([{"n": 2}], 4)
    result = pipeline.run({"even": [{"n": 40}, {"n": 2}]}, until="total")
    assert result.rows("total") == [{"n": 42}]


def test_changes_are_merged_and_a_module_is_enough(tmp_path: Path) -> None:
    module = types.ModuleType("customers")
    module.__file__ = str(tmp_path / "customers.py")
    (tmp_path / "customers.py").write_text(
        """
import waxlake as wl
wl.create_streaming_table("customers")
wl.create_auto_cdc_flow(target="customers", source="changes", keys=["id"], sequence_by="_commit_position",
                        apply_as_deletes="_change_type = 'delete'")
@wl.temporary_view
def changes():
    return wl.read_postgres("postgresql://nowhere/shop", "public.customers").select("*", "_change_type", "_commit_position")
"""
    )
    pipeline = wl.testing.Pipeline(module)
    pipeline.run({"postgres:public.customers": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]})
    result = pipeline.run(
        {"public.customers": [{"id": 1, "name": None, "_change_type": "delete"}, {"id": 2, "name": "c"}]}
    )
    wl.testing.assert_rows(result["customers"], [{"id": 2, "name": "c"}])
    assert (result.metrics("customers").upserted, result.metrics("customers").deleted) == (1, 1)


def test_assert_rows_tells_the_difference() -> None:
    table = pa.table({"id": [1, 2, 2], "n": ["a", "b", "b"]})
    wl.testing.assert_rows(table, [{"id": 2}, {"id": 1}, {"id": 2}])
    with pytest.raises(
        AssertionError, match=r"(?s)1 rows missing, 1 too many.*missing: \{'id': 3\}.*too many: \{'id': 2\}"
    ):
        wl.testing.assert_rows(table, [{"id": 2}, {"id": 1}, {"id": 3}])
    with pytest.raises(AssertionError, match="no column m"):
        wl.testing.assert_rows(table, [{"m": 2}])


def test_a_sink_hands_nothing_over(tmp_path: Path) -> None:
    file = tmp_path / "sinks.py"
    file.write_text(
        """
import waxlake as wl

wl.create_sink("out", "kafka", {"topic": "out", "bootstrap_servers": "nowhere:9092"}, expect_all_or_drop={"p": "n > 0"})

@wl.foreach_batch_sink
def called(table, batch):
    raise AssertionError("called")

@wl.append_flow(target="out")
def to_kafka():
    return wl.read_stream("s").select("n", "n::VARCHAR AS value")

@wl.append_flow(target="called")
def to_function():
    return wl.read_stream("s")
"""
    )
    result = wl.testing.run(file, {"s": [{"n": 1}, {"n": -1}]})
    assert (result["out"]["value"].to_pylist(), result["called"]["n"].to_pylist()) == (["1"], [1, -1])
