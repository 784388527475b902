"""First loads wait for their hours, changes do not: PostgreSQL and MariaDB."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from connectors.postgres.load import LOADED
from tests.e2e.project import Project
from tests.integration.postgres_lab import PostgresLab
from tests.services.postgres import PostgresServer
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.clock import holding_time
from waxlake.stream.errors import SourceChanged, TerminalError, UsageError
from waxlake.stream.source import plan_partitions

_NIGHT = "01:00-02:00"
_BY_NIGHT, _BY_DAY = (datetime(2026, 11, 20, hour, 30, tzinfo=timezone.utc) for hour in (1, 12))
_DEFINITIONS = """
def changes_of(table):
    return {read}, load_window={window!r}, load_chunk_rows=2)

@wl.table
def log():
    return changes_of({table!r}).select("*", "_change_type", "_commit_position", "_change_index")

wl.ingest_database(changes_of, {{{table!r}: {{"keys": "id", "name": "now"}}}})

@wl.materialized_view
def counted():
    return wl.sql("SELECT count(*) AS n FROM now")
"""


@pytest.fixture(params=["postgres", "mariadb"])
def shop(request: pytest.FixtureRequest) -> tuple[Callable[[str], object], str, str]:
    """How to write to a database of its own, how to read it, and what its table is called."""
    if request.param == "postgres":
        server, database = request.getfixturevalue("debian_postgres"), request.getfixturevalue("database")
        reading = f"wl.read_postgres({server.dsn(database)!r}, table, slot={database!r}"
        return lambda text: server.execute(text, database=database), reading, "public.t"
    server = request.getfixturevalue("mariadb")
    database = server.create_database()
    return (
        lambda text: server.execute(text, database=database),
        f"wl.read_mysql('{server.url}/{database}', table",
        "t",
    )


def test_c21_a_run_outside_the_window_takes_changes_and_a_later_one_the_rest(
    shop: tuple[Callable[[str], object], str, str], tmp_path: Path
) -> None:
    execute, read, table = shop
    project = Project(tmp_path)
    hour = datetime.now(timezone.utc) + timedelta(hours=3)
    closed = f"{hour:%H}:00-{hour:%H}:59"
    execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    execute("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)")
    project.define(_DEFINITIONS.format(read=read, table=table, window=closed))
    project.run()
    assert project.rows("log") == []
    execute("INSERT INTO t VALUES (6, 6)")
    execute("UPDATE t SET v = 20 WHERE id = 2")
    project.run()
    assert project.rows("now", "id", "v") == [(2, 20), (6, 6)]
    counted = json.loads(project.waxlake("sql", "SELECT n FROM counted", "--json").succeeded().out)
    assert counted["n"] == 2  # what follows the table does not wait for the load

    project.define(_DEFINITIONS.format(read=read, table=table, window="00:00-24:00"))
    project.run()
    assert project.rows("now", "id", "v") == [(1, 1), (2, 20), (3, 3), (4, 4), (5, 5), (6, 6)]
    loaded = [row["id"] for row in project.rows("log") if row["_change_type"] == "read"]
    assert sorted(loaded) == [1, 2, 3, 4, 5, 6]


def test_c21_a_window_that_closes_during_a_load_and_one_that_opens_while_changes_stream(
    debian_postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    lab = PostgresLab(debian_postgres, database, tmp_path, options={"load_window": _NIGHT, "load_chunk_rows": 10})
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT * FROM generate_series(1, 100)")
    with holding_time(_BY_NIGHT):
        connector = lab.connector("t")
        plan = plan_partitions(connector.inspect(), [{}], is_bounded=True)
    reader = connector.reader(plan, tuple(plan.partitions), frozenset(CHANGE_COLUMNS.names))
    with holding_time(_BY_DAY), contextlib.closing(reader), pytest.raises(SourceChanged, match="LOAD_WINDOW_CLOSED"):
        all(reader.read() is not None for _ in iter(int, 1))  # until it raises

    with holding_time(_BY_DAY):
        connector = lab.connector("t")
        plan = plan_partitions(connector.inspect(), [{}], is_bounded=False)
        reader = connector.reader(plan, tuple(plan.partitions), frozenset(CHANGE_COLUMNS.names))
        try:
            lab.execute("INSERT INTO t VALUES (1000)")
            while not (batches := [batch for batch in reader.read() if batch.table.num_rows]):
                pass
            assert batches[0].table.column("_change_type").to_pylist() == ["insert"]
            (load,) = (key for key in reader.positions() if ":" in key)
            with holding_time(_BY_NIGHT):
                rows: list[int] = []
                while reader.positions()[load] < LOADED:
                    rows += [n for batch in reader.read() for n in batch.table.column("id").to_pylist()]
            assert sorted(rows) == [*range(1, 101), 1000]
        finally:
            reader.close()


def test_a_window_that_cannot_be(debian_postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    lab = PostgresLab(debian_postgres, database, tmp_path, options={"load_window": _NIGHT})
    lab.execute("CREATE TABLE s (id int)")
    with pytest.raises(TerminalError, match="its load cannot wait for load_window"):
        lab.connector("s", on_missing_key="append").inspect()
    with pytest.raises(UsageError, match="'by night' is no window"):
        lab.connector("s", load_window="by night")
