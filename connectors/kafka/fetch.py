"""Fetches records of assigned partitions and makes micro-batches of them. Used by one thread; ``KafkaReader`` owns it.

librdkafka reads ahead and reconnects by itself. What is here follows the position of each partition exactly: over gaps,
to fences and marks, and over offsets that are gone where the user said so.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka.client import Complaints, is_authentication, kafka_error, open_consumer
from connectors.kafka.identity import read_key
from connectors.kafka.records import Decoder, PartitionKey, Records, Segment, cut, gather, take
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.survey import Survey, Topic
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError
from waxlake.stream.source import SourcePlan

__all__ = ["Fetcher"]

_LOG: Final = logging.getLogger("connectors.kafka")

_CHUNK: Final = 10_000  # messages of one call: their objects still fit the cache, larger calls are slower
_WAIT_S: Final = 0.05
_PROBE_S: Final = 0.5
_AWAY_S: Final = 5.0
_CHECK_EVERY_S: Final = 30.0
_MIN_MESSAGE_BYTES: Final = 16

_EXPIRED: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
_GONE: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
_OF_GROUPS: Final = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError._MAX_POLL_EXCEEDED})


class _PausedCollector:
    """Keeps Python's garbage collector away while messages are alive.

    Each of the tens of thousands of messages of a call counts as a new object, so that collections run all the time and
    find nothing: without them the hot path takes two thirds of the time. Nested and concurrent use is fine.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._was_on = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._users += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._was_on:
                gc.enable()


_collector_paused = _PausedCollector()


@dataclass(slots=True)
class _Track:
    """Where one partition stands.

    Attributes:
        key: Partition key of the source.
        position: Next offset; everything below it is in a batch already.
        mark: Offset at which a bounded read ends, or None.
        edges: Fences and the mark, ascending.
        end_seen: Offset of the latest end-of-partition event.
    """

    key: str
    position: int
    mark: int | None
    edges: tuple[int, ...]
    end_seen: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the mark is reached."""
        return self.mark is not None and self.position >= self.mark


@dataclass(slots=True)
class _Pending:
    """What was consumed and is not decoded yet."""

    parts: list[Records] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0


class Fetcher:
    """Fetches the partitions of one group.

    Args:
        settings: The source.
        plan: What to read.
        partitions: Partition keys of the group.
        columns: Columns that somebody uses.
    """

    def __init__(
        self, settings: KafkaSettings, plan: SourcePlan, partitions: Sequence[str], columns: frozenset[str]
    ) -> None:
        self._settings, self._source, self._columns = settings, plan.identity, columns
        self._decoder = Decoder(settings, columns)
        self._empty = self._decoder.schema.empty_table()
        self._known = {(p.topic, p.number): p for p in (read_key(settings, plan, key) for key in plan.partitions)}
        self._tracks = {at: _track(p.key, plan) for at, p in self._known.items() if p.key in partitions}
        self._keys = tuple(self._tracks)
        self._complaints = Complaints()
        self._message_bytes = 128.0
        self._expired: list[PartitionKey] = []
        self._is_gone = False
        self._checked_at_s = time.monotonic()
        self._announced: set[PartitionKey] = set()
        self._consumer: Consumer | None = None
        if not self.is_done:
            self._consumer = open_consumer(settings, self._complaints)
            reading = [(at, track) for at, track in self._tracks.items() if not track.is_done]
            self._consumer.assign([TopicPartition(*at, track.position) for at, track in reading])

    @property
    def is_done(self) -> bool:
        """Whether every partition has reached its mark."""
        return all(track.is_done for track in self._tracks.values())

    def close(self) -> None:
        """Free the consumer. Never raises."""
        if self._consumer is not None:
            try:
                self._consumer.close()
            except (KafkaException, RuntimeError) as exc:
                _LOG.debug("closing the consumer: %s", exc)
            self._consumer = None

    def fetch(self) -> list[MicroBatch]:
        """Return the next batches; waits about 50 ms when nothing is there.

        Raises:
            TransientError: No broker has answered for seconds. May be called again: it goes on when one is back.
            SourceMoved: Offsets or the topic are gone. Not retryable.
            TerminalError: The user may no longer read. Not retryable.
        """
        if self._consumer is None:
            return []
        if self._expired or self._is_gone:
            return self._recover(self._consumer)
        self._check_topics_now_and_then()
        pending = self._consume(self._consumer)
        self._check_credentials()
        batches = self._batches(pending)
        if pending.rows:
            self._complaints.has_answered()
        if batches:
            self._pause_done(self._consumer)
        else:
            # Only here may a retryable error be raised: batches that are made and not returned would be lost.
            self._check_brokers(self._consumer)
        return batches

    # Consuming ----------------------------------------------------------------------------------------------------------

    def _consume(self, consumer: Consumer) -> _Pending:
        """Take what librdkafka holds, up to the size of a batch; stop early where it holds no more."""
        pending = _Pending()
        with _collector_paused:
            while self._has_room(pending):
                wanted = self._wanted(pending)
                messages = consumer.consume(wanted, 0 if pending.rows else _WAIT_S)
                events = [message for message in messages if message.error() is not None]
                if events:
                    messages = [message for message in messages if message.error() is None]
                    self._take_events(events)
                if messages:
                    self._append(pending, messages)
                if len(messages) < wanted:
                    break
        return pending

    def _has_room(self, pending: _Pending) -> bool:
        settings = self._settings
        return pending.rows < settings.max_rows_per_batch and pending.size_bytes < settings.max_bytes_per_batch

    def _wanted(self, pending: _Pending) -> int:
        """Return how many messages to ask for: no more than fit the batch, by the sizes seen so far."""
        settings = self._settings
        by_size = int((settings.max_bytes_per_batch - pending.size_bytes) / self._message_bytes)
        wanted = min(_CHUNK, settings.max_rows_per_batch - pending.rows, max(1, by_size))
        left = self._left()
        # consume() waits for all that it was asked for: at the end of a bounded read no more will come.
        return wanted if left is None else max(1, min(wanted, left - pending.rows))

    def _left(self) -> int | None:
        left = 0
        for track in self._tracks.values():
            if track.mark is None:
                return None
            left += max(0, track.mark - track.position)
        return left

    def _append(self, pending: _Pending, messages: list[Message]) -> None:
        records = take(messages, self._columns, self._keys)
        size_bytes = records.values.nbytes
        self._message_bytes = max(_MIN_MESSAGE_BYTES, size_bytes / len(messages))
        pending.parts.append(records)
        pending.rows += len(messages)
        pending.size_bytes += size_bytes

    def _take_events(self, events: Sequence[Any]) -> None:
        for event in events:
            error, at = event.error(), (event.topic(), event.partition())
            code = error.code()
            if code == KafkaError._PARTITION_EOF and at in self._tracks:
                self._complaints.has_answered()
                self._tracks[at].end_seen = event.offset()
            elif code in _EXPIRED and at in self._tracks:
                self._expired.append(at)
            elif code in _GONE or code in _EXPIRED:
                self._is_gone = True
            elif code in _OF_GROUPS:
                _LOG.debug("about the consumer group, which is not used: %s", error.str())
            elif code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise kafka_error(self._what(at), error, self._settings, self._complaints)
            else:
                self._complaints(error)

    # Making batches -----------------------------------------------------------------------------------------------------

    def _batches(self, pending: _Pending) -> list[MicroBatch]:
        batches: list[MicroBatch] = []
        seen: set[PartitionKey] = set()
        if pending.parts:
            records, segments = gather(pending.parts)
            table = self._decoder.decode(records, segments)
            sizes = _running_sizes(records.values) if pending.size_bytes > self._settings.max_bytes_per_batch else None
            for segment in segments:
                batches += self._segment_batches(segment, records, table, sizes)
                seen.add(segment.partition)
        for at, track in self._tracks.items():
            if at not in seen and track.end_seen > track.position and not track.is_done:
                batches += self._advance(at, track.end_seen)
        return batches

    def _segment_batches(
        self, segment: Segment, records: Records, table: pa.Table, sizes: np.ndarray | None
    ) -> Iterator[MicroBatch]:
        track = self._tracks[segment.partition]
        first, last = segment.first, segment.last
        offsets = records.offsets[first:last]
        weights = None if sizes is None else sizes[first : last + 1]
        end = max(int(offsets[-1]) + 1, track.end_seen)
        if track.mark is not None:
            end = min(end, track.mark)
        if end <= track.position:
            return
        bytes_per_row = records.values.nbytes / max(1, records.num_rows)
        limit = self._settings.max_bytes_per_batch
        for start, stop, a, b in cut(offsets, track.position, end, track.edges, weights, limit):
            track.position = stop
            rows = table.slice(first + a, b - a)
            yield self._batch(segment.partition, start, stop, rows, bytes_per_row)

    def _advance(self, at: PartitionKey, end: int, *, is_skipped: bool = False) -> Iterator[MicroBatch]:
        """Move a partition to ``end`` without rows."""
        track = self._tracks[at]
        if track.mark is not None:
            end = min(end, track.mark)
        if end <= track.position:
            return
        for start, stop, _, _ in cut(np.empty(0, np.int64), track.position, end, track.edges):
            track.position = stop
            yield self._batch(at, start, stop, self._empty, 0.0, skipped=(start, stop) if is_skipped else None)

    def _batch(
        self,
        at: PartitionKey,
        start: int,
        end: int,
        rows: pa.Table,
        bytes_per_row: float,
        *,
        skipped: tuple[int, int] | None = None,
    ) -> MicroBatch:
        track = self._tracks[at]
        left = self._backlog(at, track, end)
        return MicroBatch(
            table=rows,
            source=self._source,
            partition=track.key,
            start=start,
            end=end,
            read=rows.num_rows,
            backlog=None if left is None else Backlog(records=left, size_bytes=int(left * bytes_per_row)),
            skipped=skipped,
        )

    def _backlog(self, at: PartitionKey, track: _Track, end: int) -> int | None:
        if track.mark is not None:
            return track.mark - end
        if self._consumer is None:
            return None
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*at), cached=True)
        return max(0, high - end) if high >= 0 else None

    def _pause_done(self, consumer: Consumer) -> None:
        """Stop fetching what lies behind marks."""
        done = [at for at, track in self._tracks.items() if track.is_done]
        if done and len(done) < len(self._tracks):
            consumer.pause([TopicPartition(*at) for at in done])

    # When something is wrong --------------------------------------------------------------------------------------------

    def _what(self, at: PartitionKey) -> str:
        return f"cannot read Kafka topic {at[0]!r} partition {at[1]} at {self._settings.bootstrap_servers}"

    def _check_credentials(self) -> None:
        denied = self._complaints.denied
        if denied is not None and is_authentication(denied):
            raise kafka_error(self._what(self._keys[0]), denied, self._settings, self._complaints)

    def _check_brokers(self, consumer: Consumer) -> None:
        away_since_s = self._complaints.away_since_s
        if away_since_s is None or time.monotonic() - away_since_s < _AWAY_S:
            return
        at = self._keys[0]
        try:
            consumer.list_topics(at[0], timeout=_PROBE_S)
        except KafkaException as exc:
            raise kafka_error(self._what(at), exc.args[0], self._settings, self._complaints) from exc
        self._complaints.has_answered()

    def _check_topics_now_and_then(self) -> None:
        """Look every half a minute whether a topic was recreated or has got more partitions."""
        if time.monotonic() - self._checked_at_s < _CHECK_EVERY_S or self._complaints.away_since_s is not None:
            return
        try:
            self._check_topics()
        except TransientError as exc:
            _LOG.debug("looking at the topics: %s", exc)

    def _check_topics(self) -> None:
        self._checked_at_s = time.monotonic()
        topics = {p.topic: p.topic_id for p in self._known.values()}
        try:
            with Survey(self._settings) as survey:
                found = {topic.name: topic for topic in survey.describe(topics)}
        except TerminalError as exc:
            if exc.code != "KAFKA_UNKNOWN_TOPIC":
                raise
            raise _topic_gone(exc.what, "no such topic") from exc
        for name, topic_id in topics.items():
            new_id = found[name].topic_id
            if topic_id and new_id != topic_id:
                raise _topic_gone(f"cannot go on reading Kafka topic {name!r}", f"topic id {new_id}", topic_id)
            self._warn_of_new_partitions(found[name])

    def _warn_of_new_partitions(self, topic: Topic) -> None:
        new = {(topic.name, number) for number in topic.partitions} - set(self._known) - self._announced
        if new:
            self._announced |= new
            numbers = ", ".join(str(number) for _, number in sorted(new))
            _LOG.warning(
                "Kafka topic %r has new partitions (%s): they are read from the next start on", topic.name, numbers
            )

    def _recover(self, consumer: Consumer) -> list[MicroBatch]:
        """Find out what became of offsets or of a topic that a broker refused; go on if that is right."""
        self._check_topics()
        self._is_gone = False
        if not self._expired:
            return []
        batches = self._skip_expired(consumer, self._expired[0])
        del self._expired[0]
        return batches

    def _skip_expired(self, consumer: Consumer, at: PartitionKey) -> list[MicroBatch]:
        track = self._tracks[at]
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(*at), timeout=self._settings.request_timeout_s)
        except KafkaException as exc:
            raise kafka_error(self._what(at), exc.args[0], self._settings, self._complaints) from exc
        if track.position > high:
            raise SourceMoved(
                self._what(at),
                code="KAFKA_OFFSET_EXPIRED",
                found=f"end offset {high}",
                expected=f"at least {track.position}, which was read already",
                remedy="The topic lost its newest records. Full-refresh the table, or give the flow a new name",
            )
        if track.position < low and self._settings.on_data_loss != "skip":
            raise SourceMoved(
                self._what(at),
                code="KAFKA_OFFSET_EXPIRED",
                found=f"earliest offset {low}",
                expected=f"offset {track.position}, the next one to read ({low - track.position} are gone)",
                remedy="They expired before they were read. Set on_data_loss='skip' to go on without them (recorded in the "
                "event log), or full-refresh the table",
            )
        batches = list(self._advance(at, low, is_skipped=True))
        if not track.is_done:
            # Not seek(): the error has ended the fetching of the partition, and there is nothing to seek in.
            consumer.incremental_unassign([TopicPartition(*at)])
            consumer.incremental_assign([TopicPartition(*at, track.position)])
        return batches


def _topic_gone(what: str, found: str, topic_id: str | None = None) -> SourceMoved:
    return SourceMoved(
        what,
        code="KAFKA_TOPIC_GONE",
        found=found,
        expected=None if topic_id is None else f"topic id {topic_id}: it was deleted and made anew",
        remedy="What the table holds came from the deleted topic. Full-refresh the table, or give the flow a new name",
    )


def _track(key: str, plan: SourcePlan) -> _Track:
    part = plan.partitions[key]
    edges = sorted({*part.fences, *([part.mark] if part.mark is not None else [])})
    return _Track(key=key, position=part.read_from, mark=part.mark, edges=tuple(edges))


def _running_sizes(values: pa.Array) -> np.ndarray:
    """Return the running sum of the sizes of values, bytes, shape (n_rows + 1,)."""
    buffer = values.buffers()[1]
    return np.frombuffer(buffer, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
