"""Columns of a source that come and go: older rows are filled in on request, and columns that are gone are marked.

Both are decided before an update reads anything, in commits of their own. A back-fill lets the table forget that its first load
was done, while the changes go on where they stand: the load's rows are as of now, and AUTO CDC gives each row its newest version.
A crash before the column's first row has the load forgotten once more; after it the load goes on where it was.
"""

from __future__ import annotations

import contextlib

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from sinks.delta.protocol import Committer
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.definitions import WithColumns
from waxlake.stream.delta_table import FORGOTTEN, TableLocation, arrow_schema, delta_errors, stored_position
from waxlake.stream.engine import quote_name
from waxlake.stream.errors import ExternalError
from waxlake.stream.growth import added_fields
from waxlake.stream.position import app_id
from waxlake.stream.source import Backfilling

__all__ = ["INACTIVE_PROPERTY", "follow_columns"]

INACTIVE_PROPERTY = "waxlake.inactiveColumns"
"""Table property: columns that the source no longer has, comma-separated, sorted."""


def follow_columns(checked: CheckedGraph, run_number: int) -> None:
    """Begin back-fills, and mark columns that are gone.

    Args:
        checked: The pipeline.
        run_number: Fence of the run.

    Raises:
        CommitConflict: A newer run writes one of the tables. Not retryable.
        ExternalError: A source or a table cannot be read.
    """
    if checked.is_shadow:
        return
    parts: dict[str, list[CheckedFlow]] = {}
    for part in checked.selected_flows:
        if isinstance(part.connector, Backfilling) and part.away is None:
            parts.setdefault(part.flow.target, []).append(part)
    for name, fed in parts.items():
        location = checked.graph.datasets[name].location
        if location is not None and location.exists():
            handle = location.open()
            _mark(handle, fed, name)
            if name in checked.merges and added_fields(arrow_schema(handle), checked.schemas[name]):
                _forget_loads(location, handle, fed, run_number=run_number)


def _forget_loads(location: TableLocation, handle: DeltaTable, parts: list[CheckedFlow], *, run_number: int) -> None:
    forgotten: dict[str, int] = {}
    for part in parts:
        assert isinstance(part.connector, Backfilling)
        loads = [partition for partition in part.connector.backfilled() if part.takes(partition)]
        if not loads:
            continue
        try:
            identity = part.connector.inspect().identity
        except ExternalError:
            continue  # the plan says so
        apps = [app_id(part.flow.name, identity, partition) for partition in loads]
        forgotten |= {app: FORGOTTEN for app in apps if stored_position(handle, app) is not None}
    if forgotten:
        Committer(location, f"backfill-{run_number}", run_number).commit([], {}, identities=forgotten)


def _mark(handle: DeltaTable, parts: list[CheckedFlow], name: str) -> None:
    stored = set(arrow_schema(handle).names)
    gone: set[str] = set()
    for part in parts:
        assert isinstance(part.connector, Backfilling)
        inactive = part.connector.inactive_columns()
        renamed = {
            new
            for step in part.transform.steps
            if isinstance(step, WithColumns)
            for new, expression in step.columns
            if expression in {quote_name(name) for name in inactive}
        }
        gone |= (inactive | renamed) & stored
    text = ",".join(sorted(gone))
    if dict(handle.metadata().configuration).get(INACTIVE_PROPERTY, "") != text:
        with delta_errors(f"mark columns of table '{name}'"), contextlib.suppress(CommitFailedError):
            handle.alter.set_table_properties({INACTIVE_PROPERTY: text}, raise_if_not_exists=False)
