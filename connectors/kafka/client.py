"""Kafka clients of a source: how they are configured."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient

from connectors.kafka.settings import KafkaSettings
from waxlake.stream.kafka_client import COMMON_OPTIONS, Complaints, connection_options, open_client

__all__ = ["open_admin", "open_consumer"]

_READING: Final[dict[str, Any]] = {
    "group.id": "waxlake",
    # Read ahead happens in librdkafka, bounded by bytes.
    "queued.min.messages": 1_000_000,
    "queued.max.messages.kbytes": 64 << 10,
    "fetch.message.max.bytes": 16 << 20,
    "fetch.error.backoff.ms": 100,
    # A sink may take its time: the longest that librdkafka allows.
    "max.poll.interval.ms": 86_400_000,
}
_MANAGED: Final[dict[str, Any]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
}


def open_consumer(settings: KafkaSettings, complaints: Complaints, **overrides: Any) -> Consumer:
    """Return a consumer that commits nothing and joins no group; it is told its partitions by ``assign``.

    Args:
        settings: The source.
        complaints: Receives what goes wrong in the background.
        overrides: Further librdkafka settings, with ``_`` for a dot, stronger than the user's.
    """
    config = {
        **COMMON_OPTIONS,
        **_READING,
        **settings.options,
        **{key.replace("_", "."): value for key, value in overrides.items()},
        **_MANAGED,
    }
    consumer: Consumer = open_client(Consumer, settings, complaints, config)
    return consumer


def open_admin(settings: KafkaSettings, complaints: Complaints) -> AdminClient:
    """Return a client that asks about topics and offsets."""
    config = {**COMMON_OPTIONS, **connection_options(settings.options)}
    admin: AdminClient = open_client(AdminClient, settings, complaints, config)
    return admin
