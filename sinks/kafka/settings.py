"""What can be set about a Kafka sink; called by ``create_sink``, read by everything else here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from waxlake.stream.kafka_options import CONNECTION_OPTIONS, KafkaOptions, as_kafka_options, check_kafka_options
from waxlake.stream.settings import Settings

__all__ = ["MANAGED_OPTIONS", "KafkaSinkSettings", "kafka_values"]

_WHOLE: Final = "Each batch is one transaction, or is waited for as a whole"
_DELIVERY: Final = "Use delivery='exactly-once' or 'at-least-once'"

MANAGED_OPTIONS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "Use bootstrap_servers",
    "metadata.broker.list": "Use bootstrap_servers",
    "transactional.id": "It is derived from the sink's ledger: another one would let two runs send the same rows",
    "enable.idempotence": _DELIVERY,
    "acks": _DELIVERY,
    "request.required.acks": _DELIVERY,
    "enable.gapless.guarantee": _WHOLE,
    "delivery.report.only.error": _WHOLE,
    "dr_cb": _WHOLE,
    "dr_msg_cb": _WHOLE,
    "on_delivery": _WHOLE,
    "error_cb": "Errors are reported by the sink",
    "logger": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "log_cb": "librdkafka logs to the Python logger 'connectors.kafka.librdkafka'",
    "stats_cb": "Figures are in the event log",
    "throttle_cb": "Figures are in the event log",
}
_PRODUCER_OPTIONS: Final = (
    *CONNECTION_OPTIONS,
    "batch.num.messages", "batch.size", "compression.codec", "compression.level", "compression.type",
    "delivery.timeout.ms", "linger.ms", "max.in.flight", "message.send.max.retries", "message.timeout.ms",
    "partitioner", "queue.buffering.max.kbytes", "queue.buffering.max.messages", "queue.buffering.max.ms",
    "request.timeout.ms", "retries", "sticky.partitioning.linger.ms", "transaction.timeout.ms",
)  # fmt: skip
_JAVA_NAMES: Final[Mapping[str, str]] = {
    "sasl.jaas.config": "librdkafka has no JAAS: use 'sasl.username' and 'sasl.password'",
    "ssl.truststore.location": "librdkafka reads PEM: use 'ssl.ca.location'",
    "buffer.memory": "librdkafka calls it 'queue.buffering.max.kbytes'",
    "max.request.size": "librdkafka calls it 'message.max.bytes'",
    "partitioner.class": "librdkafka calls it 'partitioner'",
}
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


def kafka_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a sink's settings.

    Options that begin with ``kafka.`` are librdkafka's, as Spark spells them; ``headers.x`` is one header.
    """
    values = {key: value for key, value in options.items() if not key.startswith(("kafka.", "headers."))}
    headers = {key.removeprefix("headers."): value for key, value in options.items() if key.startswith("headers.")}
    if headers:
        values["headers"] = {**headers, **(values.get("headers") or {})}
    passed = {key.removeprefix("kafka."): value for key, value in options.items() if key.startswith("kafka.")}
    if "bootstrap.servers" in passed:
        values.setdefault("bootstrap_servers", passed.pop("bootstrap.servers"))
    if passed:
        values["options"] = {**passed, **(values.get("options") or {})}
    return values


class KafkaSinkSettings(Settings):
    """Settings of a Kafka sink. Expressions are SQL over the columns of its rows."""

    bootstrap_servers: str = Field(
        min_length=1, description="Brokers to ask first: host:port, several with commas between"
    )
    topic: str = Field(min_length=1, description="Topic of rows for which topic_expression names none; it must exist")
    value_format: Literal["json", "string", "binary"] = Field(
        default="json",
        description="What the value of a record is: JSON of the row (or of `value`), or `value` as it is",
    )
    value: str | None = Field(
        default=None, description="Value, as an expression. Default: the whole row as JSON; the column value otherwise"
    )
    key: str | None = Field(
        default=None, description="Key, as an expression: text or bytes; rows of one key stay in order"
    )
    headers: Mapping[str, str] = Field(
        default_factory=dict, description="Header to expression; no header where it is NULL"
    )
    topic_expression: str | None = Field(default=None, description="Topic of each row, as an expression")
    partition: str | None = Field(default=None, description="Partition, as an expression; by the key where it is NULL")
    timestamp: str | None = Field(
        default=None, description="Time of the record, as an expression; now where it is NULL"
    )
    delivery: Literal["exactly-once", "at-least-once"] = Field(
        default="exactly-once",
        description="exactly-once: each batch is one transaction. at-least-once: for brokers without transactions; a batch may "
        "be there twice after a crash",
    )
    on_unknown_batch: Literal["fail", "send", "skip"] = Field(
        default="fail",
        description="What to do with a batch that may have been sent before a crash when Kafka no longer tells, because its "
        "offsets expired (offsets.retention.minutes) or the topic was recreated",
    )
    on_full_refresh: Literal["refuse", "resend", "skip"] = Field(
        default="refuse",
        description="What a full refresh of the sink, or of a table that it streams from, does: is refused, sends everything "
        "again, or sends only what comes after it",
    )
    options: Annotated[KafkaOptions, BeforeValidator(as_kafka_options)] = Field(
        default_factory=KafkaOptions, description="Settings of librdkafka's producer (security, tuning)"
    )
    max_rows_per_batch: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Rows after which a batch is closed"
    )
    max_bytes_per_batch: int = Field(default=32 << 20, ge=1, le=1 << 30, description="Bytes after which it is closed")
    request_timeout_s: float = Field(
        default=30.0,
        ge=0.1,
        le=3600,
        description="Seconds that the cluster has to take a batch, or to answer a question",
    )

    @field_validator("topic")
    @classmethod
    def _valid_topic(cls, value: str) -> str:
        if not _TOPIC.fullmatch(value):
            raise ValueError(f"{value!r} is no topic name (letters, digits, '.', '_', '-')")
        return value

    @field_validator("options")
    @classmethod
    def _valid_options(cls, value: KafkaOptions) -> KafkaOptions:
        if value:
            from confluent_kafka import Producer

            def client(config: dict[str, Any]) -> object:
                return Producer({"log_level": 0, **{key: given for key, given in config.items() if key != "group.id"}})

            check_kafka_options(
                value, managed=MANAGED_OPTIONS, known=_PRODUCER_OPTIONS, elsewhere=_JAVA_NAMES, client=client
            )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSinkSettings:
        if any(not text.strip() for text in (*self.headers.values(), *self.expressions.values())):
            raise ValueError("an expression is empty")
        return self

    @property
    def label(self) -> str:
        """What users call it."""
        return f"kafka:{self.topic}"

    @property
    def expressions(self) -> dict[str, str]:
        """The expressions that are given, by what they make."""
        given = {
            "value": self.value,
            "key": self.key,
            "topic_expression": self.topic_expression,
            "partition": self.partition,
            "timestamp": self.timestamp,
        }
        return {name: text for name, text in given.items() if text is not None}
