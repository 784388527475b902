"""Reads of Delta tables, the pipeline's own and others, as connectors. Called by the checker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from waxlake.pipeline.definitions import TableRead, located
from waxlake.pipeline.graph import Dataset
from waxlake.stream.source import Connector

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph

__all__ = ["table_connector", "takes_changes"]


def takes_changes(read: TableRead) -> bool:
    """Return whether a read knows what to do with versions that update or delete rows."""
    settings = read.settings
    return bool(read.snapshot_keys) or (
        settings is not None and (settings.read_change_feed or settings.skip_change_commits)
    )


def table_connector(checked: CheckedGraph, read: TableRead) -> Connector:
    """Return the connector of a read of a Delta table.

    Raises:
        UserError: Keys that are no columns, a change feed of change rows. Not retryable.
    """
    from connectors.delta import DeltaConnector
    from connectors.delta.changes import DeltaChanges
    from connectors.delta.settings import DeltaReadSettings

    dataset = checked.graph.datasets.get(read.name)
    settings = read.settings or DeltaReadSettings()
    location = checked.external(read.name) if dataset is None else dataset.location
    assert location is not None
    if settings.storage_options is not None:
        location = replace(location, options=settings.storage_options)
    if read.snapshot_keys:
        from connectors.delta.snapshots import DeltaSnapshots

        return DeltaSnapshots(location, checked.schema_of(read.name), keys=read.snapshot_keys)
    schema = None if dataset is None else checked.schema_of(read.name)
    if not settings.read_change_feed:
        return DeltaConnector(location, schema, settings)
    if dataset is not None and not settings.keys:
        settings = settings.model_copy(update={"keys": _merge_keys(dataset)})
    connector = DeltaChanges(location, schema, settings)
    with located(read.where):
        connector.empty()
    return connector


def _merge_keys(dataset: Dataset) -> tuple[str, ...]:
    """Return the keys by which changes are merged into a table that holds the current rows; none for any other."""
    rules = next((flow.changes for flow in dataset.flows if flow.changes is not None), None)
    return tuple(rules.keys) if rules is not None and rules.scd_type == 1 else ()
