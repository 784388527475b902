"""What the tests of the Kafka source share: topics with records, a connector over them, and checked reads."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from connectors.kafka import KafkaConnector, KafkaSettings
from tests.services import kafka
from tests.services.kafka import KafkaCluster
from waxlake.stream.batch import MicroBatch
from waxlake.stream.source import Reader, SourcePlan, plan_partitions

ROW = frozenset({"value", "_partition", "_offset", "_rescued_data"})
PATIENCE_S = 60.0


def kafka_connector(cluster: KafkaCluster, topic: str, **values: object) -> KafkaConnector:
    given = {"bootstrap_servers": cluster.bootstrap_servers, "topic": topic, "format": "string", **values}
    return KafkaConnector(KafkaSettings.build("test", given))


def create(cluster: KafkaCluster, topic: str, *, partitions: int = 1) -> None:
    """Create a topic and wait until clients are told of it: a broker learns of it a moment after the controller."""
    kafka.create_topic(cluster, topic, partitions=partitions)
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    wait_for(lambda: topic in admin.list_topics(timeout=10).topics)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline


def produce(
    cluster: KafkaCluster, topic: str, values: Sequence[bytes | None], *, partition: int = 0, **options: object
) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "linger.ms": 20, **options})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(30) == 0


def texts(first: int, count: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, first + count)]


@dataclass
class Read:
    """What a reader returned, checked for the laws that hold for all of it."""

    batches: list[MicroBatch] = field(default_factory=list)

    def add(self, batches: Sequence[MicroBatch]) -> None:
        self.batches += batches

    def of(self, partition: str) -> list[MicroBatch]:
        return [batch for batch in self.batches if batch.partition == partition]

    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.table.to_pylist()]

    def offsets(self, partition: int = 0) -> list[int]:
        return [row["_offset"] for row in self.rows() if row["_partition"] == partition]

    def check(self, plan: SourcePlan) -> None:
        for key, part in plan.partitions.items():
            batches = self.of(key)
            if not batches:
                continue
            assert batches[0].start == part.read_from
            assert all(a.end == b.start for a, b in itertools.pairwise(batches))
            assert part.mark is None or batches[-1].end <= part.mark
            for batch in batches:
                assert not any(batch.start < fence < batch.end for fence in part.fences)
                assert all(batch.start <= row["_offset"] < batch.end for row in batch.table.to_pylist())
                assert batch.read == batch.table.num_rows


def read_until(reader: Reader, read: Read, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        read.add(reader.read())
        assert time.monotonic() < deadline, f"read {len(read.rows())} rows only"


def plan_of(connector: KafkaConnector, *stored: Mapping[str, int], is_bounded: bool = True) -> SourcePlan:
    on_data_loss = connector.on_data_loss
    return plan_partitions(connector.inspect(), stored or [{}], on_data_loss=on_data_loss, is_bounded=is_bounded)


def read_to_mark(connector: KafkaConnector, plan: SourcePlan, columns: frozenset[str] = ROW) -> Read:
    read = Read()
    for group in connector.groups(plan, 1).values():
        reader = connector.reader(plan, group, columns)
        try:
            read_until(reader, read, lambda: reader.is_done)  # noqa: B023 - called in this turn only
        finally:
            reader.close()
    read.check(plan)
    return read
