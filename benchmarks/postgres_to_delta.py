"""Rows per second from a PostgreSQL table into a Delta table: a first load, then changes, the server beside it.

    python -m benchmarks.postgres_to_delta [--rows 2000000] [--changes 1000000] [--binaries /usr/lib/postgresql/15/bin]

Goals on two cores: 200,000 rows/s loaded, 100,000 changes/s streamed, appended with all change columns. The changes are one
transaction of inserts and one of updates, written before the clock starts; the run's own start-up counts. Peak memory is that
of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
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
    report("first load", rows, timed(folder))
    inserts = changes // 2
    server.execute(
        f"INSERT INTO orders SELECT {_ROW} FROM generate_series({rows + 1}, {rows + inserts}) i", database=database
    )
    server.execute(f"UPDATE orders SET shop = shop + 1 WHERE id <= {changes - inserts}", database=database)
    report("changes", changes, timed(folder))
    found = DeltaTable(str(folder / "lake/tables/default/orders")).to_pyarrow_table(columns=["id"]).num_rows
    assert found == rows + changes, f"{found} rows in the table, expected {rows + changes}"


def timed(folder: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of a run."""
    began, cpu = time.monotonic(), time.process_time()
    run_update(load_spec(folder / "waxlake.yml", params={}), RunOptions(), [])
    return time.monotonic() - began, time.process_time() - cpu


def report(what: str, count: int, took: tuple[float, float]) -> None:
    seconds, cpu = took
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = f"{count / seconds:,.0f} rows/s, {count / cpu:,.0f} rows per CPU second of ours"
    print(f"{what}: {count:,} rows in {seconds:.1f} s, {speed}, peak memory {peak_mb:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
