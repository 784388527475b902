"""Kafka topics as a source: for the planner a connector, for a hand-written dataflow a Bytewax input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from confluent_kafka import TopicPartition

from connectors.kafka.identity import KafkaPartition, source_identity, source_partitions
from connectors.kafka.reader import KafkaReader
from connectors.kafka.records import record_schema
from connectors.kafka.settings import EARLIEST, LATEST, METADATA_COLUMNS, KafkaSettings
from connectors.kafka.survey import Survey
from waxlake.stream.errors import TerminalError
from waxlake.stream.source import (
    Reader,
    SourcePlan,
    SourceRange,
    SourceState,
    spread,
)
from waxlake.stream.standalone import Positions, StandaloneSource

__all__ = ["KafkaConnector", "KafkaSource"]


@dataclass(frozen=True, slots=True)
class KafkaConnector:
    """Kafka topics to be read. Equal connectors can share one read.

    Guarantee: every record that the cluster shows to a reader of committed records once, in the order of its partition; a
    tombstone is a row of NULLs. Positions are offsets.
    """

    settings: KafkaSettings

    @property
    def name(self) -> str:
        """What the user calls the source, as ``kafka:orders``."""
        return f"kafka:{self.settings.topic}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Columns that are there when selected: topic, partition, offset, timestamp, key and headers of each record."""
        return METADATA_COLUMNS

    @property
    def on_data_loss(self) -> str:
        """``fail`` or ``skip``."""
        return self.settings.on_data_loss

    def empty(self) -> pa.Table:
        """Return no rows, with every column that a batch may have."""
        return record_schema(self.settings).empty_table()

    def inspect(self) -> SourceState:
        """Return the partitions, where they begin and where they really end.

        Raises:
            TerminalError: ``KAFKA_UNKNOWN_TOPIC``, ``KAFKA_AUTHENTICATION``, ``KAFKA_AUTHORIZATION``. Not retryable.
            TransientError: ``KAFKA_UNREACHABLE``. Retryable.
        """
        with Survey(self.settings) as survey:
            cluster_id = survey.cluster_id()
            topics = survey.topics()
            partitions = source_partitions(self.settings, topics)
            ranges = survey.ranges([TopicPartition(p.topic, p.number) for p in partitions])
        held = {p.key: ranges[p.topic, p.number] for p in partitions}
        return SourceState(
            identity=source_identity(self.settings, cluster_id, topics),
            name=self.name,
            partitions=held,
            begin=self._begin(partitions, held),
        )

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return the partitions dealt out to ``count`` readers: one consumer each, not one per partition."""
        return spread(list(plan.partitions), count)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader of some partitions; it connects at once and reads ahead from its first ``read``."""
        return KafkaReader(self.settings, plan, partitions, columns)

    def _begin(self, partitions: list[KafkaPartition], held: Mapping[str, SourceRange]) -> dict[str, int]:
        offsets = self.settings.starting_offsets
        if offsets == "earliest":
            return {key: range_.low for key, range_ in held.items()}
        if offsets == "latest":
            return {key: range_.high for key, range_ in held.items()}
        given = {(topic or self.settings.topic, number): offset for topic, number, offset in offsets}
        self._check_given(given, partitions)
        begin = {}
        for p in partitions:
            offset = given.get((p.topic, p.number), EARLIEST)
            named = {EARLIEST: held[p.key].low, LATEST: held[p.key].high}
            begin[p.key] = named.get(offset, offset)
        return begin

    def _check_given(self, given: Mapping[tuple[str, int], int], partitions: list[KafkaPartition]) -> None:
        missing = sorted(set(given) - {(p.topic, p.number) for p in partitions})
        if missing:
            topic, number = missing[0]
            raise TerminalError(
                f"cannot start {self.name} at the given offsets",
                code="KAFKA_STARTING_OFFSETS",
                found=f"partition {number} of topic {topic!r} in starting_offsets",
                expected=f"partitions {', '.join(str(p.number) for p in partitions if p.topic == topic) or '(no such topic)'}",
                remedy="Correct starting_offsets",
            )


class KafkaSource(StandaloneSource):
    """Kafka topics as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    The cluster is asked when Bytewax builds the dataflow. Positions are what the caller says: give those that the target
    table holds, and batches are stored exactly once together with them.

    Args:
        bootstrap_servers: Brokers to ask first.
        topic: A topic, several with commas between, or a pattern that starts with ``^``.
        schema: json: columns as DDL text or a pyarrow schema; avro: the reader's schema as JSON.
        format: ``json``, ``avro``, ``protobuf``, ``string`` or ``binary``.
        positions: Stored next offset of each partition key, or a function from what the source holds to them; none starts at
            ``starting_offsets``.
        is_bounded: End at what the topics hold when the dataflow is built.
        columns: Metadata columns that are wanted, such as ``_offset``.
        settings: Further fields of ``KafkaSettings``.

    Guarantee: every record once per run and in order within a partition; exactly once with a sink that stores positions.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        schema: str | pa.Schema | None = None,
        format: str = "json",
        positions: Positions | None = None,
        is_bounded: bool = False,
        columns: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        given = {"bootstrap_servers": bootstrap_servers, "topic": topic, "schema": schema, "format": format, **settings}
        connector = KafkaConnector(KafkaSettings.build(f"KafkaSource({topic!r})", given))
        super().__init__(connector, positions=positions, is_bounded=is_bounded, columns=columns)
