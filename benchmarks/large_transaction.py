"""One large transaction from PostgreSQL and from MariaDB into Delta tables: seconds, and the peak memory of the run.

    python -m benchmarks.large_transaction [--megabytes 1024] [--server postgres mariadb] [--target log now]

The transaction inserts rows of about 1 KiB in statements of 10,000 rows. `log` appends it with all change columns; `now` merges
it into current rows (SCD type 1). The run is a process of its own; its peak is what the kernel counted. The goal is a peak that
does not follow the size of the transaction for `log`: run it with two sizes to see. For `now` it has to fit in memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deltalake import DeltaTable

from tests.services.mariadb import MariaDB
from tests.services.postgres import PostgresServer, debian_binaries

_ROW_BYTES = 1024
_STATEMENT_ROWS = 10_000
_ROOT = Path(__file__).resolve().parents[1]
_TARGETS = {
    "log": """
@wl.table
def big():
    return changes.select("*", "_change_type", "_commit_position", "_change_index")
""",
    "now": """
wl.ingest_database(lambda table: changes, {"big": {"keys": "id"}})
""",
}
_SPEC = "name: bench\nstorage: ./lake\nlibraries: [{glob: {include: definitions.py}}]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--server", nargs="+", choices=["postgres", "mariadb"], default=["postgres", "mariadb"])
    parser.add_argument("--target", nargs="+", choices=list(_TARGETS), default=["log"])
    options = parser.parse_args()
    rows = options.megabytes * 1024 * 1024 // _ROW_BYTES
    for server in options.server:
        for target in options.target:
            with tempfile.TemporaryDirectory() as folder:
                (_postgres if server == "postgres" else _mariadb)(Path(folder), target, rows)


def _postgres(folder: Path, target: str, rows: int) -> None:
    server = PostgresServer(debian_binaries(), options={"shared_buffers": "256MB", "max_wal_size": "4GB"})
    server.start()
    try:
        database = server.create_database()
        server.execute("CREATE TABLE big (id int8 PRIMARY KEY, text text)", database=database)
        _define(folder, target, f"wl.read_postgres({server.dsn(database)!r}, ['big'], slot='bench')")
        _run(folder)
        with server.connection(database) as connection, connection.cursor() as cursor:
            connection.autocommit = False
            for first in range(0, rows, _STATEMENT_ROWS):
                last = min(rows, first + _STATEMENT_ROWS) - 1
                values = f"i, repeat(md5(i::text), {_ROW_BYTES // 32})"
                cursor.execute(f"INSERT INTO big SELECT {values} FROM generate_series({first}, {last}) i")
            connection.commit()
        _measure(folder, f"postgres, {target}", rows)
    finally:
        server.close()


def _mariadb(folder: Path, target: str, rows: int) -> None:
    server = MariaDB(options={"max-binlog-cache-size": 8 << 30, "innodb-buffer-pool-size": "256M"})
    try:
        database = server.create_database()
        server.execute("CREATE TABLE big (id BIGINT PRIMARY KEY, text TEXT)", database=database)
        _define(folder, target, f"wl.read_mysql({f'{server.url}/{database}'!r}, 'big')")
        _run(folder)
        with server.connect(database, autocommit=False) as connection, connection.cursor() as cursor:
            for first in range(0, rows, _STATEMENT_ROWS):
                last = min(rows, first + _STATEMENT_ROWS) - 1
                values = f"seq, repeat(md5(seq), {_ROW_BYTES // 32})"
                cursor.execute(f"INSERT INTO big SELECT {values} FROM seq_{first}_to_{last}")
            connection.commit()
        _measure(folder, f"mariadb, {target}", rows)
    finally:
        server.close()


def _define(folder: Path, target: str, read: str) -> None:
    (folder / "definitions.py").write_text(f"import waxlake as wl\n\nchanges = {read}\n{_TARGETS[target]}")
    (folder / "waxlake.yml").write_text(_SPEC)


def _run(folder: Path) -> tuple[float, float]:
    """Return seconds and peak MiB of one update."""
    command: Sequence[str] = [sys.executable, "-m", "waxlake", "run"]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(_ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the update ended with {process.returncode}"
    return time.monotonic() - began, usage.ru_maxrss / 1024


def _measure(folder: Path, what: str, rows: int) -> None:
    seconds, peak_mb = _run(folder)
    found = DeltaTable(str(folder / "lake/tables/default/big")).to_pyarrow_table(columns=["id"]).num_rows
    assert found == rows, f"{found} rows in the table, expected {rows}"
    size_mb = rows * _ROW_BYTES / 1024**2
    print(f"{what}: {size_mb:,.0f} MiB in {rows:,} rows: {seconds:.1f} s, peak memory {peak_mb:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
