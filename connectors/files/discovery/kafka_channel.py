"""Notifications from a Kafka topic, as MinIO publishes them; called by discovery.

Positions are offsets per partition of *this* topic (cluster id and topic id are part of the app id), stored in the ledger
commit that records what they told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from connectors.files.discovery.channel import ChannelLost, Heard
from connectors.files.discovery.events import NoEvent, ObjectEvent, object_events
from connectors.kafka.settings import KafkaSettings
from waxlake.stream.errors import TerminalError, TransientError
from waxlake.stream.kafka_options import KafkaOptions

__all__ = ["KafkaChannel"]

_MOST_EVENTS: Final = 100_000
_CHUNK: Final = 10_000
_POLL_S: Final = 0.05
_LOOK_AGAIN_S: Final = 60.0
_APP: Final = "waxlake/ledger/events"


class KafkaChannel:
    """One topic.

    Args:
        topic: Its name.
        bootstrap_servers: Brokers.
        options: Settings of librdkafka.
    """

    def __init__(self, topic: str, bootstrap_servers: str, options: Mapping[str, str]) -> None:
        self._settings: KafkaSettings = KafkaSettings.build(
            f"notification_topic {topic!r}",
            {
                "bootstrap_servers": bootstrap_servers,
                "topic": topic,
                "format": "binary",
                "options": KafkaOptions(options),
            },
        )
        self._is_recorded = True
        self._consumer: Any = None
        self._complaints: Any = None
        self._apps: dict[int, str] = {}
        self._next: dict[int, int] = {}
        self._at_end: set[int] = set()
        self._looked_at_s = 0.0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"Kafka topic {self._settings.topic!r} at {self._settings.bootstrap_servers}"

    def ends(self) -> Mapping[str, int]:
        """Return the offset after the last event of each partition."""
        self.close()
        return {app: high for app, _, high in self._survey().values()}

    def hear(self, stored: Callable[[str], int | None]) -> Heard:
        """Return the events between the stored offsets and the end, at most some 100,000."""
        if not self._is_recorded:
            self.close()  # what was heard last is lost with the commit that did not come: hear it again
        self._is_recorded = False
        if self._consumer is None or time.monotonic() - self._looked_at_s > _LOOK_AGAIN_S:
            self._open(stored)
        events: dict[ObjectEvent, None] = {}
        ignored = 0
        deadline_s = time.monotonic() + self._settings.request_timeout_s
        while len(events) < _MOST_EVENTS:
            messages = self._consumer.consume(_CHUNK, _POLL_S)
            for message in messages:
                if self._moves(message):
                    try:
                        events.update(dict.fromkeys(object_events(message.value() or b"")))
                    except NoEvent:
                        ignored += 1
            if messages:
                deadline_s = time.monotonic() + self._settings.request_timeout_s
            elif len(self._at_end) == len(self._apps):
                break
            elif time.monotonic() > deadline_s:
                self.close()
                raise ChannelLost("the brokers do not answer")
        positions = {self._apps[partition]: offset for partition, offset in self._next.items()}
        return Heard(list(events), positions, ignored, has_more=len(events) >= _MOST_EVENTS)

    def recorded(self) -> None:
        """Go on from here next time: the offsets are in the ledger, or what came before them was nothing new."""
        self._is_recorded = True

    def close(self) -> None:
        """Close the consumer; the next look begins at the stored offsets."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _moves(self, message: Any) -> bool:
        """Take the position of a message; return whether it is an event."""
        from confluent_kafka import KafkaError

        partition, error = message.partition(), message.error()
        if error is None:
            self._next[partition] = message.offset() + 1
            self._at_end.discard(partition)
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            self._next[partition] = max(self._next[partition], message.offset())
            self._at_end.add(partition)
            return False
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) or not error.retriable():
            self.close()
            raise ChannelLost(str(error.str()))
        return False

    def _open(self, stored: Callable[[str], int | None]) -> None:
        """Look what the topic holds, and begin where the ledger is, or where this reader is if that is further."""
        from confluent_kafka import TopicPartition

        from connectors.kafka.client import open_consumer
        from waxlake.stream.kafka_client import Complaints

        heard = dict(self._next) if self._consumer is not None else {}
        held, apps = self._survey(), dict(self._apps)
        positions = {partition: stored(app) for partition, (app, _, _) in held.items()}
        self._looked_at_s = time.monotonic()
        if all(position is None for position in positions.values()):
            self.close()
            raise ChannelLost("it is not the topic that was read before: made anew, or never read")
        start: dict[int, int] = {}
        for partition, (app, low, high) in held.items():
            mine = heard.get(partition) if apps.get(partition) == app else None
            start[partition] = max(
                mine or 0, positions[partition] or 0
            )  # a partition that is new is heard from its start
            if not low <= start[partition] <= high and (positions[partition] is not None or low):
                self.close()
                raise ChannelLost(f"partition {partition} holds [{low}, {high}), wanted {start[partition]}")
        self.close()
        self._apps = {partition: app for partition, (app, _, _) in held.items()}
        self._next, self._at_end = start, set()
        self._complaints = Complaints()
        self._consumer = open_consumer(
            self._settings, self._complaints, fetch_wait_max_ms=10, queued_min_messages=10_000
        )
        self._consumer.assign([TopicPartition(self._settings.topic, p, offset) for p, offset in start.items()])

    def _survey(self) -> dict[int, tuple[str, int, int]]:
        """Return partition to (app id, first offset, end).

        Raises:
            ChannelLost: No such topic, or no broker answers.
            TerminalError: Wrong credentials. Not retryable.
        """
        from confluent_kafka import TopicPartition

        from connectors.kafka.survey import Survey

        try:
            with Survey(self._settings) as survey:
                cluster = survey.cluster_id()
                (topic,) = survey.topics()
                ranges = survey.ranges(TopicPartition(topic.name, number) for number in topic.partitions)
        except TerminalError as error:
            if error.code != "KAFKA_UNKNOWN_TOPIC":
                raise
            raise ChannelLost("no such topic") from error
        except TransientError as error:
            raise ChannelLost(str(error.found)) from error
        identity = "/".join(quote(part, safe="") for part in (cluster, f"{topic.name}@{topic.topic_id}"))
        return {number: (f"{_APP}/{identity}/{number}", held.low, held.high) for (_, number), held in ranges.items()}
