"""AL-10, W-21: files that are written anew replace their older rows, exactly, whatever dies in between."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.e2e.project import Project

_DEFINITIONS = """
@wl.table(partition_cols={partition})
def landed():
    return (
        wl.read_files("inbox", format="json", schema="id BIGINT, v BIGINT, k STRING", allow_overwrites="replace",
                      settle_s=0, max_rows_per_batch=40)
        .with_columns(file_path="_metadata.file_path").drop("_rescued_data")
    )

@wl.table
def kept():
    return (
        wl.read_files("inbox", format="json", schema="id BIGINT, v BIGINT", allow_overwrites="replace", settle_s=0,
                      max_rows_per_batch=40, replace_column="source")
        .with_columns(source="_metadata.file_path").where("v <> 2")
    )
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "shop")
    project.define(_DEFINITIONS.format(partition=["k"]))
    return project


def _land(project: Project, name: str, version: int, rows: int) -> None:
    project.land(name, *({"id": n, "v": version, "k": "even" if n % 2 == 0 else "odd"} for n in range(rows)))


def _versions(table: DeltaTable, column: str) -> dict[str, tuple[set[int], int]]:
    """Return each file's name with the versions of its rows, and their number."""
    found: dict[str, tuple[set[int], int]] = {}
    for row in table.to_pyarrow_table().to_pylist():
        versions, count = found.get(row[column].rpartition("/")[2], (set(), 0))
        found[row[column].rpartition("/")[2]] = (versions | {row["v"]}, count + 1)
    return found


def _check_history(project: Project) -> None:
    """At no version of the table are rows of two versions of a file visible, and none goes without others coming."""
    latest = project.handle("landed").version()
    before: dict[str, tuple[set[int], int]] = {}
    for version in range(latest + 1):
        now = _versions(DeltaTable(project.path("landed"), version=version), "file_path")
        for name, (versions, _) in now.items():
            assert len(versions) == 1, (version, name, versions)
            assert name not in before or min(versions) >= min(before[name][0])
        assert set(before) <= set(now), version
        before = now


@pytest.mark.kills
def test_al_10_w_21_replace_is_exact_through_kills(project: Project) -> None:
    _land(project, "a.json", 1, 100)
    _land(project, "b.json", 1, 10)
    project.run()
    assert _versions(project.handle("landed"), "file_path") == {"a.json": ({1}, 100), "b.json": ({1}, 10)}
    _land(project, "a.json", 2, 90)
    for failpoint in ("ledger-written:1", "files-written:1", "committed:1", "committed:2"):
        done = project.waxlake("run", WAXLAKE_FAILPOINT=failpoint)
        assert done.code in (0, -signal.SIGKILL), done
        _check_history(project)
    project.run()
    assert _versions(project.handle("landed"), "file_path") == {"a.json": ({2}, 90), "b.json": ({1}, 10)}
    assert _versions(project.handle("kept"), "source") == {
        "b.json": ({1}, 10)
    }  # replaced by rows that were all filtered
    _land(project, "a.json", 3, 5)
    _land(project, "c.json", 1, 7)
    project.run()
    _land(project, "a.json", 4, 3)
    _land(project, "b.json", 4, 200)
    project.run()
    project.run()
    expected = {"a.json": ({4}, 3), "b.json": ({4}, 200), "c.json": ({1}, 7)}
    assert _versions(project.handle("landed"), "file_path") == expected
    assert _versions(project.handle("kept"), "source") == expected
    _check_history(project)


def test_al_10_a_new_version_may_bring_a_new_column(project: Project) -> None:
    project.define(
        """
@wl.table
def landed():
    return (wl.read_files("inbox", format="json", allow_overwrites="replace", infer_column_types=True)
            .with_columns(file_path="_metadata.file_path"))
"""
    )
    project.land("a.json", {"id": 1}, {"id": 2})
    project.land("b.json", {"id": 3})
    project.run()
    project.land("a.json", {"id": 4, "extra": "x"})
    project.run()
    assert project.rows("landed", "id", "extra") == [(3, None), (4, "x")]


def test_al_10_a_table_must_name_the_files_whose_rows_it_replaces(project: Project) -> None:
    _land(project, "a.json", 1, 1)
    for columns in ("", '.with_columns(file_path="1")'):
        project.define(
            f"""
@wl.table
def landed():
    return wl.read_files("inbox", format="json", schema="id BIGINT", allow_overwrites="replace"){columns}
"""
        )
        project.waxlake("dry-run").refused("REPLACE_COLUMN", "_metadata.file_path")
