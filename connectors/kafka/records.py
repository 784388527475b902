"""Messages of librdkafka to Arrow columns: taken apart in bulk, decoded by engine code, cut at exact offsets.

The hot path of the Kafka source. Python touches a message only inside list comprehensions, one per field.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Message

from connectors.kafka.formats import value_decoder
from connectors.kafka.settings import METADATA_COLUMNS, RESCUED_COLUMN, KafkaSettings

__all__ = [
    "METADATA_SCHEMA",
    "Decoder",
    "Offsets",
    "PartitionKey",
    "Records",
    "Segment",
    "cut",
    "gather",
    "record_schema",
    "take",
]

PartitionKey = tuple[str, int]
Offsets = npt.NDArray[np.int64]

METADATA_SCHEMA: Final = pa.schema(
    [
        ("_topic", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_timestamp", pa.timestamp("us", tz="UTC")),
        ("_key", pa.binary()),
        ("_headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
    ]
)


@functools.lru_cache(maxsize=64)
def record_schema(settings: KafkaSettings) -> pa.Schema:
    """Return every column that a batch may have, metadata columns last."""
    return Decoder(settings, frozenset({*settings.schema_of_values.names, RESCUED_COLUMN, *METADATA_COLUMNS})).schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Messages taken apart, in the order in which they came.

    Attributes:
        runs: (partition, first row, row after the last) of each stretch of one partition, without gaps.
        offsets: Offset of each message, shape (n_rows,).
        values: Value of each message, binary, shape (n_rows,); null for a tombstone.
        metadata: Those of ``_timestamp``, ``_key``, ``_headers`` that are wanted, each of shape (n_rows,).
    """

    runs: tuple[tuple[PartitionKey, int, int], ...]
    offsets: Offsets
    values: pa.Array
    metadata: dict[str, pa.Array]

    @property
    def num_rows(self) -> int:
        """Number of messages."""
        return len(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The rows of one partition: ``[first, last)`` of the gathered records, in the order of their offsets."""

    partition: PartitionKey
    first: int
    last: int


def take(messages: Sequence[Message], columns: frozenset[str], partitions: Sequence[PartitionKey]) -> Records:
    """Take messages apart.

    Args:
        messages: What ``consume`` returned, without error events.
        columns: Columns that somebody uses.
        partitions: Those of the consumer; where there is one, or one topic, less has to be looked at.
    """
    return Records(
        runs=_runs(messages, partitions),
        offsets=np.array([m.offset() for m in messages], dtype=np.int64),
        values=pa.array([m.value() for m in messages], pa.binary()),
        metadata={name: build(messages) for name, build in _METADATA.items() if name in columns},
    )


def _runs(messages: Sequence[Message], partitions: Sequence[PartitionKey]) -> tuple[tuple[PartitionKey, int, int], ...]:
    if len(partitions) == 1:
        return ((partitions[0], 0, len(messages)),)
    numbers = [m.partition() for m in messages]
    topics = {topic for topic, _ in partitions}
    if len(topics) == 1:
        topic = topics.pop()
        bounds = np.flatnonzero(np.diff(np.array(numbers, np.int32))) + 1
        edges = [0, *bounds.tolist(), len(numbers)]
        return tuple(((topic, numbers[first]), first, last) for first, last in itertools.pairwise(edges))
    keys = list(zip([m.topic() for m in messages], numbers, strict=True))
    edges = [0, *(i for i in range(1, len(keys)) if keys[i] != keys[i - 1]), len(keys)]
    return tuple((keys[first], first, last) for first, last in itertools.pairwise(edges))


def _timestamps(messages: Sequence[Message]) -> pa.Array:
    kinds_and_ms = [m.timestamp() for m in messages]
    micros = [ms * 1000 if kind else None for kind, ms in kinds_and_ms]
    return pa.array(micros, pa.int64()).cast(METADATA_SCHEMA.field("_timestamp").type)


def _keys(messages: Sequence[Message]) -> pa.Array:
    return pa.array([m.key() for m in messages], pa.binary())


def _headers(messages: Sequence[Message]) -> pa.Array:
    kind = METADATA_SCHEMA.field("_headers").type
    named: list[Any] = [m.headers() for m in messages]
    if not any(named):
        return pa.nulls(len(named), kind)
    return pa.array([h and [{"key": key, "value": value} for key, value in h] for h in named], kind)


_METADATA: Final[dict[str, Callable[[Sequence[Message]], pa.Array]]] = {
    "_timestamp": _timestamps,
    "_key": _keys,
    "_headers": _headers,
}


def gather(parts: Sequence[Records]) -> tuple[Records, list[Segment]]:
    """Put the rows of each partition side by side, in their order; rows of several calls become one column."""
    stretches: dict[PartitionKey, list[tuple[Records, int, int]]] = {}
    for part in parts:
        for key, first, last in part.runs:
            stretches.setdefault(key, []).append((part, first, last))
    ordered = list(itertools.chain.from_iterable(stretches.values()))
    segments, first = [], 0
    for key, pieces in stretches.items():
        last = first + sum(b - a for _, a, b in pieces)
        segments.append(Segment(partition=key, first=first, last=last))
        first = last
    if len(ordered) == 1:
        return parts[0], segments
    together = Records(
        runs=tuple((s.partition, s.first, s.last) for s in segments),
        offsets=np.concatenate([part.offsets[a:b] for part, a, b in ordered]),
        values=pa.concat_arrays([part.values[a:b] for part, a, b in ordered]),
        metadata={
            name: pa.concat_arrays([part.metadata[name][a:b] for part, a, b in ordered]) for name in parts[0].metadata
        },
    )
    return together, segments


def cut(
    offsets: Offsets, start: int, end: int, edges: Sequence[int], weights: Offsets | None = None, limit: int = 0
) -> Iterator[tuple[int, int, int, int]]:
    """Cut ``[start, end)`` of a partition at the offsets where a batch must end.

    Args:
        offsets: Offsets of the records, ascending; those outside ``[start, end)`` are left out.
        start: Where the partition stands.
        end: Position after all of it: beyond the last record where a gap (compaction, transaction marker) follows.
        edges: Fences, ascending: no piece straddles one.
        weights: Running sum of the sizes of the records, bytes, shape (n_rows + 1,); None does not look at sizes.
        limit: Most bytes in a piece; a larger record gets a piece of its own.

    Yields:
        Start and end position, first row and row after the last of each piece. Pieces are adjacent; a gap belongs to the
        piece before it.
    """
    if end <= start:
        return
    stops = [edge for edge in edges if start < edge < end] + [end]
    position, row = start, int(np.searchsorted(offsets, start))
    for stop in stops:
        last_row = int(np.searchsorted(offsets, stop))
        while weights is not None and weights[last_row] - weights[row] > limit and last_row - row > 1:
            fits = int(np.searchsorted(weights, weights[row] + limit, side="right")) - 1
            next_row = max(fits, row + 1)
            if next_row >= last_row:
                break
            yield position, int(offsets[next_row]), row, next_row
            position, row = int(offsets[next_row]), next_row
        yield position, stop, row, last_row
        position, row = stop, last_row


class Decoder:
    """Decodes gathered records to the columns that somebody uses.

    Args:
        settings: The source.
        columns: Columns that somebody uses; empty for all but metadata.
    """

    def __init__(self, settings: KafkaSettings, columns: frozenset[str]) -> None:
        schema = settings.schema_of_values
        is_rescued = settings.format != "binary" and (not columns or RESCUED_COLUMN in columns)
        if columns and not is_rescued and settings.format == "json":
            schema = pa.schema([f for f in schema if f.name in columns] or [schema.field(0)])
        self._metadata = [name for name in METADATA_COLUMNS if name in columns]
        self._is_rescued = is_rescued
        self._values = value_decoder(settings, schema, with_rescued=is_rescued)
        values = self._values(pa.array([], pa.binary())).schema
        self.schema = pa.schema([*values, *(METADATA_SCHEMA.field(name) for name in self._metadata)])

    def decode(self, records: Records, segments: Sequence[Segment]) -> pa.Table:
        """Return one row per record, in order.

        Args:
            records: What ``gather`` returned.
            segments: Its partitions.
        """
        table = self._values(records.values)
        for name in self._metadata:
            table = table.append_column(METADATA_SCHEMA.field(name), self._metadata_column(name, records, segments))
        return table

    def _metadata_column(self, name: str, records: Records, segments: Sequence[Segment]) -> pa.Array:
        if name == "_offset":
            return pa.array(records.offsets)
        if name in records.metadata:
            return records.metadata[name]
        lengths = [s.last - s.first for s in segments]
        if name == "_partition":
            return pa.array(np.repeat(np.array([s.partition[1] for s in segments], np.int32), lengths))
        indices = pa.array(np.repeat(np.arange(len(segments), dtype=np.int32), lengths))
        return pa.array([s.partition[0] for s in segments], pa.string()).take(indices)
