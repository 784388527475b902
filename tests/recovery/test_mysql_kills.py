"""A pipeline over MariaDB is killed at named points and at random moments, under a workload; every change is compared."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from connectors.mysql.position import binlog_position
from tests.recovery.database import DatabaseLake
from tests.recovery.workload import KEYS, Workload
from tests.services.mariadb import MariaDB

pytestmark = pytest.mark.timeout(1200)


class Source:
    """A database of a server, its own for one test."""

    def __init__(self, server: MariaDB) -> None:
        self.server, self.database = server, server.create_database()

    def transact(self, statements: Sequence[str]) -> int:
        with self.server.connect(self.database, autocommit=False) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()
            cursor.execute("SHOW MASTER STATUS")
            file, offset = cursor.fetchone()[:2]
        return binlog_position(file, offset)

    def rows(self, table: str) -> list[dict[str, Any]]:
        with self.server.connect(self.database) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def read(self, table: str) -> str:
        return f"wl.read_mysql({f'{self.server.url}/{self.database}'!r}, {table!r}, load_chunk_rows=200)"


def test_c26_kills_under_a_workload(mariadb: MariaDB, tmp_path: Path) -> None:
    source = Source(mariadb)
    workload = Workload(source.transact)
    workload.create(2000)
    lake = DatabaseLake(tmp_path / "project", workload, {table: source.read(table) for table in KEYS})
    lake.make()
    for failpoint in ("chunk-recorded", "chunk-read", "files-written", "committed", "between-tables", "chunk-read"):
        lake.kill_at(failpoint)
        lake.begin()
        workload.run(20)
    lake.finish()
    loaded = workload.states[-1].position
    moments = random.Random(7)
    for number in range(10):
        writer = threading.Thread(target=workload.run, args=(60,))
        writer.start()
        lake.kill_after_commit(moments.uniform(0, 0.4))
        writer.join()
        lake.begin()
        if number == 3:
            workload.add_column()
        if number == 6:
            workload.large(20_000)
            lake.kill_at("piece-read")
        if number == 8:
            workload.truncate()
    for failpoint in ("files-written", "committed", "merge-begun", "state-written"):
        workload.run(10)
        lake.kill_at(failpoint)
    workload.run(10)
    lake.finish()
    assert lake.killed >= 20
    assert lake.check({table: source.rows(table) for table in KEYS}, since=loaded) > 100
