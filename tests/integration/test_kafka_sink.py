"""The Kafka side of a sink: what a broker keeps of a batch, who is shut out, and what is done when it no longer knows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from sinks.batches import StagedBatch
from sinks.kafka import KafkaHandoff, KafkaSinkSettings
from tests.services.kafka import KafkaCluster, create_topic
from waxlake.stream.errors import TerminalError, TransientError, UserError, WaxlakeError

ROWS = pa.table({"n": [1, 2, 3]})


def _batch(number: int) -> StagedBatch:
    return StagedBatch(number=number, flow="f", rows=3, file=f"1-{number}.arrow", sources=(), update_id="u")


@pytest.fixture
def make(apache_kafka: KafkaCluster, topic: str) -> Callable[..., KafkaHandoff]:
    create_topic(apache_kafka, topic)

    def connect(ledger: str, **options: Any) -> KafkaHandoff:
        values = {
            "bootstrap_servers": apache_kafka.bootstrap_servers,
            "topic": topic,
            "request_timeout_s": 10,
            **options,
        }
        handoff = KafkaHandoff("out", KafkaSinkSettings.build("sink", values))
        handoff.open(ledger)
        return handoff

    return connect


def _sent(cluster: KafkaCluster, topic: str) -> list[int]:
    config = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": uuid.uuid4().hex,
        "enable.partition.eof": True,
    }
    consumer = Consumer({**config, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found = []
    while True:
        message = consumer.poll(20)
        assert message is not None
        if message.error() is not None:
            assert message.error().code() == KafkaError._PARTITION_EOF
            consumer.close()
            return found
        found.append(json.loads(message.value())["n"])


def test_a_batch_is_there_whole_and_known_by_its_number(
    make: Callable[..., KafkaHandoff], apache_kafka: KafkaCluster, topic: str
) -> None:
    ledger = uuid.uuid4().hex
    first = make(ledger)
    assert not first.has(_batch(1), is_first=True)
    first.deliver(_batch(1), ROWS, 1)
    first.deliver(_batch(2), ROWS, 1)
    first.close()
    second = make(ledger)
    assert [second.has(_batch(number), is_first=False) for number in (1, 2, 3)] == [True, True, False]
    second.close()
    assert _sent(apache_kafka, topic) == [1, 2, 3, 1, 2, 3]


def test_who_was_sending_before_is_shut_out_and_leaves_nothing(
    make: Callable[..., KafkaHandoff], apache_kafka: KafkaCluster, topic: str
) -> None:
    ledger = uuid.uuid4().hex
    old = make(ledger)
    old.deliver(_batch(1), ROWS, 1)
    old._producer.begin_transaction()
    old._send(ROWS)  # in the middle of batch 2, another run takes over
    new = make(ledger)
    assert not new.has(_batch(2), is_first=False)
    new.deliver(_batch(2), ROWS, 2)
    with pytest.raises(TransientError):
        old.deliver(_batch(2), ROWS, 1)
    old.close()
    new.close()
    assert _sent(apache_kafka, topic) == [1, 2, 3, 1, 2, 3]


def test_a_batch_that_kafka_forgot_is_asked_about(make: Callable[..., KafkaHandoff]) -> None:
    handoffs = {choice: make(uuid.uuid4().hex, on_unknown_batch=choice) for choice in ("fail", "send", "skip")}
    assert not handoffs["fail"].has(_batch(1), is_first=True)
    with pytest.raises(TerminalError, match="SINK_BATCH_UNKNOWN"):
        handoffs["fail"].has(_batch(7), is_first=False)
    assert not handoffs["send"].has(_batch(7), is_first=False)
    assert handoffs["skip"].has(_batch(7), is_first=False)
    for handoff in handoffs.values():
        handoff.close()


@pytest.mark.parametrize(
    ("options", "rows", "code"),
    [
        ({"topic_expression": "'no-such-topic'"}, ROWS, "KAFKA_TOPIC_MISSING"),
        ({"value": "repeat('x', 2000000)"}, ROWS, "KAFKA_RECORD_TOO_LARGE"),
        ({"partition": "CAST(s AS INTEGER)"}, pa.table({"s": ["x"]}), "SINK_EXPRESSION_FAILED"),
    ],
)
def test_a_batch_that_cannot_be_sent_leaves_nothing_and_says_why(
    make: Callable[..., KafkaHandoff],
    apache_kafka: KafkaCluster,
    topic: str,
    options: dict[str, str],
    rows: pa.Table,
    code: str,
) -> None:
    handoff = make(uuid.uuid4().hex, **options)
    with pytest.raises(WaxlakeError) as caught:
        handoff.deliver(_batch(1), rows, 1)
    assert caught.value.code == code
    assert isinstance(caught.value, TerminalError | UserError)
    handoff.close()
    assert _sent(apache_kafka, topic) == []
