"""The demo's topic of alerts: made before the sink sends to it, and read back to be compared."""

from __future__ import annotations

import json
from typing import Final

import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from waxlake.stream.errors import TerminalError

__all__ = ["ALERT_DELAY", "create_alerts_topic", "read_alerts"]

ALERT_DELAY: Final = 120
"""Minutes of delay above which a departure is told; the demo sets it by a parameter."""

_TOPIC: Final = "delay-alerts"
_TIMEOUT_S: Final = 30.0


def create_alerts_topic(bootstrap_servers: str) -> None:
    """Create the topic.

    Raises:
        TerminalError: The broker refuses it. Not retryable.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        admin.create_topics([NewTopic(_TOPIC, 1, 1)])[_TOPIC].result(timeout=_TIMEOUT_S)
    except KafkaException as exc:
        raise TerminalError(f"cannot create topic '{_TOPIC}'", code="DEMO_TOPIC_FAILED", found=str(exc)) from exc


def read_alerts(bootstrap_servers: str) -> pa.Table:
    """Return the records of the topic that a consumer of committed records sees, one row each.

    Raises:
        TerminalError: The topic cannot be read to its end. Not retryable.
    """
    config = {"bootstrap.servers": bootstrap_servers, "group.id": "demo", "enable.partition.eof": True, "log_level": 0}
    consumer = Consumer({**config, "isolation.level": "read_committed", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(_TOPIC, 0, OFFSET_BEGINNING)])
        rows = []
        while True:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise TerminalError(f"cannot read topic '{_TOPIC}' to its end", code="DEMO_FAILED")
            if message.error() is not None:
                break
            rows.append(json.loads(message.value() or b"{}"))
        return pa.Table.from_pylist(rows)
    finally:
        consumer.close()
