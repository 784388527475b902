"""From a checked graph to what one run does: tables made ready, positions read back, marks taken.

A plan is plain data: the process that makes it can hand it to the other processes of a run.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from deltalake import DeltaTable, write_deltalake

from sinks.batches import ledger_schema
from sinks.delta.protocol import Committer, finish_quarantine, is_quarantine_whole, new_run_number
from waxlake.pipeline.check import CheckedFlow, CheckedGraph
from waxlake.pipeline.columns import keep_declared, without_constraints
from waxlake.pipeline.commits import refuse_restored
from waxlake.pipeline.definitions import MapBatches, TableRead, located
from waxlake.pipeline.fingerprint import flow_fingerprint, flow_text
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Dataset
from waxlake.pipeline.notes import with_notes
from waxlake.pipeline.ownership import owner_identity
from waxlake.pipeline.sinks import owner_of, refuse_other_owner
from waxlake.pipeline.stateful import require_same_state
from waxlake.pipeline.view import ViewConnector
from waxlake.stream.delta_table import REPLAYED_APP_ID, TableLocation, arrow_schema, delta_errors, stored_position
from waxlake.stream.errors import DefinitionError, ExternalError, SourceMoved, WaxlakeError
from waxlake.stream.growth import merge_schemas
from waxlake.stream.position import (
    MAX_POSITION,
    RowPosition,
    app_id,
    definition_app_id,
    identity_app_id,
    identity_version,
    once_app_id,
    sources_app_id,
)
from waxlake.stream.schema import compare_schemas, no_rows
from waxlake.stream.source import (
    Connector,
    Relocating,
    Sharing,
    SourcePlan,
    SourceRange,
    SourceState,
    StartingOver,
    plan_partitions,
)

__all__ = [
    "Completion",
    "DurablePositions",
    "RunPlan",
    "SourceGroup",
    "calls_functions",
    "claim_tables",
    "make_plan",
    "prepare_tables",
    "settle_files",
    "source_groups",
    "sources_read",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGroup:
    """Flows that share one read.

    Attributes:
        key: Name of the read within the run; the same in every process.
        flows: The flows; their reads and gates are equal, or they take parts of one shared source.
        connector: The source of all of them.
        gates: Datasets that must be up to date before a triggered run reads.
    """

    key: str
    flows: tuple[CheckedFlow, ...]
    connector: Connector
    gates: tuple[str, ...] = ()

    @property
    def columns(self) -> frozenset[str]:
        """Source columns that any flow uses."""
        return frozenset().union(*(part.columns for part in self.flows))

    @property
    def is_once(self) -> bool:
        """Whether its flows end for good when they have read what the source holds."""
        return self.flows[0].flow.once

    @property
    def is_view(self) -> bool:
        """Whether it is the query of a materialized view."""
        return _is_view(self.flows[0])


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


def source_groups(checked: CheckedGraph) -> list[SourceGroup]:
    """Return the reads of a pipeline; flows with an equal read and equal gates share one, and parts of a shared source do.

    Raises:
        UserError: Reads of one shared source contradict each other. Not retryable.
    """
    grouped: list[list[CheckedFlow]] = []
    for part in checked.selected_flows:
        for group in grouped:
            if _shares_read(group[0], part) and not _reads_alone(checked, group[0], part):
                group.append(part)
                break
        else:
            grouped.append([part])
    return [
        SourceGroup(
            key=f"read_{i:03d}", flows=tuple(group), connector=_group_connector(group), gates=_gates(checked, group)
        )
        for i, group in enumerate(grouped)
    ]


def _shares_read(one: CheckedFlow, other: CheckedFlow) -> bool:
    if one.flow.once != other.flow.once:
        return False
    if isinstance(one.connector, Sharing):
        return isinstance(other.connector, Sharing) and one.connector.source_key() == other.connector.source_key()
    return one.read == other.read and one.gates == other.gates and one.fixed == other.fixed


def _reads_alone(checked: CheckedGraph, one: CheckedFlow, other: CheckedFlow) -> bool:
    """Return whether two flows read a table each by itself: one that may be slow would hold back the other."""
    if not isinstance(one.read, TableRead):
        return False
    return any(
        calls_functions(part) or checked.graph.datasets[part.flow.target].definition.sink is not None
        for part in (one, other)
    )


def calls_functions(part: CheckedFlow) -> bool:
    """Return whether the work of a flow is a user's, and takes as long as that takes."""
    return any(isinstance(step, MapBatches) for step in part.transform.steps)


def _group_connector(group: Sequence[CheckedFlow]) -> Connector:
    first = group[0].connector
    if isinstance(first, Sharing) and len(group) > 1:
        with located(group[0].flow.where):
            return first.together([part.connector for part in group[1:]])
    return first


def _gates(checked: CheckedGraph, group: Sequence[CheckedFlow]) -> tuple[str, ...]:
    """Return what a read waits for. What it feeds itself, by another of its parts, it cannot wait for."""
    gates = tuple(dict.fromkeys(name for part in group for name in part.gates))
    if not isinstance(group[0].connector, Sharing):
        return gates
    fed = {part.flow.target for part in group}
    for name in checked.graph.order:
        if fed.intersection(checked.graph.upstream(name)):
            fed.add(name)
    return tuple(name for name in gates if name not in fed)


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


_Seen: TypeAlias = "list[tuple[SourceGroup, SourceState | ExternalError]]"
"""What the sources of a plan held when they were looked at."""


def make_plan(checked: CheckedGraph, groups: Sequence[SourceGroup], *, is_bounded: bool, run_number: int) -> RunPlan:
    """Look at every source and every target, and decide what to read.

    A source that cannot be read, or no longer holds what a table needs next, is noted in ``failures``; the others are
    planned. A run that is to go on for ever does not start without one of its sources.

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
        if group.is_once and all(_has_run_once(checked, part) for part in group.flows):
            continue
        try:
            plan.sources[group.key] = _planned_or_anew(checked, group, seen, plan)
        except ExternalError as error:
            if not is_bounded:
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


def _has_run_once(checked: CheckedGraph, part: CheckedFlow, handle: DeltaTable | None = None) -> bool:
    """Return whether a flow that runs once has read its source; what came there since is not its business."""
    location = checked.graph.datasets[part.flow.target].location
    assert location is not None
    return stored_position(handle or location.open(), once_app_id(part.flow.name, part.connector.name)) is not None


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
        if not _reads_dataset(checked, part) and not group.is_view:
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
    completion = Completion(checked, plan)
    for group in groups:
        source = plan.sources.get(group.key)
        if source is None or any(what.skipped for what in source.partitions.values()):
            continue
        if group.key not in plan.beginning and all(completion.is_complete(part.flow.target) for part in group.flows):
            plan.idle[group.key] = plan.sources.pop(group.key)


def _is_view(part: CheckedFlow) -> bool:
    return isinstance(part.read, TableRead) and part.read.name.startswith("view:")


def _reads_dataset(checked: CheckedGraph, part: CheckedFlow) -> bool:
    return isinstance(part.read, TableRead) and part.read.name in checked.graph.datasets


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
    if _is_view(part):
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


class DurablePositions:
    """Tells how far every table that is fed from a source holds it: what the source may forget.

    Used by one thread at a time. The tables are the only evidence, so it holds for every process of a run.

    Args:
        checked: The pipeline.
        group: A read of the source; other reads of the same source count too.
        source: What the run reads of it.
    """

    def __init__(self, checked: CheckedGraph, group: SourceGroup, source: SourcePlan) -> None:
        name = group.connector.name
        self._checked, self._source = checked, source
        self._flows = [part for part in checked.flows if part.connector.name == name]
        self._handles: dict[str, DeltaTable] = {}

    def __call__(self) -> Mapping[str, int]:
        """Return the smallest stored position of each source partition; none for one that a table has none of."""
        for handle in self._handles.values():
            with delta_errors(f"read table '{handle.table_uri}'"):
                handle.update_incremental()
        smallest: dict[str, int] = {}
        for partition in self._source.partitions:
            stored = [self._stored(part, partition) for part in self._flows if part.takes(partition)]
            known = [position for position in stored if position is not None]
            if known and len(known) == len(stored):
                smallest[partition] = min(known)
        return smallest

    def _stored(self, part: CheckedFlow, partition: str) -> int | None:
        target = part.flow.target
        if target not in self._handles:
            location = self._checked.graph.datasets[target].location
            assert location is not None
            self._handles[target] = location.open()
        return stored_position(self._handles[target], app_id(part.flow.name, self._source.identity, partition))


class Completion:
    """Tells whether a dataset holds everything its sources held when the run began. The tables are the only evidence.

    A table fed from outside is complete when its positions have reached the marks. A table fed by another table is
    complete when it has read a version of that table that was complete. So every process of a run comes to the same
    answer without talking to the others.
    """

    def __init__(self, checked: CheckedGraph, plan: RunPlan) -> None:
        self._checked, self._plan = checked, plan
        self._handles: dict[str, DeltaTable] = {}
        self._complete_versions: set[tuple[str, int]] = set()

    def is_complete(self, name: str) -> bool:
        """Return whether the dataset is complete now."""
        dataset = self._checked.graph.datasets[name]
        if dataset.kind == "quarantine":
            return self._is_quarantine_complete_at(dataset, self._latest(dataset))
        if dataset.location is not None and not self._checked.is_selected(name):
            return True  # as it is, it is what this update reads
        if dataset.location is None:
            return all(self.is_complete(upstream) for upstream in self._checked.graph.upstream(name))
        return self._is_complete_at(dataset, self._latest(dataset))

    def _latest(self, dataset: Dataset) -> DeltaTable:
        assert dataset.location is not None
        handle = self._handles.get(dataset.name)
        if handle is None:
            handle = self._handles[dataset.name] = dataset.location.open()
            return handle
        with delta_errors(f"read table '{dataset.name}'"):
            handle.update_incremental()
        return handle

    def _is_complete_at(self, dataset: Dataset, handle: DeltaTable) -> bool:
        key = (dataset.name, handle.version())
        if key in self._complete_versions:
            return True
        parts = [part for part in self._checked.flows if part.flow.target == dataset.name]
        if not all(self._has_read_all(part, handle) for part in parts):
            return False
        self._complete_versions.add(key)
        return True

    def _is_quarantine_complete_at(self, dataset: Dataset, handle: DeltaTable) -> bool:
        """Return whether a quarantine table holds what its table has put aside; that commits first, and this one after it."""
        key = (dataset.name, handle.version())
        if key in self._complete_versions:
            return True
        name = dataset.definition.name
        if not self.is_complete(name):
            return False
        if self._checked.is_selected(name):
            if not is_quarantine_whole(self._latest(self._checked.graph.datasets[name]), handle):
                return False
            self._complete_versions.add(key)
        return True

    def _has_read_all(self, part: CheckedFlow, handle: DeltaTable) -> bool:
        if _is_view(part):
            return self._is_view_fresh(part, handle)
        if part.flow.once:
            return _has_run_once(self._checked, part, handle)
        if not _reads_dataset(self._checked, part):
            return all(
                _reached(stored_position(handle, app), begin, mark)
                for app, (begin, mark) in self._plan.marks.get(part.flow.name, {}).items()
            )
        assert isinstance(part.read, TableRead)
        upstream = self._checked.graph.datasets[part.read.name]
        source = f"delta:{self._latest(upstream).metadata().id}"
        stored = stored_position(handle, app_id(part.flow.name, source, "log"))
        if stored is None:
            return False
        position = RowPosition.unpack(stored)
        return position.minor == 0 and position.major > 0 and self._was_complete(upstream, position.major - 1)

    def _was_complete(self, dataset: Dataset, version: int) -> bool:
        latest = self._latest(dataset)
        if dataset.kind == "quarantine" and self._checked.is_selected(dataset.definition.name):
            assert dataset.location is not None
            handle = latest if version >= latest.version() else dataset.location.open(version=version)
            return self._is_quarantine_complete_at(dataset, handle)
        if dataset.kind == "quarantine" or not self._checked.is_selected(dataset.name):
            return version >= latest.version()
        if version < (latest.transaction_version(REPLAYED_APP_ID) or 0):
            return False
        if version >= latest.version():
            return self._is_complete_at(dataset, latest)
        if (dataset.name, version) in self._complete_versions:
            return True
        assert dataset.location is not None
        return self._is_complete_at(dataset, dataset.location.open(version=version))

    def _is_view_fresh(self, part: CheckedFlow, handle: DeltaTable) -> bool:
        if not all(self.is_complete(name) for name in part.gates):
            return False
        state = part.connector.inspect()
        return all(
            (stored_position(handle, app_id(part.flow.name, state.identity, p)) or -1) >= held.high
            for p, held in state.partitions.items()
        )


def _span(begin: int, held: SourceRange) -> tuple[int, int]:
    """Return where a flow without a position begins, and its mark. One that waits is there once its beginning is stored."""
    return (-1 if held.is_waiting else begin), held.mark


def _reached(stored: int | None, begin: int, mark: int) -> bool:
    return stored >= mark if stored is not None else mark <= begin
