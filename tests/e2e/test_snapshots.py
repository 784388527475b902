"""Current rows and histories of snapshots that a function or a query hands over, one version after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.project import Project
from waxlake.stream.errors import WaxlakeError

DEFINITIONS = """
import json, pathlib

EXPORTS = pathlib.Path(__file__).parents[1] / "exports"

def next_export(last):
    with (EXPORTS.parent / "asked.log").open("a") as log:
        log.write(f"{last}\\\\n")
    waiting = sorted(int(file.stem) for file in EXPORTS.glob("*.json") if last is None or int(file.stem) > last)
    if not waiting:
        return None
    rows = json.loads((EXPORTS / f"{waiting[0]}.json").read_text())
    return {name: [row.get(name) for row in rows] for name in {n: 0 for row in rows for n in row}}, waiting[0]

wl.create_streaming_table("history")
wl.create_auto_cdc_from_snapshot_flow("history", next_export, keys=["id"], stored_as_scd_type=2)
""".replace("\\\\", "\\")


def export(project: Project, version: int, *rows: tuple[int, str], **more: object) -> None:
    """Let a snapshot appear."""
    project.write(f"exports/{version}.json", json.dumps([{"id": id_, "v": v, **more} for id_, v in rows]))


def history(project: Project) -> list[tuple[object, ...]]:
    return project.rows("history", "id", "v", "__START_AT", "__END_AT")


def test_p50_a_function_gives_snapshots_in_order_and_each_once_through_kills(project: Project) -> None:
    project.define(DEFINITIONS)
    export(project, 3, (1, "a"), (2, "b"), (3, "c"))
    export(project, 5, (1, "a"), (2, "x"))
    for point in ("snapshot-taken:2", "snapshot-stored:1", "files-written:1", "committed:1"):
        killed = project.waxlake("run", WAXLAKE_FAILPOINT=point)
        assert killed.code == -9, (point, killed)
        if point.startswith("files"):
            export(project, 8, (2, "y"), (3, "c"), (4, "d"))
    project.run()
    wanted = [
        (1, "a", 3, 8),
        (2, "b", 3, 5),
        (2, "x", 5, 8),
        (2, "y", 8, None),
        (3, "c", 3, 5),
        (3, "c", 8, None),
        (4, "d", 8, None),
    ]
    assert history(project) == wanted
    asked = (project.folder / "asked.log").read_text().split()
    assert asked == sorted(asked, key=lambda text: -1 if text == "None" else int(text))
    assert "nothing new" in project.run().out
    export(project, 9, (2, "y"), (3, "c"), (4, "d"), note="new")  # a column more: every row differs
    project.run()
    assert history(project)[-1] == (4, "d", 9, None)
    assert {row["note"] for row in project.rows("history") if row["__END_AT"] is None} == {"new"}


def test_p50_while_it_runs_a_function_is_asked_again(project: Project) -> None:
    project.define(DEFINITIONS)
    export(project, 1, (1, "a"))
    with project.continuous() as run:
        run.await_rows("history", 1)
        export(project, 2, (1, "b"))
        run.await_event(lambda event: history(project) == [(1, "a", 1, 2), (1, "b", 2, None)])
        run.stop()


@pytest.mark.parametrize(
    ("returned", "code", "said"),
    [
        ("None", "SNAPSHOT_SCHEMA_UNKNOWN", "Declare them with schema="),
        ("{'id': [1]}", "SNAPSHOT_INVALID", "expected (rows, version), or None"),
        ("({'id': [1]}, '1')", "SNAPSHOT_INVALID", "version '1'"),
        ("({'id': [1]}, 7)", "SNAPSHOT_INVALID", "version 7 after 7"),
        ("({'ident': [1]}, 7)", "SNAPSHOT_INVALID", "no key column id"),
        ("(5, 7)", "SNAPSHOT_INVALID", "rows of type int"),
        ("1 / 0", "SNAPSHOT_FUNCTION_FAILED", "ZeroDivisionError"),
    ],
)
def test_p50_what_a_function_may_not_return(tmp_path: Path, returned: str, code: str, said: str) -> None:
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.resolve import load_graph
    from waxlake.pipeline.spec import load_spec

    project = Project(tmp_path)
    project.define(
        "wl.create_streaming_table('t')\n"
        f"wl.create_auto_cdc_from_snapshot_flow('t', lambda last: {returned}, keys=['id'])\n"
    )
    graph = load_graph(load_spec(tmp_path / "waxlake.yml"))
    with pytest.raises(WaxlakeError, match=said.replace("(", r"\(").replace(")", r"\)")) as refused:
        check_graph(graph).flows[0].connector.inspect()
    assert refused.value.code == code
    assert "definitions.py:3" in str(refused.value)


SQL = """
CREATE OR REFRESH STREAMING TABLE versions;
CREATE FLOW f AS AUTO CDC INTO versions FROM SNAPSHOT (
    SELECT id, v FROM read_json('{exports}/*.json', filename = true)
    WHERE parse_filename(filename, true)::BIGINT = (
        SELECT min(parse_filename(path, true)::BIGINT) FROM list_files('{exports}/*.json')
        WHERE parse_filename(path, true)::BIGINT > coalesce(last_snapshot_version(), 0))
) WITH VERSION (
    SELECT min(parse_filename(path, true)::BIGINT) FROM list_files('{exports}/*.json')
    WHERE parse_filename(path, true)::BIGINT > coalesce(last_snapshot_version(), 0)
) KEYS (id) STORED AS SCD TYPE 2;

CREATE OR REFRESH STREAMING TABLE latest;
CREATE FLOW g AS AUTO CDC INTO latest FROM SNAPSHOT (SELECT id, upper(v) AS v FROM versions WHERE __END_AT IS NULL)
KEYS (id) STORED AS SCD TYPE 1;
"""


def test_p51_snapshots_in_sql_with_versions_and_without(project: Project) -> None:
    project.write("flows/snapshots.sql", SQL.format(exports=project.folder / "exports"))
    project.spec(libraries=[{"glob": {"include": "flows/*.sql"}}])
    export(project, 1, (1, "a"), (2, "b"))
    export(project, 2, (1, "a"), (2, "x"))
    project.run()
    assert project.rows("versions", "id", "v", "__START_AT", "__END_AT") == [
        (1, "a", 1, None),
        (2, "b", 1, 2),
        (2, "x", 2, None),
    ]
    assert project.rows("latest", "id", "v") == [(1, "A"), (2, "X")]
    export(project, 3, (2, "y"))
    project.run()
    assert project.rows("latest", "id", "v") == [(2, "Y")]


@pytest.mark.parametrize(
    ("clauses", "said"),
    [
        ("FROM SNAPSHOT (SELECT 1 AS id) KEYS (id) SEQUENCE BY id", "SEQUENCE"),
        ("FROM SNAPSHOT (SELECT 1 AS id)", "KEYS"),
        ("FROM SNAPSHOT () KEYS (id)", "a query"),
        ("FROM SNAPSHOT (SELECT 1 AS id) WITH VERSION () KEYS (id)", "a query"),
    ],
)
def test_p51_what_a_snapshot_flow_cannot_say(tmp_path: Path, clauses: str, said: str) -> None:
    from waxlake.pipeline.resolve import load_graph
    from waxlake.pipeline.spec import load_spec

    project = Project(tmp_path)
    project.spec(libraries=[{"glob": {"include": "flows/*.sql"}}])
    project.write("flows/a.sql", f"CREATE STREAMING TABLE t;\nCREATE FLOW f AS AUTO CDC INTO t {clauses};")
    with pytest.raises(WaxlakeError, match=said):
        load_graph(load_spec(tmp_path / "waxlake.yml"))
