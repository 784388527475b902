"""Delta tables as a streaming source: the rows that each version appended, in order."""

from connectors.delta.connector import DeltaConnector, DeltaSource

__all__ = ["DeltaConnector", "DeltaSource"]
