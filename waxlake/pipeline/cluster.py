"""Several processes as one run: how they agree on one plan, and how one command starts them all.

The processes of a Bytewax cluster share nothing before it runs. So a first, tiny dataflow carries the plan that process 0
made to every other process, through Bytewax's own cluster runtime; then the real one starts with the same plan everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from waxlake.pipeline.retry import back_off_s
from waxlake.pipeline.signals import draining_on_signals
from waxlake.stream.errors import InternalError, SchemaGrown, TerminalError, WaxlakeError

if TYPE_CHECKING:
    from waxlake.pipeline.lease import UpdateLease
    from waxlake.pipeline.prepared import UpdateResult
    from waxlake.pipeline.run import RunOptions
    from waxlake.pipeline.spec import Spec

__all__ = ["PLANNING_EXIT_CODE", "RETRY_EXIT_CODE", "Cluster", "cluster_from_arguments", "run_processes"]

_PROGRAM = "waxlake.pipeline.deploy:flow"

RETRY_EXIT_CODE: Final = 76
"""How a process ends that failed for a reason that may pass."""

PLANNING_EXIT_CODE: Final = 77
"""How a process ends that could not begin, for a reason that may pass."""

_MAY_PASS: Final = frozenset((RETRY_EXIT_CODE, PLANNING_EXIT_CODE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The processes of one run, as Bytewax knows them.

    Attributes:
        addresses: ``host:port`` of each process, in order of their ids.
        process_id: Index of this one.
        workers: Worker threads in each process.
    """

    addresses: tuple[str, ...] = ()
    process_id: int = 0
    workers: int = 1

    @property
    def worker_count(self) -> int:
        """Workers in all processes."""
        return max(1, len(self.addresses)) * self.workers

    def share(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned in process 0, in every process; its error is raised in every process."""
        if len(self.addresses) < 2:
            return make()
        made: tuple[bool, Any] = (True, None)
        if self.process_id == 0:
            try:
                made = (True, make())
            except WaxlakeError as error:
                made = (False, error)
        received = _broadcast(self, pickle.dumps(made))
        is_good, value = pickle.loads(received)
        if not is_good:
            raise value
        return value


def _broadcast(cluster: Cluster, payload: bytes) -> bytes:
    from bytewax._bytewax import cluster_main

    inbox: list[bytes] = []
    dataflow = Dataflow("share_plan")
    count = len(cluster.addresses)
    copies = [(f"{i:06d}", payload) for i in range(count)] if cluster.process_id == 0 else []
    stream = op.input("planner", dataflow, _OnceSource(f"{cluster.process_id:06d}", copies))
    op.output("every_process", stream, _InboxSink(f"{cluster.process_id:06d}", inbox))
    cluster_main(dataflow, list(cluster.addresses), cluster.process_id)  # type: ignore[no-untyped-call]
    if not inbox:
        raise InternalError("process 0 sent no plan", code="CLUSTER_PLAN_MISSING", remedy="See its error output")
    return inbox[0]


@dataclass(slots=True)
class _OnceSource(FixedPartitionedSource[tuple[str, bytes], None]):
    key: str
    items: list[tuple[str, bytes]]

    def list_parts(self) -> list[str]:
        return [self.key]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _OncePartition:
        return _OncePartition(list(self.items))


@dataclass(slots=True)
class _OncePartition(StatefulSourcePartition[tuple[str, bytes], None]):
    items: list[tuple[str, bytes]]
    is_done: bool = False

    def next_batch(self) -> Iterable[tuple[str, bytes]]:
        if self.is_done:
            raise StopIteration
        self.is_done = True
        return self.items

    def snapshot(self) -> None:
        return None


@dataclass(slots=True)
class _InboxSink(FixedPartitionedSink[bytes, None]):
    key: str
    inbox: list[bytes] = field(default_factory=list)

    def list_parts(self) -> list[str]:
        return [self.key]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _InboxPartition:
        return _InboxPartition(self.inbox)


@dataclass(slots=True)
class _InboxPartition(StatefulSinkPartition[bytes, None]):
    inbox: list[bytes]

    def write_batch(self, values: list[bytes]) -> None:
        self.inbox.extend(values)

    def snapshot(self) -> None:
        return None


def cluster_from_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> Cluster:
    """Return the cluster that ``python -m bytewax.run`` was started as: ``-w``, ``-i``, ``-a`` and their variables.

    Args:
        arguments: The command line without the program.
        environ: Environment.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-w", "--workers-per-process", type=int, default=environ.get("BYTEWAX_WORKERS_PER_PROCESS"))
    parser.add_argument("-i", "--process-id", type=int, default=environ.get("BYTEWAX_PROCESS_ID"))
    parser.add_argument("-a", "--addresses", default=environ.get("BYTEWAX_ADDRESSES"))
    known, _ = parser.parse_known_args(list(arguments))
    process_id = known.process_id
    if process_id is None and "BYTEWAX_POD_NAME" in environ and "BYTEWAX_STATEFULSET_NAME" in environ:
        process_id = environ["BYTEWAX_POD_NAME"].replace(environ["BYTEWAX_STATEFULSET_NAME"] + "-", "")
    addresses = known.addresses
    if addresses is None and "BYTEWAX_HOSTFILE_PATH" in environ:
        addresses = ";".join(Path(environ["BYTEWAX_HOSTFILE_PATH"]).read_text().split())
    return Cluster(
        addresses=tuple(a for a in (addresses or "").split(";") if a) if process_id is not None else (),
        process_id=int(process_id or 0),
        workers=int(known.workers_per_process or 1),
    )


def run_processes(spec: Spec, options: RunOptions, lease: UpdateLease) -> UpdateResult:
    """Run one update in several processes of this machine, and wait for all of them.

    SIGTERM and SIGINT are handed on to them; when one dies, the others are ended. When it ended because a source has new
    columns, all are started again; for a reason that may pass, as often as the spec says, or always if the run is continuous and
    has begun. The lease is this process's: they run under it.

    Raises:
        TerminalError: A process failed. What was committed stays; a later run goes on from there.
    """
    from waxlake.pipeline.prepared import UpdateResult

    started_s = time.monotonic()
    mode, processes = options.mode or spec.mode, options.processes
    is_draining = threading.Event()
    codes, attempt, has_begun = [SchemaGrown.exit_code], 0, False
    while not is_draining.is_set():
        begun_s = time.monotonic()
        codes = _run_children(spec, options, is_draining, lease)
        has_begun = has_begun or PLANNING_EXIT_CODE not in codes
        is_endless = mode == "continuous" and has_begun
        if _MAY_PASS.intersection(codes) and (is_endless or attempt < spec.retries):
            if is_endless and time.monotonic() - begun_s > spec.retry_max_wait:
                attempt = 0  # it went well for a while
            with draining_on_signals(is_draining.set):
                is_draining.wait(back_off_s(spec, attempt))
            attempt += 1
        elif SchemaGrown.exit_code not in codes:
            break
    bad = [(i, code) for i, code in enumerate(codes) if code != 0]
    if bad and not (is_draining.is_set() and {SchemaGrown.exit_code, *_MAY_PASS}.intersection(codes)):
        raise TerminalError(
            f"pipeline '{spec.name}' failed in {len(bad)} of {processes} processes",
            code="PROCESS_FAILED",
            found=", ".join(f"process {i} ended with {code}" for i, code in bad),
            remedy="Their messages are above. Nothing is lost: run again",
        )
    return UpdateResult(
        update_id="",
        state="CANCELED" if is_draining.is_set() and mode == "triggered" else "COMPLETED",
        duration_s=time.monotonic() - started_s,
    )


def _run_children(spec: Spec, options: RunOptions, is_draining: threading.Event, lease: UpdateLease) -> list[int]:
    """Start all processes, wait for them, and return how each ended."""
    mode, processes = options.mode or spec.mode, options.processes
    addresses = ";".join(f"127.0.0.1:{port}" for port in _free_ports(processes))
    environ = {
        **os.environ,
        "WAXLAKE_SPEC": str(spec.path),
        "WAXLAKE_MODE": mode,
        "WAXLAKE_PROGRESS": options.progress,
        "WAXLAKE_PARAMS": json.dumps(dict(spec.configuration)),
        "WAXLAKE_REFRESH": ",".join(options.selection.names),
        "WAXLAKE_ON_RUNNING": "held",
        "WAXLAKE_CLAIM": "1" if lease.was_taken_over else "",
    }
    per_process = ["-w", str(options.workers), "-a", addresses, "-s", "1"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bytewax.run", _PROGRAM, *per_process, "-i", str(i)],
            env=environ,
            start_new_session=True,
        )
        for i in range(processes)
    ]

    def drain() -> None:
        is_draining.set()
        _signal_all(children, signal.SIGTERM)

    try:
        with draining_on_signals(drain):
            while any(child.poll() is None for child in children):
                if lease.is_lost and not is_draining.is_set():
                    drain()
                if any(child.poll() not in (None, 0) for child in children):
                    break
                time.sleep(0.05)
        if _never_met(children, is_draining):
            _signal_all(children, signal.SIGKILL)
    finally:
        _signal_all(children, signal.SIGTERM)
        for child in children:
            _end(child)
    return [0] * processes if _never_met(children, is_draining) else [child.returncode for child in children]


def _never_met(children: Sequence[subprocess.Popen[bytes]], is_draining: threading.Event) -> bool:
    """Return whether a process was stopped before it could listen: the others wait for it in vain, and hold nothing."""
    return is_draining.is_set() and any(child.poll() == -signal.SIGTERM for child in children)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _signal_all(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end(child: subprocess.Popen[bytes], patience_s: float = 60.0) -> None:
    try:
        child.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
