"""Sinks in a run: checked with the graph, finished before a plan, made into outputs by the compiler.

A sink is a dataset whose rows go elsewhere. Its positions are in a Delta table like any other's: a ledger of its own, or the
table that the rows go to. So it is planned, fenced and found complete as tables are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import DeltaTable

from sinks.batches import Delivery, Patience
from sinks.batches.staging import BATCH_APP_ID, DELIVERED_APP_ID, staged_number
from sinks.delta.protocol import Committer
from waxlake.pipeline.definitions import located
from waxlake.pipeline.graph import Dataset, Flow, Graph
from waxlake.pipeline.sink_targets import DeltaTarget
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import CommitConflict, DefinitionError, WaxlakeError
from waxlake.stream.position import identity_version, owner_app_id

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.plan import RunPlan
    from waxlake.pipeline.spec import Spec
    from waxlake.pipeline.state import RunState

__all__ = ["batch_counts", "batch_options", "check_sink", "finish_batches", "owner_of", "refuse_other_owner"]


def check_sink(checked: CheckedGraph, dataset: Dataset) -> None:
    """Refuse a sink that cannot take the rows of its flows; does nothing for a table.

    Raises:
        DefinitionError: Names the sink's line. Not retryable.
    """
    target = dataset.definition.sink
    if target is None:
        return
    schema = checked.schemas[dataset.name]
    if dataset.name in checked.stateful:
        raise DefinitionError(
            f"a flow with a stateful operator cannot feed sink '{dataset.name}'",
            where=dataset.flows[0].where,
            code="NOT_AVAILABLE",
            remedy="Let it feed a table, and stream from that into the sink",
        )
    with located(dataset.where):
        target.check(dataset.name, schema)
        if isinstance(target, DeltaTarget) and dataset.location is not None:
            target.check_stored(dataset.location, schema)


def finish_batches(
    checked: CheckedGraph, run_number: int, *, is_bounded: bool, has_begun: bool = False
) -> dict[str, WaxlakeError]:
    """Hand over what an earlier run had decided to, and was stopped before it knew that it was done.

    Called by the process that plans, after the tables are there.

    Returns:
        Sink to why it could not; the others are done.

    Raises:
        WaxlakeError: The same, in a run that is to go on for ever; one that has begun goes on without a sink that does not
            answer, and does not wait for it.
    """
    failures: dict[str, WaxlakeError] = {}
    for name in checked.graph.order:
        dataset = checked.graph.datasets[name]
        if not dataset.has_ledger or dataset.location is None or not checked.is_selected(name):
            continue
        assert dataset.definition.sink is not None
        patience = Patience(give_up_after_s=0.0 if has_begun else checked.graph.spec.give_up_after)
        delivery = Delivery(dataset.location, dataset.definition.sink.handoff(name), patience)
        try:
            delivery.finish(Committer(dataset.location, f"finish-{run_number}", run_number))
        except CommitConflict:
            raise
        except WaxlakeError as error:
            if not (is_bounded or (has_begun and error.is_retryable)):
                raise
            failures[name] = error
        finally:
            delivery.close()
    return failures


def batch_counts(ledger: TableLocation) -> tuple[int, int]:
    """Return the number of the last batch of a sink, and how many are not known to be handed over."""
    if not ledger.exists():
        return 0, 0
    handle = ledger.open()
    decided = staged_number(handle, BATCH_APP_ID)
    return decided, decided - staged_number(handle, DELIVERED_APP_ID)


def batch_options(dataset: Dataset, schema: pa.Schema, plan: RunPlan, state: RunState, spec: Spec) -> dict[str, Any]:
    """Return what a ``BatchSink`` takes besides what every sink does."""
    assert dataset.definition.sink is not None
    patience = Patience(
        give_up_after_s=spec.give_up_after if plan.is_bounded else None,
        is_draining=state.is_draining,
        on_retry=lambda error, wait_s: state.retrying_dataset(dataset.name, error, wait_s),
    )
    return {"handoff": dataset.definition.sink.handoff(dataset.name), "schema": schema, "patience": patience}


def owner_of(graph: Graph, dataset: Dataset, flow: str) -> dict[str, int]:
    """Return the app id by which a flow is known as this pipeline's, in a table that others append to."""
    if not dataset.is_shared:
        return {}
    return {owner_app_id(flow): identity_version(graph.spec.name)}


def refuse_other_owner(graph: Graph, flow: Flow, handle: DeltaTable) -> None:
    """Stop where a flow of another pipeline has the name of ours: they would take each other's positions for their own.

    Raises:
        DefinitionError: Not retryable.
    """
    for app, version in owner_of(graph, graph.datasets[flow.target], flow.name).items():
        known = handle.transaction_version(app)
        if known is not None and known != version:
            raise DefinitionError(
                f"flow '{flow.name}' cannot append to sink '{flow.target}'",
                where=flow.where,
                code="SINK_FLOW_TAKEN",
                found="a flow of another pipeline with the same name, in the same table",
                expected=f"a name that only pipeline '{graph.spec.name}' uses there",
                remedy="Give the flow another name",
            )
