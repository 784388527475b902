"""What an update would do, and why; ``waxlake plan``. Nothing is created, recorded or moved.

For each flow: from which positions, how much there is to read, what changed in its definition and what that means for the
rows that are there. For each view: how it would be refreshed, with a stable reason code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from deltalake import DeltaTable

from waxlake.pipeline.changed import Change, FlowHistory, definition_changes
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.full_refresh import first_position
from waxlake.pipeline.graph import Dataset, Flow
from waxlake.pipeline.lake import StoredTable, table_facts
from waxlake.pipeline.lease import current_holder
from waxlake.stream.batch import Backlog
from waxlake.stream.delta_table import stored_position
from waxlake.stream.errors import ExternalError
from waxlake.stream.position import app_id, once_app_id
from waxlake.stream.preview import Previewing, SourcePreview

if TYPE_CHECKING:
    from waxlake.pipeline.view import ViewConnector

__all__ = ["DatasetPlan", "FlowPlan", "PartitionView", "Refresh", "UpdateView", "explain_update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionView:
    """What an update would read of one source partition.

    Attributes:
        source: What users call the source.
        partition: Partition key; empty if the source was never read.
        start: Position it would read from; None for the beginning.
        end: Position after what is there now; None if that is not known.
        backlog: Records, files and bytes in between, as far as the source can tell.
        note: What is set up first, or what cannot be told.
    """

    source: str
    partition: str = ""
    start: int | None = None
    end: int | None = None
    backlog: Mapping[str, int | None] = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True, kw_only=True)
class FlowPlan:
    """One flow: whether it runs for the first time, what it would read, what changed, and why it cannot run."""

    flow: str
    is_first_run: bool
    has_run_once: bool = False
    reads: list[PartitionView] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """How a view would be refreshed.

    Attributes:
        mode: ``FULL``, ``INCREMENTAL`` or ``NO_OP``.
        code: How an incremental one works, or why it is a full one (``incremental.reasons``); ``INPUTS_UNCHANGED``, or
            ``INPUT_MISSING`` (an input is filled for the first time in the same update).
        reason: For people.
    """

    mode: str
    code: str
    reason: str


@dataclass(slots=True, kw_only=True)
class DatasetPlan:
    """One table or view.

    Attributes:
        dataset: Its name.
        kind: ``table``, ``materialized_view`` or ``sink``.
        exists: Whether it is stored already.
        rows: Rows it holds.
        refresh: How it would be refreshed, for a view.
        can_refill: Whether its sources still hold what it was filled from; None if nothing changed, or it cannot be told.
        refill: The same for people.
        flows: Its flows.
    """

    dataset: str
    kind: str
    exists: bool
    rows: int | None = None
    refresh: Refresh | None = None
    can_refill: bool | None = None
    refill: str = ""
    flows: list[FlowPlan] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateView:
    """What an update would do.

    Attributes:
        pipeline: Its name.
        datasets: Stored tables and views, upstream first.
        notes: Flows that are gone, and an update that runs now.
    """

    pipeline: str
    datasets: Sequence[DatasetPlan]
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def explain_update(checked: CheckedGraph) -> UpdateView:
    """Return what an update of a pipeline would do.

    A source that cannot be looked at is told in its flow's ``problems``.

    Raises:
        ExternalError: The pipeline's own storage cannot be read.
    """
    graph = checked.graph
    history = FlowHistory(graph)
    running = current_holder(graph.spec.updates_location())
    notes = history.gone()
    if running is not None:
        notes.append(f"{running.label}: a second one is refused, or waits with --queue")
    stored = [graph.datasets[name] for name in graph.order]
    wanted = [dataset for dataset in stored if dataset.location is not None and dataset.kind != "quarantine"]
    return UpdateView(
        pipeline=graph.spec.name,
        datasets=[_dataset_plan(checked, dataset, history) for dataset in wanted],
        notes=notes,
    )


def _dataset_plan(checked: CheckedGraph, dataset: Dataset, history: FlowHistory) -> DatasetPlan:
    assert dataset.location is not None
    exists = dataset.location.exists()
    plan = DatasetPlan(dataset=dataset.name, kind=dataset.kind, exists=exists)
    handle = dataset.location.open() if exists else None
    if handle is not None and dataset.kind != "sink":
        plan.rows = table_facts(StoredTable(name=dataset.name, kind=dataset.kind, location=dataset.location)).rows
    previews: dict[int, SourcePreview] = {}
    for flow in dataset.flows:
        parts = [part for part in checked.flows if part.flow.name == flow.name and part.flow.target == dataset.name]
        found = FlowPlan(flow=flow.name, is_first_run=True)
        plan.flows.append(found)
        if handle is not None:
            found.changes = definition_changes(checked, dataset, flow, handle, history)
        for part in parts:
            if dataset.kind != "materialized_view":
                _read_plan(part, handle, found, previews)
    if dataset.kind == "materialized_view":
        plan.refresh = _refresh(checked, dataset, dataset.flows[0], handle, plan.flows[0])
        plan.flows[0].is_first_run = plan.refresh.code == "FIRST_RUN"
    elif handle is not None and dataset.kind == "table" and any(flow.changes for flow in plan.flows):
        parts = [part for part in checked.flows if part.flow.target == dataset.name]
        plan.can_refill, plan.refill = _refill(dataset, parts, handle, previews)
    return plan


def _preview(part: CheckedFlow) -> SourcePreview:
    connector = part.connector
    if isinstance(connector, Previewing):
        return connector.preview()
    state = connector.inspect()

    def backlog(partition: str, position: int | None) -> Backlog:
        held = state.partitions[partition]
        start = state.begin.get(partition, held.low) if position is None else position
        return Backlog(records=max(0, held.high - max(start, held.low)))

    return SourcePreview(state=state, backlog=backlog)


def _read_plan(
    part: CheckedFlow, handle: DeltaTable | None, found: FlowPlan, previews: dict[int, SourcePreview]
) -> None:
    """Note what a flow would read of one source."""
    flow, name = part.flow.name, part.connector.name
    if part.flow.once and handle is not None and stored_position(handle, once_app_id(flow, name)) is not None:
        found.is_first_run, found.has_run_once = False, True
        return
    try:
        preview = _preview(part)
    except ExternalError as error:
        if error.code == "TABLE_NOT_FOUND" and isinstance(part.read, TableRead):
            found.reads.append(PartitionView(source=name, note="filled for the first time in the same update"))
        else:
            found.problems.append(str(error))
        return
    previews[id(part)] = preview
    if preview.state is None:
        found.reads.append(PartitionView(source=name, backlog=asdict(preview.backlog("", None)), note=preview.note))
        return
    for partition, held in preview.state.partitions.items():
        if not part.takes(partition):
            continue
        start = stored_position(handle, app_id(flow, preview.state.identity, partition)) if handle is not None else None
        found.is_first_run = found.is_first_run and start is None
        found.reads.append(
            PartitionView(
                source=name,
                partition=partition,
                start=start,
                end=held.high,
                backlog=asdict(preview.backlog(partition, start)),
                note=preview.note,
            )
        )


def _refresh(
    checked: CheckedGraph, dataset: Dataset, flow: Flow, handle: DeltaTable | None, found: FlowPlan
) -> Refresh:
    """Return how a view would be refreshed."""
    if handle is None or handle.version() == 0:
        return Refresh(mode="FULL", code="FIRST_RUN", reason="it was never computed")
    part = next(part for part in checked.flows if part.flow.target == dataset.name)
    connector: ViewConnector = part.connector  # type: ignore[assignment]
    missing = [name for name in connector.inputs if not _exists(checked, name)]
    if missing:
        return Refresh(mode="FULL", code="INPUT_MISSING", reason=f"its input {missing[0]} is filled for the first time")
    if found.changes:
        return Refresh(mode="FULL", code="QUERY_CHANGED", reason="its definition changed")
    state = connector.inspect()
    behind = [p for p, held in state.partitions.items() if _view_position(handle, flow, state.identity, p) < held.high]
    is_fed = any(_exists(checked, name) and name in checked.graph.datasets for name in connector.inputs)
    if behind:
        return _decided(checked, dataset)
    reason = "its inputs have no new version" + (", unless this update gives them one" if is_fed else "")
    return Refresh(mode="NO_OP", code="INPUTS_UNCHANGED", reason=reason)


def _decided(checked: CheckedGraph, dataset: Dataset) -> Refresh:
    """Return how a view whose inputs have new versions would be refreshed."""
    from waxlake.pipeline.incremental.explain import explain_view
    from waxlake.pipeline.incremental.reasons import REASONS

    view = explain_view(checked, dataset.name)
    changed = f"{view.next['changed_bytes']:,} of {view.next['input_bytes']:,} bytes of its inputs changed"
    if view.next["mode"] != "FULL":
        return Refresh(mode="INCREMENTAL", code=view.technique or "INCREMENTAL", reason=changed)
    code, detail = view.next["reason"], view.next["detail"]
    return Refresh(mode="FULL", code=code, reason=REASONS[code] + (f" ({detail})" if detail else ""))


def _exists(checked: CheckedGraph, name: str) -> bool:
    dataset = checked.graph.datasets.get(name)
    location = checked.external(name) if dataset is None else dataset.location
    return location is None or location.exists()


def _view_position(handle: DeltaTable, flow: Flow, identity: str, partition: str) -> int:
    return stored_position(handle, app_id(flow.name, identity, partition)) or -1


def _refill(
    dataset: Dataset, parts: Sequence[CheckedFlow], handle: DeltaTable, previews: Mapping[int, SourcePreview]
) -> tuple[bool | None, str]:
    """Return whether a full refresh would find again what the table was filled from."""
    assert dataset.location is not None
    for part in parts:
        preview = previews.get(id(part))
        if isinstance(part.read, TableRead) or preview is None or preview.state is None:
            continue
        state = preview.state
        for partition, held in state.partitions.items():
            begin = max(held.low, state.begin.get(partition, held.low))
            app = app_id(part.flow.name, state.identity, partition)
            if not part.takes(partition) or begin == 0 or stored_position(handle, app) is None:
                continue
            first = first_position(dataset.location, part.flow.name, state.identity, partition)
            if first is None or first < begin:
                return False, (
                    f"{state.name} partition {partition} begins at position {begin} now, the table began at "
                    f"{first if first is not None else 'one that is not known'}: a full refresh would lose rows and is refused "
                    "without --force"
                )
    upstream = [part.read.name for part in parts if isinstance(part.read, TableRead)]
    if upstream:
        return None, f"a full refresh fills it from {', '.join(dict.fromkeys(upstream))} as it is now"
    return True, "its sources still hold everything it was filled from"
