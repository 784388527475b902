"""When a table holds all that an update is to bring, and which of its versions its readers still need."""

from __future__ import annotations

import signal

import pytest

from sinks.delta.quarantine import finish_quarantine
from tests.e2e.project import Project
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.completion import Completion
from waxlake.pipeline.plan import make_plan
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.source_groups import source_groups
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.upkeep import needed_versions

DEFINITIONS = """
@wl.table
@wl.expect_or_quarantine("small", "id < 10")
def orders():
    return wl.read_files("inbox", format="json", schema="id BIGINT")

@wl.table
def numbers():
    return wl.read_stream("orders")

@wl.table
def rejected():
    return wl.read_stream("orders_quarantine").select("id")
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1}, {"id": 11})
    return project


def checked_graph(project: Project) -> CheckedGraph:
    return check_graph(load_graph(load_spec(project.folder)))


def planned(checked: CheckedGraph) -> Completion:
    return Completion(checked, make_plan(checked, source_groups(checked), is_bounded=True, run_number=1).marks)


@pytest.mark.kills
def test_a_quarantine_table_is_complete_only_with_what_its_table_left_for_it(shop: Project) -> None:
    assert shop.waxlake("run", WAXLAKE_FAILPOINT="quarantine-pending:1").code == -signal.SIGKILL
    checked = checked_graph(shop)
    completion, table = planned(checked), checked.graph.datasets["orders"]
    assert completion.is_complete("orders")
    assert not completion.is_complete("orders_quarantine")
    assert table.location is not None
    assert table.quarantine is not None
    assert finish_quarantine(table.location, table.quarantine)
    assert completion.is_complete("orders_quarantine")


def test_versions_that_bring_no_rows_are_waited_for_and_needed_by_nobody(shop: Project) -> None:
    shop.run()
    read = shop.handle("orders").version() + 1
    for name in ("orders", "orders_quarantine"):
        shop.handle(name).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    checked = checked_graph(shop)
    completion = planned(checked)
    assert completion.is_complete("numbers")
    assert completion.is_complete("rejected")
    latest = shop.handle("orders").version()
    assert needed_versions(checked, "orders") == (read, latest + 1)
    shop.land("2.json", {"id": 2})
    shop.run("--refresh", "orders")
    assert needed_versions(checked, "orders") == (read, latest + 1)
