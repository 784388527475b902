"""What can be set about a Kafka source; called by ``read_kafka`` and ``KafkaSource``, read by everything else here.

Settings of librdkafka pass through ``options``. They are checked when the settings are made, so that a typo is found
where it was written, and their secrets are shown nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator, model_validator

from connectors.kafka.formats import check_format, columns_of_values
from connectors.kafka.options import check_options
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import UsageError
from waxlake.stream.kafka_options import KafkaOptions, as_kafka_options
from waxlake.stream.settings import Settings

__all__ = [
    "EARLIEST",
    "LATEST",
    "METADATA_COLUMNS",
    "RESCUED_COLUMN",
    "KafkaOptions",
    "KafkaSettings",
    "StartingOffset",
]

METADATA_COLUMNS: Final = ("_topic", "_partition", "_offset", "_timestamp", "_key", "_headers")
RESCUED_COLUMN: Final = "_rescued_data"

LATEST: Final = -1
EARLIEST: Final = -2

# Topic (empty: the only one), partition, offset or EARLIEST or LATEST.
StartingOffset = tuple[str, int, int]


class KafkaSettings(Settings):
    """Settings of a Kafka source; equal settings are equal objects, so that two tables can share one read."""

    bootstrap_servers: str = Field(
        min_length=1, description="Brokers to ask first: host:port, several with commas between"
    )
    topic: str = Field(
        min_length=1, description="A topic, several with commas between, or a regular expression that starts with ^"
    )
    format: Literal["json", "avro", "protobuf", "string", "binary"] = Field(
        default="json", description="What the value of a record is"
    )
    declared_schema: str | pa.Schema | None = Field(
        default=None,
        alias="schema",
        description="json: columns as DDL text or a pyarrow schema, required. avro: the reader's schema as JSON; with a schema "
        "registry, that of the subject <topic>-value if it is left out",
    )
    schema_registry_url: str | None = Field(
        default=None,
        min_length=1,
        description="avro, protobuf: the registry whose schemas the records name, in Confluent's format; without it records are "
        "bare",
    )
    schema_registry_options: Annotated[KafkaOptions, BeforeValidator(as_kafka_options)] = Field(
        default_factory=KafkaOptions,
        description="Further settings of Confluent's client of the registry, such as 'basic.auth.user.info'",
    )
    descriptor_file: str | None = Field(
        default=None, min_length=1, description="protobuf: file of descriptors (protoc --descriptor_set_out)"
    )
    message: str | None = Field(default=None, min_length=1, description="protobuf: full name of the message")
    starting_offsets: Literal["earliest", "latest"] | tuple[StartingOffset, ...] = Field(
        default="earliest",
        description="Where a flow without stored positions starts: earliest, latest, or {partition: offset} or {topic: "
        "{partition: offset}} with -2 for earliest and -1 for latest; partitions not named start at the earliest. New "
        "partitions of a known topic are always read from their start",
    )
    options: Annotated[KafkaOptions, BeforeValidator(as_kafka_options)] = Field(
        default_factory=KafkaOptions,
        description="Settings of librdkafka (security, tuning). 'group.id' is used for authorization only: no group is "
        "joined and nothing is committed to Kafka",
    )
    on_data_loss: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do about offsets that expired before they were read: stop, or go on behind them and record it",
    )
    max_rows_per_batch: int = Field(default=100_000, ge=1, le=10_000_000, description="Most records in one micro-batch")
    max_bytes_per_batch: int = Field(
        default=32 << 20, ge=1, le=1 << 30, description="Bytes of record values after which a micro-batch is closed"
    )
    request_timeout_s: float = Field(
        default=10.0, ge=0.1, le=3600, description="Seconds that the cluster has to answer a question about a topic"
    )

    @field_validator("topic")
    @classmethod
    def _valid_topic(cls, value: str) -> str:
        if value.startswith("^"):
            try:
                re.compile(value)
            except re.error as exc:
                raise ValueError(f"{value!r} is no regular expression: {exc}") from None
            return value
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
                raise ValueError(
                    f"{name!r} is no topic name (letters, digits, '.', '_', '-'); a regular expression starts with ^"
                )
        return ",".join(dict.fromkeys(names))

    @field_validator("schema_registry_url")
    @classmethod
    def _url_without_user(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("://")[2].partition("/")[0]:
            raise UsageError(
                "schema_registry_url holds a user",
                code="OPTION_INVALID",
                remedy="Give it as schema_registry_options={'basic.auth.user.info': 'user:password'}",
            )
        return value

    @field_validator("starting_offsets", mode="before")
    @classmethod
    def _read_starting_offsets(cls, value: object) -> object:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as exc:
                raise ValueError(f"this JSON cannot be read: {exc}") from None
        if isinstance(value, str) and value not in ("earliest", "latest"):
            raise ValueError(f"found {value!r}, expected 'earliest', 'latest' or {{partition: offset}}")
        return _starting_offsets(value) if isinstance(value, Mapping) else value

    @field_validator("options")
    @classmethod
    def _valid_options(cls, value: KafkaOptions) -> KafkaOptions:
        check_options(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSettings:
        check_format(self)
        if self.format == "json" and self.declared_schema is not None:
            self.check_names(parse_ddl(self.declared_schema).names)
        if isinstance(self.starting_offsets, tuple):
            self._check_starting_topics(self.starting_offsets)
        return self

    def check_names(self, names: Sequence[str]) -> None:
        """Stop if a column of the values has the name of one that is filled here."""
        taken = sorted(set(names) & {*METADATA_COLUMNS, RESCUED_COLUMN})
        if taken:
            raise UsageError(
                f"cannot read topic {self.topic!r} with a column named {taken[0]!r}",
                code="KAFKA_SCHEMA_RESERVED",
                expected=f"other names than {', '.join((*METADATA_COLUMNS, RESCUED_COLUMN))}",
                remedy="Waxlake fills these. Leave it out of the schema",
            )

    def _check_starting_topics(self, offsets: tuple[StartingOffset, ...]) -> None:
        for topic in sorted({topic for topic, _, _ in offsets}):
            is_read = self.is_single if not topic else self.pattern is not None or topic in self.topics
            if not is_read:
                raise UsageError(
                    f"cannot start topic {self.topic!r} at the given offsets",
                    code="KAFKA_STARTING_OFFSETS",
                    found=f"topic {topic!r}" if topic else "partitions without a topic",
                    expected=f"{{topic: {{partition: offset}}}} of {self.topic!r}",
                )

    @property
    def schema_of_values(self) -> pa.Schema:
        """The columns of the values: declared, or those of the Avro schema or of the message, or the one column ``value``."""
        return columns_of_values(self)

    @property
    def is_single(self) -> bool:
        """Whether it is one named topic, not a list or a pattern."""
        return self.pattern is None and "," not in self.topic

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The regular expression that topics have to match, or None if they are named."""
        return re.compile(self.topic) if self.topic.startswith("^") else None

    @property
    def topics(self) -> tuple[str, ...]:
        """The named topics; empty for a pattern."""
        return () if self.pattern else tuple(self.topic.split(","))

    @property
    def reads_uncommitted(self) -> bool:
        """Whether records of open and aborted transactions are read too (``isolation.level``)."""
        return bool(self.options.get("isolation.level") == "read_uncommitted")


def _starting_offsets(value: Mapping[Any, Any]) -> tuple[StartingOffset, ...]:
    """Return ``{partition: offset}`` or ``{topic: {partition: offset}}`` as sorted triples."""
    triples = []
    for key, rest in value.items():
        if isinstance(rest, Mapping):
            triples += [(str(key), *_starting_offset(partition, offset)) for partition, offset in rest.items()]
        else:
            triples.append(("", *_starting_offset(key, rest)))
    return tuple(sorted(triples))


def _starting_offset(partition: object, offset: object) -> tuple[int, int]:
    named = {"earliest": EARLIEST, "latest": LATEST}
    try:
        pair = int(str(partition)), named[offset] if isinstance(offset, str) and offset in named else int(str(offset))
    except ValueError:
        raise ValueError(f"{{{partition!r}: {offset!r}}} is not {{partition: offset}}") from None
    if pair[0] < 0 or pair[1] < EARLIEST:
        raise ValueError(
            f"{{{partition!r}: {offset!r}}}: a partition is 0 or more, an offset -2 (earliest), -1 (latest) or more"
        )
    return pair
