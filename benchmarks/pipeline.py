"""Ten tables, bronze to silver to gold: what a hop adds in latency, what three hops cost in throughput, how fast one starts.

    python benchmarks/pipeline.py latency [--seconds N] [--rate N]
    python benchmarks/pipeline.py throughput [--events N] [--rounds N]
    python benchmarks/pipeline.py init [--rounds N]

``latency``: a continuous run with ``trigger_interval: 200ms`` while records arrive at a steady rate. A row's latency at a hop
is the time from the commit that holds it upstream to the commit that holds it downstream, by the timestamps in the two logs;
the first seconds do not count. Goal: under 300 ms a hop.

``throughput``: a triggered run over a filled topic, through three hops (ten tables) and through one (two tables); both read the
same topics, whole updates alternate. Goal: three hops at least half as fast as one.

``init``: ``waxlake init`` and ``waxlake run`` in the new project, together. Goal: under 3 s.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka import Producer
from deltalake import DeltaTable

from benchmarks.kafka_to_delta import DDL, publish
from waxlake.demo.broker import EmbeddedBroker

BRONZE = """
import waxlake as wl

@wl.table
def bronze_{0}():
    return wl.read_kafka("{0}", {1!r}, schema={2!r})
"""
FURTHER = """
@wl.table
@wl.expect_or_drop("paid", "amount > 0")
def silver_{0}_{1}():
    return wl.read_stream("bronze_{0}").where("id % 2 = {1}")

@wl.table
def gold_{0}_{1}():
    return wl.read_stream("silver_{0}_{1}").select("id", "country", "amount", "upper(user) AS user")
"""
TOPICS = ("a", "b")
WARM_UP_S = 5.0


def project(folder: Path, bootstrap: str, *, has_hops: bool) -> None:
    """Write the pipeline: two bronze tables, and with the further hops four silver and four gold ones."""
    (folder / "flows").mkdir(parents=True)
    text = "".join(BRONZE.format(topic, bootstrap, DDL) for topic in TOPICS)
    if has_hops:
        text += "".join(FURTHER.format(topic, half) for topic in TOPICS for half in (0, 1))
    (folder / "flows" / "tables.py").write_text(text)
    (folder / "waxlake.yml").write_text("name: hops\nstorage: ./lake\ntrigger_interval: 200ms\n")


def commits(folder: Path, table: str) -> tuple[list[int], list[float]]:
    """Return, for each commit with rows, how many rows the table holds after it and when it was made, in seconds."""
    totals, times, total = [], [], 0
    for entry in reversed(DeltaTable(folder / "lake" / "tables" / "default" / table).history()):
        flows = (entry.get("waxlake") or {}).get("flows") or {}
        rows = sum(facts["rows"] for facts in flows.values())
        if rows:
            total += rows
            totals.append(total)
            times.append(entry["timestamp"] / 1000)
    return totals, times


def hop(folder: Path, upstream: str, downstream: str, share: float) -> list[float]:
    """Return the latency of every downstream commit's last row, in milliseconds; ``share`` of upstream rows go on."""
    above, at = commits(folder, upstream)
    below, seen_at = commits(folder, downstream)
    found = []
    for rows, when in zip(below, seen_at, strict=True):
        index = bisect.bisect_left(above, rows / share - 1)
        if index < len(above) and when >= at[0] + WARM_UP_S:
            found.append((when - at[index]) * 1000)
    return found


def latency(bootstrap: str, root: Path, seconds: float, rate: int) -> None:
    for topic in TOPICS:
        publish(bootstrap, topic, 0)
    project(root, bootstrap, has_hops=True)
    run = subprocess.Popen(
        [sys.executable, "-m", "waxlake", "run", "--continuous"], cwd=root, stdout=subprocess.DEVNULL
    )
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    started_s, sent = time.monotonic(), 0
    while (passed_s := time.monotonic() - started_s) < seconds + WARM_UP_S:
        while sent < passed_s * rate:
            value = {"id": sent // len(TOPICS), "user": "u", "amount": 1.5, "country": "DE"}
            producer.produce(TOPICS[sent % len(TOPICS)], value=json.dumps(value).encode())
            sent += 1
        producer.poll(0)
        time.sleep(0.02)
    producer.flush(30)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0
    for name, pairs in {
        "bronze to silver": [(f"bronze_{t}", f"silver_{t}_{h}", 0.5) for t in TOPICS for h in (0, 1)],
        "silver to gold": [(f"silver_{t}_{h}", f"gold_{t}_{h}", 1.0) for t in TOPICS for h in (0, 1)],
    }.items():
        found = sorted(ms for above, below, share in pairs for ms in hop(root, above, below, share))
        p95 = found[int(len(found) * 0.95)]
        print(f"{name:17} median {statistics.median(found):4.0f} ms, 95 % under {p95:4.0f} ms ({len(found)} commits)")


def update_seconds(folder: Path) -> float:
    """Run an update to its end and return its own duration, without the start of the process."""
    done = subprocess.run(
        [sys.executable, "-m", "waxlake", "run", "--json"], cwd=folder, capture_output=True, text=True, check=True
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ends = [event["details"]["update_progress"] for event in events if event["event_type"] == "update_progress"]
    return float(ends[-1]["duration_s"])


def throughput(bootstrap: str, root: Path, events: int, rounds: int) -> None:
    for topic in TOPICS:
        publish(bootstrap, topic, events // len(TOPICS))
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for has_hops in (False, True):
            folder = root / f"{number}{has_hops}"
            project(folder, bootstrap, has_hops=has_hops)
            taken[has_hops].append(update_seconds(folder))
    one, three = statistics.median(taken[False]), statistics.median(taken[True])
    print(f"one hop    {one:5.2f} s, {events / one:9,.0f} records/s")
    print(f"three hops {three:5.2f} s, {events / three:9,.0f} records/s")
    print(f"three hops reach {one / three:.2f} of the throughput of one")


def init(root: Path, rounds: int) -> None:
    taken = []
    for number in range(rounds + 1):
        started_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "waxlake", "init", f"p{number}"], cwd=root, check=True, capture_output=True
        )
        subprocess.run(
            [sys.executable, "-m", "waxlake", "run"], cwd=root / f"p{number}", check=True, capture_output=True
        )
        taken.append(time.perf_counter() - started_s)
    print(f"init and run: median {statistics.median(taken[1:]):.2f} s ({min(taken[1:]):.2f} to {max(taken[1:]):.2f})")


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as an installed package has it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "throughput", "init"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=500, help="records a second")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if asked.what == "init":
            init(root, asked.rounds)
            return
        with EmbeddedBroker() as broker:
            if asked.what == "latency":
                latency(broker.bootstrap_servers, root, asked.seconds, asked.rate)
            else:
                throughput(broker.bootstrap_servers, root, asked.events, asked.rounds)


if __name__ == "__main__":
    main()
