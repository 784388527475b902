"""Kill the real process while files land, at named points and at random moments, and compare every row and every file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import LakeStorage
from tests.recovery.files_lake import FilesLake, new_lake
from waxlake.stream.failpoints import FILES_FAILPOINTS

pytestmark = [pytest.mark.timeout(900), pytest.mark.kills]
_OF_COMMITS = ("ledger-write", "ledger-written", "files-written", "committed", "between-tables", "quarantine-pending")
_OF_STORES = ("ledger-written", "clean-copied", "clean-removed")


@pytest.fixture
def lake(lake_storage: LakeStorage, tmp_path: Path) -> FilesLake:
    return new_lake(tmp_path, lake_storage)


def test_every_failpoint_of_files(lake: FilesLake) -> None:
    """On S3 only those where the store matters, in turns with other modes."""
    modes = ["triggered"] if lake.is_local else ["continuous", "two-workers", "triggered"]
    points = (*_OF_COMMITS, *FILES_FAILPOINTS) if lake.is_local else _OF_STORES
    for index, failpoint in enumerate(points):
        lake.run_to_failpoint(modes[index % len(modes)], failpoint)
    lake.finish()
    lake.finish()
    lake.check()


def test_random_moments(lake: FilesLake) -> None:
    mode = "continuous" if lake.is_local else "two-processes"
    moments, kills = random.Random(mode), 0
    for _ in range(3):
        kills += lake.run_and_kill_after(mode, moments.uniform(2.0, 4.0))
    assert kills > 0
    lake.finish(mode)
    lake.finish()
    lake.check()
