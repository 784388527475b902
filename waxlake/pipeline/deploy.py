"""The pipeline as a plain Bytewax deployment: ``python -m bytewax.run flows.main``, with ``-w`` or ``-i``/``-a``.

``flow`` is a factory; importing this module does nothing. ``WAXLAKE_SPEC`` names the spec, ``WAXLAKE_MODE`` overrides its mode,
``WAXLAKE_PARAMS`` (JSON) its configuration, ``WAXLAKE_REFRESH`` (names, comma between) its choice of tables.
``WAXLAKE_ON_RUNNING`` says what to do while another update of the pipeline runs: ``queue`` (the default: wait for its end),
``takeover`` or ``refuse``. ``WAXLAKE_PROGRESS`` (``lines`` or ``json``) reports on stdout, and ``WAXLAKE_METRICS_PORT`` serves
Prometheus metrics.
Bytewax itself runs the dataflow, so an error ends the process with a traceback and a non-zero exit code.
Exit code 75 means: a source has new columns, they are stored, start again; 76: it failed for a reason that may pass;
77: the same, before it began.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, cast

from bytewax.dataflow import Dataflow

from waxlake.stream.errors import SchemaGrown, UsageError, WaxlakeError

if TYPE_CHECKING:
    from waxlake.pipeline.lease import OnRunning, UpdateLease
    from waxlake.pipeline.prepared import PreparedRun
    from waxlake.pipeline.progress import Listener
    from waxlake.pipeline.spec import Spec

__all__ = ["flow"]


def flow() -> Dataflow:
    """Return the dataflow of this process; called once by ``bytewax.run``.

    Raises:
        WaxlakeError: The spec, a definition, a source or a table cannot be used.
    """
    from waxlake.pipeline.cluster import cluster_from_arguments
    from waxlake.pipeline.events import EventLog
    from waxlake.pipeline.lease import UpdateCanceled
    from waxlake.pipeline.notify import Notifier
    from waxlake.pipeline.prepared import prepare_run
    from waxlake.pipeline.selection import Selection
    from waxlake.pipeline.signals import drain_on_signals
    from waxlake.pipeline.spec import load_spec

    cluster = cluster_from_arguments(sys.argv[1:], os.environ)
    spec = load_spec(params=json.loads(os.environ.get("WAXLAKE_PARAMS") or "{}"))
    stopping = threading.Event()
    drain_on_signals(stopping.set)
    lease = _lease(spec, os.environ, stopping) if cluster.process_id == 0 else None
    if lease is not None:
        atexit.register(lease.close)
    log = EventLog(spec.events_location())
    atexit.register(log.close)
    notifier = Notifier(spec)
    if cluster.process_id == 0:
        atexit.register(notifier.close)
    sys.excepthook = _exit_hook(None)
    try:
        run = prepare_run(
            spec,
            [log, *([notifier] if cluster.process_id == 0 else []), *_listeners(os.environ)],
            mode=os.environ.get("WAXLAKE_MODE") or None,
            workers=cluster.worker_count,
            cluster=cluster,
            stopping=stopping,
            isolates=False,
            claims=bool(os.environ.get("WAXLAKE_CLAIM")),
            refresh=Selection(refresh=tuple(filter(None, os.environ.get("WAXLAKE_REFRESH", "").split(",")))),
            lease=lease,
        )
    except UpdateCanceled:  # asked to end while it waited for its turn
        sys.exit(0)
    if cluster.process_id == 0:
        atexit.register(run.report_end)
    sys.excepthook = _exit_hook(run)
    return run.dataflow


def _lease(spec: Spec, environ: Mapping[str, str], stopping: threading.Event) -> UpdateLease | None:
    """Return the lease that process 0 takes for all; None where the process that started this one holds it."""
    from waxlake.pipeline.lease import LeaseTerms, UpdateLease

    wanted = environ.get("WAXLAKE_ON_RUNNING") or "queue"
    if wanted == "held":
        return None
    if wanted not in ("queue", "takeover", "refuse"):
        raise UsageError(
            "WAXLAKE_ON_RUNNING", code="OPTION_INVALID", found=repr(wanted), expected="queue, takeover or refuse"
        )
    return UpdateLease(spec, LeaseTerms(on_running=cast("OnRunning", wanted)), stopping)


def _exit_hook(run: PreparedRun | None) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Return what ends the process at an error: new columns, and what may pass, are said in a line and by the exit code."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from waxlake.pipeline.cluster import PLANNING_EXIT_CODE, RETRY_EXIT_CODE
        from waxlake.pipeline.reports import report_growth

        sys.last_value = error
        if run is not None and run.state.growth:
            report_growth(run.report, run.state.growth)
            cause: BaseException | None = run.state.growth[0]
            code = SchemaGrown.exit_code
        elif (cause := _passing(run, error)) is not None:
            code = PLANNING_EXIT_CODE if run is None else RETRY_EXIT_CODE
        else:
            sys.__excepthook__(kind, error, trace)
            return
        atexit._run_exitfuncs()
        sys.stderr.write(f"{cause}\n")
        sys.stderr.flush()
        os._exit(code)

    return end


def _silence_engine() -> None:
    """Keep standard output for Python: processes that look for one another say so there, from native code."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = open(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115


def _passing(run: PreparedRun | None, error: BaseException | None) -> WaxlakeError | None:
    """Return what failed if all of that may pass; Bytewax wraps what was raised, or tells of a panic in its place."""
    while error is not None and not isinstance(error, WaxlakeError):
        error = error.__cause__
    failures = [*(run.state.failures.values() if run is not None else ()), *([] if error is None else [error])]
    return failures[0] if failures and all(failure.is_retryable for failure in failures) else None


def _listeners(environ: Mapping[str, str]) -> list[Listener]:
    """Return what the environment asks to be told of the run."""
    listeners: list[Listener] = []
    wanted = environ.get("WAXLAKE_PROGRESS", "")
    if wanted:
        _silence_engine()
        from waxlake.pipeline.progress import JsonProgress, LineProgress

        listeners.append(JsonProgress() if wanted == "json" else LineProgress())
    if environ.get("WAXLAKE_METRICS_PORT"):
        from waxlake.pipeline.metrics import MetricsListener

        listeners.append(MetricsListener(int(environ["WAXLAKE_METRICS_PORT"]), address="0.0.0.0"))
    for listener in listeners:
        atexit.register(listener.close)
    return listeners
