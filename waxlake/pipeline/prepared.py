"""A run ready to be handed to Bytewax: the pipeline checked, planned and compiled.

Called by ``run_update`` and by ``flow``, the deployment under Bytewax's own runner.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bytewax.dataflow import Dataflow

from sinks.delta.protocol import new_run_number
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.cluster import Cluster
from waxlake.pipeline.column_changes import follow_columns
from waxlake.pipeline.compile import build_dataflow
from waxlake.pipeline.completion import Completion
from waxlake.pipeline.file_states import durable_positions
from waxlake.pipeline.full_refresh import finish_full_refreshes
from waxlake.pipeline.lanes import Lanes
from waxlake.pipeline.lease import Holder, UpdateLease
from waxlake.pipeline.ownership import refuse_foreign_tables
from waxlake.pipeline.pinned import pinned_versions
from waxlake.pipeline.plan import RunPlan, make_plan, settle_files
from waxlake.pipeline.progress import Listener
from waxlake.pipeline.quality import complete_quality
from waxlake.pipeline.reports import Reporter, report_creation, report_plan
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.retry import survivors, to_retry
from waxlake.pipeline.samples import OffenderSampler
from waxlake.pipeline.selection import Selection
from waxlake.pipeline.sinks import finish_batches
from waxlake.pipeline.source_groups import SourceGroup, source_groups
from waxlake.pipeline.source_warnings import report_warnings
from waxlake.pipeline.spec import Spec
from waxlake.pipeline.state import RunState
from waxlake.pipeline.table_setup import claim_tables, prepare_tables
from waxlake.pipeline.tables import LatestTables
from waxlake.stream.errors import (
    InternalError,
    PositionMoved,
    SchemaGrown,
    SourceChanged,
    TransientError,
    UsageError,
    WaxlakeError,
)
from waxlake.stream.source import Confirming

__all__ = ["PreparedRun", "UpdateResult", "prepare_run"]


@dataclass(slots=True, kw_only=True)
class UpdateResult:
    """How an update ended.

    Attributes:
        update_id: Its identity.
        state: ``COMPLETED`` or ``CANCELED`` (asked to stop).
        tables: Table name to rows written.
        duration_s: Seconds it took.
    """

    update_id: str
    state: str
    tables: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class PreparedRun:
    """A run ready to be handed to Bytewax, in one process.

    Attributes:
        dataflow: What Bytewax runs.
        plan: What it reads.
        state: How it is steered.
        report: Where its events go.
        lanes: Where its work is done, if not on the threads of Bytewax; closed after it returned.
    """

    dataflow: Dataflow
    plan: RunPlan
    state: RunState
    report: Reporter
    completion: Completion
    checked: CheckedGraph
    groups: Sequence[SourceGroup]
    lanes: Lanes | None
    started_s: float

    @property
    def was_overtaken(self) -> bool:
        """Whether only an older run that writes the same tables stood in the way."""
        failures = self.state.failures.values()
        return bool(failures) and not self.state.is_stopping and all(isinstance(e, PositionMoved) for e in failures)

    @property
    def has_changed_source(self) -> bool:
        """Whether only columns that the plan did not know stood in the way: planning again adds them."""
        failures = self.state.failures.values()
        return bool(failures) and not self.state.is_stopping and all(isinstance(e, SourceChanged) for e in failures)

    @property
    def growth(self) -> Sequence[SchemaGrown]:
        """Sources that have new columns: the run is to be planned again with them, unless it was asked to end."""
        return [] if self.state.is_stopping else self.state.growth

    @property
    def to_retry(self) -> tuple[str, ...]:
        """The tables that failed for a reason that may pass, or were set aside, and those that waited for them."""
        failures = {**self.state.aside, **self.state.failures}
        if self.state.is_stopping or not any(error.is_retryable for error in failures.values()):
            return ()
        return to_retry(self.checked.graph, failures, self.state.skipped)

    def retry_selection(self, selection: Selection) -> Selection:
        """Return what the next attempt takes: what failed for a reason that may pass; in a continuous run whatever can go on."""
        if self.plan.is_bounded:
            return Selection(refresh=self.to_retry)
        if self.first_lost is None:
            return selection
        return Selection(refresh=survivors(self.checked, self.state.failures))

    @property
    def age_s(self) -> float:
        """Seconds since its update began."""
        return time.monotonic() - self.started_s

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.plan.sources

    @property
    def first_lost(self) -> WaxlakeError | None:
        """The first failure that will not pass."""
        return next((error for error in self.state.failures.values() if not error.is_retryable), None)

    def finish(self, lost: WaxlakeError | None = None) -> UpdateResult:
        """Say how the update ended, after Bytewax returned.

        Args:
            lost: What failed for good before a retry.

        Raises:
            WaxlakeError: The first failure of the run; independent flows were carried to their end.
            InternalError: A table did not reach its mark although nothing failed.
        """
        result = UpdateResult(
            update_id=self.plan.update_id,
            state="COMPLETED",
            tables=dict(self.report.rows),
            duration_s=self.age_s,
        )
        if self.growth:
            raise InternalError(
                f"planning again did not add what was found: {self.growth[0].what}",
                code="SCHEMA_NOT_GROWN",
                remedy="No row is lost. Please report this with the event log",
            )
        if self.state.failures or lost is not None:
            error = lost or next(iter(self.state.failures.values()))
            self.fail(error)
            with contextlib.suppress(WaxlakeError):  # what stopped the run is the error to be told
                self.confirm()
            raise error
        if self.state.is_draining():
            result.state = "COMPLETED" if not self.plan.is_bounded else "CANCELED"
        elif self.plan.is_bounded:
            self._require_completion()
        self.confirm()
        self._keep_quality()
        self._report_outcome(result.state, result.duration_s)
        return result

    def report_end(self) -> None:
        """Report how the update ended, where the process is about to exit and nobody can be told otherwise."""
        if self.state.failures or sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None:
            outcome = "FAILED"
        elif self.state.is_draining():
            outcome = "CANCELED" if self.plan.is_bounded else "COMPLETED"
        else:
            outcome = "COMPLETED"
        if outcome != "FAILED":
            self.confirm()
            self._keep_quality()
        self._report_outcome(outcome, self.age_s)

    def confirm(self) -> None:
        """Tell each source what every table holds, after Bytewax returned; a source that is away is told next time."""
        if self.checked.is_shadow:
            return
        for group in self.groups:
            source = self.plan.sources.get(group.key) or self.plan.idle.get(group.key)
            connector = group.connector
            if source is not None and isinstance(connector, Confirming):
                with contextlib.suppress(TransientError):
                    connector.confirm(source, durable_positions(self.checked, group, source)())

    def _keep_quality(self) -> None:
        if not self.checked.is_shadow:
            complete_quality(self.checked.graph)

    def _report_outcome(self, outcome: str, duration_s: float) -> None:
        self.report(
            "update_progress",
            f"update is {outcome}",
            level="ERROR" if outcome == "FAILED" else "INFO",
            details={"update_progress": {"state": outcome, "duration_s": round(duration_s, 3)}},
        )

    def fail(self, error: WaxlakeError) -> None:
        """Report that the update failed."""
        self.report(
            "update_progress",
            f"update FAILED: {error}",
            level="ERROR",
            details={"update_progress": {"state": "FAILED"}},
            error=error,
        )

    def _require_completion(self) -> None:
        targets = {part.flow.target for part in self.checked.selected_flows}
        behind = [name for name in sorted(targets) if not self.completion.is_complete(name)]
        if behind and not self.is_idle:
            error = InternalError(
                f"update ended before its tables held everything: {', '.join(behind)}",
                code="UPDATE_INCOMPLETE",
                remedy="No row is lost: run again. Please report this with the event log",
            )
            self.fail(error)
            raise error


def prepare_run(
    spec: Spec,
    listeners: Sequence[Listener],
    *,
    mode: str | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    stopping: threading.Event | None = None,
    isolates: bool = True,
    claims: bool = False,
    checked: CheckedGraph | None = None,
    refresh: Selection | None = None,
    before: PreparedRun | None = None,
    lease: UpdateLease | None = None,
    cause: str = "USER_ACTION",
    is_tried_again: bool = False,
    recheck_s: float | None = None,
) -> PreparedRun:
    """Load, check and plan an update, and compile it.

    Args:
        spec: The pipeline.
        listeners: Told of every event; the event log is one of them if it is wanted.
        mode: ``triggered``, ``continuous``, or None for the spec's.
        workers: Workers of the whole cluster.
        cluster: The processes of this run, or None if it is the only one: process 0 plans for all.
        stopping: Set from outside when the run is to end: what was read is committed, nothing more is read.
        isolates: Let independent flows go on when one fails; needs a single process.
        claims: Take the fence of every table before positions are read: another run is known to write them.
        checked: The pipeline, if it was checked already; else it is loaded from its files.
        refresh: Which of its tables to bring up to date; None for all.
        before: The part of the same update that this one goes on from.
        lease: Taken before anything is written; None if the caller holds it.
        cause: Why the update was started.
        is_tried_again: Whether the caller tries again what cannot be planned for a reason that may pass.
        recheck_s: Seconds after which a continuous run that has begun plans again what was away when it was planned; None if it
            does not go on without.

    Raises:
        UpdateCanceled: The process was asked to stop while it waited for its turn.
        WaxlakeError: A definition is wrong, a source or table cannot be used.
    """
    started_s = time.monotonic()
    mode = mode or spec.mode
    if mode not in ("triggered", "continuous"):
        raise UsageError("unknown mode", code="OPTION_INVALID", found=mode, expected="triggered or continuous")
    graphs = [] if checked is None else [checked]

    def check_here() -> CheckedGraph:
        if not graphs:
            loaded = load_graph(spec)
            refuse_foreign_tables(loaded)
            graph = check_graph(loaded, known=() if before is None else before.checked.flows)
            graph.selected = refresh.tables(graph.graph) if refresh is not None else None
            graphs.append(graph)
        return graphs[0]

    report = Reporter(spec, uuid.uuid4().hex if before is None else before.plan.update_id, listeners)

    is_first = cluster is None or cluster.process_id == 0

    def plan_here() -> RunPlan:
        here = check_here()
        report_warnings(here, report)
        if before is None:
            report.attach_hooks(here)
            report.hold()
            report_creation(report, here, mode, cause)
        _begin(report, lease)
        claims_first = claims or (lease is not None and lease.was_taken_over)
        has_begun = before is not None and recheck_s is not None
        made = _planned(here, report, is_bounded=mode == "triggered", claims=claims_first, has_begun=has_begun)
        made.pinned = pinned_versions(here, is_bounded=made.is_bounded) if before is None else before.plan.pinned
        return made

    plan = _shared(plan_here, cluster, report, is_tried_again=is_tried_again)
    # Other processes look only now: what the first one has inferred of its sources is stored by then.
    checked = check_here()
    settle_files(checked, plan)
    groups = source_groups(checked)
    report.update_id = plan.update_id
    if before is not None:
        report.rows = before.report.rows
    if is_first:
        report_plan(report, checked, plan, is_planned_again=before is not None)
        report.state("RUNNING", "update is RUNNING")
    _sample_offenders(checked, report)
    report_warnings(checked, report)
    completion = Completion(checked, plan.marks)
    state = RunState(
        checked.graph,
        completion,
        report,
        report.committed,
        stopping=stopping or threading.Event(),
        is_bounded=plan.is_bounded,
        isolates=isolates,
    )
    _note_failures(plan, groups, state, recheck_s)
    tables = LatestTables(checked)
    lanes = Lanes() if isolates and len(plan.sources) > 1 else None  # one source has nobody to hold back
    return PreparedRun(
        dataflow=build_dataflow(checked, groups, plan, state, tables, workers=workers, lanes=lanes),
        plan=plan,
        state=state,
        report=report,
        completion=completion,
        checked=checked,
        groups=groups,
        lanes=lanes,
        started_s=started_s if before is None else before.started_s,
    )


def _sample_offenders(checked: CheckedGraph, report: Reporter) -> None:
    """Let rows that break a rule be told of, unless the spec wants none."""
    samples = checked.graph.spec.samples
    sampler = OffenderSampler(samples, report) if samples.rows else None
    for part in checked.flows:
        part.transform.on_offenders = sampler
    for plans in checked.stateful.values():
        for plan in plans.values():
            for transform in plan.transforms:
                transform.on_offenders = sampler


def _shared(make: Callable[[], RunPlan], cluster: Cluster | None, report: Reporter, *, is_tried_again: bool) -> RunPlan:
    """Return the plan of process 0; what keeps it from planning is reported once."""
    try:
        return cluster.share(make) if cluster is not None else make()
    except WaxlakeError as error:
        if cluster is None or cluster.process_id == 0:
            report.planning_failed(error, is_tried_again=is_tried_again and error.is_retryable)
        raise


def _note_failures(plan: RunPlan, groups: Sequence[SourceGroup], state: RunState, recheck_s: float | None) -> None:
    """Let what failed while it was planned be failed, or set aside for a while; what stands alone goes on."""
    failed = [(part.flow.target, plan.failures[g.key]) for g in groups if g.key in plan.failures for part in g.flows]
    for name, error in [*failed, *plan.sink_failures.items()]:
        if not plan.is_bounded and error.is_retryable and recheck_s is not None:
            state.set_aside(name, error, recheck_s)
        elif not state.fail(name, error):
            raise error


def _planned(checked: CheckedGraph, report: Reporter, *, is_bounded: bool, claims: bool, has_begun: bool) -> RunPlan:
    finish_full_refreshes(checked.graph)
    run_number = new_run_number()
    report.state("SETTING_UP_TABLES", "tables are made ready")
    prepare_tables(checked)
    if claims:
        claim_tables(checked, run_number)
    follow_columns(checked, run_number)
    groups = source_groups(checked)
    plan = make_plan(checked, groups, is_bounded=is_bounded, run_number=run_number, has_begun=has_begun)
    plan.update_id = report.update_id
    plan.sink_failures = finish_batches(checked, run_number, is_bounded=is_bounded, has_begun=has_begun)
    return plan


def _begin(report: Reporter, lease: UpdateLease | None) -> None:
    """Take the lease, and say so; what happens before is told to nobody, for there may be no update at all."""

    def waits(holder: Holder) -> None:
        report.let_go()
        report.state("QUEUED", f"update waits for {holder.label}")
        report("operation_progress", f"waiting for {holder.label}")

    if lease is not None:
        lease.ensure(waits)
    report.let_go()
    report.state("INITIALIZING", "update is planned")
