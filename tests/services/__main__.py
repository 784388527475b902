"""Makes services ready, and tells which are: `python -m tests.services prepare [kafka] [minio] [mysql]`, `... available`.

`prepare` fetches or builds what is not in the cache and exits 1 when something named cannot be had. `available` prints
the services that can be started here, a comma between, as `WAXLAKE_REQUIRE` wants them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.services import ServiceMissing, kafka, mariadb, mysql, postgres, s3
from waxlake.demo.broker import EmbeddedBroker
from waxlake.stream.errors import TerminalError

_PREPARE = {"kafka": kafka.prepare, "minio": s3.prepare, "mysql": mysql.prepare}


def _start_tansu() -> None:
    with EmbeddedBroker():
        pass


_AVAILABLE: dict[str, Callable[[], object]] = {
    "tansu": _start_tansu,
    "kafka": kafka.jar_directory,
    "minio": s3.minio_binary,
    "moto": s3.check_moto,
    "mariadb": mariadb.server_binary,
    "mysql": mysql.mysql_binary,
    "postgres": postgres.debian_binaries,
    "pgserver": postgres.embedded_binaries,
}


def _prepare(names: list[str]) -> int:
    failures = 0
    for name in names or list(_PREPARE):
        began = time.monotonic()
        try:
            path = _PREPARE[name]()
        except ServiceMissing as reason:
            failures += 1
            print(f"{name}: NOT READY: {reason}", flush=True)
        else:
            print(f"{name}: ready in {path} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failures else 0


def _available() -> int:
    found = []
    for name, probe in _AVAILABLE.items():
        try:
            probe()
        except (ServiceMissing, TerminalError) as reason:
            print(f"{name}: {reason}", file=sys.stderr)
        else:
            found.append(name)
    print(",".join(found))
    return 0


def main(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    match arguments:
        case ["prepare", *names] if set(names) <= set(_PREPARE):
            return _prepare(names)
        case ["available"]:
            return _available()
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
