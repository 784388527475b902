"""Fetches records of assigned partitions and says which batches they make. Used by one thread; ``KafkaReader`` owns it.

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

from connectors.kafka.client import open_consumer
from connectors.kafka.fetched import Fetched, Piece
from connectors.kafka.identity import read_key
from connectors.kafka.records import Offsets, PartitionKey, Records, Segment, cut, gather, take
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.watch import TopicWatch
from waxlake.stream.batch import Backlog
from waxlake.stream.errors import SourceMoved
from waxlake.stream.kafka_client import Complaints, kafka_error
from waxlake.stream.source import SourcePlan

__all__ = ["Fetcher"]

_LOG: Final = logging.getLogger("connectors.kafka")

_CHUNK: Final = 10_000  # messages of one call: their objects still fit the cache, larger calls are slower
_WAIT_S: Final = 0.05
_PROBE_S: Final = 0.5
_AWAY_S: Final = 5.0
_NO_OFFSETS: Final = np.empty(0, np.int64)
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

    def bounded(self, end: int) -> int:
        """Return ``end``, or the mark if that comes first."""
        return end if self.mark is None else min(end, self.mark)


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
        self._settings, self._columns = settings, columns
        known = {(p.topic, p.number): p for p in (read_key(settings, plan, key) for key in plan.partitions)}
        self._watch = TopicWatch(settings, list(known.values()))
        self._tracks = {at: _track(p.key, plan) for at, p in known.items() if p.key in partitions}
        self._keys = tuple(self._tracks)
        self._complaints = Complaints()
        self._message_bytes = 128.0
        self._expired: list[PartitionKey] = []
        self._is_gone = False
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

    def fetch(self) -> Fetched:
        """Return what comes next; waits about 50 ms when nothing is there.

        Raises:
            TransientError: No broker has answered for seconds. May be called again: it goes on when one is back.
            SourceMoved: Offsets or the topic are gone. Not retryable.
            TerminalError: The user may no longer read. Not retryable.
        """
        consumer = self._consumer
        if consumer is None:
            return Fetched()
        if self._expired or self._is_gone:
            return Fetched(pieces=self._recover(consumer))
        if self._complaints.away_since_s is None:
            self._watch.check_now_and_then()
        pending = self._consume(consumer)
        self._check_credentials()
        fetched = self._fetched(pending)
        if pending.rows:
            self._complaints.has_answered()
        if fetched.pieces:
            self._pause_done(consumer)
        else:
            # Only here may a retryable error be raised: positions have not moved, so nothing is lost by it.
            self._check_brokers(consumer)
        return fetched

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

    # Following positions ------------------------------------------------------------------------------------------------

    def _fetched(self, pending: _Pending) -> Fetched:
        pieces: list[Piece] = []
        records, segments = gather(pending.parts) if pending.parts else (None, [])
        if records is not None:
            sizes = _running_sizes(records.values) if pending.size_bytes > self._settings.max_bytes_per_batch else None
            for segment in segments:
                pieces += self._segment_pieces(segment, records, sizes)
        seen = {segment.partition for segment in segments}
        for at, track in self._tracks.items():
            if at not in seen:
                pieces += self._advance(at, track.end_seen)
        return Fetched(pieces=pieces, records=records, segments=segments)

    def _segment_pieces(self, segment: Segment, records: Records, sizes: Offsets | None) -> Iterator[Piece]:
        track, first, last = self._tracks[segment.partition], segment.first, segment.last
        offsets = records.offsets[first:last]
        end = track.bounded(max(int(offsets[-1]) + 1, track.end_seen))
        weights = None if sizes is None else sizes[first : last + 1]
        limit = self._settings.max_bytes_per_batch
        bytes_per_row = records.values.nbytes / records.num_rows
        for start, stop, a, b in cut(offsets, track.position, end, track.edges, weights, limit):
            track.position = stop
            backlog = self._backlog(segment.partition, track, bytes_per_row)
            yield Piece(partition=track.key, start=start, end=stop, first=first + a, last=first + b, backlog=backlog)

    def _advance(self, at: PartitionKey, end: int, *, is_skipped: bool = False) -> Iterator[Piece]:
        """Move a partition to ``end`` without rows."""
        track = self._tracks[at]
        for start, stop, _, _ in cut(_NO_OFFSETS, track.position, track.bounded(end), track.edges):
            track.position = stop
            backlog = self._backlog(at, track, 0.0)
            yield Piece(partition=track.key, start=start, end=stop, backlog=backlog, is_skipped=is_skipped)

    def _backlog(self, at: PartitionKey, track: _Track, bytes_per_row: float) -> Backlog | None:
        high = track.mark
        if high is None and self._consumer is not None:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*at), cached=True)
        if high is None or high < 0:
            return None
        records = max(0, high - track.position)
        return Backlog(records=records, size_bytes=int(records * bytes_per_row) if bytes_per_row else None)

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
        if denied is not None:
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

    def _recover(self, consumer: Consumer) -> list[Piece]:
        """Find out what became of offsets or of a topic that a broker refused; go on if that is right."""
        self._watch.check()
        self._is_gone = False
        if not self._expired:
            return []
        pieces = self._skip_expired(consumer, self._expired[0])
        del self._expired[0]
        return pieces

    def _skip_expired(self, consumer: Consumer, at: PartitionKey) -> list[Piece]:
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
                remedy="The topic lost its newest records. Delete the table to fill it anew, or give the flow a new name",
            )
        if track.position < low and self._settings.on_data_loss != "skip":
            raise SourceMoved(
                self._what(at),
                code="KAFKA_OFFSET_EXPIRED",
                found=f"earliest offset {low}",
                expected=f"offset {track.position}, the next one to read ({low - track.position} are gone)",
                remedy="They expired before they were read. Set on_data_loss='skip' to go on without them (recorded in the "
                "event log), or delete the table to fill it anew",
            )
        pieces = list(self._advance(at, low, is_skipped=True))
        if not track.is_done:
            # Not seek(): the error has ended the fetching of the partition, and there is nothing to seek in.
            consumer.incremental_unassign([TopicPartition(*at)])
            consumer.incremental_assign([TopicPartition(*at, track.position)])
        return pieces


def _track(key: str, plan: SourcePlan) -> _Track:
    part = plan.partitions[key]
    edges = sorted({*part.fences, *([part.mark] if part.mark is not None else [])})
    return _Track(key=key, position=part.read_from, mark=part.mark, edges=tuple(edges))


def _running_sizes(values: pa.Array) -> Offsets:
    """Return the running sum of the sizes of values, bytes, shape (n_rows + 1,)."""
    buffer = values.buffers()[1]
    return np.frombuffer(buffer, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
