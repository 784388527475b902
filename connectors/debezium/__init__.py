"""Debezium's change events, taken from any stream that carries them: a decoder, used as a step behind a source."""

from connectors.debezium.decoder import DebeziumDecoder
from connectors.debezium.settings import DebeziumSettings

__all__ = ["DebeziumDecoder", "DebeziumSettings"]
