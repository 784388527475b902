"""How a run in progress is steered and watched, in one process: draining, gates, failures, events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sinks.delta import CommitReceipt
from waxlake.pipeline.completion import Completion
from waxlake.pipeline.graph import Graph
from waxlake.pipeline.source_groups import SourceGroup
from waxlake.stream.clock import Clock
from waxlake.stream.errors import CommitConflict, SchemaGrown, SourceChanged, TransientError, WaxlakeError

__all__ = ["Emit", "RunState"]

_GATE_INTERVAL_S = 0.1


class Emit(Protocol):
    """Reports one event to whoever listens."""

    def __call__(
        self,
        event_type: str,
        message: str,
        *,
        level: str = "INFO",
        dataset: str | None = None,
        flow: str | None = None,
        details: Mapping[str, Any] | None = None,
        error: WaxlakeError | None = None,
    ) -> None:
        """Report an event."""
        ...


class RunState:
    """The state that sources, flows and sinks of one process share during a run.

    Args:
        graph: The pipeline.
        completion: Tells which datasets are up to date; None in a run whose reads wait for nobody.
        emit: Reports events.
        on_commit: Told of every commit.
        stopping: Set from outside when the run is to end.
        is_bounded: Whether it ends at marks.
        isolates: Let independent flows go on when one fails; else the error stops the process.
    """

    def __init__(
        self,
        graph: Graph,
        completion: Completion,
        emit: Emit,
        on_commit: Callable[[CommitReceipt], None],
        *,
        stopping: threading.Event,
        is_bounded: bool,
        isolates: bool,
    ) -> None:
        self._graph, self._completion, self.emit, self._on_commit = graph, completion, emit, on_commit
        self._is_bounded, self._isolates = is_bounded, isolates
        self._stopping, self._draining = stopping, threading.Event()
        self._lock = threading.Lock()
        self.failures: dict[str, WaxlakeError] = {}
        self.skipped: set[str] = set()
        self.aside: dict[str, WaxlakeError] = {}
        self._recheck_at_s: float | None = None
        self.growth: list[SchemaGrown] = []
        self._open_groups: set[str] = set()
        self._looked_at_s: dict[str, float] = {}
        self._clock = Clock()
        self._has_told_stop = False

    def drain(self) -> None:
        """Ask every source to end: what is in flight is committed, nothing more is read."""
        self._draining.set()

    def grow(self, error: SchemaGrown) -> bool:
        """Note that a source has new columns: the run drains, to be planned again with them; return whether it can.

        One of several processes cannot: it ends, and whoever started them starts them again.
        """
        with self._lock:
            self.growth.append(error)
        if self._isolates:
            self.drain()
        return self._isolates

    @property
    def is_stopping(self) -> bool:
        """Whether somebody asked the run to end."""
        return self._stopping.is_set()

    def is_draining(self) -> bool:
        """Return whether sources are to end now, asked to from outside or by a conflict."""
        if self._stopping.is_set() and not self._has_told_stop:
            self._has_told_stop = True
            self.emit("update_progress", "update is STOPPING: what was read is committed",
                       details={"update_progress": {"state": "STOPPING"}})  # fmt: skip
        if self._recheck_at_s is not None and self._clock.now_s() >= self._recheck_at_s:
            self.drain()
        return self._draining.is_set() or self._stopping.is_set()

    @property
    def recheck_in_s(self) -> float:
        """Seconds until what was set aside is looked at again; 0 if nothing was, or it is time."""
        return 0.0 if self._recheck_at_s is None else max(0.0, self._recheck_at_s - self._clock.now_s())

    def set_aside(self, dataset: str, error: WaxlakeError, recheck_s: float) -> None:
        """Go on without a dataset whose source or target does not answer; later the run drains, to be planned again with it."""
        self.aside.setdefault(dataset, error)
        self._recheck_at_s = self._clock.now_s() + recheck_s
        self.retrying_dataset(dataset, error, recheck_s)

    def has_failed(self, dataset: str) -> bool:
        """Return whether a dataset takes no more rows in this run."""
        return dataset in self.failures or dataset in self.skipped or dataset in self.aside

    def gate(self, group: SourceGroup) -> str:
        """Return ``go`` once the group's upstream is complete, ``skip`` if it never will be, else ``wait``."""
        if all(self.has_failed(part.flow.target) for part in group.flows):
            return "skip"
        if group.key in self._open_groups:
            return "go"
        for name in group.gates:
            if self.has_failed(name) or self.has_failed(self._graph.datasets[name].definition.name):
                self._skip(group, name)
                return "skip"
        if not self._are_gates_open(group):
            return "wait"
        self._open_groups.add(group.key)
        for part in group.flows:
            self.emit("flow_progress", f"flow {part.flow.name} is running", flow=part.flow.name, dataset=part.flow.target,
                       details={"flow_progress": {"status": "RUNNING"}})  # fmt: skip
        return "go"

    def _are_gates_open(self, group: SourceGroup) -> bool:
        waits_for = group.gates if self._is_bounded else group.flows[0].transform.statics
        if not waits_for:
            return True
        now_s = self._clock.now_s()
        if now_s - self._looked_at_s.get(group.key, -1.0) < _GATE_INTERVAL_S:
            return False
        self._looked_at_s[group.key] = now_s
        with self._lock:
            return all(self._completion.is_complete(name) for name in waits_for)

    def fail(self, dataset: str, error: WaxlakeError) -> bool:
        """Note that a dataset failed; return whether the rest of the run may go on.

        A commit conflict ends the whole run: another run owns the tables. So do new columns of a source, and in a continuous run
        what may pass: it is planned again, from what the tables hold then.
        """
        with self._lock:
            is_first = dataset not in self.failures
            self.failures.setdefault(dataset, error)
        if is_first:
            level = "WARN" if isinstance(error, SourceChanged) else "ERROR"
            self.emit("flow_progress", str(error), level=level, dataset=dataset, flow=dataset, error=error,
                       details={"flow_progress": {"status": "FAILED"}})  # fmt: skip
        if isinstance(error, CommitConflict | SourceChanged) or (error.is_retryable and not self._is_bounded):
            self.drain()
        return self._isolates

    def fail_group(self, group: SourceGroup, error: WaxlakeError) -> bool:
        """Note that a source failed, and with it every flow that reads it."""
        for part in group.flows:
            self.fail(part.flow.target, error)
        return self._isolates

    def retrying(self, group: SourceGroup, error: TransientError, wait_s: float) -> None:
        """Note that a source is tried again."""
        for part in group.flows:
            self.emit("flow_progress", f"{error} Trying again in {wait_s:.1f} s", level="WARN", dataset=part.flow.target,
                       flow=part.flow.name, error=error, details={"flow_progress": {"status": "RETRYING"}})  # fmt: skip

    def retrying_dataset(self, dataset: str, error: WaxlakeError, wait_s: float) -> None:
        """Note that a table or sink is tried again."""
        self.emit("flow_progress", f"{error} Trying again in {wait_s:.1f} s", level="WARN", dataset=dataset, flow=dataset,
                   error=error, details={"flow_progress": {"status": "RETRYING"}})  # fmt: skip

    def committed(self, receipt: CommitReceipt) -> None:
        """Note a commit."""
        self._on_commit(receipt)

    def _skip(self, group: SourceGroup, upstream: str) -> None:
        for part in group.flows:
            if part.flow.target not in self.skipped:
                self.skipped.add(part.flow.target)
                self.emit("flow_progress", f"flow {part.flow.name} is skipped: {upstream} failed", level="WARN",
                           dataset=part.flow.target, flow=part.flow.name,
                           details={"flow_progress": {"status": "SKIPPED", "upstream": upstream}})  # fmt: skip
