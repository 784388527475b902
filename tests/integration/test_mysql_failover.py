"""A MariaDB replica takes the place of its source: what follows is found by transaction ids, exactly, or nothing is read."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.mysql.position import server_number
from tests.e2e.project import Project
from tests.integration.mysql_lab import Lab
from tests.services.mariadb import MariaDB
from waxlake.stream.errors import SourceMoved


@dataclasses.dataclass
class Pair:
    """A server and its replica, which writes its own log into files of other names and numbers."""

    primary: MariaDB
    replica: MariaDB

    def start(self) -> None:
        """Replicate from the beginning."""
        for server in (self.primary, self.replica):
            server.execute("RESET MASTER")
        for _ in range(4):
            self.replica.execute("FLUSH BINARY LOGS")
        source = self.primary
        self.replica.execute(
            f"CHANGE MASTER TO MASTER_HOST='{source.host}', MASTER_PORT={source.port}, MASTER_USER='{source.user}', "
            f"MASTER_PASSWORD='{source.password}', MASTER_USE_GTID=slave_pos",
            "START SLAVE",
        )

    def catch_up(self) -> None:
        """Wait until the replica has everything."""
        last = self.primary.execute("SELECT @@gtid_binlog_pos")[0][0]
        assert self.replica.execute(f"SELECT MASTER_GTID_WAIT('{last}', 60)")[0][0] == 0

    def promote(self) -> None:
        """Let the replica be a server of its own."""
        self.replica.execute("STOP SLAVE", "RESET SLAVE ALL")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "shop")


@pytest.fixture
def pair(make_mariadb: Callable[..., MariaDB]) -> Pair:
    replica = {"server-id": 2, "log-bin": "other", "log-slave-updates": "ON", "slave-net-timeout": 5}
    pair = Pair(make_mariadb(), make_mariadb(options=replica))
    pair.start()
    return pair


DEFINITIONS = """
CHANGES = ("_change_type", "_commit_position", "_change_index")

def changes_of(table):
    return wl.read_mysql({url!r}, table, name="shop", load_chunk_rows=10)

@wl.table
def log():
    return changes_of("t").select("*", *CHANGES)

wl.ingest_database(changes_of, {{"t": {{"keys": "id", "name": "now"}}}})
wl.ingest_database(changes_of, {{"t": {{"keys": "id", "name": "history", "scd_type": 2}}}})
"""


def test_c41_w22_a_pipeline_goes_on_at_the_replica_each_change_once(pair: Pair, project: Project) -> None:
    database = pair.primary.create_database()
    done: list[tuple[int, int]] = []

    def write(server: MariaDB, count: int) -> None:
        for _ in range(count):
            done.append((len(done) % 7, len(done)))
            statement = "INSERT INTO t VALUES ({}, {}) ON DUPLICATE KEY UPDATE v = VALUES(v)".format(*done[-1])
            server.execute(statement, database=database)

    def check() -> None:
        logged = [row for row in project.rows("log") if row["_change_type"] != "read"]
        logged.sort(key=lambda row: (row["_commit_position"], row["_change_index"]))
        assert [(row["id"], row["v"]) for row in logged] == done
        assert project.rows("now", "id", "v") == sorted(dict(done).items())
        assert sorted(row["v"] for row in project.rows("history")) == [v for _, v in done]

    def run() -> None:
        outcome = project.waxlake("run")
        assert outcome.code == 0, outcome

    pair.primary.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)", database=database)
    project.define(DEFINITIONS.format(url=f"{pair.primary.url}/{database}"))
    run()
    write(pair.primary, 20)
    run()
    write(pair.primary, 5)
    pair.catch_up()
    pair.primary.kill()
    pair.promote()
    write(pair.replica, 5)
    project.define(DEFINITIONS.format(url=f"{pair.replica.url}/{database}"))
    (binlog,) = json.loads(project.waxlake("status", "--json").out)["binlogs"]
    assert "Another server answers" in binlog["warnings"][0]
    killed = project.waxlake("run", WAXLAKE_FAILPOINT="between-tables:1")
    assert killed.code == -9, killed
    run()
    check()
    write(pair.replica, 1)
    (binlog,) = json.loads(project.waxlake("status", "--json").out)["binlogs"]
    assert (binlog["source"], binlog["warnings"]) == ("mysql:shop", [])
    assert 100 < binlog["lag_bytes"] < 1000
    assert {server_number(row["_commit_position"]) for row in project.rows("log")} == {0, 1}


def test_the_address_is_given_to_the_replica_while_a_pipeline_runs(pair: Pair, project: Project) -> None:
    database = pair.primary.create_database()
    pair.primary.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)", database=database)
    project.define(DEFINITIONS.format(url=f"{pair.primary.url}/{database}"))
    project.run()
    with project.continuous() as run:
        pair.primary.execute("INSERT INTO t VALUES (1, 1)", database=database)
        run.await_rows("log", 1)
        pair.catch_up()
        pair.primary.kill()
        pair.promote()
        pair.replica.stop()
        pair.replica.port = pair.primary.port
        pair.replica.start()
        pair.replica.execute("INSERT INTO t VALUES (2, 2)", database=database)
        run.await_rows("log", 1)
    assert project.rows("log", "id", "_change_type") == [(1, "insert"), (2, "insert")]


def test_where_the_replica_has_not_what_comes_next_nothing_is_read(pair: Pair, tmp_path: Path) -> None:
    lab = Lab(pair.primary, tmp_path)
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    there: dict[str, Any] = {"name": "shop"}
    lab.read(lab.connector(**there))
    early = Lab(pair.primary, tmp_path / "early", lab.database)
    early.read(early.connector(**there))
    lab.execute("INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)")
    pair.catch_up()
    pair.replica.execute("STOP SLAVE")
    behind = dict(lab.positions)
    lab.read(lab.connector(**there))
    lab.execute("INSERT INTO t VALUES (4)")
    batches, ahead, notes = list(lab.batches), dict(lab.positions), dict(lab.notes)
    lab.read(lab.connector(**there))
    at_replica = lab.connector(url=pair.replica.url, **there)

    with pytest.raises(SourceMoved, match=r"found no 0-1-\d+\.\.\d+, which the tables hold") as missing:
        lab.read(at_replica)
    assert missing.value.code == "MYSQL_GTID_MISSING"

    pair.replica.execute(f"INSERT INTO {lab.database}.t VALUES (40)")  # the number of what the primary wrote last
    with pytest.raises(SourceMoved, match=r"found 0-2-\d+ before 0-1-\d+") as diverged:
        lab.read(lab.connector(url=pair.replica.url, **there))
    assert diverged.value.code == "MYSQL_GTID_DIVERGED"

    lab.notes = {}
    with pytest.raises(SourceMoved, match="no transaction ids beside binlog file 1 offset") as unknown:
        lab.read(lab.connector(url=pair.replica.url, **there))
    assert unknown.value.code == "MYSQL_GTID_UNKNOWN"

    # What both have: a flow is behind another, and both go on from their places.
    lab.batches, lab.positions, lab.notes = batches, behind, notes
    found = lab.read(lab.connector(url=pair.replica.url, **there), others=[ahead])
    rows = [(row["id"], batch.end) for batch in found for row in batch.table.to_pylist()]
    assert [id_ for id_, _ in rows] == [2, 3, 40]
    stream = f"{lab.database}.t"
    assert [id_ for id_, end in rows if end > ahead[stream]] == [40]
    assert ahead[stream] in [batch.end for batch in found]
    assert lab.read(lab.connector(url=pair.replica.url, **there)) == []

    def purge() -> str:
        return str(pair.replica.execute("PURGE BINARY LOGS TO 'other.000006'", "SHOW BINARY LOGS")[0][0])

    pair.replica.execute("FLUSH BINARY LOGS")
    while purge() != "other.000006":
        time.sleep(0.1)  # the connection of the reader before still holds it
    lab.positions = behind  # whose place was found before
    for purged_lab, said in ((lab, "the next position that a table needs"), (early, r"begins after 0-2-\d+\.\.\d+")):
        with pytest.raises(SourceMoved, match=said) as purged:
            purged_lab.read(purged_lab.connector(url=pair.replica.url, **there))
        assert purged.value.code == "MYSQL_BINLOG_PURGED"
