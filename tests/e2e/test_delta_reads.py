"""Reads of Delta tables as a user meets them: change feeds into AUTO CDC, tables elsewhere, options in SQL and in Python."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from tests.e2e.project import Project

CHANGES = """
@wl.table
def changes():
    return wl.read_files("inbox", format="json", schema="id BIGINT, name STRING, op STRING, seq BIGINT")

wl.create_streaming_table("people")
wl.create_auto_cdc_flow(target="people", source="changes", keys=["id"], sequence_by="seq", apply_as_deletes="op = 'd'",
                        except_column_list=["op", "seq"])
"""


def _change(number: int, name: str | None, seq: int, op: str = "u") -> dict[str, Any]:
    return {"id": number, "name": name, "op": op, "seq": seq}


def test_p27_a_table_that_changes_are_merged_into_is_followed_by_its_change_feed(project: Project) -> None:
    project.define(
        CHANGES
        + """
wl.create_streaming_table("copy")
wl.create_auto_cdc_flow(target="copy", source=wl.read_stream("people", read_change_feed=True), keys=["id"],
    sequence_by="struct(_commit_position, _change_index)", apply_as_deletes="_change_type = 'delete'")

@wl.table
def history():
    return wl.read_stream("people", read_change_feed=True).select("id", "name", "_change_type AS kind")
"""
    )
    project.write(
        "flows/more.sql",
        "CREATE OR REFRESH MATERIALIZED VIEW names AS SELECT name, count(*) AS n FROM people GROUP BY name;\\n"
        "CREATE OR REFRESH STREAMING TABLE counted AS SELECT name, n, _change_type AS kind\\n"
        "  FROM STREAM(names) WITH (readChangeFeed = true);".replace("\\n", "\n"),
    )
    project.land("1.json", _change(1, "a", 1), _change(2, "b", 1), _change(3, "c", 1))
    project.run()
    project.land("2.json", _change(1, "x", 2), _change(2, None, 2, "d"), _change(4, "x", 2))
    project.run()
    expected = [(1, "x"), (3, "c"), (4, "x")]
    assert project.rows("people", "id", "name") == expected
    assert project.rows("copy", "id", "name") == expected
    first = [(1, "a", "insert"), (2, "b", "insert"), (3, "c", "insert")]
    assert project.rows("history", "id", "name", "kind") == sorted(
        [*first, (1, "x", "update"), (2, "b", "delete"), (4, "x", "insert")], key=repr
    )
    gone, come = [("a", 1, "delete"), ("b", 1, "delete")], [("x", 2, "insert")]
    assert project.rows("counted", "name", "n", "kind") == sorted(
        [*(("abc"[i], 1, "insert") for i in range(3)), *gone, *come], key=repr
    )
    project.run("--full-refresh", "changes,people,copy,history")
    assert project.rows("copy", "id", "name") == expected
    project.land("3.json", _change(3, "z", 3))
    project.run()
    assert project.rows("copy", "id", "name") == [(1, "x"), (3, "z"), (4, "x")]


def test_p27_p95_tables_elsewhere_options_in_sql_and_rows_deleted_for_good(project: Project) -> None:
    place = project.folder / "elsewhere"
    for number in range(3):
        write_deltalake(place, pa.table({"n": [number]}), mode="append")
    project.define(
        "@wl.table\ndef live():\n    return wl.read_stream('./elsewhere', starting_version=1, skip_change_commits=True)\n"
    )
    project.write(
        "flows/more.sql",
        "CREATE OR REFRESH STREAMING TABLE appended AS\n"
        "  SELECT n FROM STREAM read_stream('./elsewhere', starting_version => 2, skip_change_commits => true);\n"
        "CREATE OR REFRESH STREAMING TABLE again AS SELECT t.n FROM STREAM(live) WITH (SKIPCHANGECOMMITS) AS t;\n"
        "CREATE OR REFRESH STREAMING TABLE strict AS SELECT n FROM STREAM(live);\n",
    )
    project.run()
    DeltaTable(place).delete("n = 1")
    write_deltalake(place, pa.table({"n": [7], "more": ["x"]}), mode="append", schema_mode="merge")
    project.run()
    assert project.rows("live", "n", "more") == [(1, None), (2, None), (7, "x")]
    assert project.rows("appended", "n") == [2, 7]
    DeltaTable(project.path("live")).delete("n = 1")  # by hand
    write_deltalake(place, pa.table({"n": [9]}), mode="append", schema_mode="merge")
    project.waxlake("run").refused(
        "SOURCE_NOT_APPEND_ONLY", "DELETE of", "skip_change_commits=True", "read_change_feed"
    )
    assert project.rows("again", "n") == [1, 2, 7, 9]
    project.handle("live").vacuum(0, dry_run=False, enforce_retention_duration=False)
    left = [pq.ParquetFile(path).read(["n"])["n"].to_pylist() for path in Path(project.path("live")).glob("*.parquet")]
    assert sorted(itertools.chain(*left)) == [2, 7, 9]  # nothing of what was deleted lies in the table's folder
    project.write("flows/more.sql", "CREATE STREAMING TABLE t AS SELECT n FROM STREAM(live) WITH (SKIPCHANGECOMITS);")
    error = project.waxlake("dry-run").err
    assert "more.sql:1:" in error
    assert "skip_change_commits" in error


def test_p27_a_read_that_changes_its_kind_is_another_source(project: Project) -> None:
    project.define(CHANGES + '@wl.table\ndef t():\n    return wl.read_stream("changes")\n')
    project.land("1.json", _change(1, "a", 1))
    project.run()
    project.define(CHANGES + '@wl.table\ndef t():\n    return wl.read_stream("changes", read_change_feed=True)\n')
    project.waxlake("run").refused("FLOW_SOURCES_CHANGED", "changes:changes", "new name", "--reset-checkpoint t")
    project.run("--reset-checkpoint", "t")
    project.run()
    assert len(project.rows("t")) == 2
    project.define(CHANGES + '@wl.table\ndef t():\n    return wl.read_stream("people")\n')
    project.waxlake("dry-run").refused("STREAM_OF_MERGED_TABLE", "read_change_feed=True")
