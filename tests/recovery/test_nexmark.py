"""The queries of Nexmark, all in one pipeline whose updates are killed one after the other, equal DuckDB's."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.nexmark.generator import SCHEMAS, Generator, land
from benchmarks.nexmark.project import Project
from benchmarks.nexmark.queries import QUERIES, difference, open_events

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
EVENTS = Generator(events=20_000, rate=400, disorder=200, part=1_500)
#: Each update dies at one of these, at the n-th visit.
KILLS = (
    "committed:25",
    "state-applied:3",
    "files-written:5",
    "state-written:9",
    "files-written:12",
    "state-committed:7",
    "merge-begun:1",
    "state-applied:12",
    "state-committed:3",
    "committed:12",
)


def test_nexmark_generator_is_deterministic_and_keeps_the_proportions() -> None:
    one, other = list(EVENTS.parts()), list(EVENTS.parts())
    assert one == other
    counts = {kind: sum(part[kind].num_rows for part in one) for kind in ("person", "auction", "bid")}
    assert counts == {"person": 400, "auction": 1_200, "bid": 18_400}
    assert all(part[kind].schema == SCHEMAS[kind] for part in one for kind in part)
    times = np.concatenate([part["bid"].column("dateTime").cast("int64").to_numpy() for part in one])
    late_us = (np.maximum.accumulate(times) - times).max()
    assert 0 < late_us <= 200 / 400 * 1e6  # so that no row is late for a watermark four seconds behind


def test_nexmark_queries_equal_duckdb_after_kills(tmp_path: Path) -> None:
    parts = EVENTS.write(tmp_path / "events")
    reference = open_events(tmp_path / "events", "parquet")
    project = Project(tmp_path / "killed", tmp_path / "landed", list(QUERIES)).write()
    land([tmp_path / "events" / "side_input" / "00000.parquet"], tmp_path / "events", project.data)
    left, longest_s = iter(parts), 0.0
    for point in KILLS:
        land(next(left), tmp_path / "events", project.data)
        started_s = time.monotonic()
        assert project.run(failpoint=point) is None, point
        longest_s = max(longest_s, time.monotonic() - started_s)
    land(next(left), tmp_path / "events", project.data)
    project.run(kill_after_s=longest_s * random.Random(3).uniform(0.4, 0.8))
    for files in left:
        land(files, tmp_path / "events", project.data)
    assert project.run() is not None
    found = {query: difference(reference, query, project.lake) for query in QUERIES}
    assert {query: wrong for query, (_, *wrong) in found.items() if any(wrong)} == {}
    assert all(rows for rows, _, _ in found.values())  # every query has rows to compare
