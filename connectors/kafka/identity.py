"""What makes a Kafka source *that* source, in its identity and its partition keys; made by the planner's survey, read by readers.

One topic: the identity holds the cluster id and the topic id, partition keys are numbers. A recreated topic has another
identity, which the planner notices and refuses.

A list or a pattern: the set of topics may grow, so the identity holds the cluster id only and each partition key its topic
and topic id. Trap: a topic of a list that was deleted and made anew between two runs is a new topic that is read from its
start; what was left unread in the deleted one is not missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from connectors.kafka.settings import KafkaSettings
from connectors.kafka.survey import Topic
from waxlake.stream.source import SourcePlan

__all__ = ["KafkaPartition", "read_key", "source_identity", "source_partitions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaPartition:
    """A partition of a topic, and the key under which its position is stored."""

    topic: str
    topic_id: str
    number: int
    key: str


def source_identity(settings: KafkaSettings, cluster_id: str, topics: Iterable[Topic]) -> str:
    """Return the identity of the source as it is now."""
    if not settings.is_single:
        return f"kafka:{cluster_id}"
    (topic,) = topics
    return f"kafka:{cluster_id}:{topic.name}@{topic.topic_id}"


def source_partitions(settings: KafkaSettings, topics: Iterable[Topic]) -> list[KafkaPartition]:
    """Return every partition of the topics with its key."""
    return [
        KafkaPartition(
            topic=topic.name,
            topic_id=topic.topic_id,
            number=number,
            key=str(number) if settings.is_single else f"{topic.name}@{topic.topic_id}:{number}",
        )
        for topic in topics
        for number in topic.partitions
    ]


def read_key(settings: KafkaSettings, plan: SourcePlan, key: str) -> KafkaPartition:
    """Return the partition that a key of a plan stands for."""
    if settings.is_single:
        topic, topic_id, number = settings.topic, plan.identity.rpartition("@")[2], key
    else:
        named, _, number = key.rpartition(":")
        topic, _, topic_id = named.partition("@")
    return KafkaPartition(topic=topic, topic_id=topic_id, number=int(number), key=key)
