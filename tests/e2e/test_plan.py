"""`waxlake plan` and `waxlake dry-run`: what an update would do, and what it cannot do, without doing any of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.project import DEFINITIONS, Project
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.explain import DatasetPlan, UpdateView, explain_update
from waxlake.pipeline.explain_text import plan_lines
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.selection import Selection
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError, WaxlakeError

SHOP = """
@wl.table
def raw():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE")

@wl.table
@wl.expect_or_drop("paid", "amount > 2")
def clean():
    return wl.read_stream("raw").sql("SELECT id, amount FROM stream -- all of it")

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n FROM clean")
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.define(SHOP)
    project.land("1.json", *({"id": i, "amount": float(i)} for i in range(6)))
    return project


def look(project: Project) -> UpdateView:
    return explain_update(check_graph(load_graph(load_spec(project.folder))))


def plan(project: Project, name: str) -> DatasetPlan:
    return next(dataset for dataset in look(project).datasets if dataset.dataset == name)


def run(project: Project, **selection: tuple[str, ...]) -> None:
    run_update(load_spec(project.folder), RunOptions(selection=Selection(**selection)), [])


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_p04_p64_a_plan_says_what_an_update_would_do_and_changes_nothing(shop: Project) -> None:
    before = files(shop.folder)
    done = shop.waxlake("plan").succeeded()
    assert files(shop.folder) == before
    assert "table raw: is created\n  flow raw: first run\n" in done.out
    assert "from the beginning: 1 files" in done.out
    assert "[FIRST_RUN]" in done.out

    run(shop)
    shop.land("2.json", {"id": 9, "amount": 9.0})
    run(shop, refresh=("raw",))
    shop.land("3.json", {"id": 10, "amount": 10.0})
    before = files(shop.folder)
    seen = json.loads(shop.waxlake("plan", "--json").succeeded().out)
    assert files(shop.folder) == before
    raw, clean, total = seen["datasets"]
    read = raw["flows"][0]["reads"][0]
    assert (raw["rows"], raw["flows"][0]["is_first_run"], read["backlog"]["files"]) == (7, False, 1)
    assert read["backlog"]["size_bytes"] == len((shop.folder / "inbox/3.json").read_bytes())
    assert clean["flows"][0]["reads"][0]["backlog"]["records"] == 1
    assert total["refresh"]["code"] == "INPUTS_UNCHANGED"
    run(shop, refresh=("clean",))
    refresh = plan(shop, "total").refresh
    assert refresh is not None
    assert refresh.mode in ("FULL", "INCREMENTAL")
    assert (refresh.code == "COST_FULL_CHEAPER") == (refresh.mode == "FULL")


def test_w05_w07_a_changed_definition_is_explained_before_it_happens(shop: Project) -> None:
    run(shop)
    shop.define(SHOP.replace(" -- all of it", "").replace("id, amount FROM", "id,  amount   FROM"))
    assert not any(flow.changes for dataset in look(shop).datasets for flow in dataset.flows)

    edited = (
        SHOP.replace("SELECT id, amount", "SELECT id, amount * 2 AS amount")
        .replace("amount > 2", "amount > 3")
        .replace("@wl.table\n@wl.expect", '@wl.table(partition_cols=["id"])\n@wl.expect')
        .replace("count(*)", "sum(id)")
    )
    shop.define(edited)
    clean = plan(shop, "clean")
    changes = {change.code: change for change in clean.flows[0].changes}
    assert list(changes) == ["QUERY_CHANGED", "EXPECTATIONS_CHANGED", "PARTITIONING_CHANGED"]
    assert changes["EXPECTATIONS_CHANGED"].diff == (
        "- expect paid: amount > 2 or drop",
        "+ expect paid: amount > 3 or drop",
    )
    assert "--full-refresh clean" in changes["QUERY_CHANGED"].meaning
    assert (clean.rows, clean.can_refill) == (3, None)
    refresh = plan(shop, "total").refresh
    assert refresh is not None
    assert refresh.code == "QUERY_CHANGED"
    text = "\n".join(plan_lines(look(shop)))
    assert "The table holds 3 rows." in text

    with shop.continuous() as restart:
        told = restart.await_event(lambda event: event["event_type"] == "planning_information")
        assert told["details"]["planning_information"]["change"]["code"] == "QUERY_CHANGED"
        shop.land("2.json", {"id": 9, "amount": 9.0})
        restart.await_rows("clean", 1)
        restart.stop()
    assert not plan(shop, "clean").flows[0].changes
    assert shop.rows("clean", "amount") == [18.0, 3.0, 4.0, 5.0]

    shop.define(edited.replace('"inbox"', '"elsewhere"'))
    (shop.folder / "elsewhere").mkdir()
    assert plan(shop, "raw").flows[0].changes[0].code == "SOURCES_CHANGED"


def test_p20_a_renamed_flow_is_named(shop: Project) -> None:
    extra = (
        "\n@wl.append_flow(target='raw', name={!r})\ndef more():\n"
        "    return wl.read_files('more', format='json', schema='id BIGINT, amount DOUBLE')\n"
    )
    shop.land("1.json", {"id": 100, "amount": 1.0}, folder="more")
    shop.define(SHOP + extra.format("more"))
    run(shop)
    assert look(shop).notes == []

    shop.define(SHOP + extra.format("much_more"))
    (note,) = look(shop).notes
    assert "flow 'more' is gone, and flow 'much_more' reads the same sources" in note
    assert "name='more'" in note

    shop.define((SHOP + extra.format("more")).replace("clean", "cleaned"))
    (note,) = look(shop).notes
    assert "table 'clean' is gone, and table 'cleaned' is filled from the same sources" in note

    shop.define(SHOP)
    (note,) = look(shop).notes
    assert "its rows and positions stay" in note


def test_p25_a_sink_has_its_place_in_the_plan(shop: Project) -> None:
    sink = (
        "wl.create_sink('out', format='delta', options={'path': 'out'})\n"
        "@wl.append_flow(target='out')\ndef hand_over():\n    return wl.read_stream('raw').select('id')\n"
    )
    shop.define(SHOP + sink)
    run(shop)
    shop.land("2.json", {"id": 9, "amount": 9.0})
    run(shop, refresh=("raw",))
    shop.define(SHOP + sink.replace("select('id')", "select('id + 1 AS id')"))
    out = plan(shop, "out")
    assert (out.kind, out.flows[0].is_first_run, out.flows[0].reads[0].backlog["records"]) == ("sink", False, 1)
    assert [change.code for change in out.flows[0].changes] == ["QUERY_CHANGED"]
    assert "handed over" in out.flows[0].changes[0].meaning


def test_a_source_that_is_away_is_told_with_the_rest(shop: Project) -> None:
    shop.define(SHOP.replace('"inbox"', '"nowhere"'))
    view = look(shop)
    assert "FILES_PATH_NOT_FOUND" in view.datasets[0].flows[0].problems[0]
    assert len(view.datasets) == 3


GOOD = "@wl.table\ndef a():\n    return wl.read_files('inbox', format='json', schema='id BIGINT')\n"


@pytest.mark.parametrize(
    ("definitions", "code", "line"),
    [
        (GOOD + GOOD, "DUPLICATE_DATASET", 5),
        (GOOD + "@wl.append_flow(target='a', name='a')\ndef b():\n    return wl.read_stream('x')\n", "DUPLICATE_FLOW", 5),
        ("@wl.table\ndef a():\n    return wl.read_stream('b')\n@wl.table\ndef b():\n    return wl.read_stream('a')\n",
         "CYCLE", 2),
        ("wl.create_streaming_table('a')\n", "DATASET_WITHOUT_FLOW", 2),
        (GOOD + "@wl.table\ndef b():\n    return wl.read('a')\n", "BATCH_FOR_STREAMING_TABLE", 5),
        (GOOD + "@wl.materialized_view\ndef b():\n    return wl.read_stream('a')\n", "STREAM_FOR_MATERIALIZED_VIEW", 5),
        (GOOD + "@wl.materialized_view\ndef b():\n    return wl.read('a')\n@wl.table\ndef c():\n    return wl.read_stream('b')\n",
         "STREAM_OF_MATERIALIZED_VIEW", 8),
        (GOOD + "@wl.table\ndef b():\n    return wl.read_stream('aa')\n", "UNKNOWN_DATASET", 7),
        (GOOD + "@wl.table\ndef b():\n    return wl.read_stream('a').where('ident > 1')\n", "UNKNOWN_COLUMN", 7),
        (GOOD + "@wl.materialized_view\ndef b():\n    return wl.sql('SELECT ident FROM a')\n", "UNKNOWN_COLUMN", 7),
        (GOOD.replace("@wl.table", "@wl.table(partition_cols=['day'])"), "UNKNOWN_COLUMN", 2),
        (GOOD + "@wl.append_flow(target='a')\ndef b():\n    return wl.read_files('t', format='text').select('value AS id')\n",
         "SCHEMA_MISMATCH", 5),
        ("@wl.table\ndef a():\n    return 1\n", "QUERY_RETURN_TYPE", 2),
        ("@wl.table\ndef a():\n    raise ValueError('x')\n", "QUERY_FUNCTION_FAILED", 4),
        (GOOD + "@wl.temporary_view\n@wl.expect_or_quarantine('r', 'id > 0')\ndef v():\n    return wl.read_stream('a')\n",
         "QUARANTINE_ON_VIEW", 6),
        (GOOD.replace("'inbox'", "'inbox', frmat=1"), "OPTION_INVALID", 4),
        (GOOD + "1 / 0\n", "DEFINITIONS_FAILED", 5),
    ],
)  # fmt: skip
def test_p64_each_mistake_has_its_code_and_its_line(project: Project, definitions: str, code: str, line: int) -> None:
    project.define(definitions)
    (project.folder / "inbox").mkdir()
    (project.folder / "t").mkdir()
    with pytest.raises(WaxlakeError) as caught:
        check_graph(load_graph(load_spec(project.folder)))
    assert caught.value.code == code
    assert f"{DEFINITIONS}:{line}: " in str(caught.value)
    assert not (project.folder / "lake").exists()


def test_p64_a_type_that_changed_against_the_stored_table(shop: Project) -> None:
    run(shop)
    shop.define(SHOP.replace("SELECT id", "SELECT CAST(id AS VARCHAR) AS id"))
    with pytest.raises(DefinitionError, match=r"SCHEMA_CHANGED"):
        look(shop)
