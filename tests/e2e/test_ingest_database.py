"""Many tables of a database by one declaration, each kept in its own way."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import pytest

import waxlake as wl
from tests.e2e.project import Project
from waxlake.stream.errors import DefinitionError

DEFINITIONS = """
import functools

read = functools.partial(wl.read_query, "sqlite:///{path}", cursor="changed", look_back=0, detect_deletes_every=0)
wl.ingest_database(
    read,
    {
        "orders": ["id"],
        "prices": {"keys": "id", "scd_type": 2, "track_history_columns": "price", "name": "price_history"},
        "visits": {"scd_type": "append_only", "exclude_columns": "note", "partition_cols": "city"},
        "people": {"keys": ["id"], "row_filter": "city = 'Rome'", "include_columns": ["id", "name", "city"]},
    },
    schema="default",
    exclude_columns=(),
)
"""


def test_c10_c14_c16_c18_tables_of_a_database_each_in_its_own_way(project: Project) -> None:
    def execute(*statements: str) -> None:
        with closing(sqlite3.connect(project.folder / "app.db")) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, amount REAL, changed INTEGER)",
        "CREATE TABLE prices (id INTEGER PRIMARY KEY, price INTEGER, note TEXT, changed INTEGER)",
        "CREATE TABLE visits (id INTEGER PRIMARY KEY, city TEXT, note TEXT, changed INTEGER)",
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER, changed INTEGER)",
        "INSERT INTO orders VALUES (1, 1.5, 1), (2, 2.5, 1)",
        "INSERT INTO prices VALUES (1, 10, 'a', 1)",
        "INSERT INTO visits VALUES (1, 'Rome', 'x', 1)",
        "INSERT INTO people VALUES (1, 'Ann', 'Rome', 3, 1), (2, 'Ben', 'Oslo', 4, 1), (3, 'Cy', 'Rome', 5, 1)",
    )
    project.define(DEFINITIONS.replace("{path}", str(project.folder / "app.db")))
    project.run()
    execute(
        "UPDATE orders SET amount = 9, changed = 2 WHERE id = 1",
        "DELETE FROM orders WHERE id = 2",
        "UPDATE prices SET note = 'b', changed = 2",
        "UPDATE visits SET city = 'Oslo', changed = 2",
        "UPDATE people SET city = 'Bern', changed = 2 WHERE id = 1",
        "UPDATE people SET city = 'Rome', changed = 2 WHERE id = 2",
    )
    project.run()
    execute("UPDATE prices SET price = 12, changed = 3")
    project.run()
    assert project.rows("orders", "id", "amount") == [(1, 9.0)]
    history = project.rows("price_history", "price", "note", "__END_AT")
    assert [(price, note, end is None) for price, note, end in history] == [(10, "b", False), (12, "b", True)]
    assert project.rows("visits", "id", "city", "_change_type") == [(1, "Oslo", "update"), (1, "Rome", "read")]
    assert "note" not in project.handle("visits").schema().to_json()
    assert project.handle("visits").metadata().partition_columns == ["city"]
    assert project.rows("people", "id", "name", "city") == [(2, "Ben", "Rome"), (3, "Cy", "Rome")]
    names = [field.name for field in project.handle("people").schema().fields]
    assert [name for name in names if not name.startswith("_")] == ["id", "name", "city"]


DATABASES = """
import functools

read = functools.partial(wl.{read}, {url!r}, {options}backfill_new_columns=True)
wl.ingest_database(
    read,
    {{
        "{table}": {{
            "keys": "id", "rename_columns": {{"id": "number", "title": "label", "note": "remark"}}, "include_columns": {included},
            "row_filter": "title IS DISTINCT FROM 'hidden'", "name": "things",
        }}
    }},
)
"""


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
def test_c15_c22_w22_columns_are_renamed_filled_in_and_marked(
    kind: str, project: Project, request: pytest.FixtureRequest
) -> None:
    if kind == "postgres":
        server, database = request.getfixturevalue("debian_postgres"), request.getfixturevalue("database")
        given = {"read": "read_postgres", "url": server.dsn(database), "options": f"slot={database!r}, ", "table": "t"}
    else:
        server = request.getfixturevalue("mariadb")
        database = server.create_database()
        given = {"read": "read_mysql", "url": f"{server.url}/{database}", "options": "", "table": "t"}

    def execute(*statements: str) -> None:
        for statement in statements:
            server.execute(statement, database=database)

    execute(
        "CREATE TABLE t (id INT PRIMARY KEY, title VARCHAR(20), city VARCHAR(20), note INT)",
        "INSERT INTO t VALUES (1, 'one', 'Rome', 1), (2, 'two', 'Oslo', 2), (3, 'hidden', 'Bern', 3), (4, 'four', 'Lima', 4)",
    )
    project.define(DATABASES.format(included=["id", "title", "note"], **given))
    project.run()
    assert project.rows("things", "number", "label") == [(1, "one"), (2, "two"), (4, "four")]
    execute(
        "UPDATE t SET title = 'hidden' WHERE id = 1",
        "DELETE FROM t WHERE id = 4",
        "ALTER TABLE t ADD COLUMN size INT DEFAULT 7",
        "INSERT INTO t VALUES (5, 'five', 'Kyiv', 5, 8)",
        "ALTER TABLE t DROP COLUMN note",
    )
    project.define(DATABASES.format(included=["id", "title", "note", "city", "size"], **given))
    for point in ("chunk-read:1", ""):  # killed in the middle of the back-fill, too
        outcome = project.waxlake("run", WAXLAKE_FAILPOINT=point)
        assert outcome.code == (-9 if point else 0), outcome
    rows = project.rows("things", "number", "label", "city", "size")
    assert rows == [(2, "two", "Oslo", 7), (5, "five", "Kyiv", 8)]
    assert project.handle("things").metadata().configuration["waxlake.inactiveColumns"] == "remark"
    project.run()  # once is enough
    runs = [str((entry.get("waxlake") or {}).get("run")) for entry in project.handle("things").history()]
    assert sum(run.startswith("backfill") for run in runs) == 1
    assert project.rows("things", "number", "label", "city", "size") == rows


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"a": {}}, "keys are missing"),
        ({"a": {"keys": "id", "scd_typ": 2}}, "Did you mean 'scd_type'"),
        ({"a": {"keys": "id", "include_columns": "x", "exclude_columns": "y"}}, "not both"),
        ({"a": {"keys": "id", "rename_columns": {"x": "z", "y": "z"}}}, "two columns of one name"),
        ({"a": {"keys": "id", "track_history_columns": "x"}}, "needs scd_type=2"),
        ({"x.a": ["id"], "y.a": ["id"]}, "two tables 'a'"),
    ],
)
def test_c24_what_cannot_be_declared_is_refused_with_its_line(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(DefinitionError, match=rf"test_ingest_database.py:\d+.*{said}"):
        wl.ingest_database(lambda table: wl.read_stream("s3://bucket/table"), tables)


def test_c27_the_graph_names_the_tables_of_the_source_and_no_secret(project: Project) -> None:
    project.define("""
import functools

wl.ingest_database(functools.partial(wl.read_postgres, "postgresql://u:s3cret@h/shop"), {"public.orders": ["id"]})
wl.ingest_database(functools.partial(wl.read_mysql, "mysql://u:s3cret@h/shop"), {"people": ["id"]})
""")
    told = project.waxlake("graph", "--format", "json").out
    flows = {dataset["name"]: dataset["flows"][0]["inputs"] for dataset in json.loads(told)["datasets"]}
    assert flows == {"orders": ["postgres:public.orders"], "people": ["mysql:shop.people"]}
    assert "s3cret" not in told
