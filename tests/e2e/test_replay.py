"""Rejected rows go through the rules again: `waxlake replay`, and the same from a test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import waxlake as wl
from tests.e2e.project import Project
from waxlake.pipeline.replay import ReplayOptions, run_replay
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError, SchemaError, UsageError

TABLES = """
import waxlake as wl

@wl.table
@wl.expect("named", "name IS NOT NULL")
@wl.expect_or_drop("real", "id >= 0")
@wl.expect_or_quarantine("%s", "%s")
def orders():
    return wl.read_files("inbox", "json", schema="id BIGINT, country STRING, name STRING")

@wl.table
def rejected():
    return wl.read_stream("orders_quarantine").select("id", "_failed_rules[1] AS rule")

@wl.table
def numbers():
    return wl.read_stream("orders").select("id")

@wl.materialized_view
def counts():
    return wl.sql("SELECT (SELECT count(*) FROM orders) AS good, (SELECT count(*) FROM orders_quarantine) AS bad")
"""
KNOWN = TABLES % ("known", "country = 'DE'")
LISTED = TABLES % ("listed", "country IN ('DE', 'NL', 'FR')")
ROWS = [{"id": n, "country": c, "name": "a", "rest": 7} for n, c in enumerate(["DE", "NL", "XX", "FR"])]


class Orders:
    """The pipeline of orders, whose rules change."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "orders.py"
        self.file.write_text(KNOWN)
        self.pipeline = wl.testing.Pipeline(self.file)
        self.result = self.pipeline.run({"files:inbox": ROWS})

    def ids(self, table: str = "orders") -> list[int]:
        self.result = self.pipeline.run()
        return sorted(self.result[table]["id"].to_pylist())


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path)


def test_p33_rows_that_pass_now_go_into_the_table_and_the_others_stay(orders: Orders) -> None:
    assert orders.ids() == [0]
    orders.file.write_text(LISTED)
    first = orders.pipeline.replay("orders", where="country = 'FR'")
    assert (first.replayed, first.passed, first.kept, first.commits) == (1, 1, 0, 1)
    assert orders.ids() == [0, 3]
    second = orders.pipeline.replay("orders")
    assert (second.replayed, second.passed, second.kept) == (2, 1, 1)
    assert second.rules == {"named": 0, "real": 0, "listed": 1}
    assert orders.ids() == [0, 1, 3]
    wl.testing.assert_rows(
        orders.result.quarantine("orders"), [{"id": 2, "_failed_rules": ["listed"], "_rescued_data": '{"rest":7}'}]
    )
    assert orders.pipeline.replay("orders").commits == 0  # nothing would change
    assert orders.ids("numbers") == [0, 1, 3]

    result = orders.pipeline.run({"files:inbox": [{"id": 9, "country": "XX"}]})
    assert sorted(result["rejected"]["id"].to_pylist()) == [1, 2, 3, 9]  # what a replay left there is no new row
    assert result.rows("counts") == [{"good": 3, "bad": 2}]


def test_rows_are_corrected_first_and_what_was_rescued_is_at_hand(orders: Orders) -> None:
    sets = {"country": "'DE'", "name": "_rescued_data ->> 'rest'", "id": "id * 10 - 25"}
    assert orders.pipeline.replay("orders", sets=sets).passed == 1
    assert orders.ids() == [0, 5]
    # two have a negative id now: no rule but a warning lets them out, and they stay as they were
    wl.testing.assert_rows(orders.result.quarantine("orders"), [{"id": n, "_failed_rules": ["real"]} for n in (1, 2)])
    orders.file.write_text(
        KNOWN.replace('@wl.expect_or_quarantine("known", "country = \'DE\'")', "").split("@wl.table\ndef rej")[0]
    )
    assert orders.pipeline.replay("orders").passed == 2  # no rule is left that quarantines
    assert orders.ids() == [0, 1, 2, 5]


def test_what_cannot_be_replayed_is_refused(orders: Orders) -> None:
    for table, code in (
        ("counts", "REPLAY_NOT_POSSIBLE"),
        ("orders_quarantine", "REPLAY_NOT_POSSIBLE"),
        ("order", "UNKNOWN"),
    ):
        with pytest.raises(UsageError, match=code):
            orders.pipeline.replay(table)
    with pytest.raises(DefinitionError, match=r"(?s)contry.*UNKNOWN_COLUMN"):
        orders.pipeline.replay("orders", where="contry = 'DE'")
    with pytest.raises(UsageError, match=r"contry.*UNKNOWN_COLUMN"):
        orders.pipeline.replay("orders", sets={"contry": "'DE'"})
    with pytest.raises(SchemaError, match="SCHEMA_MISMATCH"):
        orders.pipeline.replay("orders", sets={"country": "'DE'", "name": "17"})
    assert orders.ids() == [0]
    assert len(orders.result.quarantine("orders")) == 3


def test_changes_are_replayed_through_the_merge(tmp_path: Path) -> None:
    file = tmp_path / "customers.sql"
    text = """
    CREATE STREAMING TABLE customers (CONSTRAINT named EXPECT (name %s) ON VIOLATION QUARANTINE);
    CREATE FLOW c AS AUTO CDC INTO customers FROM STREAM(changes) KEYS (id) SEQUENCE BY seq;
    """
    file.write_text(text % "<> 'b'")
    rows = [(1, "a", 1), (1, "c", 3), (2, "b", 1), (1, "b", 2), (None, "d", 2)]
    pipeline = wl.testing.Pipeline(file)
    pipeline.run({"changes": [{"id": i, "name": n, "seq": s} for i, n, s in rows]})
    file.write_text(text % "<> 'z'")
    done = pipeline.replay("customers")
    assert (done.replayed, done.passed, done.kept) == (3, 2, 1)
    result = pipeline.run()  # the late one changed nothing
    wl.testing.assert_rows(result["customers"], [{"id": 1, "name": "c"}, {"id": 2, "name": "b"}])
    wl.testing.assert_rows(result.quarantine("customers"), [{"_failed_rules": ["auto_cdc_key_not_null"]}])


@pytest.mark.kills
def test_a_replay_is_killed_at_every_point(project: Project) -> None:
    points = ["quarantine-written", "files-written", "committed", "quarantine-pending", "quarantine-committed"]
    good, bad = {0, 1, 3}, {2}
    project.land("first.json", *ROWS)
    for number, point in enumerate(points):
        fresh = 10 + number
        project.write("flows/definitions.py", KNOWN)
        project.land(f"{fresh}.json", {"id": fresh, "country": "NL"}, {"id": fresh + 100, "country": "XX"})
        update(project)
        project.write("flows/definitions.py", LISTED)
        done = subprocess.run(
            [sys.executable, "-m", "waxlake", "replay", "orders"],
            cwd=project.folder,
            env=project.process_environ(WAXLAKE_FAILPOINT=f"{point}:1"),
            capture_output=True,
            timeout=90,
        )
        assert done.returncode == -signal.SIGKILL, (point, done)
        if number % 2:
            update(project)  # a run finishes what the replay left, and so does the next replay
        good, bad = good | {fresh}, bad | {fresh + 100}
        if point == points[-1]:
            said = project.waxlake("replay", "orders", "--dry-run", "--json").succeeded().out
            assert json.loads(said)["passed"] == 0
        else:
            run_replay(load_graph(load_spec(project.folder)), "orders", ReplayOptions())
        assert project.rows("orders", "id") == sorted(good), point
        assert project.rows("orders_quarantine", "id") == sorted(bad), point
    update(project)
    assert project.rows("counts", "good", "bad") == [(len(good), len(bad))]
    assert project.rows("numbers", "id") == sorted(good)
    assert project.rows("rejected", "id") == sorted({1, 2, 3, *range(10, 15), *range(110, 115)})


def update(project: Project) -> None:
    run_update(load_spec(project.folder), RunOptions(), [])
