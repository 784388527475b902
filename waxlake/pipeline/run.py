"""Run updates: what was asked for besides, then one run after the other until nothing needs another plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from sinks.delta.protocol import new_run_number
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.cluster import run_processes
from waxlake.pipeline.events import EventLog, make_event
from waxlake.pipeline.full_refresh import finish_full_refreshes, forget_positions, refresh_in_full
from waxlake.pipeline.lease import LeaseTerms, UpdateCanceled, UpdateLease
from waxlake.pipeline.notify import Notifier
from waxlake.pipeline.ownership import adopt_tables, refuse_foreign_tables
from waxlake.pipeline.prepared import PreparedRun, UpdateResult, prepare_run
from waxlake.pipeline.progress import Listener
from waxlake.pipeline.reports import report_growth
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.retry import back_off_s, failed_tables
from waxlake.pipeline.selection import RESET_ALLOWED, Selection
from waxlake.pipeline.signals import draining_on_signals
from waxlake.pipeline.sink_refresh import refuse_refresh, sinks_that_resend
from waxlake.pipeline.spec import Spec
from waxlake.stream.errors import InternalError, TransientError, WaxlakeError

__all__ = ["RunOptions", "run_update"]

EPOCH_INTERVAL = timedelta(milliseconds=500)
_PLANS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run.

    Attributes:
        mode: ``triggered``, ``continuous``, or None for the spec's.
        workers: Worker threads in each process.
        processes: Processes on this machine.
        progress: How each of several processes reports on stdout: ``lines`` or ``json``.
        selection: Which tables, and what is done to them besides.
        terms: What to do when another update of the pipeline runs.
        adopts: Tables of another pipeline that become this one's.
    """

    mode: str | None = None
    workers: int = 1
    processes: int = 1
    progress: str = "lines"
    selection: Selection = field(default_factory=Selection)
    terms: LeaseTerms = field(default_factory=LeaseTerms)
    adopts: tuple[str, ...] = ()


def run_update(
    spec: Spec,
    options: RunOptions,
    listeners: Sequence[Listener],
    *,
    check: Callable[[], CheckedGraph] | None = None,
) -> UpdateResult:
    """Run one update in this process, or in several of this machine, and wait for it.

    Args:
        spec: The pipeline.
        options: Mode, workers, processes.
        listeners: Told of every event.
        check: Returns the pipeline, if it is not the one of the spec's files; for one process.

    Returns:
        How it ended; a continuous run returns when it was asked to stop.

    Raises:
        WaxlakeError: What stopped it. What was committed before stays; a later run goes on from there.
    """
    stopping = threading.Event()
    lease = UpdateLease(spec, options.terms, stopping)
    notifier = Notifier(spec)
    listeners = [*listeners, notifier]
    try:
        with draining_on_signals(stopping.set):
            result = _run(spec, options, listeners, stopping, lease, check)
            if result is not None:
                return result
            lease.ensure()
        return run_processes(spec, options, lease)
    except UpdateCanceled:
        return UpdateResult(update_id="", state="CANCELED")
    except WaxlakeError as error:
        notifier.failed(error)
        raise
    finally:
        lease.close()
        notifier.close()


def _run(
    spec: Spec,
    options: RunOptions,
    listeners: Sequence[Listener],
    stopping: threading.Event,
    lease: UpdateLease,
    check: Callable[[], CheckedGraph] | None,
) -> UpdateResult | None:
    """Run the update in this process; None if several processes are to do it."""
    if options.selection.is_failed:
        failed = failed_tables(spec, load_graph(spec))
        options = replace(options, selection=Selection(refresh=failed))
    selection = options.selection
    if options.adopts:
        graph = load_graph(spec)
        lease.ensure()
        adopt_tables(graph, options.adopts)
    if not selection.is_everything or selection.is_full:
        _prepare_selection(spec, options, listeners, stopping, lease)
    if options.processes == 1 or stopping.is_set():
        return _update(spec, options, listeners, stopping, lease, check)
    return None


def _prepare_selection(
    spec: Spec, options: RunOptions, listeners: Sequence[Listener], stopping: threading.Event, lease: UpdateLease
) -> None:
    """Do what was asked for besides bringing tables up to date: fill some anew, let some forget their positions."""
    selection = options.selection
    graph = load_graph(spec)
    selection.tables(graph)
    anew, kept = selection.anew(graph)
    refuse_foreign_tables(graph)
    refuse_refresh(graph, anew)
    lease.ensure()
    finish_full_refreshes(graph)
    tables = [name for name in anew if graph.datasets[name].kind == "table"]
    bounded = replace(options, mode="triggered", processes=1, selection=Selection())

    def fill(check: Callable[[], CheckedGraph]) -> str | None:
        result = _update(spec, bounded, listeners, stopping, lease, check)
        return None if stopping.is_set() else result.update_id

    if tables:
        refresh_in_full(graph, tables, fill, is_forced=selection.is_forced)
    views = [name for name in anew if graph.datasets[name].kind == "materialized_view"]
    forgetting = [*views, *sinks_that_resend(graph, anew), *selection.reset_checkpoint]
    forget_positions(check_graph(graph), forgetting, new_run_number())
    for name in kept:
        for listener in listeners:
            listener.on_event(
                make_event(
                    "user_action",
                    f"table {name} is not refreshed in full: it is protected by {RESET_ALLOWED}",
                    pipeline=spec.name,
                    update_id="",
                    level="WARN",
                    dataset=name,
                )
            )


def _update(
    spec: Spec,
    options: RunOptions,
    listeners: Sequence[Listener],
    stopping: threading.Event,
    lease: UpdateLease,
    check: Callable[[], CheckedGraph] | None = None,
) -> UpdateResult:
    """Run one update in this process; plan again where sources have new columns, or an older run was in the way.

    ``check`` returns the pipeline if it is not the one of the spec's files. Each plan has an event log of its own, which is
    written when the next one looks there for what it has to complete.
    """
    run: PreparedRun | None = None
    overtaken, grown, attempt = 0, "", 0
    retries = spec.retries if check is None else 0
    is_endless = check is None and (options.mode or spec.mode) == "continuous"
    selection, lost = options.selection, None
    while True:
        log = EventLog(spec.events_location())
        try:
            try:
                run = prepare_run(
                    spec,
                    [log, *listeners],
                    mode=options.mode,
                    workers=options.workers,
                    stopping=stopping,
                    claims=overtaken > 0,
                    checked=check() if check is not None else None,
                    refresh=selection,
                    before=run,
                    lease=lease,
                    is_tried_again=attempt < retries or (is_endless and run is not None),
                    recheck_s=back_off_s(spec, attempt) if is_endless else None,
                )
            except TransientError as error:
                if attempt >= retries and not (is_endless and run is not None):
                    raise
                stopping.wait(back_off_s(spec, attempt))
                attempt += 1
                if stopping.is_set():
                    raise UpdateCanceled from error
                continue
            begun_s = time.monotonic()
            _run_once(run, options.workers)
            if is_endless and not run.state.aside and time.monotonic() - begun_s > spec.retry_max_wait:
                attempt = 0  # it went well for a while
            if run.growth and str(run.growth[0]) != grown:
                grown = str(run.growth[0])
                report_growth(run.report, run.growth)
            elif run.has_changed_source:
                _report_reset(run, "a source has new columns")
            elif run.was_overtaken and overtaken + 1 < _PLANS:
                overtaken += 1
                _report_reset(run, "an older run moved the tables meanwhile")
            elif run.to_retry and (is_endless or attempt < retries):
                lost = lost or run.first_lost
                selection = run.retry_selection(selection)
                wait_s = back_off_s(spec, attempt) if run.state.failures else run.state.recheck_in_s
                _wait_for_retry(run, wait_s, stopping)
                attempt += 1
            else:
                return run.finish(lost)
            run.confirm()
        finally:
            log.close()


def _wait_for_retry(run: PreparedRun, wait_s: float, stopping: threading.Event) -> None:
    names = ", ".join(run.to_retry)
    run.report(
        "update_progress",
        f"{names} failed for a reason that may pass; trying again in {wait_s:.1f} s",
        level="WARN",
        details={"update_progress": {"state": "RESETTING", "cause": "RETRY_ON_FAILURE"}},
    )
    stopping.wait(wait_s)


def _report_reset(run: PreparedRun, reason: str) -> None:
    details = {"update_progress": {"state": "RESETTING"}}
    run.report("update_progress", f"{reason}; planning again", level="WARN", details=details)


def _run_once(run: PreparedRun, workers: int) -> None:
    from bytewax._bytewax import cluster_main

    def main() -> None:
        try:
            cluster_main(  # type: ignore[no-untyped-call]
                run.dataflow, [], 0, epoch_interval=EPOCH_INTERVAL, worker_count_per_proc=workers
            )
        finally:
            if run.lanes is not None:
                run.lanes.close()

    if not run.is_idle:
        _run_dataflow(run, main)


def _run_dataflow(run: PreparedRun, main: Callable[[], None]) -> None:
    """Run Bytewax; errors that went through it come out as ours."""
    try:
        main()
    except WaxlakeError as error:
        run.fail(error)
        raise
    except Exception as exc:  # Bytewax wraps what a source raised
        cause: BaseException | None = exc
        while cause is not None and not isinstance(cause, WaxlakeError):
            cause = cause.__cause__
        cause = cause or InternalError.of(exc, "cannot go on with the update")
        run.fail(cause)
        raise cause from exc
