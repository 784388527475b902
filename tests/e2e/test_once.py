"""Flows that run once: a back-fill beside a live flow, ended for good, run again by a full refresh."""

from __future__ import annotations

import shutil
import signal

import pytest

from tests.e2e.project import Project

DEFINITIONS = """
wl.create_streaming_table("events")

@wl.append_flow(target="events")
def live():
    return wl.read_files("live", format="json", schema="id BIGINT")

@wl.append_flow(target="events", once=True)
def backfill():
    return wl.read_files("old", format="json", schema="id BIGINT")
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1}, folder="live")
    project.land("1.json", {"id": 101}, {"id": 102}, folder="old")
    return project


def test_p21_a_flow_that_runs_once_reads_what_is_there_and_no_more(shop: Project) -> None:
    shop.run()
    assert shop.rows("events", "id") == [1, 101, 102]

    shop.land("2.json", {"id": 2}, folder="live")
    shop.land("2.json", {"id": 103}, folder="old")
    shop.run()
    assert shop.rows("events", "id") == [1, 2, 101, 102]

    shutil.rmtree(shop.folder / "old")  # nobody needs it any more
    shop.land("3.json", {"id": 3}, folder="live")
    shop.run()
    assert shop.rows("events", "id") == [1, 2, 3, 101, 102]

    shop.land("1.json", {"id": 201}, folder="old")
    shop.run("--reset-checkpoint", "events")
    assert shop.rows("events", "id") == [1, 1, 2, 2, 3, 3, 101, 102, 201]


@pytest.mark.parametrize("place", ["files-written:1", "committed:1"])
def test_a_kill_leaves_it_to_be_ended(shop: Project, place: str) -> None:
    assert shop.waxlake("run", WAXLAKE_FAILPOINT=place).code == -signal.SIGKILL
    shop.run()
    assert shop.rows("events", "id") == [1, 101, 102]


def test_it_ends_in_a_continuous_run(shop: Project) -> None:
    with shop.continuous() as run:
        run.await_rows("events", 3)
        shop.land("2.json", {"id": 103}, folder="old")
        shop.land("2.json", {"id": 2}, folder="live")
        run.await_rows("events", 1)
        assert run.terminate().code == 0
    assert shop.rows("events", "id") == [1, 2, 101, 102]


def test_sql_says_it_too(shop: Project) -> None:
    shop.define("")
    shop.write(
        "flows/shop.sql",
        """
        CREATE STREAMING TABLE events;
        CREATE FLOW old AS INSERT ONCE INTO events BY NAME
          SELECT * FROM STREAM read_files('old', format => 'json', schema => 'id BIGINT');
        """,
    )
    shop.run()
    shop.land("2.json", {"id": 103}, folder="old")
    shop.run()
    assert shop.rows("events", "id") == [101, 102]


def test_it_cannot_share_the_slot_of_a_database(shop: Project) -> None:
    shop.define(
        """
wl.create_streaming_table("events")

@wl.append_flow(target="events", once=True)
def backfill():
    return wl.read_postgres("postgresql://u@127.0.0.1:1/db", tables=["public.t"], slot="s", publication="p")
"""
    )
    shop.waxlake("dry-run").refused("NOT_AVAILABLE", "once")
