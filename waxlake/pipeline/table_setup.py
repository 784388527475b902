"""The tables of a run made ready before anything is planned: created, completed, and claimed if need be."""

from __future__ import annotations

from deltalake import DeltaTable, write_deltalake

from sinks.batches import ledger_schema
from sinks.delta.protocol import Committer
from sinks.delta.quarantine import finish_quarantine
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.columns import keep_declared, without_constraints
from waxlake.pipeline.commits import refuse_restored
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Dataset
from waxlake.stream.delta_table import TableLocation, arrow_schema, delta_errors
from waxlake.stream.growth import merge_schemas
from waxlake.stream.schema import compare_schemas, no_rows

__all__ = ["claim_tables", "prepare_tables"]


def prepare_tables(checked: CheckedGraph) -> None:
    """Create what is missing, and finish what a crash left undone.

    A table gets new columns in the commit that holds their first rows; its quarantine table gets them here.

    Raises:
        TerminalError: The storage is not writable, or a table was restored by other means. Not retryable.
    """
    for name in checked.graph.order:
        dataset = checked.graph.datasets[name]
        if dataset.location is None or dataset.kind == "quarantine":
            continue
        handle = _prepared(dataset.location, checked, dataset)
        refuse_restored(dataset.location)
        if dataset.quarantine is not None:
            _prepared(dataset.quarantine, checked, dataset, is_quarantine=True)
            finish_quarantine(dataset.location, dataset.quarantine)
        del handle


def claim_tables(checked: CheckedGraph, run_number: int) -> None:
    """Take the fence of every stored table, so that no older run can move a position after it was read.

    Raises:
        CommitConflict: A newer run has one of them. Not retryable.
    """
    for dataset in checked.graph.datasets.values():
        if dataset.location is not None and dataset.kind != "quarantine":
            Committer(dataset.location, f"claim-{run_number}", run_number, dataset.fence_app).claim()


def _prepared(
    location: TableLocation, checked: CheckedGraph, dataset: Dataset, *, is_quarantine: bool = False
) -> DeltaTable:
    schema = checked.schemas[dataset.name + QUARANTINE_SUFFIX if is_quarantine else dataset.name]
    if dataset.has_ledger and not is_quarantine:
        schema = ledger_schema()
    if not location.exists():
        definition = dataset.definition
        handle = location.create(
            schema,
            partition_by=() if is_quarantine else definition.partition_by,
            comment=f"Rows rejected by the rules of {dataset.name}" if is_quarantine else definition.comment,
            properties=None if is_quarantine else without_constraints(definition.properties),
        )
    else:
        handle = location.open()
    if not is_quarantine and not dataset.has_ledger:
        handle = keep_declared(location, handle, dataset.definition)
    change = compare_schemas(arrow_schema(handle), schema)
    if is_quarantine and (change.added or change.grown):
        with delta_errors(f"add columns to table '{location.label}'"):
            rows = no_rows(merge_schemas(arrow_schema(handle), schema))
            write_deltalake(handle, rows, mode="append", schema_mode="merge")
    return handle
