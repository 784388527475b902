"""Kafka topics in: settings, the connector that the planner uses, and the input for a hand-written dataflow."""

from connectors.kafka.connector import KafkaConnector, KafkaSource
from connectors.kafka.settings import KafkaSettings

__all__ = ["KafkaConnector", "KafkaSettings", "KafkaSource"]
