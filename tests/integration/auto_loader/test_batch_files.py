"""``wl.read_files`` in a materialized view: all files, at each refresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.auto_loader.lake import Lake
from waxlake.pipeline import file_rows


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return views over files, one of them joined to a table."""
    lake = Lake(tmp_path)
    lake.define(
        """
@wl.table
def names():
    return wl.read_files("{inbox}/names", format="json", schema="id BIGINT, name STRING").select("id", "name")

@wl.materialized_view
def amounts():
    return wl.read_files("{inbox}/*.csv", format="csv")

@wl.materialized_view
def named():
    return wl.read_files("{inbox}/*.csv", format="csv").sql(
        "SELECT name, sum(amount) AS total, count(DISTINCT _metadata.file_name) AS files "
        "FROM stream JOIN names USING (id) GROUP BY name"
    )

@wl.materialized_view
def total():
    return wl.sql("SELECT sum(amount) AS total FROM amounts")
"""
    )
    (lake.inbox / "names").mkdir()
    lake.land("names/1.json", [{"id": 1, "name": "a"}])
    return lake


def test_c_05_a_view_of_files_holds_all_that_are_there(lake: Lake) -> None:
    lake.land("1.csv", "id,amount\n1,10\n2,20\n")
    lake.land("2.csv", "id,amount\n1,5\n")
    lake.run()
    assert lake.rows("amounts", "id", "amount") == [(1, 10), (1, 5), (2, 20)]
    assert lake.rows("named") == [{"name": "a", "total": 15, "files": 2}]
    assert lake.rows("total", "total") == [35]
    version = lake.handle("amounts").version()
    lake.run()
    assert lake.handle("amounts").version() == version  # nothing has changed: nothing is read
    (lake.inbox / "2.csv").unlink()
    lake.land("1.csv", "id,amount,note\n1,11,x\n2,20,y\n")
    lake.land("names/2.json", [{"id": 2, "name": "b"}])
    lake.run()
    assert lake.rows("amounts", "id", "amount", "note") == [(1, 11, "x"), (2, 20, "y")]
    assert lake.rows("named", "name", "total") == [("a", 11), ("b", 20)]
    assert lake.rows("total", "total") == [31]


def test_c_05_many_rows_are_not_held_in_memory(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_rows, "_IN_MEMORY_BYTES", 1000)
    for number in range(5):
        lake.land(f"{number}.csv", "id,amount\n" + "".join(f"{i},{number}\n" for i in range(500)))
    lake.run()
    assert len(lake.rows("amounts")) == 2500
    assert lake.rows("total", "total") == [500 * (1 + 2 + 3 + 4)]
