"""Kill the real process while files land, at every named point and at random moments, and compare every row and every file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import LakeStorage
from tests.recovery.files_lake import FilesLake, new_lake
from waxlake.stream.failpoints import FAILPOINTS, FILES_FAILPOINTS

pytestmark = [pytest.mark.timeout(600), pytest.mark.kills]
_EVERY_POINT = (*FAILPOINTS, *FILES_FAILPOINTS)


@pytest.fixture
def lake(lake_storage: LakeStorage, tmp_path: Path) -> FilesLake:
    return new_lake(tmp_path, lake_storage)


def test_every_failpoint(lake: FilesLake) -> None:
    """All of them in a triggered run on one store after the other; the continuous run takes turns with other modes."""
    modes = ["triggered"] if lake.is_local else ["continuous", "two-workers", "triggered"]
    for index, failpoint in enumerate(_EVERY_POINT):
        lake.run_to_failpoint(modes[index % len(modes)], failpoint)
    lake.finish()
    lake.finish()
    lake.check()


@pytest.mark.parametrize("mode", ["continuous", "two-processes"])
def test_random_moments(lake: FilesLake, mode: str) -> None:
    moments, kills = random.Random(mode), 0
    for _ in range(4):
        kills += lake.run_and_kill_after(mode, moments.uniform(1.5, 4.0))
    assert kills > 0
    lake.finish(mode)
    lake.finish()
    lake.check()
