"""Stateful operators are killed with SIGKILL at every point they pass: table and state come out as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recovery.state_writer import batches, bench
from waxlake.stream.failpoints import STATE_FAILPOINTS

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]


POINTS = (*STATE_FAILPOINTS, "files-written", "committed")
SCENARIOS = {
    "dedupe": POINTS,
    "sliding-append": POINTS[:2],
    "session-append": POINTS[1:3],
    "tumbling-update": POINTS[1:4:2],
    "join": POINTS[1::3],
    "keyed": POINTS[2::2],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_p85_every_failpoint_of_a_stateful_operator(tmp_path: Path, scenario: str) -> None:
    calm = bench(scenario, tmp_path / "calm")
    for group in batches(calm):
        calm.send(*group)
    folder = tmp_path / "killed"
    for point in [*(f"{name}:3" for name in SCENARIOS[scenario]), ""]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "WAXLAKE_FAILPOINT": point}
        done = subprocess.run(
            [sys.executable, "-m", "tests.recovery.state_writer", str(folder), scenario],
            env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if point else 0), (point, done.stderr[-2000:])
    killed = bench(scenario, folder)
    assert sorted(map(repr, killed.rows().to_pylist())) == sorted(map(repr, calm.rows().to_pylist()))
    mine, theirs = killed.manifest(), calm.manifest()
    assert mine["meta"]["watermark"] == theirs["meta"]["watermark"]
    assert {n: t["rows"] for n, t in mine["tables"].items()} == {n: t["rows"] for n, t in theirs["tables"].items()}
    named = {s["path"] for t in mine["tables"].values() for log in ("puts", "removals") for s in t[log]}
    assert all((folder / "t" / path).is_file() for path in named)
