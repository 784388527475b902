"""From a plan to a Bytewax dataflow: one input a shared read, one step a flow, one output a table."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.dataflow import Stream as DataflowStream
from bytewax.testing import TestingSource

from sinks.batches import BatchSink
from sinks.cdc import MergeSink
from sinks.cdc.replacing import ReplacingSink
from sinks.delta import DeltaSink, DeltaTarget, FlushPolicy, SinkControl
from sinks.delta.refreshing import RefreshSink
from sinks.state import StatefulSink
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.file_states import durable_positions
from waxlake.pipeline.graph import Dataset
from waxlake.pipeline.lanes import Lane, Lanes, LaneSink, Pending
from waxlake.pipeline.pinned import flow_tables
from waxlake.pipeline.plan import RunPlan
from waxlake.pipeline.quarantine import with_provenance
from waxlake.pipeline.replaced_files import replace_column
from waxlake.pipeline.sinks import batch_options
from waxlake.pipeline.source_groups import SourceGroup, calls_functions
from waxlake.pipeline.sql import StaticTables
from waxlake.pipeline.state import RunState
from waxlake.pipeline.stateful import stateful_flows
from waxlake.pipeline.trigger import own_interval_s
from waxlake.pipeline.uniqueness import UniqueRows
from waxlake.pipeline.upkeep import needed_versions, report_maintenance
from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget
from waxlake.stream.errors import InternalError, WaxlakeError
from waxlake.stream.partitioned_source import PartitionedSource, ReadControl

__all__ = ["build_dataflow", "step_id"]


def step_id(text: str) -> str:
    """Return a name that Bytewax takes as a flow or step id: no period in it."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def build_dataflow(
    checked: CheckedGraph,
    groups: Sequence[SourceGroup],
    plan: RunPlan,
    state: RunState,
    tables: StaticTables,
    *,
    workers: int,
    lanes: Lanes | None = None,
) -> Dataflow:
    """Return the dataflow of one run.

    Args:
        checked: The pipeline.
        groups: Its reads.
        plan: What to read.
        state: How the run is steered and watched.
        tables: Static tables.
        workers: Workers of the whole cluster; a source is split into as many groups of partitions at most.
        lanes: Where flows and tables do their work, so that none holds back another; None to do it on Bytewax's own threads.
    """
    dataflow = Dataflow(step_id(checked.graph.spec.name))
    streams: dict[str, list[DataflowStream[tuple[str, Any]]]] = {}
    for group in groups:
        source_plan = plan.sources.get(group.key)
        if source_plan is None:
            continue
        source = PartitionedSource(
            connector=group.connector,
            plan=source_plan,
            columns=group.columns,
            group_count=workers,
            control=_read_control(checked, group, plan, state, lanes),
        )
        batches = op.input(group.key, dataflow, source)
        for index, part in enumerate(group.flows):
            own = flow_tables(checked, part.flow, plan.pinned, tables)
            step = _FlowStep(part, state, own, lanes if calls_functions(part) else None)
            moved = op.flat_map(f"flow_{group.key}_{index}", batches, step)
            streams.setdefault(part.flow.target, []).append(moved)
    shared = {part.flow.target for group in groups if len(group.flows) > 1 for part in group.flows}
    for target, parts in streams.items():
        merged = op.merge(f"merge_{step_id(target)}", *parts) if len(parts) > 1 else parts[0]
        sink: Any = _sink(checked, target, plan, state, tables, target in shared)
        if lanes is not None:
            sink = LaneSink(sink, lanes, target)
        op.output(f"write_{step_id(target)}", merged, sink)
    if not streams:  # Bytewax wants an input and an output, even where there is nothing to do
        op.output("nothing", op.input("nothing_to_do", dataflow, TestingSource([])), StdOutSink())
    return dataflow


def _flow_lane(part: CheckedFlow) -> str:
    return f"{part.flow.target}/{part.flow.name}"


def _read_control(
    checked: CheckedGraph, group: SourceGroup, plan: RunPlan, state: RunState, lanes: Lanes | None
) -> ReadControl:
    keys = {key for part in group.flows for key in (part.flow.target, _flow_lane(part))}
    return ReadControl(
        is_draining=state.is_draining,
        gate=lambda: state.gate(group),
        on_error=lambda error: state.fail_group(group, error),
        on_retry=lambda error, wait_s: state.retrying(group, error, wait_s),
        on_growth=state.grow,
        durable=dict if checked.is_shadow else durable_positions(checked, group, plan.sources[group.key]),
        give_up_after_s=checked.graph.spec.give_up_after if plan.is_bounded else None,
        fan_out=len(group.flows),
        heartbeat_s=min(0.5, _interval_s(checked, plan) / 2),
        has_lanes=lanes is not None,
        is_held=(lambda: False) if lanes is None else lambda: lanes.are_full(keys),
    )


def _interval_s(checked: CheckedGraph, plan: RunPlan) -> float:
    """Return the seconds that rows wait for others to be committed with."""
    interval_s = checked.graph.spec.trigger_interval
    if interval_s is not None:
        return interval_s
    return 10.0 if plan.is_bounded else 1.0


def _flush_policy(checked: CheckedGraph, dataset: Dataset, plan: RunPlan, **limits: Any) -> FlushPolicy:
    """Return when a table is committed to: in a continuous run by its own interval, if it has one."""
    own_s = None if plan.is_bounded else own_interval_s(dataset)
    if own_s is not None:
        return FlushPolicy(max_age_s=own_s, is_prompt=False, **limits)
    return FlushPolicy(max_age_s=_interval_s(checked, plan), is_prompt=not plan.is_bounded, **limits)


def _sink(
    checked: CheckedGraph, target: str, plan: RunPlan, state: RunState, tables: StaticTables, is_shared: bool
) -> DeltaSink:
    dataset = checked.graph.datasets[target]
    assert dataset.location is not None
    merge = checked.merges.get(target)
    replaced = replace_column([part for part in checked.flows if part.flow.target == target])
    sink: type[DeltaSink] = DeltaSink if merge is None else MergeSink
    options: dict[str, Any] = {} if merge is None else merge.sink_options()
    if replaced is not None:
        sink, options = ReplacingSink, {"column": replaced}
    if target in checked.stateful:
        sink, options = StatefulSink, {"flows": stateful_flows(checked, target, plan.pinned, tables)}
    limits = {} if dataset.definition.sink is None else dataset.definition.sink.flush_limits()
    if dataset.has_ledger:
        sink, options = BatchSink, batch_options(dataset, checked.schemas[target], plan, state, checked.graph.spec)
    if dataset.kind == "materialized_view":
        sink = RefreshSink
    return sink(
        target=DeltaTarget(
            location=dataset.location,
            partition_by=dataset.definition.partition_by,
            replaces=dataset.kind == "materialized_view",
            quarantine=dataset.quarantine,
            shares_source=is_shared,
            fence_app=dataset.fence_app,
            is_maintained=not dataset.is_shared,
        ),
        flow=target,
        flush=_flush_policy(checked, dataset, plan, **limits),
        control=SinkControl(
            run_id=plan.update_id,
            run_number=plan.run_number,
            on_commit=state.committed,
            on_error=lambda error: state.fail(target, error),
            identities=plan.identities,
            endings=plan.endings,
            needed=lambda name: needed_versions(checked, name),
            on_maintenance=lambda report: report_maintenance(state.emit, report),
            judge=_key_rules(checked, target),
        ),
        **options,
    )


def _key_rules(checked: CheckedGraph, target: str) -> UniqueRows | None:
    """Return what judges the keys of a streaming table; those of a view are judged with its other rules."""
    dataset = checked.graph.datasets[target]
    rules = [rule for rule in dataset.expectations if rule.scope == "key"]
    if not rules or dataset.kind != "table":
        return None
    (first, *_) = (part for part in checked.flows if part.flow.target == target)
    return UniqueRows(target, rules, first.transform.on_offenders)


@dataclass(slots=True)
class _FlowStep:
    """The step of one flow: rows in, rows of its table out; called for every micro-batch on the source's worker.

    With ``lanes`` it hands the batch in to a lane, one for each worker, and passes on what that will have made of it.
    """

    part: CheckedFlow
    state: RunState
    tables: StaticTables
    lanes: Lanes | None
    by_thread: dict[int, Lane] = field(default_factory=dict)

    def __call__(self, batch: MicroBatch) -> Iterable[tuple[str, MicroBatch | Pending]]:
        target = self.part.flow.target
        if not self.part.takes(batch.partition):
            ByteBudget.give_back(batch.budget, batch.cost_bytes)
            return []
        if self.lanes is None:
            made = self._made(batch)
            return [] if made is None else [(target, made)]
        self.lanes.check()
        pending = Pending()
        return [(target, pending)] if self._lane(self.lanes).put_batch(batch, (batch, pending)) else []

    def _lane(self, lanes: Lanes) -> Lane:
        thread = threading.get_ident()
        if thread not in self.by_thread:
            self.by_thread[thread] = lanes.lane(_flow_lane(self.part), self._make)
        return self.by_thread[thread]

    def _make(self, item: tuple[MicroBatch, Pending]) -> None:
        batch, pending = item
        pending.made(self._made(batch))

    def _made(self, batch: MicroBatch) -> MicroBatch | None:
        """Return what the flow makes of a batch; None if it failed, now or before."""
        target = self.part.flow.target
        if not self.state.has_failed(target):
            try:
                return self._transformed(batch)
            except WaxlakeError as error:
                if not self.state.fail(target, error):
                    raise
            except Exception as exc:  # the boundary of a flow: the others go on
                defect = InternalError.of(exc, f"cannot process rows of flow '{self.part.flow.name}'")
                defect.__cause__ = exc
                if not self.state.fail(target, defect):
                    raise defect from exc
        ByteBudget.give_back(batch.budget, batch.cost_bytes)
        return None

    def _transformed(self, batch: MicroBatch) -> MicroBatch:
        moves = batch.end > batch.start
        outcome = self.part.transform.apply(self.part.fitted(batch.table), self.tables, moves=moves)
        rejected = outcome.rejected
        if rejected is not None:
            rejected = with_provenance(rejected, batch)
        return batch.with_rows(
            outcome.table,
            flow=self.part.flow.name,
            target=self.part.flow.target,
            side=self.part.side,
            rejected=rejected,
            rules=outcome.rules,
            dropped=outcome.dropped,
        )
