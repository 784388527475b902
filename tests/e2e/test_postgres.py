"""A project that reads PostgreSQL: tables over one slot, columns that come, what status and slots tell, no secret anywhere."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.project import Project
from tests.services.postgres import PASSWORD, PostgresServer

_DEFINITIONS = """
import os

def read(*tables):
    return wl.read_postgres(os.environ["SHOP_DSN"], tables, slot=os.environ["SHOP_SLOT"])

@wl.table
def orders():
    return read("orders").where("_change_type <> 'delete'")

@wl.table
def log():
    return read("orders", "customers").select("id", "_table", "_change_type")
"""


def test_c12_c25_tables_of_one_slot_as_a_user_meets_them(
    debian_postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    server = debian_postgres
    project = Project(tmp_path, environ={"SHOP_DSN": server.dsn(database), "SHOP_SLOT": database})
    project.define(_DEFINITIONS)
    server.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, amount numeric(8,2)); CREATE TABLE customers (id int PRIMARY KEY, name text);"
        "INSERT INTO orders VALUES (1, 9.99), (2, 1); INSERT INTO customers VALUES (7, 'ada')",
        database=database,
    )
    project.waxlake("run").succeeded()
    server.execute(
        "INSERT INTO orders VALUES (3, 3); ALTER TABLE orders ADD note text; INSERT INTO orders VALUES (4, 4, 'four');"
        "ALTER TABLE orders ADD brief int; INSERT INTO orders VALUES (5, 5, 'five', 5); ALTER TABLE orders DROP brief;"
        "DELETE FROM orders WHERE id = 2; UPDATE customers SET name = 'eve'",
        database=database,
    )
    run = project.waxlake("run")
    assert run.code == 0, run
    orders = json.loads(
        project.waxlake("sql", "SELECT list(orders ORDER BY id) AS l FROM orders", "--json").succeeded().out
    )["l"]
    assert [row["id"] for row in orders] == [1, 2, 3, 4, 5]
    assert [row["note"] for row in orders] == [None, None, None, "four", "five"]
    assert orders[4]["brief"] == 5
    log = json.loads(project.waxlake("sql", "SELECT count(*) AS n FROM log", "--json").succeeded().out)
    assert log["n"] == 3 + 5

    status = project.waxlake("status", "--json").succeeded()
    (slot,) = json.loads(status.out)["slots"]
    assert (slot["slot"], slot["wal_status"], slot["is_active"], slot["warnings"]) == (database, "reserved", False, [])
    assert f"slot {database}" in project.waxlake("slots").succeeded().out
    project.waxlake("slots", "--drop", "nothing").refused("SLOT_UNKNOWN", database, exit_code=2)
    project.waxlake("slots", "--drop", database).succeeded()
    lost = project.waxlake("run")
    lost.refused("POSTGRES_SLOT_LOST", "on_slot_lost='resnapshot'")
    for text in (run.out, run.err, status.out, lost.out, lost.err):
        assert PASSWORD not in text
    for file in (tmp_path / "lake").rglob("*.json"):
        assert PASSWORD not in file.read_text()
