"""Looks, while a run goes on, whether its topics are still the ones that it was planned for. Used by the fetching thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from connectors.kafka.identity import KafkaPartition
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.survey import Survey, Topic
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError

__all__ = ["TopicWatch"]

_LOG: Final = logging.getLogger("connectors.kafka")
_CHECK_EVERY_S: Final = 30.0


class TopicWatch:
    """Watches the topics of a run.

    A topic that is made anew while it is read answers fetches as if nothing had happened, as soon as it holds enough
    records; only its id tells.

    Args:
        settings: The source.
        known: Every partition of the plan.
    """

    def __init__(self, settings: KafkaSettings, known: Sequence[KafkaPartition]) -> None:
        self._settings = settings
        self._topics = {p.topic: p.topic_id for p in known}
        self._seen = {(p.topic, p.number) for p in known}
        self._checked_at_s = time.monotonic()

    def check_now_and_then(self) -> None:
        """Check every half a minute; a cluster that does not answer is nothing new here."""
        if time.monotonic() - self._checked_at_s < _CHECK_EVERY_S:
            return
        try:
            self.check()
        except TransientError as exc:
            _LOG.debug("looking at the topics: %s", exc)

    def check(self) -> None:
        """Check now.

        Raises:
            SourceMoved: ``KAFKA_TOPIC_GONE``: deleted, or deleted and made anew. Not retryable.
            TransientError: The cluster does not answer. Retryable.
        """
        self._checked_at_s = time.monotonic()
        try:
            with Survey(self._settings) as survey:
                found = {topic.name: topic for topic in survey.describe(self._topics)}
        except TerminalError as exc:
            if exc.code != "KAFKA_UNKNOWN_TOPIC":
                raise
            raise _topic_gone(exc.what, "no such topic", "the topic that was read so far") from exc
        for name, topic_id in self._topics.items():
            new_id = found[name].topic_id
            if topic_id and new_id != topic_id:
                what = f"cannot go on reading Kafka topic {name!r}"
                raise _topic_gone(what, f"topic id {new_id}", f"{topic_id}: it was deleted and made anew")
            self._warn_of_new_partitions(found[name])

    def _warn_of_new_partitions(self, topic: Topic) -> None:
        new = {(topic.name, number) for number in topic.partitions} - self._seen
        if new:
            self._seen |= new
            numbers = ", ".join(str(number) for _, number in sorted(new))
            text = "Kafka topic %r has new partitions (%s): they are read from the next start of the run on"
            _LOG.warning(text, topic.name, numbers)


def _topic_gone(what: str, found: str, expected: str) -> SourceMoved:
    return SourceMoved(
        what,
        code="KAFKA_TOPIC_GONE",
        found=found,
        expected=expected,
        remedy="What the table holds came from the deleted topic. Delete the table to fill it anew, or give the flow a new name",
    )
