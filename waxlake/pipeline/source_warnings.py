"""Warnings of sources as events of the update; called when a run is prepared."""

from __future__ import annotations

from functools import partial

from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.state import Emit
from waxlake.stream.warnings import Warns

__all__ = ["report_warnings"]


def report_warnings(checked: CheckedGraph, report: Emit) -> None:
    """Let what sources warn of be told: an event of level WARN, in the name of the flow that reads."""
    for part in checked.flows:
        if isinstance(part.connector, Warns):
            flow = part.flow
            part.connector.on_warning = partial(
                report, "operation_progress", level="WARN", dataset=flow.target, flow=flow.name
            )
