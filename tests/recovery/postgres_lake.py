"""A pipeline over a PostgreSQL database that is written while the pipeline's process is killed, and the check afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from tests.recovery.lake import wait
from tests.recovery.targets import TARGET_DEFINITIONS, TARGETS, check_targets
from tests.recovery.workload import KEYS, Workload, logged_changes, replayed
from tests.services.postgres import PostgresServer
from waxlake.stream.position import app_id

TABLES = tuple(KEYS)
_MOST_CHANGES = 50
_DEFINITIONS = """
import waxlake as wl

CHANGES = ("_change_type", "_commit_position", "_change_index", "_commit_timestamp", "_table", "_unchanged")

def read(*tables):
    return wl.read_postgres({dsn!r}, tables, slot={slot!r}, load_chunk_rows=150, max_rows_per_batch=1000)

@wl.table
def accounts():
    return read("accounts").select("*", *CHANGES)

@wl.table
def entries():
    return read("entries").select("*", *CHANGES)

@wl.table
def both():
    return read("accounts", "entries").select("v", "_change_type", "_table", "_commit_position", "_change_index")

changes_of = read
""" + TARGET_DEFINITIONS.replace("{", "{{").replace("}", "}}")
_SPEC = """
name: recovery
storage: ./lake
libraries: [{glob: {include: "flows/definitions.py"}}]
trigger_interval: 200ms
"""


@dataclass(slots=True)
class PostgresLake:
    """One pipeline over one database."""

    folder: Path
    server: PostgresServer
    database: str
    dsn_options: str = ""
    kills: int = 0
    workload: Workload = field(init=False)
    _connection: Any = None

    def make(self) -> None:
        """Create the tables, some rows in them, and the project."""
        self._connection = psycopg2.connect(self.server.dsn(self.database))
        self.workload = Workload(self._transact)
        self.workload.create(800)
        self.server.execute("ALTER TABLE accounts ALTER COLUMN document SET STORAGE EXTERNAL", database=self.database)
        (self.folder / "flows").mkdir()
        text = _DEFINITIONS.format(dsn=self.server.dsn(self.database) + self.dsn_options, slot=self.database)
        (self.folder / "flows" / "definitions.py").write_text(text)
        (self.folder / "waxlake.yml").write_text(_SPEC)

    def close(self) -> None:
        """Let go of the database."""
        if self._connection is not None:
            self._connection.close()

    def start(self, *options: str, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """Start the pipeline's process."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("WAXLAKE_")}
        environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        if failpoint is not None:
            environ["WAXLAKE_FAILPOINT"] = failpoint
        with (self.folder / "run.log").open("ab") as log:
            command = [sys.executable, "-m", "waxlake", "run", *options]
            return subprocess.Popen(
                command, cwd=self.folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def log(self) -> str:
        """Return the end of what the processes printed."""
        return (self.folder / "run.log").read_text(errors="replace")[-4000:]

    def kill_at(self, failpoint: str, disturb: Callable[[], None]) -> None:
        """Run on and on, changes going on, until the failpoint kills the process."""
        process = self.start("--continuous", failpoint=failpoint)
        deadline, disturbed = time.monotonic() + 60, 0
        while process.poll() is None and time.monotonic() < deadline:
            disturb()
            disturbed += 1  # a slow machine is not to leave more for the end
            time.sleep(0.05 if disturbed < _MOST_CHANGES else 0.5)
        assert wait(process, 1) == -signal.SIGKILL, f"not killed at {failpoint}:\n{self.log()}"
        self._after_kill()

    def run_quietly(self, process: subprocess.Popen[bytes]) -> None:
        """Let a running process read on to the end of the log, of which its tables need not hold anything yet."""
        end = self._scalar("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")
        received = f"""SELECT coalesce(max((write_lsn - '0/0')::int8), 0) FROM pg_stat_replication
            JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = '{self.database}'"""
        deadline = time.monotonic() + 60
        while self._scalar(received) < end or len(self.positions()) < 2 * len(TABLES):
            assert process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        self.assert_slot_is_not_ahead()

    def make_server_ask(self, process: subprocess.Popen[bytes], silent_s: float) -> None:
        """Write what is not the tables', and let the process say nothing until the server has asked for an answer."""
        silent = f"""SELECT coalesce(bool_or(clock_timestamp() - reply_time > interval '{silent_s} s'), true)
            FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = '{self.database}'"""
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            self._scalar("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 100000))")
            while not self._scalar(silent):
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGCONT)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a running process."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._after_kill()

    def kill_after(self, seconds: float, *options: str) -> None:
        """Run, changes going on, and kill the process after a while."""
        process = self.start(*options)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            self.workload.run(1)
            time.sleep(0.03)
        if process.poll() is None:
            self.kill(process)
        assert process.returncode in (0, -signal.SIGKILL), self.log()

    def _after_kill(self) -> None:
        self.kills += 1
        self.assert_slot_is_not_ahead()

    def finish(self) -> None:
        """Run to the end without a kill."""
        process = self.start()
        assert wait(process, 300) == 0, self.log()
        self.assert_slot_is_not_ahead()

    def assert_slot_is_not_ahead(self) -> None:
        """What the server may forget is what every table holds."""
        query = "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = %s"
        with self._connection.cursor() as cursor:
            cursor.execute(query, (self.database,))
            found = cursor.fetchone()
        self._connection.commit()
        positions = self.positions()
        if found is not None and positions:
            assert int(found[0]) <= min(positions), f"the slot is at {found[0]}, the tables at {sorted(positions)}"

    def positions(self) -> list[int]:
        """Return the stored positions of all flows in the changes of all their tables."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT system_identifier FROM pg_control_system()")
            source = f"postgres:{cursor.fetchone()[0]}/{self.database}/{self.database}/0"
            cursor.execute("SELECT relname, oid::int8 FROM pg_class WHERE relname = ANY(%s)", (list(TABLES),))
            oids = dict(cursor.fetchall())
        self._connection.commit()
        stored = []
        flows = [(table, (table,)) for table in TABLES] + [(name, (table,)) for name, table in TARGETS.items()]
        for name, tables in (*flows, ("both", TABLES)):
            path = self.folder / "lake" / "tables" / "default" / name
            if not (path / "_delta_log").is_dir():
                continue
            handle = DeltaTable(str(path))
            stored += [handle.transaction_version(app_id(name, source, str(oids[table]))) for table in tables]
        return [position for position in stored if position is not None]

    def table(self, name: str) -> pa.Table:
        """Return a table's rows."""
        return DeltaTable(str(self.folder / "lake" / "tables" / "default" / name)).to_pyarrow_table()

    def check(self, before: dict[str, set[Any]], since: int) -> int:
        """Compare the change logs with what was done: the rows they end with, and each change once; and the other targets.

        Args:
            before: Changes of each table that may or may not be in the log: they were made before its stream began.
            since: Where the first loads were complete.

        Returns:
            Number of committed states that the histories were compared with.
        """
        for table, keys in KEYS.items():
            source = {tuple(row[name] for name in keys): row for row in self._rows(table)}
            assert source == self.workload.rows[table], f"the workload is wrong on {table}"
        compared = check_targets(self.folder / "lake" / "tables" / "default", self.workload, since=since)
        both = self.table("both")
        for table in TABLES:
            log = self.table(table)
            assert replayed(table, log) == self.workload.rows[table]
            logged = logged_changes(table, log, has_old_versions=False)
            assert max(logged.values(), default=1) == 1, f"twice in the log of {table}: {logged.most_common(3)}"
            made = {_without_old_version(change) for change in self.workload.changes if change[0] == table}
            missing, invented = made - logged.keys() - before[table], logged.keys() - made
            assert not missing, f"not in the log of {table}: {sorted(missing, key=str)[:5]}"
            assert not invented, f"nobody did: {sorted(invented, key=str)[:5]}"
            mine = both.filter(pc.equal(both["_table"], f"public.{table}"))
            columns = ["_commit_position", "_change_index", "_change_type", "v"]
            # Which run stored a flow's first position, and with it where its stream begins, is a matter of the kills.
            ours, theirs = (_changes(rows, columns) for rows in (log, mine))
            begin = max(ours[0], theirs[0])
            assert [row for row in theirs if row >= begin] == [row for row in ours if row >= begin]
        self._check_log()
        return compared

    def made(self) -> dict[str, set[Any]]:
        """Return the changes made so far, by table."""
        return {t: {_without_old_version(c) for c in self.workload.changes if c[0] == t} for t in TABLES}

    def _check_log(self) -> None:
        """The logs themselves must tell the same: each commit starts where the one before ended."""
        for name in (*TABLES, "both"):
            position: dict[tuple[str, str], int] = {}
            handle = DeltaTable(str(self.folder / "lake" / "tables" / "default" / name))
            for entry in reversed(handle.history()):
                for facts in ((entry.get("waxlake") or {}).get("flows") or {}).values():
                    for source in facts["sources"]:
                        key = (source["source"], source["partition"])
                        assert position.get(key, source["start"]) == source["start"], (name, entry["version"])
                        position[key] = source["end"]

    def log_position(self) -> int:
        """Return where the server's log ends now."""
        return int(self._scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"))

    def _scalar(self, query: str) -> Any:
        return self.server.execute(query, database=self.database)[0][0]

    def _rows(self, table: str) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        self._connection.commit()
        return rows

    def _transact(self, statements: Sequence[str]) -> int:
        with self._connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            self._connection.commit()
            cursor.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
            (position,) = cursor.fetchone()
        self._connection.commit()
        return int(position)


def _without_old_version(change: tuple[str, str, Any, int]) -> tuple[str, str, Any, int]:
    table, kind, key, version = change
    return table, kind, key, 0 if kind in ("delete", "truncate") else version


def _changes(log: pa.Table, columns: list[str]) -> list[tuple[Any, ...]]:
    """Return the changes of a log in the order of commits, rows of the first load left out."""
    changes = log.filter(pc.not_equal(log["_change_type"], "read")).sort_by(
        [(name, "ascending") for name in columns[:2]]
    )
    return list(zip(*(changes.column(name).to_pylist() for name in columns), strict=True))
