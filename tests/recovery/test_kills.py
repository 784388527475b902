"""Kill the real process with SIGKILL, at every named point and at random moments, and compare every row.

Where each kind of flow, of sink and of update is killed in CI, and how often at a named point:

- appends with a quarantine, Kafka and files, in five modes: here, 40, 5 between modes, 4 in maintenance, and up to 18 at
  random moments;
- files that are moved, deleted or written anew: ``test_files_kills`` 14, ``auto_loader/test_replace`` 4, their ledger 4, with
  notifications 2, uploads 2, a column that comes in between: ``auto_loader/test_evolution``;
- Postgres 19 and random moments, MySQL 11 and ten after commits, queries 5, Debezium 1: ``test_postgres_kills``,
  ``test_mysql_kills``, ``e2e/test_query``, ``e2e/test_debezium``;
- AUTO CDC, types 1 and 2: ``test_merge_kills`` 8; from snapshots: ``e2e/test_snapshots`` 4;
- stateful operators: ``test_state_kills`` 15, ``test_stateful_pipeline_kills`` with other numbers of workers each time;
- materialized views of eight kinds: ``test_view_kills`` 16;
- sinks to Kafka, to a Delta table and to a function, in three modes, once with Apache Kafka and S3: ``test_sink_kills`` 19;
- flows that run once: ``e2e/test_once`` 2; the quality table: ``e2e/test_expectations`` 3;
- updates: full refreshes ``e2e/test_refresh`` 9, rewinds of appended and of merged tables ``test_rewind`` 6 and 1 on S3, replays
  ``e2e/test_replay`` 5, an update that holds the lease ``e2e/test_one_update`` 1.
"""

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
