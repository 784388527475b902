"""Outputs that take rows batch by batch: each batch is decided and kept first, then handed over, with a number of its own."""

from sinks.batches.delivery import Delivery, Handoff, Patience
from sinks.batches.function import FunctionHandoff
from sinks.batches.sink import BatchSink
from sinks.batches.staging import StagedBatch, ledger_schema

__all__ = ["BatchSink", "Delivery", "FunctionHandoff", "Handoff", "Patience", "StagedBatch", "ledger_schema"]
