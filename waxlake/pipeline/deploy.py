"""The pipeline as a plain Bytewax deployment: ``python -m bytewax.run flows.main``, with ``-w`` or ``-i``/``-a``.

``flow`` is a factory; importing this module does nothing. ``WAXLAKE_SPEC`` names the spec, ``WAXLAKE_MODE`` overrides its
mode. Bytewax itself runs the dataflow, so an error ends the process with a traceback and a non-zero exit code.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading

from bytewax.dataflow import Dataflow

__all__ = ["flow"]


def flow() -> Dataflow:
    """Return the dataflow of this process; called once by ``bytewax.run``.

    Raises:
        WaxlakeError: The spec, a definition, a source or a table cannot be used.
    """
    from waxlake.pipeline.cluster import cluster_from_arguments
    from waxlake.pipeline.events import EventLog
    from waxlake.pipeline.run import prepare_run
    from waxlake.pipeline.spec import load_spec

    cluster = cluster_from_arguments(sys.argv[1:], os.environ)
    spec = load_spec()
    log = EventLog(spec.events_location())
    atexit.register(log.close)
    run = prepare_run(
        spec,
        [log],
        mode=os.environ.get("WAXLAKE_MODE") or None,
        workers=cluster.worker_count,
        cluster=cluster,
        isolates=False,
    )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: run.state.drain())
    if cluster.process_id == 0:
        atexit.register(run.report_end)
    return run.dataflow
