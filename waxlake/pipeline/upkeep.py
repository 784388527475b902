"""What maintenance of a table has to know of the pipeline, and how it shows in the event log. Called by ``compile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinks.delta.maintenance import MaintenanceReport, NeededVersions
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.graph import Dataset
from waxlake.pipeline.state import Emit
from waxlake.stream.delta_table import stored_position
from waxlake.stream.position import RowPosition, app_id

__all__ = ["needed_versions", "report_maintenance"]


def needed_versions(checked: CheckedGraph, name: str) -> NeededVersions | None:
    """Return what of a table some flow of the pipeline has not read whole; None if nobody follows it.

    A table that is being filled anew for a full refresh is read from its first version by that.
    A flow that has not begun needs all of them if this update is about to begin it, and none if not: one that begins after a
    vacuum begins with the table as it is.

    Raises:
        ExternalError: A table cannot be read.
    """
    unread = [RowPosition(0)] if checked.is_shadow else []
    for part in checked.flows:
        location = checked.graph.datasets[part.flow.target].location
        if not isinstance(part.read, TableRead) or part.read.name != name or location is None or not location.exists():
            continue
        state, handle = part.connector.inspect(), location.open()
        for partition in state.partitions:
            position = stored_position(handle, app_id(part.flow.name, state.identity, partition))
            if position is not None:
                unread.append(RowPosition.unpack(position))
            elif part in checked.selected_flows:
                unread.append(RowPosition(0))
    if not unread:
        return None
    first = min(unread)
    return NeededVersions(log=first.major, rows=_first_with_rows(checked.graph.datasets[name], first))


def _first_with_rows(dataset: Dataset, position: RowPosition) -> int:
    """Return the first version from a position on that brings rows; maintenance brings none. Beyond the latest if none does."""
    version = position.major
    if position.minor or dataset.location is None:
        return version
    while (actions := dataset.location.read_log(version)) is not None and not any(map(_brings_rows, actions)):
        version += 1
    return version


def _brings_rows(action: Mapping[str, Any]) -> bool:
    if "metaData" in action or "cdc" in action:
        return True
    return any(action[kind].get("dataChange", True) for kind in ("add", "remove") if kind in action)


def report_maintenance(emit: Emit, done: MaintenanceReport) -> None:
    """Report a piece of maintenance as ``operation_progress``."""
    figures = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in done.figures.items())
    what = {
        "compact": "small files of {} put together",
        "vacuum": "files of {} that nobody needs deleted",
        "postponed": "maintenance of {} postponed",
    }[done.operation].format(done.table)
    emit(
        "operation_progress",
        f"{what}: {done.error or figures}",
        level="INFO" if done.operation != "postponed" else "WARN",
        dataset=done.table,
        details={"operation_progress": {"operation": done.operation, **done.figures}},
        error=done.error,
    )
