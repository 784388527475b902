"""One update at a time per pipeline: a lease on its storage. Taken by every command that writes the pipeline's tables.

The lease is a small Delta table without rows, ``<storage>/updates/<pipeline>``: each commit is one update, numbered by a
``txn``, and its metadata says who holds it. A commit from a snapshot that is not the latest fails, on local disk and on object
stores, so of two who ask at once one gets it. While an update runs, a thread writes a small file beside the log now and then
(the heartbeat); at the end it says that the lease is free. Where a crash can fall, and what the next run does:

1. before the commit: nobody holds it.
2. after it, before any heartbeat or the release: the holder is dead. On the same machine that is seen at once, by its process;
   elsewhere when its last sign of life is older than the lease's time.
3. a holder that was only stopped for that long goes on beside the new one: the fences of the tables stop it, as they did
   before there was a lease. It hears of it at its next heartbeat too, and drains.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import ExternalError, TerminalError, TransientError
from waxlake.stream.failpoints import failpoint

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = ["Holder", "Lease", "LeaseTerms", "OnRunning", "UpdateCanceled", "UpdateLease", "current_holder"]

OnRunning = Literal["refuse", "queue", "takeover"]
"""What to do when another update of the pipeline runs."""

_APP_ID: Final = "waxlake/update"
_KEY: Final = "waxlake"
_FOLDER: Final = "_beats"
_BEATS_A_LEASE: Final = 6
_POLL_S: Final = 0.5
_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who runs an update.

    Attributes:
        number: Number of the update within the pipeline.
        host: Machine.
        machine: Identity of the machine's boot and process namespace; equal where process ids can be compared.
        pid: Process id.
        process: When that process started, as its machine counts: an id that is used again is another process.
        since: When it took the lease.
        seen: Its last sign of life.
        is_free: Whether it has ended.
        lease_s: Seconds without a sign of life after which it counts as dead.
    """

    number: int
    host: str
    machine: str
    pid: int
    process: str
    since: str
    seen: str
    is_free: bool = False
    lease_s: float = 30.0

    @property
    def label(self) -> str:
        """Who, for messages."""
        return f"update {self.number} by process {self.pid} on {self.host}, running since {self.since}"

    def is_gone(self) -> bool:
        """Return whether nobody holds the lease any more: ended, dead, or without a sign of life for too long."""
        if self.is_free:
            return True
        if self.machine == _machine():
            return _process(self.pid) != self.process
        return utc_now() - datetime.fromisoformat(self.seen) > timedelta(seconds=self.lease_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """How a lease is asked for.

    Attributes:
        on_running: What to do when another update runs.
        queue_timeout_s: Seconds to wait in the queue at most; None for ever.
        lease_s: Seconds without a sign of life after which a holder elsewhere counts as dead.
    """

    on_running: OnRunning = "refuse"
    queue_timeout_s: float | None = None
    lease_s: float = 30.0


@dataclass(slots=True)
class Lease:
    """A lease that this process holds.

    Attributes:
        location: Its table.
        holder: This process.
        was_taken_over: Whether it was taken from an update that had not ended: its tables' fences have to be claimed.
    """

    location: TableLocation
    holder: Holder
    was_taken_over: bool = False
    _on_lost: Callable[[], None] | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _is_lost: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether a newer update has taken it."""
        return self._is_lost

    def keep(self, on_lost: Callable[[], None]) -> None:
        """Show signs of life from now on, in a thread; call ``on_lost`` once if a newer update takes the lease."""
        self._on_lost = on_lost
        self._thread = threading.Thread(target=self._beat, name="update-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let it go. A store that is away then costs the next update the lease's time, and nothing else."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
        with contextlib.suppress(ExternalError, OSError):
            self._write(is_free=True)

    def _beat(self) -> None:
        interval_s = self.holder.lease_s / _BEATS_A_LEASE
        while not self._ended.wait(interval_s):
            with contextlib.suppress(ExternalError, OSError):  # the store is away: the data's own commits will tell
                if not self._is_lost and self._is_overtaken():
                    self._is_lost = True
                    if self._on_lost is not None:
                        self._on_lost()
                self._write()

    def _is_overtaken(self) -> bool:
        return bool(self.location.log_stamp(self.holder.number + 1))

    def _write(self, *, is_free: bool = False) -> None:
        self.holder = replace(self.holder, seen=_now(), is_free=is_free)
        _write_beat(self.location, self.holder)


class UpdateLease:
    """The lease of one update: taken before its first write, kept until it is closed.

    Args:
        spec: The pipeline.
        terms: What to do when another update runs, and how long.
        stopping: Set from outside when this process is to end; set from here when a newer update takes the lease.
    """

    def __init__(self, spec: Spec, terms: LeaseTerms, stopping: threading.Event) -> None:
        self._spec, self._terms, self._stopping = spec, terms, stopping
        self._lease: Lease | None = None

    @property
    def was_taken_over(self) -> bool:
        """Whether it was taken from an update that had not ended: its tables' fences have to be claimed."""
        return self._lease is not None and self._lease.was_taken_over

    @property
    def is_lost(self) -> bool:
        """Whether a newer update has taken it over: this one drains."""
        return self._lease is not None and self._lease.is_lost

    def ensure(self, on_wait: Callable[[Holder], None] = lambda holder: None) -> None:
        """Take the lease, unless that was done.

        Args:
            on_wait: Told once whom this process waits for.

        Raises:
            UpdateCanceled: The process was asked to stop while it waited.
            TerminalError: ``UPDATE_RUNNING``: another update runs. Not retryable; ``queue`` waits instead.
            TransientError: The store does not answer. Retryable.
        """
        if self._lease is not None:
            return
        terms = replace(self._terms, lease_s=self._spec.lease_time)
        location = self._spec.updates_location()
        lease = _acquired(location, terms, pipeline=self._spec.name, stopping=self._stopping, on_wait=on_wait)
        if lease is None:
            raise UpdateCanceled
        lease.keep(self._stopping.set)
        self._lease = lease

    def close(self) -> None:
        """Let it go."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


class UpdateCanceled(Exception):
    """The process was asked to stop before its update began."""


def current_holder(location: TableLocation) -> Holder | None:
    """Return who runs an update now; None if nobody does.

    Raises:
        ExternalError: The storage cannot be read.
    """
    if not location.exists():
        return None
    holder = _latest(location, location.open())
    return None if holder is None or holder.is_gone() else holder


def _acquired(
    location: TableLocation,
    terms: LeaseTerms,
    *,
    pipeline: str,
    stopping: threading.Event,
    on_wait: Callable[[Holder], None],
) -> Lease | None:
    started_s, has_told = time.monotonic(), False
    while not stopping.is_set():
        handle = location.open() if location.exists() else location.create(pa.schema([("update", pa.int64())]))
        before = _latest(location, handle)
        is_busy = before is not None and not before.is_gone()
        if before is None or not is_busy or terms.on_running == "takeover":
            lease = _taken(location, handle, terms)
            if lease is None:
                continue
            if before is not None and is_busy:
                lease.was_taken_over = True
                _await_release(location, before, stopping)
            _forget_beats(location, lease.holder.number)
            return lease
        waited_s = time.monotonic() - started_s
        if terms.on_running == "refuse" or (terms.queue_timeout_s is not None and waited_s >= terms.queue_timeout_s):
            raise _running(before, pipeline, waited_s if terms.on_running == "queue" else None)
        if not has_told:
            on_wait(before)
            has_told = True
        stopping.wait(_POLL_S)
    return None


def _running(holder: Holder, pipeline: str, waited_s: float | None) -> TerminalError:
    waited = "" if waited_s is None else f", after waiting {waited_s:.0f} s"
    return TerminalError(
        f"pipeline '{pipeline}' is being updated",
        code="UPDATE_RUNNING",
        found=holder.label + waited,
        expected="no other update of this pipeline",
        remedy="Wait for it with --queue, stop it, or take over from it with --takeover",
        holder=asdict(holder),
    )


def _taken(location: TableLocation, handle: DeltaTable, terms: LeaseTerms) -> Lease | None:
    """Commit the next update from a snapshot; None if somebody else was first."""
    number = handle.version() + 1
    now = _now()
    holder = Holder(
        number=number,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        since=now,
        seen=now,
        lease_s=terms.lease_s,
    )
    properties = CommitProperties(
        custom_metadata={_KEY: asdict(holder)}, app_transactions=[Transaction(_APP_ID, number)], max_commit_retries=0
    )
    try:
        with delta_errors(f"begin an update of table '{location.label}'"):
            handle.create_write_transaction(
                [], mode="append", schema=handle.schema(), partition_by=[], commit_properties=properties
            )
    except CommitFailedError:
        return None
    failpoint("lease-taken")
    return Lease(location, holder)


def _await_release(location: TableLocation, before: Holder, stopping: threading.Event) -> None:
    """Wait until the one taken over from has drained, for the lease's time at most; then the fences stop it."""
    deadline_s = time.monotonic() + before.lease_s
    while time.monotonic() < deadline_s and not stopping.is_set():
        if (_read_beat(location, before.number) or before).is_gone():
            return
        stopping.wait(_POLL_S / 2)


def _latest(location: TableLocation, handle: DeltaTable) -> Holder | None:
    """Return the last holder, with its last sign of life; None if there never was one."""
    number = handle.version()
    if number == 0:
        return None
    beat = _read_beat(location, number)
    if beat is not None:
        return beat
    with delta_errors(f"read table '{location.label}'"):
        facts = handle.history(1)[0].get(_KEY)
    return None if not isinstance(facts, dict) else Holder(**facts)


def _beat_path(number: int) -> str:
    return f"{_FOLDER}/{number}.json"


def _write_beat(location: TableLocation, holder: Holder) -> None:
    path, text = _beat_path(holder.number), json.dumps(asdict(holder)).encode()
    if location.is_local:
        target = location.local_path / path
        target.parent.mkdir(exist_ok=True)
        hidden = target.with_suffix(".tmp")
        hidden.write_bytes(text)
        hidden.replace(target)
        return
    # buffered: a store's stream takes the bytes of a buffer, not the object that Arrow would hand it
    with (
        delta_errors("write a sign of life"),
        location.filesystem().open_output_stream(path, buffer_size=1 << 16) as stream,
    ):
        stream.write(text)


def _read_beat(location: TableLocation, number: int) -> Holder | None:
    path = _beat_path(number)
    try:
        if location.is_local:
            text = (location.local_path / path).read_bytes()
        else:
            with location.filesystem().open_input_file(path) as stream:
                text = stream.read()
        facts: dict[str, Any] = json.loads(text)
        return Holder(**facts)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise TransientError("cannot look for other updates", code="STORAGE_UNREACHABLE", found=str(exc)) from exc
    except (ValueError, TypeError):
        return None


def _forget_beats(location: TableLocation, number: int) -> None:
    """Delete signs of life of updates long ended; the one before may still be writing its last."""
    with contextlib.suppress(OSError, ExternalError):
        location.filesystem().delete_file(_beat_path(number - 2))


def _now() -> str:
    return utc_now().isoformat(timespec="milliseconds")


def _machine() -> str:
    """Return what is equal for processes that see each other's process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _process(pid: int) -> str:
    """Return when a process of this machine started; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "alive"
    return "alive"
