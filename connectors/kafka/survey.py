"""What a cluster holds now: its id, the topics that are read, and where their partitions begin and really end.

Called when a run is planned, and by a reader that has to know whether its topics are still the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition, admin
from confluent_kafka.admin import AdminClient

from connectors.kafka.client import open_admin, open_consumer
from connectors.kafka.settings import KafkaSettings
from waxlake.stream.errors import TerminalError
from waxlake.stream.kafka_client import Complaints, kafka_error
from waxlake.stream.settings import nearest
from waxlake.stream.source import SourceRange

__all__ = ["Survey", "Topic", "true_ends"]

_POLL_S: Final = 0.05
_CHUNK: Final = 10_000
_EARLIEST: Final = admin.OffsetSpec.earliest()  # type: ignore[attr-defined,no-untyped-call]  # missing from its stubs
_LATEST: Final = admin.OffsetSpec.latest()  # type: ignore[attr-defined,no-untyped-call]
_NO_ID: Final = "AAAAAAAAAAAAAAAAAAAAAA"  # what a broker older than topic ids answers: all bits zero
_UNKNOWN: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as it is now.

    Attributes:
        name: Its name.
        topic_id: Its id, another one when it is recreated; empty when the broker has none to tell.
        partitions: Its partition numbers.
    """

    name: str
    topic_id: str
    partitions: tuple[int, ...]


class Survey:
    """Questions to a cluster, each answered within ``request_timeout_s``. A context manager.

    Raises:
        TerminalError: ``KAFKA_AUTHENTICATION``, ``KAFKA_AUTHORIZATION``, ``KAFKA_UNKNOWN_TOPIC``. Not retryable.
        TransientError: ``KAFKA_UNREACHABLE``. Retryable.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._complaints = Complaints()
        self._what = f"cannot read Kafka topic {settings.topic!r} at {settings.bootstrap_servers}"
        self._admin: AdminClient = open_admin(settings, self._complaints)

    def __enter__(self) -> Survey:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._admin

    def cluster_id(self) -> str:
        """Return the id of the cluster."""
        return str(self._answer(self._admin.describe_cluster(**self._timeout())).cluster_id or "")

    def topics(self) -> tuple[Topic, ...]:
        """Return the topics that the settings name or match, in the order of their names."""
        pattern = self._settings.pattern
        names = self._settings.topics
        if pattern is not None:
            # As librdkafka and Java have it: internal topics only when they are named.
            names = tuple(name for name in self._all_names() if pattern.search(name) and not name.startswith("__"))
            if not names:
                raise self._unknown(self._settings.topic, f"none of {len(self._all_names())} topics matches")
        return tuple(sorted(self.describe(names), key=lambda topic: topic.name))

    def describe(self, names: Iterable[str]) -> list[Topic]:
        """Return the topics of these names."""
        answers = self._admin.describe_topics(TopicCollection(list(names)), **self._timeout())
        return [self._described(name, future) for name, future in answers.items()]

    def ranges(self, partitions: Iterable[TopicPartition]) -> dict[tuple[str, int], SourceRange]:
        """Return the first offset and the true end of partitions."""
        wanted = list(partitions)
        isolation = IsolationLevel.READ_COMMITTED
        if self._settings.reads_uncommitted:
            isolation = IsolationLevel.READ_UNCOMMITTED
        ask = self._admin.list_offsets
        lows = ask(dict.fromkeys(wanted, _EARLIEST), **self._timeout())
        highs = ask(dict.fromkeys(wanted, _LATEST), isolation_level=isolation, **self._timeout())
        low = {(tp.topic, tp.partition): int(self._answer(future).offset) for tp, future in lows.items()}
        listed = {(tp.topic, tp.partition): int(self._answer(future).offset) for tp, future in highs.items()}
        high = true_ends(self._settings, {key: max(offset, low[key]) for key, offset in listed.items()})
        return {key: SourceRange(low=low[key], high=max(high[key], low[key])) for key in low}

    def _described(self, name: str, future: Future[Any]) -> Topic:
        try:
            found = self._answer(future)
        except _UnknownTopicError:
            raise self._unknown(name, "no such topic") from None
        topic_id = "" if str(found.topic_id) == _NO_ID else str(found.topic_id)
        return Topic(name=name, topic_id=topic_id, partitions=tuple(sorted(p.id for p in found.partitions)))

    def _all_names(self) -> list[str]:
        try:
            return sorted(self._admin.list_topics(timeout=self._settings.request_timeout_s).topics)
        except KafkaException as exc:
            self._admin.poll(0)
            raise kafka_error(self._what, exc.args[0], self._settings, self._complaints) from exc

    def _unknown(self, name: str, found: str) -> TerminalError:
        names = [other for other in self._all_names() if not other.startswith("__")]
        return TerminalError(
            f"cannot read Kafka topic {name!r} at {self._settings.bootstrap_servers}",
            code="KAFKA_UNKNOWN_TOPIC",
            found=found,
            remedy=nearest(name, names[:20] if len(names) > 1000 else names) if names else "The cluster has no topics",
        )

    def _timeout(self) -> dict[str, float]:
        return {"request_timeout": self._settings.request_timeout_s}

    def _answer(self, future: Future[Any]) -> Any:
        """Wait for an answer; wrong credentials end the wait at once."""
        deadline = time.monotonic() + self._settings.request_timeout_s + 1
        while True:
            is_answered = False
            try:
                return future.result(timeout=_POLL_S)
            except FutureTimeoutError:
                error = KafkaError(KafkaError._TIMED_OUT)
            except KafkaException as exc:
                is_answered, error = True, exc.args[0]
                if error.code() in _UNKNOWN:
                    raise _UnknownTopicError from exc
            self._admin.poll(0)  # serves the error callback
            if is_answered or self._complaints.denied is not None or time.monotonic() > deadline:
                raise kafka_error(self._what, error, self._settings, self._complaints)


class _UnknownTopicError(Exception):
    """The cluster does not know the topic."""


def true_ends(settings: KafkaSettings, listed: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """Return where partitions really end, by reading on from where the cluster says they do.

    A broker may list an end that lags behind what a fetch returns (the embedded one answers the base offset of the last
    record batch), so a run that stopped there would leave records out. Where producers are faster than this, any position
    reached is as good: it was the end a moment ago.

    Args:
        settings: The source.
        listed: (topic, partition) to the end that the cluster lists.

    Returns:
        (topic, partition) to the offset of the end-of-partition event, after transaction markers.

    Raises:
        TransientError: ``KAFKA_UNREACHABLE``. Retryable.
    """
    if not listed:
        return {}
    complaints = Complaints()
    ends, missing = dict(listed), set(listed)
    moving_until = time.monotonic() + min(2.0, settings.request_timeout_s)
    deadline = time.monotonic() + settings.request_timeout_s
    consumer = open_consumer(settings, complaints, fetch_wait_max_ms=10, fetch_min_bytes=1)
    try:
        consumer.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in listed.items()])
        while missing:
            messages: list[Any] = consumer.consume(_CHUNK, 0) or consumer.consume(1, _POLL_S)
            for message in messages:
                key = (message.topic(), message.partition())
                error = message.error()
                if error is None:
                    ends[key] = max(ends[key], message.offset() + 1)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ends[key] = max(ends[key], message.offset())
                    missing.discard(key)
                else:
                    complaints(error)
            if time.monotonic() > moving_until:
                missing = {key for key in missing if ends[key] == listed[key]}
            if missing and (time.monotonic() > deadline or complaints.denied is not None):
                what = f"cannot find the end of Kafka topic {settings.topic!r} at {settings.bootstrap_servers}"
                raise kafka_error(what, KafkaError(KafkaError._TIMED_OUT), settings, complaints)
    finally:
        consumer.close()
    return ends
