"""What an update with nothing new costs: ``waxlake run`` as a process, imports included. Asked for: under 2.5 s.

A pipeline of six datasets (Kafka, files, streams, a view, rules) is brought up to date once, then run again.

    python benchmarks/startup.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.kafka_to_delta import DDL, publish
from waxlake.demo.broker import EmbeddedBroker

DEFINITIONS = """
import waxlake as wl

@wl.table
@wl.expect_or_quarantine("paid", "amount > 0")
def payments():
    return wl.read_kafka("payments", {bootstrap!r}, schema={ddl!r})

@wl.table
def landed():
    return wl.read_files("inbox", format="json", schema="n BIGINT")

@wl.table
@wl.expect("known", "country IS NOT NULL")
def clean():
    return wl.read_stream("payments").where("_rescued_data IS NULL").drop("_rescued_data")

@wl.table
def joined():
    return wl.read_stream("clean").sql("SELECT s.*, l.n FROM stream AS s LEFT JOIN landed AS l ON s.id = l.n")

@wl.materialized_view
def by_country():
    return wl.sql("SELECT country, count(*) AS n, sum(amount) AS total FROM joined GROUP BY country")
"""


def main() -> None:
    """Print the wall time of each round and their median."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as an installed package has it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish(broker.bootstrap_servers, "payments", 10_000)
        (folder / "flows").mkdir()
        (folder / "inbox").mkdir()
        (folder / "inbox" / "a.json").write_text('{"n": 1}\n{"n": 2}\n')
        (folder / "flows" / "tables.py").write_text(DEFINITIONS.format(bootstrap=broker.bootstrap_servers, ddl=DDL))
        (folder / "waxlake.yml").write_text("name: startup\nstorage: ./lake\n")
        command = [sys.executable, "-m", "waxlake", "run"]
        subprocess.run(command, cwd=folder, check=True)
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
            taken.append(time.perf_counter() - started)
            assert "nothing new" in done.stdout, done.stdout
        print(
            f"nothing new: median {statistics.median(taken):.2f} s of {rounds} ({min(taken):.2f} to {max(taken):.2f} s)"
        )


if __name__ == "__main__":
    main()
