"""A pipeline that ends in every kind of sink, its real processes, and the check that each row went out once.

One topic feeds a table and a Kafka sink with a quarantine; from the table stream a function, a Delta table elsewhere, a second
flow of the Kafka sink, and a table of the newest rows, which another one follows by its change feed. Each record is known by
(partition, offset).
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tests.conftest import LakeStorage
from tests.recovery.project import Project, wait
from tests.services.kafka import KafkaCluster, create_topic

PARTITIONS = 3
_DEFINITIONS = """
import json, os, time
import waxlake as wl

@wl.table
def events():
    return wl.read_kafka({topic!r}, {bootstrap!r}, schema="n BIGINT", max_rows_per_batch=200).select(
        "n", "_partition AS p", "_offset AS o")

wl.create_sink("out", "kafka", {{"bootstrap_servers": {bootstrap!r}, "topic": {out!r}, "key": "p",
    "headers": {{"flow": "flow"}}, "max_rows_per_batch": 150}}, expect_all_or_quarantine={{"not negative": "n >= 0"}})

@wl.append_flow(target="out")
def direct():
    return wl.read_kafka({topic!r}, {bootstrap!r}, schema="n BIGINT", max_rows_per_batch=200).select(
        "n", "_partition AS p", "_offset AS o", "'direct' AS flow")

@wl.append_flow(target="out")
def through_table():
    return wl.read_stream("events").select("*", "'table' AS flow")

wl.create_sink("copy", "delta", {{"path": {copy!r}}})

@wl.append_flow(target="copy")
def to_copy():
    return wl.read_stream("events")

@wl.foreach_batch_sink
def called(table, batch):
    rows = sorted(zip(table["p"].to_pylist(), table["o"].to_pylist()))
    name = f"{calls}/{{batch.batch_id}}-{{os.getpid()}}-{{time.time_ns()}}.json"
    with open(name + ".tmp", "w") as file:
        json.dump({{"id": batch.batch_id, "attempt": batch.attempt, "flow": batch.flow, "rows": rows,
            "sources": [[s.start, s.end] for s in batch.sources]}}, file)
    os.rename(name + ".tmp", name)

@wl.append_flow(target="called")
def to_called():
    return wl.read_stream("events")

wl.create_streaming_table("newest")
wl.create_auto_cdc_flow("newest", wl.read_stream("events").select("p", "o % 20 AS slot", "o"), ["p", "slot"], "o")

wl.create_streaming_table("newest_copy")
wl.create_auto_cdc_flow("newest_copy", wl.read_stream("newest", read_change_feed=True), ["p", "slot"],
    "struct(_commit_position, _change_index)", "_change_type = 'delete'")
"""
_SPEC = """
name: sinks
storage: {storage}
libraries: [{{glob: {{include: "flows/definitions.py"}}}}]
trigger_interval: 200ms
storage_options: {options}
"""


@dataclass(slots=True)
class SinksLake(Project):
    """One pipeline over one topic."""

    storage: LakeStorage
    cluster: KafkaCluster
    topic: str = field(default_factory=lambda: f"in-{uuid.uuid4().hex[:12]}")
    out: str = field(default_factory=lambda: f"out-{uuid.uuid4().hex[:12]}")
    published: int = 0
    bad: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(11))

    def make(self) -> None:
        """Create the topics and the project."""
        create_topic(self.cluster, self.topic, partitions=PARTITIONS)
        create_topic(self.cluster, self.out, partitions=2)
        (self.folder / "flows").mkdir(parents=True)
        (self.folder / "calls").mkdir()
        definitions = _DEFINITIONS.format(
            topic=self.topic,
            out=self.out,
            bootstrap=self.cluster.bootstrap_servers,
            copy=f"{self.storage.uri}/elsewhere",
            calls=str(self.folder / "calls"),
        )
        (self.folder / "flows" / "definitions.py").write_text(definitions)
        spec = _SPEC.format(storage=self.storage.uri, options=json.dumps(self.storage.storage_options))
        (self.folder / "waxlake.yml").write_text(spec)

    def publish(self, count: int) -> None:
        """Send records to all partitions, some of them bad."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers, "linger.ms": 5})
        for _ in range(count):
            number = self.random.randrange(-10, 100)
            self.bad += number < 0
            producer.produce(self.topic, value=json.dumps({"n": number}), partition=self.random.randrange(PARTITIONS))
            self.published += 1
        assert producer.flush(60) == 0

    def finish(self, mode: str) -> None:
        """Run to the end without a kill; a continuous run is asked to stop once it has everything."""
        process = self.start(mode)
        if mode == "continuous":
            self._await_everything(process)
            process.send_signal(signal.SIGTERM)
        assert wait(process) == 0, self.log(mode)

    def _await_everything(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + 400
        while time.monotonic() < deadline_s and process.poll() is None:
            good = self.published - self.bad
            called = {tuple(row) for call in self.calls() for row in call["rows"]}
            try:
                copied = (
                    self._rows("elsewhere").num_rows if self._newest("newest") == self._newest("newest_copy") else 0
                )
            except DeltaError:
                copied = 0
            if copied == self.published == len(called) and sum(self.sent().values()) >= 2 * good:
                return
            time.sleep(0.2)
        raise AssertionError(f"the continuous run did not catch up:\n{self.log('continuous')}")

    def calls(self) -> list[dict[str, object]]:
        """Return every call of the function, in order."""
        files = sorted((self.folder / "calls").glob("*.json"), key=lambda path: int(path.stem.split("-")[2]))
        return [json.loads(path.read_text()) for path in files]

    def sent(self) -> Counter[tuple[str, int, int, int]]:
        """Return the committed records of the output topic: (flow, partition, offset, n) to how often each is there."""
        config = {"bootstrap.servers": self.cluster.bootstrap_servers, "group.id": uuid.uuid4().hex}
        consumer = Consumer({**config, "enable.partition.eof": True, "isolation.level": "read_committed"})
        partitions = consumer.list_topics(self.out, 10).topics[self.out].partitions
        consumer.assign([TopicPartition(self.out, p, OFFSET_BEGINNING) for p in partitions])
        found: Counter[tuple[str, int, int, int]] = Counter()
        ended: set[int] = set()
        while len(ended) < len(partitions):
            message = consumer.poll(20)
            assert message is not None, "the output topic has no end"
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended.add(message.partition())
                continue
            row = json.loads(message.value())
            assert message.headers() == [("flow", row["flow"].encode())]
            assert message.key() == str(row["p"]).encode()
            found[row["flow"], row["p"], row["o"], row["n"]] += 1
        consumer.close()
        return found

    def _rows(self, place: str) -> pa.Table:
        return DeltaTable(
            f"{self.storage.uri}/{place}", storage_options=self.storage.storage_options
        ).to_pyarrow_table()

    def _newest(self, table: str) -> dict[tuple[int, int], int]:
        return {(row["p"], row["slot"]): row["o"] for row in self._rows(f"tables/default/{table}").to_pylist()}

    def check(self) -> None:
        """Compare what went out with what came in, record by record."""
        rows = self._rows("tables/default/events").to_pylist()
        everything = Counter((row["p"], row["o"], row["n"]) for row in rows)
        assert sum(everything.values()) == len(everything) == self.published
        good = Counter({key: count for key, count in everything.items() if key[2] >= 0})
        sent = self.sent()
        for flow in ("direct", "table"):
            assert Counter({key[1:]: n for key, n in sent.items() if key[0] == flow}) == good, flow
        rejected = self._rows("tables/default/out_quarantine").to_pylist()
        bad = Counter((row["p"], row["o"], row["n"]) for row in rejected)
        assert bad == Counter({key: 2 for key in everything if key[2] < 0})
        assert Counter((row["p"], row["o"], row["n"]) for row in self._rows("elsewhere").to_pylist()) == everything
        newest: dict[tuple[int, int], int] = {}
        for partition, offset, _ in everything:
            key = (partition, offset % 20)
            newest[key] = max(offset, newest.get(key, 0))
        assert self._newest("newest") == self._newest("newest_copy") == newest
        self._check_calls({key[:2] for key in everything})

    def _check_calls(self, keys: set[tuple[int, int]]) -> None:
        """Each batch has one number and one content, however often it came; numbers grow by one."""
        by_id: dict[object, object] = {}
        order: list[int] = []
        for call in self.calls():
            content = (call["rows"], call["flow"], call["sources"])
            assert by_id.setdefault(call["id"], content) == content, call["id"]
            if call["id"] in order:
                assert call["id"] == order[-1]
                assert int(str(call["attempt"])) > 1
            else:
                order.append(int(str(call["id"])))
        assert order == list(range(1, len(order) + 1))
        rows = [tuple(row) for content in by_id.values() for row in content[0]]  # type: ignore[index]
        assert len(rows) == len(set(rows))
        assert set(rows) == keys
