"""Stateful operators in front of a Delta table, with their state beside it."""

from sinks.state.chain import Chain, Stage
from sinks.state.dedupe import Dedupe
from sinks.state.joins import Join
from sinks.state.keyed import MapWithState
from sinks.state.operator import BoundOperator, Input, Operator
from sinks.state.sink import StatefulFlow, StatefulSink
from sinks.state.watermark import EventTime
from sinks.state.windows import Aggregate, Window

__all__ = [
    "Aggregate",
    "BoundOperator",
    "Chain",
    "Dedupe",
    "EventTime",
    "Input",
    "Join",
    "MapWithState",
    "Operator",
    "Stage",
    "StatefulFlow",
    "StatefulSink",
    "Window",
]
