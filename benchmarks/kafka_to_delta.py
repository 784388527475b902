"""Kafka to Delta: a Waxlake pipeline against a naive loop that promises nothing, in one run on the same topic.

1 M JSON events of about 130 bytes in 4 partitions; two rules, one computed column, one table, one process each. The naive
loop consumes, decodes and filters in DuckDB and appends, on one thread, without positions, quarantine or checks. Both are
fresh processes that time themselves from the first call after their imports to the last commit; they alternate, and the
medians are compared.

    python benchmarks/kafka_to_delta.py [--events N] [--rounds N] [--bootstrap host:port]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

PARTITIONS = 4
RULES = {"paid": "amount > 0", "known_country": "country IS NOT NULL"}
DDL = "id BIGINT, user STRING, amount DOUBLE, currency STRING, country STRING, ts TIMESTAMP, ok BOOLEAN"
DEFINITIONS = """
import waxlake as wl

@wl.table
@wl.expect_or_drop("paid", "amount > 0")
@wl.expect_or_drop("known_country", "country IS NOT NULL")
def payments():
    return wl.read_kafka({topic!r}, {bootstrap!r}, schema={ddl!r}).with_columns(cents="CAST(round(amount * 100) AS BIGINT)")
"""


def publish(bootstrap: str, topic: str, events: int) -> float:
    """Create the topic, fill it, and return the mean record size in bytes."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    size = 0
    for i in range(events):
        value = (
            f'{{"id":{i},"user":"user-{i % 9973:05d}","amount":{(i * 37 % 100_000) / 100},"currency":"EUR",'
            f'"country":"{["DE", "FR", "IT", "ES"][i % 4]}","ts":"2026-05-{1 + i % 28:02d}T12:{i % 60:02d}:56.789Z","ok":true}}'
        ).encode()
        size += len(value)
        while True:
            try:
                producer.produce(topic, value=value, partition=i % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush(60)
    return size / max(events, 1)


def naive(bootstrap: str, topic: str, events: int, folder: Path) -> None:
    """The loop one would write on a Friday: no positions, so a crash loses or doubles rows."""
    import duckdb
    import pyarrow as pa
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
    from deltalake import write_deltalake

    started = time.perf_counter()
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "naive", "queued.min.messages": 200_000})
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])
    connection = duckdb.connect()
    columns = {"id": "BIGINT", "user": "VARCHAR", "amount": "DOUBLE", "currency": "VARCHAR", "country": "VARCHAR"}
    shape = json.dumps({**columns, "ts": "TIMESTAMPTZ", "ok": "BOOLEAN"})
    query = (
        (
            f"SELECT e.*, CAST(round(e.amount * 100) AS BIGINT) AS cents FROM (SELECT from_json(v, '{shape}') AS e FROM raw) "
            f"WHERE {' AND '.join(f'({rule})' for rule in RULES.values())}"
        )
        .replace("amount > 0", "e.amount > 0")
        .replace("country IS", "e.country IS")
    )
    seen = written = 0
    while seen < events:
        messages = consumer.consume(100_000, timeout=0.2)
        values = [m.value() for m in messages if m.error() is None]
        if not values:
            continue
        seen += len(values)
        connection.register("raw", pa.table({"v": pa.array(values, pa.binary()).cast(pa.string())}))
        rows = connection.sql(query).to_arrow_table()
        written += rows.num_rows
        write_deltalake(str(folder / "payments"), rows, mode="append")
    consumer.close()
    report(time.perf_counter() - started, written)


def waxlake(bootstrap: str, topic: str, folder: Path) -> None:
    """The same job as a pipeline: positions, checks and rule counts included."""
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "payments.py").write_text(DEFINITIONS.format(topic=topic, bootstrap=bootstrap, ddl=DDL))
    (folder / "waxlake.yml").write_text("name: bench\nstorage: ./lake\n")

    import connectors.kafka
    from waxlake.pipeline.run import RunOptions, run_update
    from waxlake.pipeline.spec import load_spec

    assert connectors.kafka
    started = time.perf_counter()
    result = run_update(load_spec(folder), RunOptions(), [])
    report(time.perf_counter() - started, result.tables["payments"])


def report(seconds: float, rows: int) -> None:
    """Tell the parent process."""
    print(json.dumps({"seconds": seconds, "rows": rows}))


def main() -> None:
    """Publish once, alternate the two, print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bootstrap")
    parser.add_argument("--child", nargs=3, metavar=("WHICH", "TOPIC", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        which, topic, folder = arguments.child
        if which == "naive":
            naive(arguments.bootstrap, topic, arguments.events, Path(folder))
        else:
            waxlake(arguments.bootstrap, topic, Path(folder))
        return
    if arguments.bootstrap:
        compare(arguments.bootstrap, arguments.events, arguments.rounds)
        return
    from waxlake.demo.broker import EmbeddedBroker

    with EmbeddedBroker() as broker:
        compare(broker.bootstrap_servers, arguments.events, arguments.rounds)


def compare(bootstrap: str, events: int, rounds: int) -> None:
    """Run both sides ``rounds`` times in turn."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    size = publish(bootstrap, topic, events)
    print(f"{events:,} events of {size:.0f} bytes in {PARTITIONS} partitions")
    seconds: dict[str, list[float]] = {"naive": [], "waxlake": []}
    rows: set[int] = set()
    for _ in range(rounds):
        for which, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--bootstrap", bootstrap, "--events", str(events)]
                child = subprocess.run(
                    [*command, "--child", which, topic, str(Path(folder) / "work")], check=True, stdout=subprocess.PIPE
                )
                outcome = json.loads(child.stdout.splitlines()[-1])
                taken.append(outcome["seconds"])
                rows.add(outcome["rows"])
    assert len(rows) == 1, f"the two sides disagree on the rows: {rows}"
    medians = {which: statistics.median(taken) for which, taken in seconds.items()}
    for which, median in medians.items():
        spread = f"{min(seconds[which]):.2f} to {max(seconds[which]):.2f} s"
        print(f"{which:8} {events / median:10,.0f} events/s   median {median:.2f} s of {rounds} ({spread})")
    print(f"ratio    {medians['naive'] / medians['waxlake']:.2f} x the naive loop")


if __name__ == "__main__":
    main()
