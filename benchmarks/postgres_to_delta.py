"""Rows per second from a PostgreSQL table into a Delta table: a first load, then changes, the server beside it.

    python -m benchmarks.postgres_to_delta [--rows 2000000] [--changes 1000000] [--binaries /usr/lib/postgresql/15/bin]

Goals on two cores: 200,000 rows/s loaded, 100,000 changes/s streamed, appended with all change columns. The changes are one
transaction of inserts and one of updates, written before the clock starts; the run's own start-up counts. Peak memory is that
of the whole process. Processor seconds, ours and the server's, are what can be compared when others use the machine; the server's
own rate, nobody decoding what it sends, is measured before each run.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable

from tests.services.postgres import PostgresServer, debian_binaries
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import load_spec

_DEFINITIONS = """
import waxlake as wl

@wl.table
def orders():
    return wl.read_postgres({dsn!r}, ["orders"], slot="bench").select(
        "*", "_change_type", "_commit_position", "_change_index", "_commit_timestamp")
"""
_SPEC = "name: bench\nstorage: ./lake\nlibraries: [{glob: {include: definitions.py}}]\n"
_ROW = "i, i % 1000, 'customer number ' || i % 5000, (i % 10000) / 100.0, now() - i * interval '1 second', i % 2 = 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--binaries", type=Path, default=None)
    options = parser.parse_args()
    server = PostgresServer(options.binaries or debian_binaries(), options={"shared_buffers": "256MB"})
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(server, Path(folder), options.rows, options.changes)
    finally:
        server.close()


def measure(server: PostgresServer, folder: Path, rows: int, changes: int) -> None:
    database = server.create_database()
    columns = "id int8 PRIMARY KEY, shop int, customer text, amount numeric(12,2), at timestamptz, paid bool"
    server.execute(f"CREATE TABLE orders ({columns})", database=database)
    server.execute(f"INSERT INTO orders SELECT {_ROW} FROM generate_series(1, {rows}) i", database=database)
    server.execute("ANALYZE orders", database=database)
    (folder / "definitions.py").write_text(_DEFINITIONS.format(dsn=server.dsn(database)))
    (folder / "waxlake.yml").write_text(_SPEC)
    report("the server's COPY alone", rows, timed(server, lambda: copy(server, database)))
    report("first load", rows, timed(server, lambda: run(folder)))
    inserts = changes // 2
    server.execute(
        f"INSERT INTO orders SELECT {_ROW} FROM generate_series({rows + 1}, {rows + inserts}) i", database=database
    )
    server.execute(f"UPDATE orders SET shop = shop + 1 WHERE id <= {changes - inserts}", database=database)
    report("the server's stream alone", changes, timed(server, lambda: follow(server, database, changes)))
    report("changes", changes, timed(server, lambda: run(folder)))
    found = DeltaTable(str(folder / "lake/tables/default/orders")).to_pyarrow_table(columns=["id"]).num_rows
    assert found == rows + changes, f"{found} rows in the table, expected {rows + changes}"


def run(folder: Path) -> None:
    """Run the pipeline up to what the database holds."""
    run_update(load_spec(folder / "waxlake.yml", params={}), RunOptions(), [])


def copy(server: PostgresServer, database: str) -> None:
    """Let the server send all rows."""
    with (
        server.connection(database) as connection,
        connection.cursor() as cursor,
        Path(os.devnull).open("wb") as nowhere,
    ):
        cursor.copy_expert("COPY orders TO STDOUT WITH (FORMAT csv)", nowhere)


def follow(server: PostgresServer, database: str, count: int) -> None:
    """Let the server send all changes once; the slot stays where it is."""
    with server.connection(database) as connection, connection.cursor("peek") as cursor:
        connection.autocommit = False
        cursor.itersize = 50_000
        cursor.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('bench', NULL, NULL, "
            "'proto_version', '1', 'publication_names', 'bench')"
        )
        assert sum(1 for _ in cursor) >= count


def timed(server: PostgresServer, work: Callable[[], None]) -> tuple[float, float, float]:
    """Return seconds, processor seconds of ours, and those of the server."""
    began, cpu, theirs = time.monotonic(), time.process_time(), server.cpu_s()
    work()
    return time.monotonic() - began, time.process_time() - cpu, server.cpu_s() - theirs


def report(what: str, count: int, took: tuple[float, float, float]) -> None:
    seconds, cpu, theirs = took
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = f"{count / seconds:,.0f} rows/s; a processor second: {count / cpu:,.0f} of ours, {count / theirs:,.0f} of the server"
    print(f"{what}: {count:,} rows in {seconds:.1f} s, {speed}; peak memory {peak_mb:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
