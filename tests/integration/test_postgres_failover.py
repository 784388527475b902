"""A PostgreSQL standby takes the place of its primary: a run goes on exactly where it has what the tables hold, or stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from tests import services
from tests.e2e.project import Project
from tests.services import ServiceMissing
from tests.services.postgres import PostgresServer, debian_binaries, embedded_binaries

MakePair: TypeAlias = "Callable[[str, Callable[[], Path]], Pair]"

DEFINITIONS = """
def changes_of(table):
    return wl.read_postgres({dsn!r}, table, slot="shop", on_slot_lost={on_slot_lost!r})

@wl.table
def log():
    return changes_of("t").select("*", "_change_type", "_commit_position", "_change_index")

wl.ingest_database(changes_of, {{"public.t": {{"keys": "id", "name": "now"}}}})
"""
_STANDBY = {"hot_standby_feedback": "on", "wal_receiver_status_interval": 1, "wal_retrieve_retry_interval": "200ms"}
_JUNK = "CREATE TABLE junk AS SELECT repeat('x', 100) FROM generate_series(1, 50000)"


@dataclass
class Pair:
    """A primary and its standby, and a project that reads whoever has the primary's address."""

    primary: PostgresServer
    standby: PostgresServer
    project: Project
    database: str

    def write(self, server: PostgresServer, *numbers: int) -> None:
        """Insert rows, a commit each."""
        for number in numbers:
            server.execute(f"INSERT INTO t VALUES ({number}, 'row {number}')", database=self.database)

    def define(self, on_slot_lost: str = "fail") -> None:
        dsn = self.primary.dsn(self.database)
        self.project.define(DEFINITIONS.format(dsn=dsn, on_slot_lost=on_slot_lost))

    def make_slot_on_standby(self) -> None:
        """Create the slot on the standby, as tools for failover do: it waits for a word of the primary's log."""
        make = "SELECT pg_create_logical_replication_slot('shop', 'pgoutput')"
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(self.standby.execute, make, database=self.database)
            while not made.done():
                self.primary.execute("SELECT pg_log_standby_snapshot(), pg_sleep(0.2)")
            made.result()

    def fail_over(self) -> None:
        """Stop the primary, and let the standby take its place and its address."""
        self.primary.stop()
        self.standby.promote(at_port=self.primary.port)

    def read_first_row(self) -> None:
        self.write(self.primary, 1)
        self.project.run()

    def read_anew(self) -> None:
        """Run with leave to read the tables again."""
        self.define(on_slot_lost="resnapshot")
        assert self.project.waxlake("run").code == 0

    def assert_standby_is_copied(self) -> None:
        rows = self.standby.execute("SELECT id, s FROM t", database=self.database)
        assert self.project.rows("now", "id", "s") == sorted(rows, key=repr)

    def kinds_in_order(self) -> list[tuple[str, int | None]]:
        rows = sorted(self.project.rows("log"), key=lambda row: (row["_commit_position"], row["_change_index"]))
        return [(row["_change_type"], row["id"]) for row in rows]


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[MakePair]:
    servers: list[PostgresServer] = []

    def make(name: str, binaries: Callable[[], Path]) -> Pair:
        try:
            primary = PostgresServer(binaries(), options={"wal_keep_size": "256MB"})
            servers.append(primary)
            primary.start()
            database = primary.create_database()
            primary.execute("CREATE TABLE t (id int PRIMARY KEY, s text)", database=database)
            standby = PostgresServer(binaries(), options=_STANDBY, primary=primary)
        except ServiceMissing as reason:
            services.missing(name, reason)
        servers.append(standby)
        standby.start()
        services.note_use(name, f"{primary.version}, started here")
        pair = Pair(primary, standby, Project(tmp_path / "shop"), database)
        pair.define()
        return pair

    yield make
    for server in servers:
        server.close()


def test_c20_c40_a_promoted_standby_without_the_slot_stops_a_run_or_is_read_anew(make_pair: MakePair) -> None:
    pair = make_pair("postgres", debian_binaries)
    pair.read_first_row()
    with pair.project.continuous() as run:
        pair.write(pair.primary, 2)
        run.await_rows("log", 1)
        pair.standby.await_primary()
        pair.standby.stop()
        pair.primary.execute(_JUNK)
        pair.write(pair.primary, 9)  # what the standby never hears of, in a log that is much longer than its own
        run.await_rows("log", 1)
        pair.fail_over()
        pair.write(pair.standby, 3)
        run.ended().refused("POSTGRES_SLOT_LOST", "on_slot_lost='resnapshot'")
    assert pair.kinds_in_order() == [("read", 1), ("insert", 2), ("insert", 9)]

    # Somebody makes the slot: the log ends before what the tables hold.
    pair.standby.execute("SELECT pg_create_logical_replication_slot('shop', 'pgoutput')", database=pair.database)
    pair.project.waxlake("run").refused("SOURCE_SHRUNK")
    assert ("insert", 3) not in pair.kinds_in_order()

    pair.read_anew()
    pair.write(pair.standby, 4)
    pair.project.run()
    kinds = pair.kinds_in_order()
    assert kinds[:4] == [("read", 1), ("insert", 2), ("insert", 9), ("truncate", None)]
    assert sorted(kinds[4:]) == [("insert", 4), ("read", 1), ("read", 2), ("read", 3)]
    pair.assert_standby_is_copied()


def test_c40_w22_a_promoted_standby_with_the_slot_goes_on_only_with_the_log_that_was_read(make_pair: MakePair) -> None:
    pair = make_pair("pgserver", embedded_binaries)
    pair.read_first_row()
    pair.make_slot_on_standby()
    with pair.project.continuous() as run:
        pair.write(pair.primary, 2, 3)
        run.await_rows("log", 2)
        pair.standby.await_primary()
        pair.fail_over()
        pair.write(pair.standby, 4, 5)
        run.await_rows("log", 2)
    pair.project.run()  # the other table may have been killed before it had them
    assert pair.kinds_in_order() == [("read", 1), *(("insert", number) for number in (2, 3, 4, 5))]
    pair.assert_standby_is_copied()


def test_a_standby_that_lacks_the_end_of_what_was_read_is_told_from_its_primary(make_pair: MakePair) -> None:
    pair = make_pair("pgserver", embedded_binaries)
    pair.read_first_row()
    pair.make_slot_on_standby()
    pair.standby.await_primary()
    pair.standby.stop()
    pair.write(pair.primary, 2, 3)
    pair.project.run()
    pair.fail_over()
    pair.write(pair.standby, 20)
    pair.standby.execute(_JUNK)  # so that its log goes beyond what the tables hold
    said = pair.project.waxlake("run").refused("POSTGRES_DIVERGED", "timeline 2, which left it at", "timeline 1 up to")
    assert "on_slot_lost='resnapshot'" in said
    assert pair.project.rows("log", "id") == [1, 2, 3]

    pair.read_anew()
    kinds = pair.kinds_in_order()
    assert kinds[:4] == [("read", 1), ("insert", 2), ("insert", 3), ("truncate", None)]
    assert sorted(kinds[4:]) == [("read", 1), ("read", 20)]
    pair.assert_standby_is_copied()


def test_another_cluster_at_the_address_is_another_source(make_pair: MakePair) -> None:
    pair = make_pair("postgres", debian_binaries)
    pair.write(pair.primary, 1)
    pair.define(on_slot_lost="resnapshot")
    pair.project.run()
    other = PostgresServer(debian_binaries())
    try:
        pair.primary.stop()
        other.port = pair.primary.port
        other.start()
        other.execute(f"CREATE DATABASE {pair.database}")
        other.execute("CREATE TABLE t (id int PRIMARY KEY, s text)", database=pair.database)
        pair.write(other, 7)
        pair.project.waxlake("run").refused("SOURCE_RECREATED")
    finally:
        other.close()
    assert pair.project.rows("log", "id") == [1]
