"""Kafka topics out: settings, and the hand-over of batches in transactions."""

from sinks.kafka.handoff import KafkaHandoff
from sinks.kafka.settings import KafkaSinkSettings

__all__ = ["KafkaHandoff", "KafkaSinkSettings"]
