"""Refreshes of every kind of view are killed with SIGKILL where it hurts: each view is as before or as after, and goes on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.property.test_views import QUERIES
from tests.property.view_lab import A, B, ViewLab

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
KINDS = ("projection", "grouped", "grouped_more", "left_join", "full_join", "union_all", "distinct_rows", "windows")
POINTS = ("files-written", "committed")


def test_every_failpoint_of_every_kind_of_view(tmp_path: Path) -> None:
    queries = {view: QUERIES[view] for view in KINDS}
    lab = ViewLab(tmp_path, queries)
    lab.reset(_rows(0, 40), pa.table([range(4), ["u", "v", "w", None]], schema=B))
    _refresh(lab, "")
    for round_, view in enumerate(KINDS):
        for number, point in enumerate(POINTS):
            _change(lab, 2 * round_ + number)
            before = {name: (lab.table(name).version(), lab.held(name)) for name in KINDS}
            _refresh(lab, f"{point}:{1 + KINDS.index(view)}")
            done = KINDS.index(view) + (point == "committed")
            for position, name in enumerate(KINDS):
                if position < done:
                    assert (lab.table(name).version(), lab.held(name)) == (before[name][0] + 1, lab.expected(name)), (
                        name
                    )
                else:
                    assert (lab.table(name).version(), lab.held(name)) == before[name], name
    _refresh(lab, "")
    for name in KINDS:
        assert lab.held(name) == lab.expected(name), name
        facts = [
            entry["waxlake"]["flows"][name]["refresh"] for entry in lab.table(name).history() if "waxlake" in entry
        ]
        assert [each["mode"] for each in facts] == ["INCREMENTAL"] * (len(facts) - 1) + ["FULL"]
        spans = [dict(sorted(each["inputs"].items())) for each in facts[:-1]][::-1]
        for one, other in itertools.pairwise(spans):  # each refresh begins where the one before ended
            assert {key: end for key, (_, end) in one.items()} == {key: start for key, (start, _) in other.items()}


def _rows(start: int, count: int) -> pa.Table:
    ids = range(start, start + count)
    return pa.table([ids, [i % 5 for i in ids], ids, [i / 4 for i in ids], ["pq"[i % 2] for i in ids]], schema=A)


def _change(lab: ViewLab, number: int) -> None:
    write_deltalake(lab.path("a"), _rows(100 + number * 3, 3), mode="append")
    lab.input("a").update(predicate=f"id = {number}", updates={"k": "3"})
    lab.input("b").update(predicate=f"k = {number % 4}", updates={"name": f"'n{number}'"})


def _refresh(lab: ViewLab, point: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "WAXLAKE_FAILPOINT": point}
    done = subprocess.run(
        [sys.executable, "-m", "tests.recovery.view_writer", str(lab.folder), json.dumps(lab.queries)],
        env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if point else 0), (point, done.stderr[-2000:])
