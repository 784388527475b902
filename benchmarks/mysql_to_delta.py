"""MariaDB to Delta: the first load of a table, and the stream of its changes, each by one process with the server beside it.

Rows of 8 columns, about 110 bytes in the binlog. The changes are inserts, updates and deletes in statements of 200 rows, two
statements a transaction; they are in the binlog before the clock starts, so the server costs what a dump costs. Each round is a
fresh process that times itself from the first call after its imports to the last commit; medians are printed. With --profile
the stream of one round is profiled.

    python benchmarks/mysql_to_delta.py [--rows N] [--changes N] [--rounds N] [--profile]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TABLE = """CREATE TABLE orders (id BIGINT PRIMARY KEY, customer INT UNSIGNED NOT NULL, status ENUM('new','paid','sent') NOT NULL,
amount DECIMAL(12,2) NOT NULL, note VARCHAR(200), weight DOUBLE, created DATETIME(3) NOT NULL, updated TIMESTAMP(3) NULL)"""
VALUES = """seq + {offset}, seq % 9973, 1 + seq % 3, (seq * 37 % 1000000) / 100,
concat('order ', seq, ' ships to customer ', seq % 9973), seq / 7,
'2026-05-01' + INTERVAL seq SECOND, '2026-05-02 12:00:00.123'"""
DEFINITIONS = """
import waxlake as wl

@wl.table
def orders():
    return wl.read_mysql({url!r}, "orders").select("*", "_change_type", "_commit_position", "_change_index")
"""


def run_once(url: str, folder: Path, is_profiled: bool) -> None:
    """Run the pipeline once in this process, and tell the parent."""
    if not (folder / "flows").exists():
        (folder / "flows").mkdir(parents=True)
        (folder / "flows" / "orders.py").write_text(DEFINITIONS.format(url=url))
        (folder / "waxlake.yml").write_text("name: bench\nstorage: ./lake\n")

    import connectors.mysql
    from waxlake.pipeline.run import RunOptions, run_update
    from waxlake.pipeline.spec import load_spec

    assert connectors.mysql
    if is_profiled:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(run_update, load_spec(folder), RunOptions(), [])
        profile.dump_stats(str(folder / "profile"))
        return
    started = time.perf_counter()
    result = run_update(load_spec(folder), RunOptions(), [])
    print(json.dumps({"seconds": time.perf_counter() - started, "rows": result.tables["orders"]}))


def child(url: str, folder: Path, *more: str) -> dict[str, float]:
    """Run the pipeline in a fresh process; return what it told."""
    command = [sys.executable, __file__, "--child", url, str(folder), *more]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1]) if not more else {}


def measure(rows: int, changes: int, rounds: int, is_profiled: bool) -> None:
    """Start a server, fill it, and time loads and streams in turn."""
    from tests.services.mariadb import MariaDB

    server = MariaDB(options={"innodb-buffer-pool-size": "512M", "max-binlog-size": "256M"})
    taken: dict[str, list[float]] = {"load": [], "stream": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            database = server.create_database()
            folder = Path(scratch) / str(number)
            server.execute(TABLE, database=database)
            server.execute(
                f"INSERT INTO orders SELECT {VALUES.format(offset=0)} FROM seq_1_to_{rows}", database=database
            )
            load = child(f"{server.url}/{database}", folder)
            assert load["rows"] == rows
            taken["load"].append(rows / load["seconds"])
            made = change(server, database, rows, changes)
            if is_profiled:
                child(f"{server.url}/{database}", folder, "--profile")
                import pstats

                pstats.Stats(str(folder / "profile")).sort_stats("tottime").print_stats(30)
                break
            stream = child(f"{server.url}/{database}", folder)
            assert stream["rows"] == made, (stream, made)
            taken["stream"].append(made / stream["seconds"])
    server.close()
    for name, found in taken.items():
        if found:
            middle = statistics.median(found)
            print(f"{name:7} {middle:10,.0f} rows/s   median of {len(found)} ({min(found):,.0f} to {max(found):,.0f})")


def change(server: object, database: str, rows: int, changes: int) -> int:
    """Change the table; return how many rows were changed."""
    step, made, at = 200, 0, 0
    with server.connect(database, autocommit=False) as connection, connection.cursor() as cursor:  # type: ignore[attr-defined]
        while made < changes:
            low = at * step % max(step, rows - step)
            made += cursor.execute(
                f"INSERT INTO orders SELECT {VALUES.format(offset=rows + at * step)} FROM seq_1_to_{step}"
            )
            made += cursor.execute(f"UPDATE orders SET amount = amount + 1 WHERE id BETWEEN {low} AND {low + step - 1}")
            if at % 4 == 3:
                made += cursor.execute(f"DELETE FROM orders WHERE id > {rows + (at - 2) * step} LIMIT {step}")
            connection.commit()
            at += 1
    return made


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_once(arguments.child[0], Path(arguments.child[1]), arguments.profile)
    else:
        measure(arguments.rows, arguments.changes, arguments.rounds, arguments.profile)


if __name__ == "__main__":
    main()
