"""Sources and the sink in hand-written Bytewax dataflows, without declarations: the same classes, the same guarantee."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource
from bytewax.testing import run_main
from confluent_kafka import Producer
from deltalake import DeltaTable

from connectors.delta import DeltaSource
from connectors.files import FilesSource
from connectors.kafka import KafkaSource
from sinks.delta import DeltaSink, DeltaTarget
from tests.services.kafka import KafkaCluster, create_topic
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import SourceState


class Copy:
    """Copies a source into a table, as often as it is run."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.sink = DeltaSink(target=DeltaTarget(location=TableLocation(str(table))), flow="copy")
        self.count = 0

    def stored(self, state: SourceState) -> Mapping[str, int]:
        found = {p: self.sink.stored(state.identity, p) for p in state.partitions}
        return {p: position for p, position in found.items() if position is not None}

    def run(self, source: FixedPartitionedSource[MicroBatch, None]) -> list[int]:
        dataflow = Dataflow("copy")
        batches = op.input("read", dataflow, source)
        op.output("write", op.key_on("key", batches, lambda batch: "table"), self.sink)
        run_main(dataflow)
        numbers = DeltaTable(self.table).to_pyarrow_table().column("n").to_pylist()
        self.count = len(numbers)
        return sorted(numbers)


def land(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{uuid.uuid4().hex}.json").write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers))


def test_files_are_copied_once(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "table")

    def run() -> list[int]:
        return copy.run(
            FilesSource(
                str(tmp_path / "inbox"),
                format="json",
                schema="n BIGINT",
                ledger=TableLocation(str(tmp_path / "ledger")),
                positions=copy.stored,
                is_bounded=True,
                settle_s=0,
            )
        )

    land(tmp_path / "inbox", range(10))
    assert run() == list(range(10))
    assert run() == list(range(10))
    land(tmp_path / "inbox", range(10, 15))
    assert run() == list(range(15))


def test_a_topic_is_copied_once(tmp_path: Path, kafka_cluster: KafkaCluster, topic: str) -> None:
    create_topic(kafka_cluster, topic, partitions=2)
    producer = Producer({"bootstrap.servers": kafka_cluster.bootstrap_servers})
    copy = Copy(tmp_path / "table")
    for end in (10, 20, 20):  # the third run finds nothing new
        for n in range(copy.count, end):
            producer.produce(topic, json.dumps({"n": n}).encode(), partition=n % 2)
        assert producer.flush(30) == 0
        source = KafkaSource(
            kafka_cluster.bootstrap_servers, topic, schema="n BIGINT", positions=copy.stored, is_bounded=True
        )
        assert copy.run(source) == list(range(end))


def test_a_table_is_copied_once(tmp_path: Path) -> None:
    land(tmp_path / "inbox", range(10))
    first = Copy(tmp_path / "first")
    files = FilesSource(
        str(tmp_path / "inbox"), format="json", schema="n BIGINT", ledger=TableLocation(str(tmp_path / "ledger")),
        is_bounded=True, settle_s=0,
    )  # fmt: skip
    first.run(files)
    second = Copy(tmp_path / "second")
    for _ in range(2):
        rows = second.run(DeltaSource(str(first.table), positions=second.stored, is_bounded=True))
        assert rows == list(range(10))
