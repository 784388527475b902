"""Lanes: queues with a thread behind each, so that a slow flow holds back no flow of another source.

Bytewax runs all steps of a worker in turn. In a run of one process the functions of users, and the writers of tables, do their
work in lanes instead: a dataflow step only hands a batch in. ``compile`` builds a dataflow on them, ``PreparedRun`` ends them.

What could go wrong between the two, and what keeps it from doing so:

1. A kill: what waits in a lane is in no commit, nor is its position, which travels with the batch; it is read again.
2. Order: a lane is first in, first out and does one thing at a time; a flow's batches come to their table as they were read.
3. A failure in the middle: a flow or table that failed takes nothing more in this run, so no later position can pass it.
4. The end of a run: a source ends only when everything that it emitted was taken (``ReadControl.has_lanes``), its last batch
   with the commit that this brings about included. What Bytewax then still asks of a writer (the end of an epoch) is done before
   ``close`` returns. Batches that wait at ``close`` were left by an error elsewhere; they are dropped.
5. Memory: a batch is in its source's byte budget until it was taken. A lane in which too many wait stops the sources that
   feed it.
6. A defect of ours in a lane: it is raised where Bytewax calls next, or at the end of the run; the lane takes nothing more.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from sinks.delta import DeltaSink
from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget

__all__ = ["Lane", "LaneSink", "Lanes", "Pending"]

_MOST_WAITING: Final = 8
_MOST_THREADS: Final = 4096  # a lane that has nothing to do needs none

_EPOCH: Final = object()


class Lanes:
    """The lanes of one run. Their threads are shared, and started when there is more work than threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="lane")
        self._lanes: dict[str, list[Lane]] = {}
        self._lock = threading.Lock()
        self._defect: BaseException | None = None

    def lane(self, key: str, work: Callable[[Any], None]) -> Lane:
        """Return a new lane.

        Args:
            key: Whose it is; several may have one key.
            work: Takes one item; called by one thread at a time.
        """
        lane = Lane(self, work)
        with self._lock:
            self._lanes.setdefault(key, []).append(lane)
        return lane

    def are_full(self, keys: Collection[str]) -> bool:
        """Return whether too much waits in a lane of one of these keys; raises what a lane raised."""
        self.check()
        return any(lane.is_full for key in keys for lane in self._lanes.get(key, ()))

    def check(self) -> None:
        """Raise what a lane raised; called wherever Bytewax calls."""
        if self._defect is not None:
            raise self._defect

    def close(self) -> None:
        """Wait for what is being done, drop what waits, and raise what a lane raised. Called when Bytewax has returned."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.close()
        self._pool.shutdown()
        self.check()


class Lane:
    """One queue. Made by ``Lanes.lane``."""

    def __init__(self, lanes: Lanes, work: Callable[[Any], None]) -> None:
        self._lanes, self._work = lanes, work
        self._context = contextvars.copy_context()
        self._changed = threading.Condition()
        self._items: deque[Any] = deque()
        self._waiting: Counter[tuple[str, str, str]] = Counter()
        self._is_working = False
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more should come."""
        return len(self._items) >= _MOST_WAITING

    def put(self, item: Any) -> None:
        """Let an item be taken after those that are there; returns at once."""
        with self._changed:
            if self._is_closed:
                return
            self._items.append(item)
            if not self._is_working:
                self._is_working = True
                self._lanes._pool.submit(self._context.run, self._run)

    def put_batch(self, batch: MicroBatch, item: Any = None) -> bool:
        """Let a batch be taken, or ``item`` in its place; return False for one that says nothing new, which is left out.

        A heartbeat says nothing where a batch of its partition waits already, so those of an idle source cannot pile up.
        """
        place = (batch.flow, batch.source, batch.partition)
        says_little = batch.start == batch.end and not (batch.table.num_rows or batch.is_last or batch.is_partial)
        with self._changed:
            if says_little and self._waiting[place]:
                ByteBudget.give_back(batch.budget, batch.cost_bytes)
                return False
            self._waiting[place] += 1
            self.put((place, batch if item is None else item))
        return True

    def mark_epoch(self) -> None:
        """Let the end of an epoch be taken, once for all that follow each other."""
        with self._changed:
            if not self._items or self._items[-1] is not _EPOCH:
                self.put(_EPOCH)

    def close(self) -> None:
        """Drop the batches that wait, do the rest, and return when nothing is done any more; idempotent."""
        with self._changed:
            if any(item is _EPOCH for item in self._items):
                self._items = deque([_EPOCH])
            else:
                self._items.clear()
            self._is_closed = True
            self._changed.wait_for(lambda: not self._is_working)

    def _run(self) -> None:
        """Take what is there; runs on a thread of the pool until nothing is left."""
        while True:
            with self._changed:
                if not self._items:
                    self._is_working = False
                    self._changed.notify_all()
                    return
                item = self._items.popleft()
                if item is not _EPOCH:
                    place, item = item
                    self._waiting[place] -= 1
                    if not self._waiting[place]:
                        del self._waiting[place]
            try:
                if self._lanes._defect is None:
                    self._work(item)
            except BaseException as exc:  # noqa: BLE001 - the boundary of a thread: raised where Bytewax calls
                self._lanes._defect = self._lanes._defect or exc


class Pending:
    """A batch that a lane is still making; it goes through the dataflow in its place. Stays in its process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._made: tuple[MicroBatch | None] | None = None
        self._take: Callable[[MicroBatch], object] | None = None

    def made(self, batch: MicroBatch | None) -> None:
        """Hand on the batch; None if there is none after all."""
        with self._lock:
            self._made = (batch,)
            if self._take is not None and batch is not None:
                self._take(batch)

    def then(self, take: Callable[[MicroBatch], object]) -> None:
        """Let the batch be taken when it is made; now if it is."""
        with self._lock:
            self._take = take
            if self._made is not None and self._made[0] is not None:
                take(self._made[0])


@dataclass(slots=True)
class LaneSink(FixedPartitionedSink[Any, None]):
    """A Bytewax output whose writer works in a lane.

    Args:
        sink: The output.
        lanes: The run's.
        key: The lane's.
    """

    sink: DeltaSink
    lanes: Lanes
    key: str

    def list_parts(self) -> list[str]:
        """Return the single partition."""
        return self.sink.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> StatefulSinkPartition[Any, None]:
        """Build the writer and its lane."""
        return _LaneWriter(self, step_id, for_part)


class _LaneWriter(StatefulSinkPartition[Any, None]):
    """Hands what Bytewax brings to the writer's lane."""

    def __init__(self, sink: LaneSink, step_id: str, for_part: str) -> None:
        self._lanes = sink.lanes
        self._writer = sink.sink.build_part(step_id, for_part, None)
        self._lane = sink.lanes.lane(sink.key, self._do)

    def write_batch(self, values: list[MicroBatch | Pending]) -> None:
        """Hand batches in."""
        self._lanes.check()
        for value in values:
            if isinstance(value, Pending):
                value.then(self._lane.put_batch)
            else:
                self._lane.put_batch(value)

    def snapshot(self) -> None:
        """An epoch ended."""
        self._lanes.check()
        self._lane.mark_epoch()

    def close(self) -> None:
        """Finish what is being written, and free the writer."""
        self._lane.close()
        self._writer.close()

    def _do(self, item: object) -> None:
        if item is _EPOCH:
            self._writer.snapshot()
        else:
            assert isinstance(item, MicroBatch)
            self._writer.write_batch([item])
