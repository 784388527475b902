"""A pipeline with every stateful operator is killed on one worker, two workers and two processes, and goes on with others.

In the end each table is what one query over all rows says.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tests.recovery.project import Project, wait

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
START, DELAY, SPAN = 1_700_000_000, 120, 60
DEFINITIONS = """
import waxlake as wl

def clicks():
    return (wl.read_files({clicks!r}, format="json", schema="id BIGINT, n BIGINT, ts TIMESTAMP").drop("_rescued_data")
            .with_watermark("ts", "2 minutes"))

def sales():
    return (wl.read_files({sales!r}, format="json", schema="id BIGINT, m BIGINT, at TIMESTAMP").drop("_rescued_data")
            .with_watermark("at", "2 minutes"))

@wl.table
def once():
    return clicks().drop_duplicates("id")

@wl.table
def per_minute():
    return clicks().group_by("id", window=wl.tumbling("ts", "1 minute")).agg(rows="count(*)", middle="median(n)")

@wl.table
def latest():
    return clicks().group_by("id", window=wl.tumbling("ts", "5 minutes"), mode="update").agg(rows="count(*)", total="sum(n)")

@wl.table
def bought():
    return clicks().join(sales(), on="id", within="1 minute", how="left").select("n", "m")
"""
KILLS = [
    ("triggered", "state-written"),
    ("two-workers", "state-applied"),
    ("two-processes", "committed"),
    ("triggered", ""),
    ("two-workers", "state-committed"),
]


def stamp(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


class Rows:
    """What has landed: a file of each kind a minute of event time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.random, self.minutes = folder, random.Random(11), 0
        self.clicks: list[dict[str, Any]] = []
        self.sales: list[dict[str, Any]] = []

    def land(self) -> None:
        begin = START + self.minutes * 60
        self.minutes += 1
        for kind, number, at, found in (("clicks", "n", "ts", self.clicks), ("sales", "m", "at", self.sales)):
            rows = [
                {"id": self.random.randrange(9), number: len(found) + i, at: stamp(begin + self.random.randrange(60))}
                for i in range(20)
            ]
            found += rows
            (self.folder / kind).mkdir(exist_ok=True)
            hidden = self.folder / f"{kind}.tmp"
            hidden.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.utime(hidden, (time.time() - 60,) * 2)
            hidden.rename(self.folder / kind / f"{self.minutes:04d}.json")


def test_p85_kills_with_another_number_of_workers_each_time(tmp_path: Path) -> None:
    project, rows = Project(tmp_path), Rows(tmp_path)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    definitions = DEFINITIONS.format(clicks=str(tmp_path / "clicks"), sales=str(tmp_path / "sales"))
    (tmp_path / "flows" / "definitions.py").write_text(definitions)
    spec = {"name": "state", "storage": str(tmp_path / "lake"), "trigger_interval": "50ms",
            "libraries": [{"glob": {"include": "flows/definitions.py"}}]}  # fmt: skip
    (tmp_path / "waxlake.yml").write_text(json.dumps(spec))
    for mode, point in KILLS:
        rows.land()
        rows.land()
        if point:
            project.run_to_failpoint(mode, point)
        else:
            project.run_and_kill_after(mode, 2.5)
    for mode in ("two-processes", "triggered"):
        rows.land()
        assert wait(project.start(mode)) == 0, project.log(mode)
    check(tmp_path / "lake" / "tables" / "default", rows)


def check(lake: Path, rows: Rows) -> None:
    session = duckdb.connect()
    session.register("c", pa.Table.from_pylist(rows.clicks))
    session.register("s", pa.Table.from_pylist(rows.sales))
    session.execute("CREATE TABLE clicks AS SELECT id, n, epoch(ts::TIMESTAMP)::BIGINT AS t FROM c")
    session.execute('CREATE TABLE sales AS SELECT id, m, epoch("at"::TIMESTAMP)::BIGINT AS t FROM s')
    [(clicked, sold)] = session.execute("SELECT (SELECT max(t) FROM clicks), (SELECT max(t) FROM sales)").fetchall()
    mark, both = clicked - DELAY, min(clicked, sold) - DELAY

    def found(table: str, *names: str) -> list[Any]:
        stored = DeltaTable(str(lake / table)).to_pyarrow_table().to_pylist()
        values = [[r[n].timestamp() if n.startswith("window") else r[n] for n in names] for r in stored]
        return sorted(repr([None if v is None else float(v) for v in row]) for row in values)

    def said(query: str) -> list[Any]:
        return sorted(repr([None if v is None else float(v) for v in row]) for row in session.sql(query).fetchall())

    assert found("once", "id", "n") == said("SELECT id, min(n) FROM clicks GROUP BY id")
    windows = "SELECT id, t - t % {0} AS w, count(*), {1} FROM clicks GROUP BY id, w {2}"
    closed = windows.format(60, "median(n)", f"HAVING w + 60 <= {mark}")
    assert found("per_minute", "id", "window_start", "rows", "middle") == said(closed)
    assert found("latest", "id", "window_start", "rows", "total") == said(windows.format(300, "sum(n)", ""))
    on = f"c.id = s.id AND abs(c.t - s.t) <= {SPAN}"
    pairs = f"SELECT n, m FROM clicks c JOIN sales s ON {on}"
    lone = f"SELECT n, NULL FROM clicks c ANTI JOIN sales s ON {on} WHERE c.t + {SPAN} < {both}"
    assert found("bought", "n", "m") == said(f"{pairs} UNION ALL {lone}")
