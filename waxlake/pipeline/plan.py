"""From a checked graph to what one run does: sources looked at, positions read back, marks taken.

A plan is plain data: the process that makes it can hand it to the other processes of a run.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from deltalake import DeltaTable

from sinks.delta.protocol import new_run_number
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.completion import Completion, has_run_once, reads_dataset
from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.fingerprint import flow_fingerprint, flow_text
from waxlake.pipeline.notes import with_notes
from waxlake.pipeline.ownership import owner_identity
from waxlake.pipeline.sinks import owner_of, refuse_other_owner
from waxlake.pipeline.source_groups import SourceGroup, is_view
from waxlake.pipeline.stateful import require_same_state
from waxlake.pipeline.view import ViewConnector
from waxlake.stream.delta_table import stored_position
from waxlake.stream.errors import DefinitionError, ExternalError, SourceMoved, WaxlakeError
from waxlake.stream.position import (
    MAX_POSITION,
    app_id,
    definition_app_id,
    identity_app_id,
    identity_version,
    once_app_id,
    sources_app_id,
)
from waxlake.stream.source import (
    Relocating,
    SourcePlan,
    SourceRange,
    SourceState,
    StartingOver,
    plan_partitions,
)

__all__ = ["RunPlan", "make_plan", "settle_files", "sources_read"]


@dataclass(slots=True, kw_only=True)
class RunPlan:
    """What one run does.

    Attributes:
        update_id: Identity of the update.
        run_number: Its order among other runs: the fence of the tables it writes.
        is_bounded: Whether it ends at the marks (triggered).
        sources: Group key to what to read; a group with nothing to do is missing.
        idle: Group key to the source of a group with nothing to do.
        identities: Flow name to app ids that its commits store besides its positions: which source stood behind each
            name, and which sources there were.
        endings: Flow name and source identity to app ids that are stored when a flow that runs once has read the source.
        marks: Flow name to app id to (where it begins without a position, the mark).
        skipped: Losses that are skipped on request, for the event log.
        failures: Group key to why its source cannot be read.
        sink_failures: Sink to why it cannot take what an earlier run had decided to hand over.
        seen_files: View to what was there of the files it reads when the run was planned.
        pinned: Static table to the version that flows read which pin it.
        beginning: Keys of groups with a flow that has no position in some partition yet: where it begins is to be stored.
    """

    update_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_number: int = field(default_factory=new_run_number)
    is_bounded: bool
    sources: dict[str, SourcePlan] = field(default_factory=dict)
    idle: dict[str, SourcePlan] = field(default_factory=dict)
    identities: dict[str, dict[str, int]] = field(default_factory=dict)
    endings: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    marks: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failures: dict[str, ExternalError] = field(default_factory=dict)
    sink_failures: dict[str, WaxlakeError] = field(default_factory=dict)
    seen_files: dict[str, list[str]] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)
    beginning: set[str] = field(default_factory=set)


_Seen: TypeAlias = "list[tuple[SourceGroup, SourceState | ExternalError]]"
"""What the sources of a plan held when they were looked at."""


def make_plan(
    checked: CheckedGraph, groups: Sequence[SourceGroup], *, is_bounded: bool, run_number: int, has_begun: bool = False
) -> RunPlan:
    """Look at every source and every target, and decide what to read.

    A source that cannot be read, or no longer holds what a table needs next, is noted in ``failures``; the others are
    planned. A run that is to go on for ever does not start without one of its sources; one that has begun goes on without
    those that do not answer.

    Raises:
        ExternalError: A source of a continuous run cannot be read.
        DefinitionError: A flow reads other sources than before. Not retryable.
    """
    plan = RunPlan(is_bounded=is_bounded, run_number=run_number)
    if is_bounded:
        plan.seen_files = {
            part.flow.target: part.connector.look()
            for part in checked.flows
            if isinstance(part.connector, ViewConnector)
        }
        settle_files(checked, plan)
    seen: _Seen = []
    for group in groups:
        if group.is_once and all(has_run_once(checked, part) for part in group.flows):
            continue
        try:
            away = next((part.away for part in group.flows if part.away is not None), None)
            if away is not None:
                raise away
            plan.sources[group.key] = _planned_or_anew(checked, group, seen, plan)
        except ExternalError as error:
            if not (is_bounded or (has_begun and error.is_retryable)):
                raise
            plan.failures[group.key] = error
            for part in group.flows:  # a mark that nobody reaches: what depends on this flow is not up to date
                plan.marks.setdefault(part.flow.name, {})[group.key] = (0, MAX_POSITION)
    if is_bounded:
        _leave_out_finished(checked, groups, plan)
    return plan


def settle_files(checked: CheckedGraph, plan: RunPlan) -> None:
    """Let views that read files take them, in every process of a bounded run, for what was there when it was planned."""
    for part in checked.flows:
        if isinstance(part.connector, ViewConnector) and part.flow.target in plan.seen_files:
            part.connector.settle(plan.seen_files[part.flow.target])


def _planned_or_anew(checked: CheckedGraph, group: SourceGroup, seen: _Seen, plan: RunPlan) -> SourcePlan:
    """Plan a group; where its source lost what comes next and may begin anew, plan that."""
    try:
        return _planned(checked, group, _inspected(group, seen), plan)
    except SourceMoved as error:
        if not isinstance(group.connector, StartingOver) or not group.connector.start_over(error):
            raise
        plan.skipped.append(f"{group.connector.name} is read anew: {error.what}: found {error.found}")
    seen[:] = [item for item in seen if not _is_same_read(item[0], group)]
    return _planned(checked, group, _inspected(group, seen), plan)


def _is_same_read(one: SourceGroup, other: SourceGroup) -> bool:
    """Return whether two groups look at the same source in the same way; reads of one path may differ in their format."""
    return one.connector.name == other.connector.name and one.flows[0].read == other.flows[0].read


def _inspected(group: SourceGroup, seen: _Seen) -> SourceState:
    """Return a source as it is now; several groups that read the same one look at it once."""
    connector = group.connector
    if group.is_view:
        return connector.inspect()
    found = next((state for other, state in seen if _is_same_read(other, group)), None)
    if found is None:
        try:
            found = connector.inspect()
        except ExternalError as error:
            found = error
        seen.append((group, found))
    if isinstance(found, ExternalError):
        raise found
    return found


def _planned(checked: CheckedGraph, group: SourceGroup, state: SourceState, plan: RunPlan) -> SourcePlan:
    """Return what to read for a group, and note its marks and losses in the plan."""
    for part in group.flows:
        _remember_source(plan, checked, part, state)
    stored = [_stored_positions(checked, part, state) for part in group.flows]
    on_data_loss = group.connector.on_data_loss
    takes = [part.takes for part in group.flows]
    is_bounded = plan.is_bounded or group.is_once
    source = plan_partitions(state, stored, takes=takes, on_data_loss=on_data_loss, is_bounded=is_bounded)
    if isinstance(group.connector, Relocating):
        source = with_notes(checked, group.flows, source, group.connector.note_names())
        group.connector.settle(source)
    if group.is_once:
        plan.beginning.add(group.key)
        for part in group.flows:
            plan.endings[part.flow.name, state.identity] = {once_app_id(part.flow.name, part.connector.name): 1}
    if any(
        p not in known
        for part, known in zip(group.flows, stored, strict=True)
        for p in filter(part.takes, source.partitions)
    ):
        plan.beginning.add(group.key)
    for part in group.flows:
        if not reads_dataset(checked, part) and not group.is_view:
            plan.marks.setdefault(part.flow.name, {}).update(
                {
                    app_id(part.flow.name, state.identity, p): _span(state.begin.get(p, held.low), held)
                    for p, held in state.partitions.items()
                    if part.takes(p)
                }
            )
    for partition, what in source.partitions.items():
        if what.skipped:
            plan.skipped.append(
                f"{state.name} partition {partition}: positions {what.skipped[0]} to {what.skipped[1]} are gone"
            )
    return source


def _remember_source(plan: RunPlan, checked: CheckedGraph, part: CheckedFlow, state: SourceState) -> None:
    flow = part.flow.name
    target = checked.graph.datasets[part.flow.target]
    owner = owner_of(checked.graph, target, flow) if target.is_shared else owner_identity(checked.graph.spec)
    plan.identities.setdefault(flow, {}).update(owner)
    text = flow_text(checked, target, part.flow)
    plan.identities[flow][definition_app_id(flow)] = flow_fingerprint(text)
    plan.identities[flow].update(sources_read(checked, flow, state))


def sources_read(checked: CheckedGraph, flow: str, state: SourceState) -> dict[str, int]:
    """Return what a commit of a flow remembers of a source: which one it is by now, and that the flow reads it."""
    if not state.name:
        return {}
    return {
        identity_app_id(flow, state.name): identity_version(state.identity),
        sources_app_id(flow): _source_set(checked, flow),
    }


def _source_set(checked: CheckedGraph, flow: str) -> int:
    names = sorted(part.connector.name for part in checked.flows if part.flow.name == flow)
    return identity_version("\n".join(names))


def _leave_out_finished(checked: CheckedGraph, groups: Sequence[SourceGroup], plan: RunPlan) -> None:
    completion = Completion(checked, plan.marks)
    for group in groups:
        source = plan.sources.get(group.key)
        if source is None or any(what.skipped for what in source.partitions.values()):
            continue
        if group.key not in plan.beginning and all(completion.is_complete(part.flow.target) for part in group.flows):
            plan.idle[group.key] = plan.sources.pop(group.key)


def _stored_positions(checked: CheckedGraph, part: CheckedFlow, state: SourceState) -> Mapping[str, int]:
    """Return the positions that a flow's table holds for a source; stop if the source is another one by now."""
    location = checked.graph.datasets[part.flow.target].location
    assert location is not None
    handle = location.open()
    _refuse_changed_sources(checked, part, handle)
    refuse_other_owner(checked.graph, part.flow, handle)
    known = handle.transaction_version(identity_app_id(part.flow.name, state.name)) if state.name else None
    if known is not None and known != identity_version(state.identity):
        if part.connector.on_data_loss == "skip" or known in map(identity_version, state.former):
            return {}
        remedy = "Delete the table to fill it anew, or give the flow a new name to start anew"
        remedy += f", or keep the rows and read the new one with waxlake run --reset-checkpoint {part.flow.target}"
        if not isinstance(part.read, TableRead):
            remedy += ", or set on_data_loss='skip'"
        raise SourceMoved(
            f"flow '{part.flow.name}' cannot go on reading {state.name}",
            code="SOURCE_RECREATED",
            found=f"another source under that name: {state.identity}",
            expected="the one that table was filled from",
            remedy=f"It was deleted and created again (or the cluster changed). {remedy}",
        )
    require_same_state(checked, part, handle)
    positions = {}
    for partition in filter(part.takes, state.partitions):
        stored = stored_position(handle, app_id(part.flow.name, state.identity, partition))
        if stored is not None:
            positions[partition] = stored
    return positions


def _refuse_changed_sources(checked: CheckedGraph, part: CheckedFlow, handle: DeltaTable) -> None:
    if is_view(part):
        return
    known = handle.transaction_version(sources_app_id(part.flow.name))
    if known is not None and known != _source_set(checked, part.flow.name):
        names = sorted(p.connector.name for p in checked.flows if p.flow.name == part.flow.name)
        raise DefinitionError(
            f"flow '{part.flow.name}' reads other sources than when it last ran",
            where=part.flow.where,
            code="FLOW_SOURCES_CHANGED",
            found=", ".join(names),
            expected="the sources its positions belong to",
            remedy="Feed the table from a further source with wl.append_flow, or give this flow a new name to start anew, "
            f"or keep the rows and read the new ones from their start with waxlake run --reset-checkpoint {part.flow.target}",
        )


def _span(begin: int, held: SourceRange) -> tuple[int, int]:
    """Return where a flow without a position begins, and its mark. One that waits is there once its beginning is stored."""
    return (-1 if held.is_waiting else begin), held.mark
