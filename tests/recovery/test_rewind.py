"""Tables put back to what they were: rows, positions and those that read them go back together, through any crash."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.e2e.project import Project
from tests.services.s3 import ObjectStore
from waxlake.pipeline.events import read_events
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.rewind import RewindOptions, TableRewind, parse_time, rewind
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.selection import Selection
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import TerminalError, UsageError

pytestmark = pytest.mark.timeout(1200)

DEFINITIONS = """
@wl.table(partition_cols=["country"])
def raw():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE, country STRING")

@wl.table
@wl.expect_or_quarantine("paid", "amount > 2")
def clean():
    return wl.read_stream("raw")

@wl.table
def ids():
    return wl.read_stream("clean").select("id")

@wl.table
def aside():
    return wl.read_files("inbox", format="json", schema="id BIGINT").select("id")

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n FROM ids")

wl.create_streaming_table("newest")
wl.create_auto_cdc_flow(target="newest", source="raw", keys=["amount"], sequence_by="id", apply_as_deletes="amount = 5")
"""

STATEFUL = """
@wl.table
def first():
    return wl.read_stream("raw").drop_duplicates(["amount"])
"""

SINK = """
@wl.foreach_batch_sink
def told(rows, batch):
    pass

@wl.append_flow(target="told")
def tell():
    return wl.read_stream("raw")
"""


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    project = Project(tmp_path / "shop")
    project.define(DEFINITIONS)
    land(project, 1)
    run(project)
    return project


def land(project: Project, number: int) -> None:
    rows = [{"id": 10 * number + i, "amount": float(i), "country": "a b" if i % 2 else None} for i in range(6)]
    project.land(f"{number}.json", *rows)


def run(project: Project, *refresh: str) -> None:
    run_update(load_spec(project.folder), RunOptions(selection=Selection(refresh=refresh)), [])


def go_back(project: Project, **options: object) -> list[TableRewind]:
    return rewind(load_graph(load_spec(project.folder)), RewindOptions(**options))  # type: ignore[arg-type]


def contents(project: Project) -> dict[str, list[object]]:
    found = {name: project.rows(name, "id") for name in ("raw", "clean", "clean_quarantine", "ids", "aside", "newest")}
    return {**found, "total": project.rows("total", "n")}


def moment() -> datetime:
    """Return a time between what was committed before and what will be."""
    time.sleep(0.05)
    now = datetime.now(timezone.utc)
    time.sleep(0.05)
    return now


def test_p63_everything_goes_back_to_a_time_and_the_next_run_reads_on_from_there(shop: Project) -> None:
    before, at = contents(shop), moment()
    land(shop, 2)
    run(shop)
    land(shop, 3)
    run(shop)
    after = contents(shop)
    versions = {name: shop.handle(name).version() for name in ("raw", "clean", "ids")}

    dry = go_back(shop, at=at, is_dry=True)
    assert {name: shop.handle(name).version() for name in versions} == versions
    assert {row.table: row.removed for row in dry} == {
        "raw": 12, "clean": 6, "clean_quarantine": 6, "ids": 6, "aside": 12, "newest": 0,
    }  # fmt: skip
    assert go_back(shop, at=at) == dry
    assert shop.rows("newest", "id") == [10, 11, 12, 13, 14]
    for name in ("raw", "clean", "clean_quarantine", "ids", "aside", "newest"):
        assert sorted(shop.rows(name, "id")) == sorted(before[name]), name
    assert go_back(shop, at=moment()) == []
    events = read_events(load_spec(shop.folder).events_location(), event_type="user_action")
    assert [event.dataset for event in events] == [row.table for row in dry]
    run(shop)
    assert contents(shop) == after
    land(shop, 4)
    run(shop)
    assert shop.rows("total", "n") == [12]


def test_p63_some_tables_go_back_with_those_that_read_them(shop: Project) -> None:
    land(shop, 2)
    run(shop)
    after = contents(shop)
    with pytest.raises(TerminalError, match="REWIND_NEEDS_DEPENDANTS"):
        go_back(shop, versions={"clean": 1}, cascades=False)
    done = go_back(shop, versions={"clean": 1})
    assert [row.table for row in done] == ["clean", "clean_quarantine", "ids"]
    assert shop.rows("ids", "id") == [13, 14, 15]
    assert (shop.rows("raw", "id"), shop.rows("aside", "id")) == (after["raw"], after["aside"])
    run(shop)
    assert contents(shop) == after

    land(shop, 3)
    run(shop, "raw")  # those that read it are behind
    go_back(shop, versions={"raw": shop.handle("raw").version() - 1})
    run(shop)
    assert len(shop.rows("raw", "id")) == 18
    assert shop.rows("total", "n") == [9]
    go_back(shop, versions={"raw": 0, "aside": 0})
    assert all(not rows for name, rows in contents(shop).items() if name != "total")
    run(shop)
    assert len(shop.rows("raw", "id")) == 18
    assert shop.rows("total", "n") == [9]


def test_p63_what_cannot_go_back(shop: Project) -> None:
    for options, code in (
        ({}, "OPTION_INVALID"),
        ({"versions": {"total": 0}}, "UNKNOWN_DATASET"),
        ({"versions": {"raw": 99}}, "OPTION_INVALID"),
    ):
        with pytest.raises(UsageError, match=code):
            go_back(shop, **options)
    with pytest.raises(UsageError, match="OPTION_INVALID"):
        parse_time("yesterday")
    land(shop, 2)
    run(shop)
    state = max(Path(shop.path("newest")).glob("_waxlake/state-*.json"), key=lambda path: path.stat().st_mtime)
    land(shop, 3)
    run(shop)
    state.rename(state.with_suffix(".gone"))  # as if a day had passed
    with pytest.raises(TerminalError, match=r"late events are kept for a day.*REWIND_STATE_GONE"):
        go_back(shop, versions={"newest": shop.handle("newest").version() - 1})
    state.with_suffix(".gone").rename(state)
    shop.define(DEFINITIONS.replace('schema="id BIGINT")', 'schema="id BIGINT", clean_source="DELETE")'))
    with pytest.raises(TerminalError, match="REWIND_LOSES_ROWS"):
        go_back(shop, versions={"aside": 1})
    shop.define(DEFINITIONS)
    handle = shop.handle("raw")
    old = min((Path(shop.path("raw")) / uri for uri in handle.file_uris()), key=lambda path: path.stat().st_mtime)
    go_back(shop, versions={"raw": 0})
    old.unlink()
    with pytest.raises(TerminalError, match="REWIND_FILES_GONE"):
        go_back(shop, versions={"raw": handle.version()})
    shop.handle("raw").create_checkpoint()
    (Path(shop.path("raw")) / "_delta_log" / f"{0:020d}.json").unlink()
    with pytest.raises(TerminalError, match="REWIND_TOO_FAR"):
        go_back(shop, versions={"raw": 1})


def test_p63_a_table_with_state_goes_back_where_its_state_is_there_and_a_sink_does_not(shop: Project) -> None:
    shop.define(DEFINITIONS + SINK)
    run(shop)
    with pytest.raises(UsageError, match="UNKNOWN_DATASET"):
        go_back(shop, versions={"told": 0})
    with pytest.raises(TerminalError, match=r"'told' cannot be rewound.*handed over.*REWIND_NOT_POSSIBLE"):
        go_back(shop, versions={"raw": 0})
    shop.define(DEFINITIONS + STATEFUL)
    run(shop)
    first = shop.handle("first").version()
    shop.land("2.json", {"id": 20, "amount": 0.0}, {"id": 21, "amount": 20.0})
    run(shop)
    with pytest.raises(TerminalError, match=r"flow 'first' deletes the state.*REWIND_STATE_GONE"):
        go_back(shop, versions={"first": first})
    go_back(shop, versions={"first": 0})
    assert shop.rows("first", "id") == []
    run(shop)
    assert shop.rows("first", "id") == [10, 11, 12, 13, 14, 15, 21]


def test_p63_tables_in_an_object_store_go_back_too(tmp_path: Path, s3_store: ObjectStore, bucket: str) -> None:
    project = Project(tmp_path / "shop", storage=f"s3://{bucket}/lake", storage_options=s3_store.storage_options)
    project.define(DEFINITIONS)
    land(project, 1)
    run(project)
    before, at = contents(project), moment()
    land(project, 2)
    run(project)
    after = contents(project)
    killed = project.waxlake("rewind", "--to", at.isoformat(), WAXLAKE_FAILPOINT="rewound:2")
    assert killed.code == -signal.SIGKILL
    go_back(project, versions={"raw": project.handle("raw").version()})  # finishes what was decided
    assert {**contents(project), "total": before["total"]} == before
    run(project)
    assert contents(project) == after


@pytest.mark.parametrize(
    ("place", "is_decided"),
    [
        ("rewind-planned:1", False),
        ("rewind-decided:1", True),
        ("before-rewind:3", True),
        ("rewound:1", True),
        ("rewound:4", True),
        ("rewound:6", True),
    ],
)
def test_p63_a_kill_leaves_the_old_tables_or_the_new_ones(shop: Project, place: str, is_decided: bool) -> None:
    at = moment()
    land(shop, 2)
    run(shop)
    after = contents(shop)
    killed = shop.waxlake("rewind", "--to", at.isoformat(), WAXLAKE_FAILPOINT=place)
    assert killed.code == -signal.SIGKILL
    run(shop, "raw")  # finishes what was decided, and reads it again
    assert contents(shop)["raw"] == after["raw"]
    assert len(shop.rows("ids", "id")) == (3 if is_decided else 6)
    run(shop)
    assert contents(shop) == after
