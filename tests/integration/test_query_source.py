"""Tables and queries of real databases, polled by a cursor."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from connectors.query import QueryConnector, QuerySettings
from tests.services.mariadb import MariaDB
from tests.services.postgres import PASSWORD, PostgresServer
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError, UsageError
from waxlake.stream.source import plan_partitions

UUID = "1" * 8 + "-1111" * 3 + "-" + "1" * 12
CHANGES = frozenset({"_change_type", "_commit_position", "_change_index", "_commit_timestamp", "_table"})


@dataclass
class Lab:
    """A source and what was committed of it."""

    folder: Path
    url: str
    position: dict[str, int] = field(default_factory=dict)

    def read(self, table: str | None = "t", **options: Any) -> list[dict[str, Any]]:
        """Run once and commit everything; return the rows."""
        connector = self.connector(table, **options)
        plan = plan_partitions(connector.inspect(), [self.position], is_bounded=True)
        reader = connector.reader(plan, ("query",), CHANGES)
        rows: list[dict[str, Any]] = []
        try:
            while not reader.is_done:
                for batch in reader.read():
                    assert batch.start == self.position.get("query", batch.start)
                    rows += batch.table.to_pylist()
                    self.position["query"] = batch.end
        finally:
            reader.close()
        return rows

    def changes(self, table: str | None = "t", **options: Any) -> list[tuple[Any, str]]:
        """Run once; return the key and the kind of each change."""
        return [(row["id"], row["_change_type"]) for row in self.read(table, **options)]

    def connector(self, table: str | None = "t", **options: Any) -> QueryConnector:
        values = {"url": self.url, "table": table, "cursor": "changed", "look_back": 2, **options}
        return QueryConnector(QuerySettings.build("test", values), TableLocation(str(self.folder / "ledger")))


@pytest.fixture
def sqlite(tmp_path: Path) -> Lab:
    return Lab(tmp_path, f"sqlite:///{tmp_path / 'app.db'}")


def run(lab: Lab, *statements: str) -> None:
    with closing(sqlite3.connect(lab.folder / "app.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


T = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, changed INTEGER, gone INTEGER DEFAULT 0)"


def test_c13_w23_first_load_then_changes_then_deletes(sqlite: Lab) -> None:
    run(sqlite, T, "INSERT INTO t VALUES (1, 'a', 10, 0), (2, 'b', 11, 0), (3, 'c', NULL, 0), (4, 'd', 11, 1)")
    options = {"detect_deletes_every": 0, "deletion_condition": "gone = 1"}
    assert sqlite.changes(**options) == [(1, "read"), (2, "read"), (3, "read")]
    assert sqlite.changes(**options) == []
    run(sqlite, "UPDATE t SET name = 'B', changed = 12 WHERE id = 2", "INSERT INTO t VALUES (5, 'late', 10, 0)")
    assert sqlite.changes(**options) == [(5, "update"), (2, "update")]
    run(sqlite, "UPDATE t SET gone = 1, changed = 13 WHERE id = 1", "DELETE FROM t WHERE id IN (3, 5)")
    assert sorted(sqlite.changes(**options)) == [(1, "delete"), (3, "delete"), (5, "delete")]
    run(sqlite, "INSERT INTO t VALUES (3, 'again', 13, 0)")
    assert sqlite.changes(**options) == [(3, "update")]
    assert sqlite.changes(**options) == []


def test_rows_that_share_the_border_are_neither_lost_nor_doubled(sqlite: Lab) -> None:
    run(sqlite, T, *[f"INSERT INTO t VALUES ({i}, 'x', 7, 0)" for i in range(20)])
    assert sorted(sqlite.changes(max_rows_per_batch=3, look_back=0)) == [(i, "read") for i in range(20)]
    run(sqlite, "INSERT INTO t VALUES (20, 'x', 7, 0)", "UPDATE t SET name = 'y' WHERE id = 4")
    assert sqlite.changes(max_rows_per_batch=3, look_back=0) == [(4, "update"), (20, "update")]


def test_what_a_look_back_cannot_reach_is_found_when_it_is_changed_again(sqlite: Lab) -> None:
    run(sqlite, T, "INSERT INTO t VALUES (1, 'a', 100, 0)")
    sqlite.read()
    run(sqlite, "INSERT INTO t VALUES (2, 'too late', 97, 0)", "INSERT INTO t VALUES (3, 'late', 98, 0)")
    assert sqlite.changes() == [(3, "update")]
    run(sqlite, "UPDATE t SET changed = 101 WHERE id = 2")
    assert sqlite.changes() == [(2, "update")]


def test_without_a_cursor_rows_are_seen_when_they_change_and_only_then(sqlite: Lab) -> None:
    run(sqlite, T, "INSERT INTO t VALUES (1, 'a', NULL, 0), (2, 'b', NULL, 0)")
    assert sqlite.changes() == [(1, "read"), (2, "read")]
    run(sqlite, "UPDATE t SET name = 'A' WHERE id = 1")
    assert sqlite.changes() == [(1, "update")]
    run(sqlite, "UPDATE t SET changed = 5 WHERE id = 1")
    assert sqlite.changes() == [(1, "update")]
    run(sqlite, "UPDATE t SET changed = NULL WHERE id = 1")
    assert sqlite.changes() == [(1, "update")], "it was away from the rows without a cursor meanwhile"
    assert sqlite.changes(null_cursors="ignore") == []


def test_w23_several_cursor_columns_stand_for_the_first_that_is_there(sqlite: Lab) -> None:
    run(sqlite, "CREATE TABLE t (id INTEGER PRIMARY KEY, updated INTEGER, created INTEGER)")
    run(sqlite, "INSERT INTO t VALUES (1, NULL, 1), (2, 5, 2)")
    options = {"cursor": ["updated", "created"], "look_back": 0}
    assert sqlite.changes(**options) == [(1, "read"), (2, "read")]
    run(sqlite, "INSERT INTO t VALUES (3, NULL, 6)", "UPDATE t SET updated = 7 WHERE id = 1")
    assert sqlite.changes(**options) == [(3, "update"), (1, "update")]


def test_columns_and_rows_are_chosen_at_the_source(sqlite: Lab) -> None:
    run(sqlite, T, "INSERT INTO t VALUES (1, 'a', 1, 0), (2, 'b', 2, 5)")
    (row,) = sqlite.read(row_filter="gone > 0", exclude_columns="name")
    assert {k: v for k, v in row.items() if not k.startswith("_")} == {"id": 2, "changed": 2, "gone": 5}
    names = sqlite.connector(include_columns=["id", "changed"]).resolve_schema().names
    run(sqlite, "ALTER TABLE t ADD COLUMN more TEXT")
    assert sqlite.connector(include_columns=["id", "changed"]).resolve_schema().names == names
    assert sqlite.connector(exclude_columns="name").resolve_schema().names == ["id", "changed", "gone", "more"]
    with pytest.raises(UsageError, match=r"Did you mean 'name'.*QUERY_COLUMN_UNKNOWN"):
        sqlite.connector(include_columns=["nam"]).resolve_schema()


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_column_that_comes_later_is_filled_in_for_old_rows_on_request(sqlite: Lab, is_wanted: bool) -> None:
    run(sqlite, T, "INSERT INTO t VALUES (1, 'a', 1, 0), (2, 'b', 50, 0)")
    options = {"backfill_new_columns": is_wanted}
    sqlite.read(**options)
    run(sqlite, "ALTER TABLE t ADD COLUMN country TEXT DEFAULT 'DE'")
    rows = sqlite.read(**options)
    expected = (
        {1: "DE", 2: "DE"} if is_wanted else {2: "DE"}
    )  # the newest row is looked at again anyway, and is another now
    assert {row["id"]: row["country"] for row in rows} == expected
    assert sqlite.read(**options) == []


def test_a_value_that_its_column_cannot_hold_is_rescued(sqlite: Lab) -> None:
    run(sqlite, "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, at TIMESTAMP, d DECIMAL(5, 2), changed INTEGER)")
    run(sqlite, "INSERT INTO t VALUES (1, 'many', 'soon', 12.345, 1), (2, 3, '2024-05-01 10:00:00.5', 1.5, 2)")
    bad, good = sqlite.read()
    assert (bad["n"], bad["at"], bad["d"]) == (None, None, None)
    assert json.loads(bad["_rescued_data"]) == {"n": "many", "at": "soon", "d": 12.345}
    assert (good["n"], good["at"], good["d"]) == (3, datetime(2024, 5, 1, 10, 0, 0, 500_000), Decimal("1.5"))
    assert good["_rescued_data"] is None


def test_times_written_as_text_are_looked_back_from(sqlite: Lab) -> None:
    run(sqlite, "CREATE TABLE t (id INTEGER PRIMARY KEY, changed TIMESTAMP)")
    run(sqlite, "INSERT INTO t VALUES (1, '2024-05-01 10:00:00.500')")
    sqlite.read(look_back="10s")
    run(sqlite, "INSERT INTO t VALUES (2, '2024-05-01 09:59:55.000'), (3, '2024-05-01 09:59:40.000')")
    assert sqlite.changes(look_back="10s") == [(2, "update")]


def test_a_query_of_several_tables(sqlite: Lab) -> None:
    run(sqlite, T, "CREATE TABLE c (id INTEGER, name TEXT)", "INSERT INTO c VALUES (1, 'one')")
    run(sqlite, "INSERT INTO t VALUES (1, 'a', 1, 0), (2, 'b', 2, 0)")
    options = {
        "query": "SELECT t.id, c.name AS country, changed FROM t LEFT JOIN c ON c.id = t.id;",
        "schema": "id BIGINT, country STRING, changed BIGINT",
        "key": "id",
    }
    assert [(row["id"], row["country"]) for row in sqlite.read(None, **options)] == [(1, "one"), (2, None)]


def test_duckdb(tmp_path: Path) -> None:
    path = tmp_path / "app.duckdb"
    lab = Lab(tmp_path, f"duckdb:///{path}")
    with duckdb.connect(str(path)) as database:
        database.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, day DATE, price DECIMAL(9, 2), changed TIMESTAMP, t TIMESTAMPTZ)"
        )
        database.execute(
            "INSERT INTO t VALUES (1, '2024-01-02', 1.5, '2024-01-01', '2024-01-01 02:00+02'), (2, NULL, NULL, NULL, NULL)"
        )
    first, second = lab.read(look_back="1 minute")
    assert (first["id"], first["day"], first["price"], second["id"]) == (1, date(2024, 1, 2), Decimal("1.50"), 2)
    assert (first["t"], second["t"]) == (datetime(2024, 1, 1, tzinfo=timezone.utc), None)
    with duckdb.connect(str(path)) as database:
        database.execute("UPDATE t SET changed = '2024-01-01 00:00:30' WHERE id = 2")
    assert lab.changes(look_back="1 minute") == [(2, "update")]


@pytest.mark.services
def test_c23_postgresql_and_a_table_that_is_gone(debian_postgres: PostgresServer, tmp_path: Path) -> None:
    database = debian_postgres.create_database()
    lab = Lab(tmp_path, debian_postgres.dsn(database).replace("postgresql://", "postgresql+psycopg2://"))

    def execute(statements: str) -> None:
        debian_postgres.execute(statements, database=database)

    execute("""
        CREATE SCHEMA shop; CREATE TYPE mood AS ENUM ('ok');
        CREATE TABLE shop.t (id int8, part int2, n numeric(12, 3), any_n numeric, j jsonb, u uuid, b bytea, m mood, a int4[],
            at timestamptz DEFAULT now() NOT NULL, local timestamp, changed timestamptz NOT NULL, PRIMARY KEY (id, part));
        INSERT INTO shop.t VALUES (1, 2, 1.5, 12345678901234567890.1234567890123, '{"a": 1}',
            '11111111-1111-1111-1111-111111111111', '\\x01ff', 'ok', '{1,2}', '2024-01-01 01:00+01', '2024-01-01', '2024-01-01');
        INSERT INTO shop.t (id, part, changed) SELECT g, g % 3, '2024-01-01'::timestamptz + g * interval '1 second'
            FROM generate_series(10, 60) g""")
    options = {"table": "shop.t", "look_back": "10s", "max_rows_per_batch": 20, "detect_deletes_every": 0}
    rows = lab.read(**options)
    assert len(rows) == 52
    row = rows[0]
    assert (row["n"], row["any_n"], row["u"]) == (Decimal("1.500"), "12345678901234567890.1234567890123", UUID)
    assert (json.loads(row["j"]), row["b"], row["m"], row["a"]) == ({"a": 1}, b"\x01\xff", "ok", "[1,2]")
    assert (row["at"], row["local"]) == (datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1))
    assert (row["_table"], row["_change_type"]) == ("shop.t", "read")
    execute("DELETE FROM shop.t WHERE id = 10; UPDATE shop.t SET n = 9, changed = '2024-01-01 00:01:01' WHERE id = 11")
    assert lab.changes(**options) == [(11, "update"), (10, "delete")]
    execute("DROP TABLE shop.t")
    with pytest.raises(TerminalError, match=r"table 'shop.t'.*no such table.*QUERY_TABLE_GONE"):
        lab.read(**options)
    with pytest.raises(TerminalError, match=r"QUERY_REFUSED") as wrong:
        Lab(tmp_path, lab.url.replace(PASSWORD, "no-Such-pw")).read(**options)
    assert "no-Such-pw" not in str(wrong.value)
    debian_postgres.drop_database(database)


@pytest.mark.services
def test_mariadb(mariadb: MariaDB, tmp_path: Path) -> None:
    database = mariadb.create_database()
    lab = Lab(tmp_path, f"{mariadb.url.replace('mysql://', 'mysql+pymysql://').rstrip('/')}/{database}")
    mariadb.execute(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, n DECIMAL(9, 2), big BIGINT UNSIGNED, changed TIMESTAMP(6) NULL)",
        "INSERT INTO t VALUES (1, 1.5, 18446744073709551615, '2024-01-01 02:00:00.000001'), (2, NULL, NULL, NULL)",
        database=database,
    )
    first, second = lab.read(look_back="10s")
    assert (first["n"], first["big"], second["id"]) == (Decimal("1.50"), Decimal(2**64 - 1), 2)
    assert first["changed"] == datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=timezone.utc)
    mariadb.execute(
        "DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (3, 0, 0, '2024-01-01 01:59:55')", database=database
    )
    assert lab.changes(look_back="10s") == [(3, "update")]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"table": "nothing"}, "QUERY_TABLE_GONE"),
        ({"cursor": "nothing"}, "QUERY_REFUSED"),
        ({"row_filter": "SELEC"}, "QUERY_REFUSED"),
        ({"table": "keyless"}, "QUERY_KEY_MISSING"),
        ({"cursor": "blob", "key": "id"}, "QUERY_CURSOR_TYPE"),
    ],
)
def test_what_the_database_refuses(sqlite: Lab, options: dict[str, Any], code: str) -> None:
    run(
        sqlite,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, changed INTEGER, blob BLOB)",
        "CREATE TABLE keyless (changed INT)",
    )
    run(sqlite, "INSERT INTO t VALUES (1, 1, x'01')")
    with pytest.raises(TerminalError, match=code):
        sqlite.read(**options)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"table": "t", "query": "SELECT 1", "key": "id", "schema": "id INT"}, "QUERY_TARGET"),
        ({}, "QUERY_TARGET"),
        ({"query": "SELECT 1", "key": "id"}, "QUERY_SCHEMA_MISSING"),
        ({"query": "SELECT 1", "schema": "id INT"}, "QUERY_KEY_MISSING"),
        ({"table": "t", "include_columns": "a", "exclude_columns": "b"}, "QUERY_COLUMNS"),
        ({"table": "t", "lookback": 1}, "Did you mean 'look_back'"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError, match=code):
        QuerySettings.build("test", {"url": "sqlite://", "cursor": "c", **values})


def test_a_url_never_shows(sqlite: Lab) -> None:
    lab = Lab(sqlite.folder, "postgresql+psycopg2://me:Geheim9@localhost:1/db?password=Geheim9")
    connector = lab.connector()
    with pytest.raises(Exception, match="QUERY_DATABASE_AWAY") as away:
        connector.inspect()
    shown = [
        repr(connector.settings),
        str(connector.settings),
        connector.name,
        connector.settings.label,
        str(away.value),
    ]
    assert not any("Geheim9" in text for text in shown)
    with pytest.raises(UsageError, match="QUERY_URL"):
        Lab(sqlite.folder, "nosuchdb://me:Geheim9@h/db").connector().inspect()
