"""What a source is: a connector that describes, a plan that says what to read, a reader that reads.

Connectors implement ``Connector`` and ``Reader``, and those of the other protocols that suit their source;
``waxlake.stream.partitioned_source`` makes a Bytewax input of them, the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import pyarrow as pa

from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import SourceMoved

__all__ = [
    "Backfilling",
    "Confirming",
    "Connector",
    "PartitionPlan",
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
