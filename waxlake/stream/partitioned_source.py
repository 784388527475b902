"""A Bytewax input over any connector: gates, byte budget, retries, draining and the last batch of a partition, the same for all.

``build_dataflow`` makes one for each read of a run, and ``StandaloneSource`` one for a hand-written dataflow.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget
from waxlake.stream.clock import Clock, scheduler_now
from waxlake.stream.delta_table import delta_errors
from waxlake.stream.errors import SchemaGrown, TransientError, WaxlakeError
from waxlake.stream.source import Confirming, Connector, Reader, Sharing, SourcePlan

__all__ = ["PartitionedSource", "ReadControl"]

_IDLE = timedelta(milliseconds=20)
_CONFIRM_S = 2.0
_BACK_OFF_MAX_S = 5.0


@dataclass(slots=True)
class ReadControl:
    """How the rest of a run steers one source; shared by its partitions in this process.

    Attributes:
        is_draining: Whether the run should end now (SIGTERM); the source emits its last batches and stops.
        gate: ``wait`` until upstream tables are there, ``go``, or ``skip`` the source altogether.
        on_error: Told of an error that stops the source; returns whether it was taken care of (else it is raised).
        on_retry: Told of a transient error and the seconds until the next attempt.
        on_growth: Told of new columns of the source; returns whether the run ends soon and is planned again (else the
            error is raised).
        durable: Returns the position up to which every table holds a partition, for sources that are told of it.
        give_up_after_s: Seconds of one transient error after which a bounded read fails; None retries for ever.
        budget_bytes: Most bytes in flight.
        fan_out: Number of flows that each give back what a batch cost.
        heartbeat_s: Seconds between two empty batches of an idle source: how exactly sinks keep to the age of what they hold.
        has_lanes: Batches are taken by threads of this process after Bytewax has passed them on: the end of an epoch says nothing
            of them, and a source ends only when all that it emitted was taken.
        is_held: Whether so much waits there that nothing more should be read now; raises what went wrong there.
    """

    is_draining: Callable[[], bool] = lambda: False
    gate: Callable[[], str] = lambda: "go"
    on_error: Callable[[WaxlakeError], bool] = lambda error: False
    on_retry: Callable[[TransientError, float], None] = lambda error, wait_s: None
    on_growth: Callable[[SchemaGrown], bool] = lambda error: False
    durable: Callable[[], Mapping[str, int]] = dict
    give_up_after_s: float | None = 60.0
    budget_bytes: int = 256 << 20
    fan_out: int = 1
    heartbeat_s: float = 0.5
    has_lanes: bool = False
    is_held: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class PartitionedSource(FixedPartitionedSource[MicroBatch, None]):
    """A Bytewax input over any connector.

    Args:
        connector: The source.
        plan: What to read.
        columns: Columns that somebody uses.
        group_count: Number of Bytewax partitions to aim for, such as the number of workers.
        control: How the run steers it.

    Guarantee: emits every record of ``[start, mark)`` once per run, in order within a partition; together with a sink
    that stores positions, exactly once.
    """

    connector: Connector
    plan: SourcePlan
    columns: frozenset[str] = frozenset()
    group_count: int = 1
    control: ReadControl = field(default_factory=ReadControl)

    def list_parts(self) -> list[str]:
        """Return the group keys; Bytewax calls it on every worker."""
        return sorted(self.connector.groups(self.plan, self.group_count))

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _PartitionGroup:
        """Build the reader of one group; Bytewax calls it on the worker that owns the group."""
        partitions = self.connector.groups(self.plan, self.group_count)[for_part]
        plan = self.plan
        return _PartitionGroup(
            plan=plan,
            partitions=partitions,
            control=self.control,
            budget=ByteBudget(f"{step_id}/{for_part}", self.control.budget_bytes),
            open_reader=lambda: self.connector.reader(plan, partitions, self.columns),
            confirm=self._confirm if isinstance(self.connector, Confirming) else None,
            empties={partition: self._empty(partition) for partition in partitions},
        )

    def _empty(self, partition: str) -> pa.Table:
        connector = self.connector
        return connector.empty_of(partition) if isinstance(connector, Sharing) else connector.empty()

    def _confirm(self) -> None:
        assert isinstance(self.connector, Confirming)
        self.connector.confirm(self.plan, self.control.durable())


class _PartitionGroup(StatefulSourcePartition[MicroBatch, None]):
    """One Bytewax source partition: a group of source partitions behind one reader."""

    def __init__(
        self,
        *,
        plan: SourcePlan,
        partitions: tuple[str, ...],
        control: ReadControl,
        budget: ByteBudget,
        open_reader: Callable[[], Reader],
        confirm: Callable[[], None] | None,
        empties: Mapping[str, pa.Table],
    ) -> None:
        self._plan, self._partitions, self._control, self._budget = plan, partitions, control, budget
        self._open_reader, self._confirm, self._empties = open_reader, confirm, empties
        self._reader: Reader | None = None
        self._clock = Clock()
        self._emitted_at_s = self._confirmed_at_s = self._clock.now_s()
        self._has_unflushed = False
        self._has_ended = False
        self._is_open = False
        self._failing_since_s: float | None = None
        self._wait_s = 0.0
        self._retry_at_s = 0.0
        self._awake_at: datetime | None = None
        self._stopping: WaxlakeError | None = None
        self._has_flushed = False

    def next_batch(self) -> list[MicroBatch]:
        """Return what is ready; called by Bytewax whenever ``next_awake`` has passed."""
        self._awake_at = None
        if self._has_ended:
            if self._waits_for_lanes():
                self._confirm_now_and_then()
                return self._idle()
            self.close()  # now, and not when the process ends: a reader's thread must not outlive the interpreter
            raise StopIteration
        if self._stopping is not None:
            return self._stop_when_flushed(self._stopping)
        if self._waits_for_attempt():
            return self._idle() if self._reader is None else self._charged(self._heartbeat(self._reader))
        try:
            with delta_errors(f"read {self._plan.name}"):  # what a store's client lets through
                return self._charged(self._next())
        except TransientError as error:
            return self._charged(self._retry(error))
        except SchemaGrown as error:
            if self._reader is None or not self._control.on_growth(error):
                raise
            return self._charged(self._end(self._reader))
        except WaxlakeError as error:
            return self._charged(self._stop(error))

    def next_awake(self) -> datetime | None:
        """Return when to be called again; None for at once."""
        return self._awake_at

    def snapshot(self) -> None:
        """An epoch ended: every sink has received what was emitted in it."""
        if not self._control.has_lanes:
            self._budget.epoch_ended()
        self._has_flushed = True

    def close(self) -> None:
        """Free the reader; nothing is committed here."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _next(self) -> list[MicroBatch]:
        if not self._is_open:
            gate = self._control.gate()
            if gate == "skip" or self._control.is_draining():
                raise StopIteration
            if gate == "wait":
                return self._idle()
            self._is_open = True
        if self._control.gate() == "skip":
            raise StopIteration
        if self._reader is None:
            self._reader = self._open_reader()
            self._has_unflushed = True
            return self._opening()
        if self._control.is_draining() or self._reader.is_done:
            return self._end(self._reader)
        self._confirm_now_and_then()
        if self._budget.is_exhausted or self._control.is_held():
            return self._heartbeat(self._reader)
        batches = list(self._reader.read())
        self._failing_since_s = None
        if not batches:
            return self._heartbeat(self._reader)
        self._emitted_at_s = self._clock.now_s()
        self._has_unflushed = True
        return batches

    def _confirm_now_and_then(self) -> None:
        """Tell the source what is durable. A source that cannot be told now is told later: nothing depends on it."""
        now_s = self._clock.now_s()
        if self._confirm is not None and now_s - self._confirmed_at_s >= _CONFIRM_S:
            self._confirmed_at_s = now_s
            with contextlib.suppress(TransientError):
                self._confirm()

    def _opening(self) -> list[MicroBatch]:
        """Emit where each partition starts, so that it is stored, and what was skipped on request."""
        batches = []
        for partition in self._partitions:
            plan = self._plan.partitions[partition]
            batches.append(self._empty_batch(partition, plan.start, plan.start))
            if plan.skipped is not None:
                edges = [plan.start, *(f for f in plan.fences if f < plan.skipped[1]), plan.skipped[1]]
                for start, end in itertools.pairwise(edges):
                    batches.append(self._empty_batch(partition, start, end, skipped=(start, end)))
        return batches

    def _charged(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Take what batches cost from the budget; one without rows costs a byte where it has to be known when it was taken."""
        charged = []
        for batch in batches:
            cost = batch.table.nbytes or int(self._control.has_lanes)
            self._budget.take(cost * self._control.fan_out)
            charged.append(replace(batch, cost_bytes=cost, budget=self._budget.name))
        return charged

    def _waits_for_lanes(self) -> bool:
        """Return whether something that was emitted was not taken yet."""
        if not self._control.has_lanes or self._budget.is_untouched:
            return False
        self._control.is_held()  # raises what keeps them from taking anything
        return True

    def _idle(self) -> list[MicroBatch]:
        self._awake_at = scheduler_now() + _IDLE
        return []

    def _heartbeat(self, reader: Reader) -> list[MicroBatch]:
        """Emit empty batches now and then while idle, so that sinks notice the age of what they hold."""
        self._awake_at = scheduler_now() + _IDLE
        now_s = self._clock.now_s()
        if not self._has_unflushed or now_s - self._emitted_at_s < self._control.heartbeat_s:
            return []
        self._emitted_at_s = now_s
        return self._empty_batches(reader, is_last=False)

    def _end(self, reader: Reader) -> list[MicroBatch]:
        self._has_ended = True
        return self._empty_batches(reader, is_last=True)

    def _empty_batches(self, reader: Reader, *, is_last: bool) -> list[MicroBatch]:
        return [
            self._empty_batch(partition, position, position, is_last=is_last, is_end=is_last and reader.is_done)
            for partition, position in reader.positions().items()
        ]

    def _empty_batch(self, partition: str, start: int, end: int, **rest: Any) -> MicroBatch:
        return MicroBatch(
            table=self._empties[partition],
            source=self._plan.identity,
            partition=partition,
            start=start,
            end=end,
            partition_count=len(self._plan.partitions),
            **rest,
        )

    def _retry(self, error: TransientError) -> list[MicroBatch]:
        if self._control.is_draining():
            if self._reader is None:
                raise StopIteration
            return self._end(self._reader)
        now_s = self._clock.now_s()
        if self._failing_since_s is None:
            self._failing_since_s, self._wait_s = now_s, 0.2
        limit_s = self._control.give_up_after_s
        if limit_s is not None and now_s - self._failing_since_s > limit_s:
            return self._stop(error)
        self._control.on_retry(error, self._wait_s)
        self._retry_at_s = now_s + self._wait_s  # not asleep: an epoch of all sources ends only when this one is asked
        self._wait_s = min(self._wait_s * 2, _BACK_OFF_MAX_S)
        return self._idle()

    def _waits_for_attempt(self) -> bool:
        """Return whether the source failed, and the time to try it again has not come."""
        is_early = self._failing_since_s is not None and self._clock.now_s() < self._retry_at_s
        return is_early and not self._control.is_draining()

    def _stop(self, error: WaxlakeError) -> list[MicroBatch]:
        """End because of an error, after the sinks have committed what was read before it."""
        if self._reader is None:
            return self._give_up(error)
        self._stopping, self._has_flushed = error, False
        return self._empty_batches(self._reader, is_last=True)

    def _stop_when_flushed(self, error: WaxlakeError) -> list[MicroBatch]:
        if not self._has_flushed or self._waits_for_lanes():
            return self._idle()
        self.close()
        return self._give_up(error)

    def _give_up(self, error: WaxlakeError) -> list[MicroBatch]:
        if not self._control.on_error(error):
            raise error
        raise StopIteration
