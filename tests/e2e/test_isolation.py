"""A source that cannot be read stops the flows that need it, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = """
import waxlake as wl

@wl.table
def away():
    return wl.read_kafka("t", "127.0.0.1:1", schema="n BIGINT", request_timeout_s=2)

@wl.table
def after():
    return wl.read_stream("away")

@wl.table
def landed():
    return wl.read_files("inbox", "json", schema="n BIGINT")

@wl.materialized_view
def total():
    return wl.sql("SELECT sum(n) AS n FROM landed")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.json").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(5)))
    (tmp_path / "flows" / "tables.py").write_text(DEFINITIONS)
    (tmp_path / "waxlake.yml").write_text("name: isolation\nstorage: ./lake\n")
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "waxlake", "run", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_p67_the_others_go_on_and_the_run_says_so(project: Path) -> None:
    done = run(project)
    assert done.returncode == 1
    assert "KAFKA_UNREACHABLE" in done.stderr
    assert "flow after is skipped: away failed" in done.stdout
    assert DeltaTable(project / "lake/tables/default/total").to_pyarrow_table().to_pylist() == [{"n": 10}]


def test_a_continuous_run_does_not_start_without_a_source(project: Path) -> None:
    done = run(project, "--continuous")
    assert done.returncode == 1
    assert "KAFKA_UNREACHABLE" in done.stderr
