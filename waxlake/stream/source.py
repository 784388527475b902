"""What a source is: a connector that describes, a plan that says what to read, a reader that reads.

Connectors implement ``Connector`` and ``Reader``; ``PartitionedSource`` makes a Bytewax input of them, the same for all:
gates, byte budget, retries, draining and the last batch of a partition live here and in no connector.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget
from waxlake.stream.clock import Clock, scheduler_now
from waxlake.stream.delta_table import delta_errors
from waxlake.stream.errors import SchemaGrown, SourceMoved, TransientError, WaxlakeError

__all__ = [
    "Backfilling",
    "Confirming",
    "Connector",
    "PartitionPlan",
    "PartitionedSource",
    "ReadControl",
    "Relocating",
    "Reader",
    "SourcePlan",
    "SourceRange",
    "SourceState",
    "StartingOver",
    "Sharing",
    "plan_partitions",
    "spread",
]

_IDLE = timedelta(milliseconds=20)
_CONFIRM_S = 2.0
_BACK_OFF_MAX_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRange:
    """What a source partition holds now: positions ``[low, high)``.

    Attributes:
        low: First position that is there.
        high: Position behind the last one.
        is_waiting: Nothing of it is read for now, as of a load whose hours have not come: a run that ends takes it as read.
    """

    low: int
    high: int
    is_waiting: bool = False

    @property
    def mark(self) -> int:
        """Position that a table holds when it holds all that is read now."""
        return self.low if self.is_waiting else self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """A source as it is now, seen by ``Connector.inspect``.

    Attributes:
        identity: That which makes the source *that* source; a recreated topic has another one.
        name: What the user calls it; stays when the source is recreated.
        partitions: Partition key to what it holds.
        begin: Partition key to where a flow without a position starts (``starting_offsets``).
        former: Identities that this one replaces on purpose: a table filled from one of them is filled anew.
    """

    identity: str
    name: str
    partitions: Mapping[str, SourceRange]
    begin: Mapping[str, int]
    former: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlan:
    """What to read of one partition.

    Attributes:
        start: First position that some flow wants: the smallest stored.
        mark: Position at which a triggered run ends; None reads on for ever.
        fences: Stored positions of all flows above ``start``: no batch straddles one.
        skipped: Positions that are lost and are skipped on request, or None.
        notes: Stored position to what is stored beside it, for a connector that asked for it (``Relocating``).
    """

    start: int
    mark: int | None = None
    fences: tuple[int, ...] = ()
    skipped: tuple[int, int] | None = None
    notes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    @property
    def read_from(self) -> int:
        """First position to read: ``start``, or where the skipped ones end."""
        return self.skipped[1] if self.skipped else self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """What a run reads of one source; plain data, equal in every process of a run."""

    identity: str
    name: str
    partitions: Mapping[str, PartitionPlan]


class Reader(Protocol):
    """Reads the partitions of one group. Used by one thread."""

    def read(self) -> Sequence[MicroBatch]:
        """Return the batches that are ready, within about 50 ms; empty if there is nothing.

        No batch straddles a fence or a mark. ``read``, ``backlog`` and ``skipped`` are set on batches where known.

        Raises:
            TransientError: Retried by the caller with back-off.
            SourceMoved: What should come next is gone. Not retryable.
            SchemaGrown: What comes next has columns that the reader was not opened with; they are stored. Positions stay
                before it.
        """
        ...

    @property
    def is_done(self) -> bool:
        """Whether every partition has reached its mark."""
        ...

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each partition of the group."""
        ...

    def close(self) -> None:
        """Free the connection. Never raises."""
        ...


@runtime_checkable
class Confirming(Protocol):
    """A connector that tells its source what it may forget: a flush LSN, files to clean up."""

    def confirm(self, plan: SourcePlan, durable: Mapping[str, int]) -> None:
        """Tell the source that every table holds what lies before these positions.

        Called every few seconds by the thread that reads, and once more after the run by the main thread, with no reader
        open.

        Args:
            plan: What the run reads.
            durable: Partition key to the smallest stored position of all tables that the source feeds; a partition of
                which some table has none is missing.

        Raises:
            TransientError: Told again later, by the next call.
        """
        ...


@runtime_checkable
class Sharing(Protocol):
    """A connector of some parts of a source that is read once for all of them, as tables of a database over one log.

    Each flow has its own, for the parts that it names; those of one source are read by one reader. Batches of a part have
    that part's columns.
    """

    def source_key(self) -> object:
        """Return what is equal for connectors that are read together."""
        ...

    def takes(self) -> frozenset[str]:
        """Return the partition keys of its parts; asks the source if need be."""
        ...

    def together(self, others: Sequence[Connector]) -> Connector:
        """Return a connector of these parts and those of others with an equal key.

        Raises:
            UserError: Their settings contradict each other. Not retryable.
        """
        ...

    def empty_of(self, partition: str) -> pa.Table:
        """Return a table of no rows with every column that a batch of one partition may have, metadata columns last."""
        ...


@runtime_checkable
class StartingOver(Protocol):
    """A connector that may begin anew when the source lost what its tables need next, as a slot that was dropped."""

    def start_over(self, error: SourceMoved) -> bool:
        """Make ready to read everything again, under a new identity whose ``former`` names the old one.

        Called by the planner when a position cannot be read; it inspects again afterwards.

        Returns:
            Whether it did; False where the user did not allow it, and the error stands.
        """
        ...


@runtime_checkable
class Backfilling(Protocol):
    """A connector of tables whose columns come and go, and whose first loads can be read again."""

    def backfilled(self) -> frozenset[str]:
        """Return the partitions of first loads that are read again when a target gets columns; none if that is not wanted."""
        ...

    def inactive_columns(self) -> frozenset[str]:
        """Return the names of columns that are kept and that no table has any more."""
        ...


@runtime_checkable
class Relocating(Protocol):
    """A connector whose positions may have to be found anew, as in the log of a server that took another's place.

    What it needs for that is stored beside positions: ``MicroBatch.notes``.
    """

    def note_names(self) -> tuple[str, ...]:
        """Return the names of the notes that there may be."""
        ...

    def settle(self, plan: SourcePlan) -> None:
        """Find the positions of a plan, called by the planner before anything is read; decided once, for all processes.

        Raises:
            SourceMoved: One of them cannot be found: reading on from anywhere would lose or repeat rows. Not retryable.
            TransientError: The source does not answer. Retryable.
        """
        ...


class Connector(Protocol):
    """A configured source that is not reading yet. Cheap to make; touches nothing until ``inspect``."""

    @property
    def name(self) -> str:
        """What the user calls the source, as ``kafka:orders``."""
        ...

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Columns that are there when selected and stay out of ``*``."""
        ...

    @property
    def on_data_loss(self) -> str:
        """``fail`` or ``skip``."""
        ...

    def empty(self) -> pa.Table:
        """Return a table of no rows with every column a batch may have, metadata columns last."""
        ...

    def inspect(self) -> SourceState:
        """Return what the source holds now, its true end included.

        Raises:
            TerminalError: Unknown topic or path, wrong credentials. Not retryable.
            TransientError: The source does not answer. Retryable.
        """
        ...

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return up to ``count`` groups of partitions, each read by one reader: group key to partition keys."""
        ...

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader of some partitions.

        Args:
            plan: What to read.
            partitions: Partition keys of the group.
            columns: Columns that somebody uses; others may be left out of batches.
        """
        ...


def plan_partitions(
    state: SourceState,
    stored: Sequence[Mapping[str, int]],
    *,
    takes: Sequence[Callable[[str], bool]] | None = None,
    on_data_loss: str = "fail",
    is_bounded: bool,
) -> SourcePlan:
    """Decide what to read so that every flow gets what it has not stored yet, and nothing is skipped in silence.

    Args:
        state: The source as it is now.
        stored: For each flow that reads the source: partition key to stored position, of this identity.
        takes: For each of those flows: whether it takes a partition at all; None for all of them. A partition that nobody
            takes is not read.
        on_data_loss: ``fail`` stops where positions are gone; ``skip`` reads on and records what was skipped.
        is_bounded: Stop at what the source holds now (triggered).

    Raises:
        SourceMoved: A stored position lies outside what the source holds. Not retryable.
    """
    plans: dict[str, PartitionPlan] = {}
    known = {partition for positions in stored for partition in positions}
    for partition in sorted(known - set(state.partitions)):
        raise SourceMoved(
            f"cannot read {state.name}",
            code="SOURCE_PARTITION_GONE",
            found=f"no partition {partition}",
            expected=f"partitions {', '.join(sorted(known))}",
            remedy="The source was recreated smaller. Delete its tables to fill them anew, or give the flows new names",
        )
    for partition, held in state.partitions.items():
        begin = state.begin.get(partition, held.low)
        readers = [p for i, p in enumerate(stored) if takes is None or takes[i](partition)]
        if not readers:
            continue
        wanted = sorted({positions.get(partition, begin if not positions else held.low) for positions in readers})
        start, skipped = wanted[0], None
        if start < held.low:
            if on_data_loss != "skip":
                raise SourceMoved(
                    f"cannot read {state.name} partition {partition}",
                    code="SOURCE_EXPIRED",
                    found=f"earliest position {held.low}",
                    expected=f"position {start}, the next one the table needs ({held.low - start} are gone)",
                    remedy="They expired before they were read. Set on_data_loss='skip' to go on without them (recorded in "
                    "the event log), or delete the table to fill it anew",
                )
            skipped = (start, held.low)
        if wanted[-1] > held.high:
            raise SourceMoved(
                f"cannot read {state.name} partition {partition}",
                code="SOURCE_SHRUNK",
                found=f"end position {held.high}",
                expected=f"at least {wanted[-1]}, where its reader has to go on",
                remedy="The source was truncated or recreated, or starts before that. Give the flow a new name to start anew",
            )
        plans[partition] = PartitionPlan(
            start=start,
            mark=max(start, held.mark) if is_bounded else None,
            fences=tuple(p for p in wanted if p > start),
            skipped=skipped,
        )
    return SourcePlan(identity=state.identity, name=state.name, partitions=plans)


def spread(partitions: Sequence[str], count: int) -> dict[str, tuple[str, ...]]:
    """Return partitions dealt out to at most ``count`` groups, evenly and always in the same way."""
    ordered = sorted(partitions)
    groups = max(1, min(count, len(ordered)))
    return {f"{g:04d}": tuple(ordered[g::groups]) for g in range(groups) if ordered}


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
        self._awake_at = scheduler_now() + timedelta(seconds=self._wait_s)
        self._wait_s = min(self._wait_s * 2, _BACK_OFF_MAX_S)
        return []

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
