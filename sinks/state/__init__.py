"""Stateful operators in front of a Delta table, with their state beside it."""

from sinks.state.dedupe import Dedupe
from sinks.state.operator import BoundOperator, Input, Operator
from sinks.state.sink import StatefulFlow, StatefulSink
from sinks.state.watermark import EventTime

__all__ = ["BoundOperator", "Dedupe", "EventTime", "Input", "Operator", "StatefulFlow", "StatefulSink"]
