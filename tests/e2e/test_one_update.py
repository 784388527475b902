"""One update of a pipeline at a time, and one pipeline a table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import Project
from waxlake.pipeline.lease import current_holder
from waxlake.pipeline.prepared import UpdateResult
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.selection import Selection
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.status import pipeline_status
from waxlake.stream.errors import DefinitionError, UsageError

DEFINITIONS = """
@wl.table
def raw():
    return wl.read_files("inbox", format="json", schema="id BIGINT")
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1})
    return project


@contextmanager
def started(project: Project, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background while the block runs; its output is a pipe."""
    environ = project.process_environ(WAXLAKE_PROGRESS="lines")
    command = [sys.executable, *words]
    with subprocess.Popen(command, cwd=project.folder, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(project: Project, **options: Any) -> UpdateResult:
    """Run an update in this process."""
    return run_update(load_spec(project.folder), RunOptions(**options), [])


def states(project: Project) -> list[str]:
    return [event["details"]["update_progress"]["state"] for event in project.events("update_progress")]


def test_p62_p66_a_second_update_is_refused_or_waits_and_each_state_is_told(shop: Project) -> None:
    with shop.continuous() as first:
        first.await_rows("raw", 1)
        said = shop.waxlake("run").refused("UPDATE_RUNNING", "running since", "--queue", "--takeover")
        assert "pipeline 'shop'" in said
        shop.waxlake("run", "--queue-timeout", "300ms").refused("UPDATE_RUNNING", "after waiting")
        shop.waxlake("run", "--queue", "--takeover").refused("OPTION_INVALID", exit_code=2)
        shop.waxlake("run", "--queue-timeout", "soon").refused("OPTION_INVALID", exit_code=2)
        with started(shop, "-m", "waxlake", "run", "--queue") as queued:
            assert "starts" in next(queued.stdout or iter(()))
            assert "waiting for update 1 by process" in next(queued.stdout or iter(()))
            shop.land("2.json", {"id": 2})
            first.await_rows("raw", 1)
            first.stop()
            assert queued.wait(60) == 0
    assert shop.rows("raw", "id") == [1, 2]
    assert states(shop) == [
        *("INITIALIZING", "SETTING_UP_TABLES", "RUNNING"),
        *(
            "QUEUED",
            "FAILED",
            "QUEUED",
            "STOPPING",
            "COMPLETED",
            "INITIALIZING",
            "SETTING_UP_TABLES",
            "RUNNING",
            "COMPLETED",
        ),
    ]
    assert [event["details"]["create_update"]["cause"] for event in shop.events("create_update")] == ["USER_ACTION"] * 3


def test_an_update_that_was_killed_holds_nobody_up(shop: Project) -> None:
    killed = shop.waxlake("run", WAXLAKE_FAILPOINT="lease-taken:1")
    assert killed.code == -signal.SIGKILL
    with shop.continuous() as run:
        run.await_rows("raw", 1)
        run.kill()
    location = load_spec(shop.folder).updates_location()
    assert current_holder(location) is None
    assert shop.run("--processes", "2").seconds < 25
    assert current_holder(location) is None


def test_one_who_waits_can_be_asked_to_stop(shop: Project) -> None:
    with shop.continuous() as run:
        run.await_rows("raw", 1)
        for words in (["-m", "waxlake", "run", "--queue"], ["-m", "bytewax.run", "waxlake.pipeline.deploy:flow"]):
            with started(shop, *words) as waiting:
                assert any("waiting for" in line for line in waiting.stdout or ())
                waiting.terminate()
                assert waiting.wait(30) == 0
        run.stop()


def test_p12_w04_two_pipelines_on_one_storage_share_it_but_no_table(shop: Project, tmp_path: Path) -> None:
    run(shop)
    other = Project(tmp_path / "other", storage=str(shop.folder / "lake"))
    other.spec(name="other")
    other.land("1.json", {"id": 7}, folder="elsewhere")
    definitions = DEFINITIONS.replace("inbox", "elsewhere")
    other.define(definitions)
    other.waxlake("dry-run").refused("TABLE_OWNED", "definitions.py:3", "found pipeline 'shop'", "--adopt raw")
    for selection in (Selection(), Selection(is_full=True)):
        with pytest.raises(DefinitionError, match="TABLE_OWNED"):
            run(other, selection=selection)
    assert shop.rows("raw", "id") == [1]

    other.define(definitions.replace("def raw", "def mine"))
    run(other)
    run(shop)
    assert other.rows("mine", "id") == [7]
    status = pipeline_status(load_graph(load_spec(other.folder))).update
    assert status is not None
    assert status.state == "COMPLETED"

    other.define(
        "wl.create_streaming_table('raw')\n"
        "@wl.append_flow(target='raw')\n"
        "def more():\n    return wl.read_files('elsewhere', format='json', schema='id BIGINT')\n"
    )
    with pytest.raises(UsageError, match="UNKNOWN_DATASET"):
        run(other, adopts=("rae",))
    run(other, adopts=("raw",))
    assert other.rows("raw", "id") == [1, 7]
    with pytest.raises(DefinitionError, match="found pipeline 'other'"):
        run(shop)


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    from waxlake.pipeline.lease import _process

    assert _process(os.getpid()) == _process(os.getpid()) != ""
    assert _process(2**22 + 1) == ""
