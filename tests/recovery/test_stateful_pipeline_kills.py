"""A pipeline of every stateful operator and every kind of view is killed on one worker, two workers and two processes.

Each run has another number of workers or processes than the one before. In the end each table is what one query over all rows
says. What is killed where, together with ``test_state_kills`` (operators) and ``test_view_kills`` (kinds of view):

| | one worker | two workers | two processes |
|---|---|---|---|
| state of an operator: before it is written | every operator | state-applied | |
| written, not committed | every operator | | state-written |
| committed, old files not deleted | every operator | state-committed | |
| output: data files written, or committed | every operator, every kind of view | | committed |
| late rows for quarantine: committed after the table | quarantine-pending | | |
| view: refresh written, not committed | projection, windows | grouped_more | one of each process |
| anywhere | | at random | at random |

Operators: de-duplication for ever and within a span, tumbling, sliding and session windows, update mode, outer join, semi join in
SQL, keyed state, and a chain of three.
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

from tests.property.test_views import QUERIES
from tests.property.view_lab import counted
from tests.recovery import test_state_kills, test_view_kills
from tests.recovery.project import Project, wait

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
START, DELAY, SPAN = 1_700_000_000, 120, 60
START -= START % 240
DEFINITIONS = """
import waxlake as wl

@wl.temporary_view
def c0():
    return wl.read_files({clicks!r}, format="json", schema="id BIGINT, n BIGINT, ts TIMESTAMP").drop("_rescued_data")

@wl.temporary_view
def s0():
    return wl.read_files({sales!r}, format="json", schema="id BIGINT, m BIGINT, sold TIMESTAMP").drop("_rescued_data")

def clicks(late="drop"):
    return wl.read_stream("c0").with_watermark("ts", "2 minutes", late=late)

@wl.table
def once():
    return clicks().drop_duplicates("id")

@wl.table
def recent():
    return clicks(late="quarantine").drop_duplicates("n", within="1 minute")

@wl.table
def per_minute():
    return clicks().group_by("id", window=wl.tumbling("ts", "1 minute")).agg(rows="count(*)", middle="median(n)")

@wl.table
def sliding():
    return clicks().group_by("id", window=wl.sliding("ts", "2 minutes", every="1 minute")).agg(rows="count(*)")

@wl.table
def latest():
    return clicks().group_by("id", window=wl.tumbling("ts", "5 minutes"), mode="update").agg(rows="count(*)", total="sum(n)")

@wl.table
def visits():
    return clicks().group_by("id", window=wl.session("ts", "20 seconds")).agg(rows="count(*)")

@wl.table
def bought():
    sales = wl.read_stream("s0").with_watermark("sold", "2 minutes")
    return clicks().join(sales, on="id", within="1 minute", how="left").select("n", "m")

@wl.table
def paired():
    return wl.sql(\"\"\"SELECT c.id, c.n FROM STREAM(c0) WATERMARK ts DELAY OF INTERVAL 2 MINUTES AS c
        SEMI JOIN STREAM(s0) WATERMARK sold DELAY OF INTERVAL 2 MINUTES AS s
        ON c.id = s.id AND s.sold BETWEEN c.ts - INTERVAL 5 SECONDS AND c.ts + INTERVAL 30 SECONDS\"\"\")

@wl.table
def busiest():
    return (clicks().drop_duplicates(["id", "n"])
            .group_by("id", window=wl.tumbling("ts", "1 minute")).agg(rows="count(*)")
            .group_by(window=wl.tumbling("window_end", "2 minutes")).agg(most="max(rows)"))

def first(rows, state):
    import pyarrow as pa
    known = set(state.column("id").to_pylist())
    new = sorted(set(rows.column("id").to_pylist()) - known)
    ids = pa.array(sorted(known | set(new)), pa.int64())
    return pa.table({{"id": pa.array(new, pa.int64())}}), pa.table({{"id": ids, "x": pa.nulls(len(ids), pa.int64())}})

@wl.table
def seen():
    return clicks().map_with_state(first, keys="id", schema="id BIGINT", state_schema="x BIGINT")

@wl.temporary_view
def a():
    return wl.sql({a!r})

@wl.temporary_view
def b():
    return wl.sql({b!r})
"""
A = "SELECT n AS id, id AS k, n % 5 AS x, (n / 4)::DOUBLE AS d, CASE WHEN n % 2 = 0 THEN 'p' ELSE 'q' END AS s FROM recent"
B = "SELECT n % 9 AS k, 's' || m AS name FROM bought WHERE m % 7 = 0"
KILLS = [
    ("triggered", "state-written:1"),
    ("two-workers", "state-applied:4"),
    ("two-processes", "committed:2"),
    ("triggered", "view-written:1"),
    ("two-workers", "view-written:3"),
    ("two-processes", "view-written:1"),
    ("triggered", "quarantine-pending:1"),
    ("two-workers", ""),
    ("two-processes", "state-written:1"),
    ("two-workers", "state-committed:6"),
    ("two-processes", ""),
    ("triggered", "view-written:8"),
]
FIRST_LATE = 7


def test_p85_f05_kills_are_at_least_forty() -> None:
    of_operators = sum(map(len, test_state_kills.SCENARIOS.values()))
    of_views = len(test_view_kills.KINDS) * len(test_view_kills.POINTS)
    assert len(KILLS) + of_operators + of_views >= 40
    assert {mode for mode, _ in KILLS} == {"triggered", "two-workers", "two-processes"}


def stamp(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


class Rows:
    """What has landed: a file of each kind a minute of event time; from some time on with a row that is a day late."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.random, self.minutes = folder, random.Random(11), 0
        self.clicks: list[dict[str, Any]] = []
        self.sales: list[dict[str, Any]] = []
        self.late: list[dict[str, Any]] = []

    def land(self) -> None:
        begin = START + self.minutes * 60
        self.minutes += 1
        for kind, number, at, found in (("clicks", "n", "ts", self.clicks), ("sales", "m", "sold", self.sales)):
            rows = [
                {"id": self.random.randrange(9), number: len(found) + i, at: stamp(begin + self.random.randrange(60))}
                for i in range(20)
            ]
            found += rows
            if kind == "clicks" and self.minutes >= FIRST_LATE:
                self.late.append({"id": 99, "n": -self.minutes, "ts": stamp(START - 86_400)})
                rows.append(self.late[-1])
            (self.folder / kind).mkdir(exist_ok=True)
            hidden = self.folder / f"{kind}.tmp"
            hidden.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.utime(hidden, (time.time() - 60,) * 2)
            hidden.rename(self.folder / kind / f"{self.minutes:04d}.json")


def make(folder: Path) -> Project:
    (folder / "flows").mkdir()
    (folder / "flows" / "__init__.py").touch()
    text = DEFINITIONS.format(clicks=str(folder / "clicks"), sales=str(folder / "sales"), a=A, b=B)
    for view in test_view_kills.KINDS:
        text += f"\n@wl.materialized_view\ndef {view}():\n    return wl.sql({QUERIES[view]!r})\n"
    (folder / "flows" / "definitions.py").write_text(text)
    spec = {"name": "state", "storage": str(folder / "lake"), "trigger_interval": "50ms",
            "libraries": [{"glob": {"include": "flows/definitions.py"}}]}  # fmt: skip
    (folder / "waxlake.yml").write_text(json.dumps(spec))
    return Project(folder)


def test_p80_p85_f05_kills_with_another_number_of_workers_each_time(tmp_path: Path) -> None:
    project, rows = make(tmp_path), Rows(tmp_path)
    for mode, point in KILLS:
        rows.land()
        if point:
            project.run_to_failpoint(mode, point)
        else:
            project.run_and_kill_after(mode, rows.random.uniform(2, 5))
    for mode in ("two-processes", "triggered"):
        rows.land()
        assert wait(project.start(mode)) == 0, project.log(mode)
    lake = tmp_path / "lake" / "tables" / "default"
    check_operators(lake, rows)
    check_views(lake)


def check_operators(lake: Path, rows: Rows) -> None:
    session = duckdb.connect()
    session.register("c", pa.Table.from_pylist(rows.clicks))
    session.register("s", pa.Table.from_pylist(rows.sales))
    session.execute("CREATE TABLE clicks AS SELECT id, n, epoch(ts::TIMESTAMP)::BIGINT AS t FROM c")
    session.execute("CREATE TABLE sales AS SELECT id, m, epoch(sold::TIMESTAMP)::BIGINT AS t FROM s")
    [(clicked, sold)] = session.execute("SELECT (SELECT max(t) FROM clicks), (SELECT max(t) FROM sales)").fetchall()
    mark, both = clicked - DELAY, min(clicked, sold) - DELAY

    def found(table: str, *names: str) -> list[Any]:
        stored = DeltaTable(str(lake / table)).to_pyarrow_table().to_pylist()
        values = [[r[n].timestamp() if n.startswith("window") else r[n] for n in names] for r in stored]
        return sorted(repr([None if v is None else float(v) for v in row]) for row in values)

    def said(query: str) -> list[Any]:
        return sorted(repr([None if v is None else float(v) for v in row]) for row in session.sql(query).fetchall())

    late = f"SELECT 99, {rows.late[0]['n']}"
    assert found("once", "id", "n") == said(f"SELECT id, min(n) FROM clicks GROUP BY id UNION ALL {late}")
    assert found("recent", "id", "n") == said("SELECT id, n FROM clicks")
    assert found("recent_quarantine", "id", "n") == said(" UNION ALL ".join(f"SELECT 99, {r['n']}" for r in rows.late))
    windows = "SELECT id, t - t % {0} AS w, count(*) AS rows, {1} FROM clicks GROUP BY id, w {2}"
    closed = windows.format(60, "median(n)", f"HAVING w + 60 <= {mark}")
    assert found("per_minute", "id", "window_start", "rows", "middle") == said(closed)
    slid = f"SELECT id, t - t % 60 - i * 60 AS w, count(*) FROM clicks, range(2) r(i) GROUP BY id, w HAVING w + 120 <= {mark}"
    assert found("sliding", "id", "window_start", "rows") == said(slid)
    assert found("latest", "id", "window_start", "rows", "total") == said(windows.format(300, "sum(n)", ""))
    gaps = "SELECT *, (t - lag(t, 1, -99) OVER (PARTITION BY id ORDER BY t) >= 20)::INT AS new FROM clicks"
    numbered = f"SELECT *, sum(new) OVER (PARTITION BY id ORDER BY t) AS visit FROM ({gaps})"
    visits = f"SELECT id, min(t), count(*) FROM ({numbered}) GROUP BY id, visit HAVING max(t) + 20 <= {mark}"
    assert found("visits", "id", "window_start", "rows") == said(visits)
    on = f"c.id = s.id AND abs(c.t - s.t) <= {SPAN}"
    pairs = f"SELECT n, m FROM clicks c JOIN sales s ON {on}"
    lone = f"SELECT n, NULL FROM clicks c ANTI JOIN sales s ON {on} WHERE c.t + {SPAN} < {both}"
    assert found("bought", "n", "m") == said(f"{pairs} UNION ALL {lone}")
    near = "c.id = s.id AND s.t BETWEEN c.t - 5 AND c.t + 30"
    assert found("paired", "id", "n") == said(f"SELECT id, n FROM clicks c SEMI JOIN sales s ON {near}")
    minutes = f"SELECT w + 60 AS e, rows FROM ({windows.format(60, '0', '')})"
    ended = f"SELECT e - e % 120 AS v, max(rows) FROM ({minutes}) GROUP BY v HAVING v + 120 <= {mark}"
    assert found("busiest", "window_start", "most") == said(ended)
    assert found("seen", "id") == said("SELECT DISTINCT id FROM clicks")


def check_views(lake: Path) -> None:
    with duckdb.connect() as session:
        for table in ("recent", "bought"):
            session.register(table, DeltaTable(str(lake / table)).to_pyarrow_table())
        session.execute(f"CREATE TEMP VIEW a AS {A}")
        session.execute(f"CREATE TEMP VIEW b AS {B}")
        for view in test_view_kills.KINDS:
            held = DeltaTable(str(lake / view)).to_pyarrow_table()
            assert counted(held) == counted(session.sql(QUERIES[view]).to_arrow_table()), view
