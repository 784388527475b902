"""A database whose log nobody may read: tables that follow it by polling, killed on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.e2e.project import Project

pytestmark = pytest.mark.kills

DEFINITIONS = """
def people():
    return wl.read_query("{url}", "people", cursor="changed", look_back=3, detect_deletes_every=0, max_rows_per_batch=50)

@wl.table
def log():
    return people().select("*", "_change_type", "_commit_position", "_change_index", "_table")

wl.create_streaming_table("current")
wl.create_auto_cdc_flow("current", people(), keys=["id"], sequence_by=["_commit_position", "_change_index"],
    apply_as_deletes="_change_type = 'delete'", except_column_list=["_rescued_data"])
"""


def execute(project: Project, *statements: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(project.folder / "app.db")) as database:
        rows = [database.execute(statement).fetchall() for statement in statements][-1]
        database.commit()
    return rows


def test_tables_follow_a_polled_database_though_runs_are_killed(project: Project) -> None:
    execute(
        project,
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, changed INTEGER)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 180) "
        "INSERT INTO people SELECT i, 'v1', nullif(i / 10, 5) FROM n",
    )
    project.define(DEFINITIONS.replace("{url}", f"sqlite:///{project.folder}/app.db"))
    project.waxlake("dry-run").succeeded()
    for failpoint in ("poll-recorded:1", "window-recorded:2", "committed:1", "committed:3"):
        assert project.waxlake("run", WAXLAKE_FAILPOINT=failpoint).code == -9, failpoint
        execute(project, f"UPDATE people SET name = 'v2', changed = 19 WHERE id % 7 = {len(failpoint) % 7}")
        execute(project, "DELETE FROM people WHERE id % 31 = 3")
    project.run()
    execute(
        project, "UPDATE people SET name = NULL, changed = 20 WHERE id % 5 = 0", "DELETE FROM people WHERE id > 170"
    )
    execute(project, "INSERT INTO people VALUES (1000, 'late', 18), (1001, 'nobody', NULL)")
    assert project.waxlake("run", WAXLAKE_FAILPOINT="window-recorded:1").code == -9
    project.run()
    expected = sorted(execute(project, "SELECT id, name, changed FROM people"), key=repr)
    assert project.rows("current", "id", "name", "changed") == expected
    changes = project.rows("log", "id", "name", "changed", "_change_type")
    assert len(set(changes)) == len(changes), "a change was stored twice"
    assert {row[3] for row in changes} == {"read", "update", "delete"}
    project.run()
    assert project.rows("log", "id", "name", "changed", "_change_type") == changes
