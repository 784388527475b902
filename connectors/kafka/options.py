"""Which settings of librdkafka a user may give, and which are ours; called when Kafka settings are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from waxlake.stream.kafka_options import CONNECTION_OPTIONS, check_kafka_options

__all__ = ["MANAGED_OPTIONS", "check_options"]

_POSITIONS_ARE_OURS = "Positions are stored with the rows in the table and are never committed to Kafka"

# Key -> what to use instead. With another value the source would lose or repeat records, or never end.
MANAGED_OPTIONS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "Use bootstrap_servers",
    "metadata.broker.list": "Use bootstrap_servers",
    "enable.auto.commit": _POSITIONS_ARE_OURS,
    "auto.commit.enable": _POSITIONS_ARE_OURS,
    "auto.commit.interval.ms": _POSITIONS_ARE_OURS,
    "enable.auto.offset.store": _POSITIONS_ARE_OURS,
    "offset.store.method": _POSITIONS_ARE_OURS,
    "auto.offset.reset": "Use starting_offsets for the first run, and on_data_loss for offsets that are gone",
    "enable.partition.eof": "It is always on: the end of a partition is found by it",
    "group.instance.id": "No consumer group is joined; 'group.id' is used for authorization only",
    "group.protocol": "No consumer group is joined; 'group.id' is used for authorization only",
    "partition.assignment.strategy": "No consumer group is joined; 'group.id' is used for authorization only",
    "error_cb": "Errors are reported by the source",
    "logger": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "log_cb": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "stats_cb": "Figures are in the event log",
    "throttle_cb": "Figures are in the event log",
    "on_commit": _POSITIONS_ARE_OURS,
}

# For "did you mean": librdkafka tells only that a name is unknown.
_CONSUMER_OPTIONS: Final = (
    *CONNECTION_OPTIONS,
    "allow.auto.create.topics", "check.crcs", "fetch.error.backoff.ms", "fetch.max.bytes",
    "fetch.message.max.bytes", "fetch.min.bytes", "fetch.queue.backoff.ms", "fetch.wait.max.ms", "group.id",
    "isolation.level", "max.partition.fetch.bytes", "queued.max.messages.kbytes", "queued.min.messages",
    "session.timeout.ms",
)  # fmt: skip

# What Java's client calls them.
_JAVA_NAMES: Final[Mapping[str, str]] = {
    "sasl.jaas.config": "librdkafka has no JAAS: use 'sasl.username' and 'sasl.password'",
    "ssl.truststore.location": "librdkafka reads PEM: use 'ssl.ca.location'",
    "ssl.truststore.password": "librdkafka reads PEM: use 'ssl.ca.location'",
    "max.poll.records": "Use max_rows_per_batch",
    "fetch.max.wait.ms": "librdkafka calls it 'fetch.wait.max.ms'",
    "request.timeout.ms": "Use request_timeout_s",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Let librdkafka read the options, without creating a client.

    Raises:
        UsageError: A key that is ours, that librdkafka does not know, or a value that it refuses. Not retryable.
    """
    if not options:
        return
    from confluent_kafka import Consumer

    check_kafka_options(
        options, managed=MANAGED_OPTIONS, known=_CONSUMER_OPTIONS, elsewhere=_JAVA_NAMES, client=Consumer
    )
