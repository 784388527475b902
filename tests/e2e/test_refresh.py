"""Updates of some tables, full refreshes and forgotten positions, as a user asks for them; killed at every step too."""

from __future__ import annotations

import json
import signal

import pytest
from deltalake import DeltaTable

from tests.e2e.project import Project
from tests.e2e.test_bad_brokers import publish
from tests.services.kafka import create_topic
from waxlake.demo.broker import EmbeddedBroker
from waxlake.pipeline.lake import run_sql
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.status import pipeline_status

DEFINITIONS = """
@wl.table(partition_cols=["country"])
def raw():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE, country STRING")

@wl.table
@wl.expect_or_quarantine("paid", "amount > {low}")
def clean():
    return wl.read_stream("raw"){more}

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n, sum(amount) AS amount FROM clean")
"""
ROWS = [{"id": i, "amount": float(i), "country": "a b/ü" if i % 2 else None} for i in range(10)]
TABLES = ("raw", "clean", "clean_quarantine", "total")


def define(project: Project, *, low: int = 2, more: str = "") -> None:
    project.define(DEFINITIONS.format(low=low, more=more))


@pytest.fixture
def shop(project: Project) -> Project:
    define(project)
    project.land("1.json", *ROWS)
    project.run()
    assert project.rows("clean", "id") == [3, 4, 5, 6, 7, 8, 9]
    return project


def versions(shop: Project) -> dict[str, int]:
    return {name: shop.handle(name).version() for name in TABLES}


def test_p93_a_table_that_keeps_no_old_files_is_filled_anew_whole(shop: Project) -> None:
    """Maintenance of the new table must not clean the log from which its files are taken over; it goes on afterwards."""
    kept = dict.fromkeys(("waxlake.vacuum.interval", "delta.logRetentionDuration"), "interval 0 seconds")
    properties = {
        **kept,
        "delta.deletedFileRetentionDuration": "interval 0 seconds",
        "waxlake.compaction.minFiles": "2",
    }
    text = DEFINITIONS.format(low=2, more="").replace("@wl.table\n", f"@wl.table(table_properties={properties})\n")
    shop.define(
        text + "\n@wl.append_flow(target='clean')\ndef more():\n    return wl.read_stream('raw').where('id = 0')\n"
    )
    shop.run("--full-refresh-all")
    ids = shop.rows("clean", "id")
    shop.land("2.json", {"id": 20, "amount": 20.0, "country": "x"})
    shop.run()
    shop.run("--full-refresh", "clean")
    assert shop.rows("clean", "id") == sorted([*ids, 20]) == [3, 4, 5, 6, 7, 8, 9, 20]
    assert shop.rows("total", "n") == [8]


def test_p62_only_the_named_tables_are_brought_up_to_date(shop: Project) -> None:
    shop.land("2.json", {"id": 20, "amount": 20.0, "country": "x"})

    shop.run("--refresh", "raw")
    assert len(shop.rows("raw", "id")) == 11
    assert len(shop.rows("clean", "id")) == 7

    before = versions(shop)
    done = shop.run("--refresh", "total,clean", "--processes", "2", "--json")
    assert all(json.loads(line) for line in done.out.splitlines())
    assert len(shop.rows("clean", "id")) == 8
    assert shop.rows("total", "n") == [8]
    assert versions(shop)["raw"] == before["raw"]


def test_w07_a_full_refresh_applies_a_changed_definition_to_old_rows(shop: Project) -> None:
    define(shop, low=5, more='.select("cast(id AS VARCHAR) AS id", "amount", "amount * 2 AS twice")')
    shop.waxlake("run").refused("SCHEMA_CHANGED")

    done = shop.run("--full-refresh", "raw", "--full-refresh", "clean")

    assert "clean" in done.out
    assert len(shop.rows("raw", "id")) == 10
    assert shop.rows("raw", "country").count("a b/ü") == 5
    assert shop.rows("clean", "id", "twice") == [("6", 12.0), ("7", 14.0), ("8", 16.0), ("9", 18.0)]
    assert len(shop.rows("clean_quarantine", "id")) == 6
    assert shop.rows("total", "n") == [7]  # it was not named
    assert counts_of(shop) == ((4, 6), (4, 6), 10)

    shop.land("2.json", {"id": 20, "amount": 20.0, "country": "x"})
    shop.run()
    assert len(shop.rows("raw", "id")) == 11
    assert shop.rows("clean", "id") == ["20", "6", "7", "8", "9"]
    assert shop.rows("total", "n") == [5]

    shop.run("--full-refresh-all")
    assert len(shop.rows("raw", "id")) == 11
    assert shop.rows("clean", "id") == ["20", "6", "7", "8", "9"]
    assert shop.rows("total", "n", "amount") == [(5, 50.0)]
    assert shop.waxlake("status").succeeded()
    assert counts_of(shop) == ((5, 6), (5, 6), 11)


def counts_of(shop: Project) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return passed and failed by the last commit with a rule, by the status, and the rows of all files: of what is there now."""
    graph = load_graph(load_spec(shop.folder))
    last = run_sql(graph, "SELECT passed, failed FROM quality WHERE \"table\" = 'clean' ORDER BY version DESC LIMIT 1")
    rule = next(table for table in pipeline_status(graph).tables if table.name == "clean").rules[0]
    files = run_sql(graph, "SELECT sum(rows)::BIGINT AS n FROM files_state('raw')").column("n").to_pylist()
    ((passed, failed),) = ((row["passed"], row["failed"]) for row in last.to_pylist())
    return (passed, failed), (rule.passed, rule.failed), files[0]


@pytest.mark.parametrize(
    "place",
    ["files-written:1", "committed:1", "refresh-filled", "refresh-decided", "before-swap:1", "swapped:1", "before-swap:2",
     "swapped:2", "swapped:3"],
)  # fmt: skip
def test_a_kill_leaves_the_old_tables_or_the_new_ones(shop: Project, place: str) -> None:
    define(shop, low=5)

    killed = shop.waxlake("run", "--full-refresh", "raw,clean", WAXLAKE_FAILPOINT=place)
    assert killed.code == -signal.SIGKILL

    is_decided = not place.startswith(("files", "committed", "refresh-filled"))
    if not is_decided:
        assert shop.rows("clean", "id") == [3, 4, 5, 6, 7, 8, 9]
    shop.land("2.json", {"id": 20, "amount": 20.0, "country": "x"})
    shop.run()

    assert len(shop.rows("raw", "id")) == 11
    old = [] if is_decided else [3, 4, 5]
    assert shop.rows("clean", "id") == [*old, 6, 7, 8, 9, 20]
    shop.run("--full-refresh-all")
    assert shop.rows("clean", "id") == [6, 7, 8, 9, 20]
    assert len(shop.rows("clean_quarantine", "id")) == 6
    assert shop.rows("total", "n") == [5]


def test_a_full_refresh_that_cannot_read_its_source_leaves_the_table(shop: Project) -> None:
    (shop.folder / "inbox/1.json").unlink()
    before = shop.rows("raw")

    shop.waxlake("run", "--full-refresh-all").refused("FILE_GONE", "1.json")

    assert shop.rows("raw") == before
    assert len(shop.rows("clean", "id")) == 7
    shop.run()


def test_p68_positions_are_forgotten_and_rows_stay(shop: Project) -> None:
    shop.run("--reset-checkpoint", "clean")

    assert sorted(shop.rows("clean", "id")) == sorted([3, 4, 5, 6, 7, 8, 9] * 2)
    assert len(shop.rows("raw", "id")) == 10


@pytest.mark.parametrize(
    ("words", "code", "says", "exit_code"),
    [
        (["--refresh", "claen"], "UNKNOWN_DATASET", "clean", 2),
        (["--full-refresh", "clean_quarantine"], "UNKNOWN_DATASET", "quarantine", 2),
        (["--full-refresh-all", "--refresh", "raw"], "REFRESH_OPTIONS_CONFLICT", "alone", 2),
        (["--full-refresh", "raw", "--reset-checkpoint", "raw"], "REFRESH_OPTIONS_CONFLICT", "raw", 2),
        (["--full-refresh", "raw"], "REFRESH_BREAKS_DOWNSTREAM", "--full-refresh raw,clean", 1),
    ],
)
def test_what_cannot_be_asked_for(shop: Project, words: list[str], code: str, says: str, exit_code: int) -> None:
    before = versions(shop)
    shop.waxlake("run", *words).refused(code, says, exit_code=exit_code)
    assert versions(shop) == before


def test_a_protected_table_is_not_filled_anew(shop: Project) -> None:
    guarded = DEFINITIONS.replace("@wl.table\n", "@wl.table(table_properties={{'pipelines.reset.allowed': 'false'}})\n")
    shop.define(guarded.format(low=5, more=""))
    before = DeltaTable(shop.path("clean")).version()

    shop.waxlake("run", "--full-refresh", "raw,clean").refused("RESET_NOT_ALLOWED", "clean", exit_code=2)
    shop.waxlake("run", "--full-refresh-all").refused("REFRESH_BREAKS_DOWNSTREAM")

    assert DeltaTable(shop.path("clean")).version() == before


def test_w06_a_source_that_begins_later_now_is_not_read_anew(
    project: Project, tansu: EmbeddedBroker, topic: str
) -> None:
    create_topic(tansu, topic)
    publish(tansu.bootstrap_servers, topic, range(5))
    project.define(
        f"""
@wl.table
def t():
    return wl.read_kafka({topic!r}, {tansu.bootstrap_servers!r}, format="string", starting_offsets="latest")
"""
    )
    project.run()
    publish(tansu.bootstrap_servers, topic, range(5, 8))
    project.run()
    assert len(project.rows("t", "value")) == 3

    project.waxlake("run", "--full-refresh", "t").refused("REFRESH_LOSES_ROWS", "begins at position", "--force")
    assert len(project.rows("t", "value")) == 3

    project.run("--full-refresh", "t", "--force")
    assert project.rows("t", "value") == []
