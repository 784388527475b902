"""A pipeline that was written for pyspark.pipelines, moved over as the guide says: by its import and its reads."""

from __future__ import annotations

import pytest

from tests.e2e.project import Project

THERE = '''
from pyspark import pipelines as dp
from pyspark.sql import SparkSession

spark = SparkSession.active()


@dp.table(comment="Orders as they come", table_properties={"quality": "bronze"}, cluster_by=["country"])
@dp.expect("has a customer", "customer IS NOT NULL")
@dp.expect_or_drop("is paid", "amount > 0")
def orders():
    return spark.readStream.format("cloudFiles").option("cloudFiles.format", "json").schema(ORDERS).load("inbox")


@dp.temporary_view
def european():
    return spark.sql("SELECT * FROM orders WHERE country IN ('de', 'fr')")


@dp.materialized_view(name="per_day", partition_cols=["day"])
def totals():
    return spark.sql("""
        SELECT date_format(at, 'yyyy-MM-dd') AS day, `country`, sum(amount) AS total, collect_list(id) AS ids
        FROM european GROUP BY date_format(at, 'yyyy-MM-dd'), `country`
    """)


dp.create_streaming_table("large", comment="Of every country", schema="id BIGINT, amount DOUBLE")


@dp.append_flow(target="large", name="large_orders")
def large_orders():
    return spark.readStream.table("orders").where("amount >= 20").select("id", "amount")


dp.create_streaming_table("customers")
dp.create_auto_cdc_flow(
    target="customers", source="orders", keys=["customer"], sequence_by="at", column_list=["customer", "country"],
    stored_as_scd_type=1,
)
'''
THE_GUIDE = {
    "from pyspark import pipelines as dp\n": "import waxlake as dp\n",
    "from pyspark.sql import SparkSession\n\nspark = SparkSession.active()\n": "",
    'spark.readStream.format("cloudFiles").option("cloudFiles.format", "json").schema(ORDERS).load("inbox")': (
        'dp.read_files("inbox", format="json", settle_s=0, schema="id BIGINT, customer STRING, amount DOUBLE, '
        'country STRING, at TIMESTAMP")'
    ),
    "spark.sql(": "dp.sql(",
    "spark.readStream.table(": "dp.read_stream(",
}
SQL_FILE = """
CREATE OR REFRESH STREAMING TABLE french (CONSTRAINT known EXPECT (customer IS NOT NULL) ON VIOLATION DROP ROW)
  CLUSTER BY (id)
  AS SELECT `id`, customer, date_format(at, 'HH') AS hour FROM STREAM(orders) WHERE country <=> 'fr';
"""
ORDERS = [
    {"id": 1, "customer": "a", "amount": 10.0, "country": "de", "at": "2026-03-01T10:00:00Z"},
    {"id": 2, "customer": "b", "amount": 20.0, "country": "fr", "at": "2026-03-01T11:00:00Z"},
    {"id": 3, "customer": "a", "amount": -1.0, "country": "de", "at": "2026-03-01T12:00:00Z"},
    {"id": 4, "customer": None, "amount": 30.0, "country": "fr", "at": "2026-03-02T10:00:00Z"},
    {"id": 5, "customer": "b", "amount": 40.0, "country": "us", "at": "2026-03-02T11:00:00Z"},
]


@pytest.fixture
def moved(project: Project) -> Project:
    text = THERE
    for before, after in THE_GUIDE.items():
        assert before in text
        text = text.replace(before, after)
    assert "spark" not in text
    project.spec(dialect="databricks")
    project.write("flows/definitions.py", text)
    project.write("flows/french.sql", SQL_FILE)
    return project


def test_w30_a_pipeline_of_pyspark_pipelines_moves_over(moved: Project) -> None:
    moved.land("1.json", *(order for order in ORDERS if order["customer"]))
    moved.waxlake("dry-run").succeeded()
    moved.run().succeeded()
    assert moved.rows("orders", "id") == [1, 2, 5]
    assert moved.rows("per_day", "day", "country", "total", "ids") == [
        ("2026-03-01", "de", 10.0, [1]),
        ("2026-03-01", "fr", 20.0, [2]),
    ]
    assert moved.rows("large", "id") == [2, 5]
    assert moved.rows("customers", "customer", "country") == [("a", "de"), ("b", "us")]
    assert moved.rows("french", "id", "hour") == [(2, "11")]


def test_columns_to_cluster_by_are_checked(moved: Project) -> None:
    definitions = moved.folder / "flows/definitions.py"
    definitions.write_text(definitions.read_text().replace('cluster_by=["country"]', 'cluster_by=["contry"]'))
    moved.waxlake("dry-run").refused("UNKNOWN_COLUMN", "clustered by an unknown column 'contry'")
