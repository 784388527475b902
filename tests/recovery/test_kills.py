"""Kill the real process with SIGKILL, at every named point and at random moments, and compare every row."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.recovery.lake import RecoveryLake
from waxlake.stream.failpoints import FAILPOINTS, MAINTENANCE_FAILPOINTS

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("mode", ["triggered", "continuous", "two-workers", "two-processes", "bytewax-run"])
def test_every_failpoint(mode: str, make_lake: Callable[[], RecoveryLake]) -> None:
    lake = make_lake()
    for failpoint in FAILPOINTS:
        lake.publish(300)
        lake.run_to_failpoint(mode, failpoint)
    lake.publish(300)
    lake.finish(mode)
    lake.check()


@pytest.mark.parametrize("mode", ["triggered", "continuous", "two-processes"])
def test_random_moments(mode: str, make_lake: Callable[[], RecoveryLake]) -> None:
    lake = make_lake()
    moments = random.Random(mode)
    kills = 0
    for _ in range(6):
        lake.publish(2000)
        kills += lake.run_and_kill_after(mode, moments.uniform(0.8, 3.5))
    assert kills > 0
    lake.finish(mode)
    lake.check()


def test_p93_kills_in_the_middle_of_maintenance(make_lake: Callable[..., RecoveryLake]) -> None:
    lake = make_lake(
        {
            "waxlake.compaction.minFiles": "2",
            "waxlake.vacuum.interval": "interval 0 seconds",
            "delta.deletedFileRetentionDuration": "interval 5 seconds",
            "delta.logRetentionDuration": "interval 5 seconds",
        }
    )
    for failpoint in MAINTENANCE_FAILPOINTS:
        lake.publish(300)
        lake.finish("triggered")  # else the table that reads this one is behind, and nothing is deleted
        lake.publish(300)
        lake.run_to_failpoint("triggered", failpoint)
    lake.finish("two-processes")
    lake.check()


def test_p60_modes_and_worker_counts_may_change_between_runs(make_lake: Callable[[], RecoveryLake]) -> None:
    lake = make_lake()
    for mode, failpoint in [
        ("two-workers", "files-written"),
        ("continuous", "committed"),
        ("two-processes", "between-tables"),
        ("bytewax-run", "quarantine-pending"),
        ("triggered", "ledger-written"),
    ]:
        lake.publish(300)
        lake.run_to_failpoint(mode, failpoint)
    lake.finish("two-workers")
    lake.check()
