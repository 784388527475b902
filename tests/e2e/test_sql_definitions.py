"""A pipeline written in SQL files, as a user would run it."""

from __future__ import annotations

import pytest

from tests.e2e.project import Project

SQL = """
SET low = 10;

CREATE OR REFRESH STREAMING TABLE raw
  AS SELECT *, _metadata.file_name AS file
  FROM STREAM read_files('inbox', format => 'json', schema => 'id BIGINT, amount DOUBLE, country STRING', settle_s => 0);

CREATE OR REFRESH STREAMING TABLE orders (
    CONSTRAINT paid EXPECT (amount > ${low}) ON VIOLATION DROP ROW,
    CONSTRAINT placed EXPECT (country IS NOT NULL) ON VIOLATION QUARANTINE
) AS SELECT raw.id, raw.amount, raw.country, names.name
  FROM STREAM(raw) LEFT JOIN names ON names.code = raw.country;

CREATE OR REFRESH MATERIALIZED VIEW revenue
  AS SELECT country, sum(amount) AS total FROM orders GROUP BY country;

CREATE TEMPORARY VIEW big AS SELECT * FROM orders WHERE amount > 20;

CREATE STREAMING TABLE everything (id BIGINT, country STRING);
CREATE FLOW first AS INSERT INTO everything BY NAME SELECT id, country FROM STREAM(orders);
CREATE FLOW second AS INSERT INTO everything BY NAME SELECT id, country FROM STREAM(orders_quarantine);
"""

PYTHON = """
import waxlake as wl

@wl.materialized_view
def names():
    return wl.sql("SELECT 'de' AS code, 'Germany' AS name")

@wl.materialized_view
def big_ones():
    return wl.read("big").select("id")
"""

ROWS = [
    {"id": 1, "amount": 15.0, "country": "de"},
    {"id": 2, "amount": 5.0, "country": "de"},
    {"id": 3, "amount": 25.0, "country": None},
    {"id": 4, "amount": 30.0, "country": "fr"},
]


@pytest.fixture
def shop(project: Project) -> Project:
    project.spec()
    project.land("1.json", *ROWS)
    return project


def test_c29_p06_sql_and_python_make_one_pipeline(shop: Project) -> None:
    shop.write("flows/shop.sql", SQL)
    shop.define(PYTHON)

    shop.run().succeeded()

    assert shop.rows("raw", "id", "file") == [(1, "1.json"), (2, "1.json"), (3, "1.json"), (4, "1.json")]
    assert shop.rows("orders", "id", "name") == [(1, "Germany"), (4, None)]
    assert shop.rows("orders_quarantine", "id") == [3]
    assert shop.rows("revenue", "country", "total") == [("de", 15.0), ("fr", 30.0)]
    assert shop.rows("big_ones", "id") == [4]
    assert shop.rows("everything", "id") == [1, 3, 4]
    for command in (["graph"], ["dry-run"]):
        assert "revenue" in shop.waxlake(*command).succeeded().out


def test_a_mistake_in_sql_names_file_line_and_column(shop: Project) -> None:
    shop.define(PYTHON)
    shop.write("flows/shop.sql", SQL.replace("CONSTRAINT placed", "CONSTRAIN placed"))
    done = shop.waxlake("dry-run")
    assert done.code == 1
    assert "shop.sql:10:5: cannot read the schema text" in done.err
    assert done.err.endswith(
        "[SCHEMA_DDL]\n      CONSTRAIN placed EXPECT (country IS NOT NULL) ON VIOLATION QUARANTINE\n      ^\n"
    )

    shop.write("flows/shop.sql", SQL.replace("sum(amount)", "sum(amuont)"))
    done = shop.waxlake("dry-run")
    assert done.code == 1
    assert "shop.sql:15:26: view 'revenue'" in done.err
    assert "amount" in done.err
    assert done.err.endswith(
        "  AS SELECT country, sum(amuont) AS total FROM orders GROUP BY country;\n" + " " * 27 + "^\n"
    )


def test_databricks_sql_is_translated(shop: Project) -> None:
    shop.spec(dialect="databricks")
    shop.write(
        "flows/shop.sql",
        """
        CREATE OR REFRESH STREAMING TABLE orders (CONSTRAINT named EXPECT (country RLIKE '^[a-z]+$') ON VIOLATION DROP ROW)
        AS SELECT * EXCEPT (amount), cast(amount AS string) AS `the amount`, nvl(country, 'none') AS place
        FROM STREAM read_files('inbox', format => 'json', schema => 'id BIGINT, amount DOUBLE, country STRING',
                               settle_s => 0);
        """,
    )
    shop.define(
        """
import waxlake as wl

@wl.materialized_view
def v():
    return wl.sql("SELECT `the amount` AS a, date_format(timestamp'2026-01-02 03:04:05', 'yyyy/MM') AS m FROM orders")

@wl.table
@wl.expect("kept", "id <=> 1")
def w():
    return wl.read_stream("orders").where("place RLIKE 'd.'").select("id", "`the amount` AS amount")
"""
    )

    shop.run().succeeded()

    assert shop.rows("orders", "id", "the amount", "place") == [(1, "15.0", "de"), (2, "5.0", "de"), (4, "30.0", "fr")]
    assert shop.rows("v", "a", "m") == [("15.0", "2026/01"), ("30.0", "2026/01"), ("5.0", "2026/01")]
    assert shop.rows("w", "id", "amount") == [(1, "15.0"), (2, "5.0")]


def test_auto_cdc_in_sql(shop: Project) -> None:
    shop.write(
        "flows/shop.sql",
        """
        CREATE STREAMING TABLE changes AS SELECT * FROM STREAM read_files('cdc', format => 'json',
            schema => 'id BIGINT, name STRING, op STRING, n BIGINT', settle_s => 0);
        CREATE STREAMING TABLE people;
        CREATE FLOW merge AS AUTO CDC INTO people FROM STREAM(changes) KEYS (id) APPLY AS DELETE WHEN op = 'd'
          SEQUENCE BY n COLUMNS * EXCEPT (op, n);
        CREATE STREAMING TABLE history;
        CREATE FLOW keep AS AUTO CDC INTO history FROM STREAM(changes) KEYS (id) APPLY AS DELETE WHEN op = 'd'
          SEQUENCE BY n COLUMNS * EXCEPT (op, n) STORED AS SCD TYPE 2;
        """,
    )
    changes = [(1, "Ann", "i", 1), (2, "Bob", "i", 2), (1, "Anna", "u", 4), (1, "Anne", "u", 3), (2, None, "d", 5)]
    for index, (key, name, op, n) in enumerate(changes):
        shop.land(f"{index}.json", {"id": key, "name": name, "op": op, "n": n}, folder="cdc")

    shop.run()

    assert shop.rows("people", "id", "name") == [(1, "Anna")]
    assert shop.rows("history", "id", "name", "__START_AT", "__END_AT") == [
        (1, "Ann", 1, 3),
        (1, "Anna", 4, None),
        (1, "Anne", 3, 4),
        (2, "Bob", 2, 5),
    ]

    shop.run("--full-refresh-all")
    assert shop.rows("people", "id", "name") == [(1, "Anna")]
    shop.land("9.json", {"id": 2, "name": "late", "op": "u", "n": 4}, folder="cdc")
    shop.run()
    assert shop.rows("people", "id", "name") == [(1, "Anna")]
    assert (2, "late", 4, 5) in shop.rows("history", "id", "name", "__START_AT", "__END_AT")
