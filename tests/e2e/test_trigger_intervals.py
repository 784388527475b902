"""Tables of a continuous run are committed to at intervals of their own."""

from __future__ import annotations

import pytest

from tests.e2e.project import Project
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError

DEFINITIONS = """
def read():
    return wl.read_files("inbox", format="json", schema="id BIGINT")

@wl.table
def fast():
    return read()

@wl.table(table_properties={"pipelines.trigger.interval": "1 hour"})
def slow():
    return read()

@wl.materialized_view(table_properties={"pipelines.trigger.interval": "1 hour"})
def total():
    return wl.sql("SELECT count(*) AS n FROM fast")
"""


def test_p60_each_table_has_its_own_trigger_interval(project: Project) -> None:
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1})
    with project.continuous() as run:
        for number in range(2, 5):
            run.await_rows("fast", 1)
            project.land(f"{number}.json", {"id": number})
        run.await_rows("fast", 1)
        assert project.rows("fast", "id") == [1, 2, 3, 4]
        assert not project.rows("slow", "id")
        run.stop()  # what waits is committed
    assert project.rows("slow", "id") == [1, 2, 3, 4]
    assert project.rows("total", "n") != [4]
    project.run()  # a triggered run brings everything up to date
    assert project.rows("total", "n") == [4]

    project.define(DEFINITIONS.replace("1 hour", "often"))
    with pytest.raises(DefinitionError, match=r"definitions.py:\d+: .*TRIGGER_INTERVAL_INVALID"):
        check_graph(load_graph(load_spec(project.folder)))
