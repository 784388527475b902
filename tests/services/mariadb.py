"""MariaDB for tests: an own server process with a row binlog, its data in a temporary folder; or one that is there already."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql

from tests.services import ServiceMissing
from waxlake.demo.process import ChildProcess, free_port

_START_TIMEOUT_S = 60
_OPTIONS: Mapping[str, str | int] = {
    "server-id": 1,
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "binlog-row-metadata": "FULL",
    "character-set-server": "utf8mb4",
    "default-time-zone": "+02:00",  # unlike UTC, so that a time zone that is forgotten shows
    "innodb-buffer-pool-size": "64M",
    "innodb-log-file-size": "32M",
    "innodb-flush-log-at-trx-commit": 2,  # what was committed outlives the process
    "sync-binlog": 0,
    "max-connections": 100,
    "max-allowed-packet": "64M",
    "performance-schema": "OFF",
}


class MySQLServer:
    """A server that was running before the tests and outlives them, named by `WAXLAKE_MYSQL_URL`; its user may do anything.

    Args:
        url: ``mysql://user:password@host:port``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 3306
        self.user, self.password = parts.username or "", parts.password or ""

    @property
    def url(self) -> str:
        """Address of the server for its administrator."""
        return f"mysql://{self.user}:{self.password}@{self.host}:{self.port}"

    def connect(self, database: str | None = None, **options: Any) -> pymysql.Connection[Any]:
        """Return an administrator's connection, autocommit."""
        values = {
            "user": self.user,
            "password": self.password,
            "autocommit": True,
            "charset": "utf8mb4",
            "ssl_disabled": self.host == "127.0.0.1",
        }
        return pymysql.connect(host=self.host, port=self.port, database=database, **{**values, **options})

    def execute(self, *statements: str, database: str | None = None) -> Sequence[tuple[Any, ...]]:
        """Run statements; return the rows of the last one."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall()

    def create_database(self) -> str:
        """Create an empty database and return its name, unique."""
        name = f"wax_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return name


class MariaDB(MySQLServer):
    """One MariaDB server on a port of its own; its data survives `restart` and `kill`.

    Args:
        options: Server options besides, or instead of, the ones set here; None as a value leaves an option out.
    """

    def __init__(self, *, options: Mapping[str, str | int | None] | None = None) -> None:
        super().__init__(f"mysql://root:wax-root@127.0.0.1:{free_port()}")
        self._binary = server_binary()
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-mariadb-"))
        self._options = {**_OPTIONS, **(options or {})}
        self.log_path = self._directory / "server.log"
        self._child: ChildProcess | None = None
        _install(self._directory)
        self.start(is_first=True)

    def start(self, *, is_first: bool = False) -> None:
        """Start the server and wait until it answers. Does nothing when it runs."""
        if self._child is not None and self._child.is_running:
            return
        self._child = ChildProcess(self._command(), log_path=self.log_path, directory=self._directory)
        self._child.wait_until(lambda: self._answers(is_first), timeout_s=_START_TIMEOUT_S)
        if is_first:
            with pymysql.connect(host=self.host, port=self.port, user=self.user, ssl_disabled=True) as connection:
                connection.cursor().execute(f"SET PASSWORD = PASSWORD('{self.password}')")

    def stop(self) -> None:
        """Stop the server in good order. Does nothing when it is not running."""
        if self._child is not None:
            self._child.stop(grace_s=20)
            self._child = None

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def restart(self) -> None:
        """Stop it, if need be, and start it at the same address with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the server and delete its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _command(self) -> list[str]:
        own = {
            "datadir": self._directory / "data",
            "socket": self._directory / "server.sock",
            "pid-file": self._directory / "server.pid",
            "port": self.port,
            "bind-address": self.host,
        }
        options = [f"--{key}={value}" for key, value in {**self._options, **own}.items() if value is not None]
        return [self._binary, "--no-defaults", *_as_user(), "--skip-name-resolve", *options]

    def _answers(self, is_first: bool) -> bool:
        try:
            pymysql.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                password="" if is_first else self.password,
                ssl_disabled=True,
            ).close()
        except pymysql.MySQLError:
            return False
        return True


def server_binary() -> str:
    """Return the path of the server.

    Raises:
        ServiceMissing: It is not installed.
    """
    found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("mariadb-install-db") is None:
        raise ServiceMissing("found no mariadbd and mariadb-install-db; Debian's package is mariadb-server")
    return found


def _as_user() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _install(directory: Path) -> None:
    """Create the system tables."""
    done = subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            *_as_user(),
            f"--datadir={directory / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        capture_output=True,
        text=True,
        timeout=_START_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"cannot install MariaDB's tables in {directory}:\n{done.stdout}{done.stderr}")
