"""Kill a pipeline over PostgreSQL at every named point and at random moments, while the database is written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recovery.postgres_lake import PostgresLake
from tests.services.postgres import PostgresServer

pytestmark = [pytest.mark.timeout(1200), pytest.mark.kills]

LOAD = ("load-planned:1", "load-planned:2", "chunk-recorded:1", "chunk-read:1", "chunk-read:4", "committed:1")
STREAM = (
    *("piece-read:1", "piece-read:3", "confirm:1", "confirmed:1", "files-written:1", "files-written:4"),
    *(
        "committed:2",
        "between-tables:1",
        "between-tables:3",
        "confirm:2",
        "confirmed:2",
        "merge-begun:3",
        "state-written:1",
    ),
)


@pytest.fixture
def lake(debian_postgres: PostgresServer, database: str, tmp_path: Path) -> Iterator[PostgresLake]:
    lake = PostgresLake(tmp_path, debian_postgres, database)
    lake.make()
    yield lake
    lake.close()


def test_c26_every_failpoint_and_random_moments(lake: PostgresLake) -> None:
    for failpoint in LOAD:
        lake.kill_at(failpoint, lambda: lake.workload.run(1))
    lake.finish()
    before, loaded = lake.made(), lake.log_position()
    lake.workload.truncate()
    moments = random.Random(3)
    for number, failpoint in enumerate(STREAM):
        if number % 3 == 0:
            lake.workload.large(3500)  # three pieces, whatever came before it
        lake.kill_at(failpoint, lambda: lake.workload.run(1))
        if number % 4 == 1:
            lake.workload.add_column()
    for number in range(2):
        lake.kill_after(moments.uniform(1.5, 4.0), *(["--continuous"] if number % 2 else []))
    assert lake.kills >= 20
    lake.workload.run(20)
    lake.finish()
    assert lake.check(before, since=loaded) > 100


def test_a_server_that_asks_a_quiet_reader_is_told_of_nothing_that_tables_do_not_hold(
    debian_postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    options = "?options=-c%20wal_sender_timeout%3D2s"  # the server asks after one second without a word
    lake = PostgresLake(tmp_path, debian_postgres, database, dsn_options=options)
    lake.make()
    before = lake.made()
    process = lake.start("--continuous")
    try:
        lake.run_quietly(process)
        for _ in range(3):
            lake.make_server_ask(process, silent_s=1.2)
            lake.run_quietly(process)
        lake.workload.run(5)
        lake.make_server_ask(process, silent_s=1.2)
    finally:
        lake.kill(process)
    lake.finish()
    lake.check(before, since=lake.log_position())
    lake.close()
