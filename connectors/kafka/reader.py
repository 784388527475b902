"""Reads a group of Kafka partitions ahead of the dataflow: a thread fetches and decodes while others transform and write."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from connectors.kafka.fetch import Fetcher
from connectors.kafka.settings import KafkaSettings
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import InternalError, TransientError, WaxlakeError, shorten
from waxlake.stream.source import SourcePlan

__all__ = ["KafkaReader"]

_WAIT_S: Final = 0.05
_AHEAD_BYTES: Final = 64 << 20


class KafkaReader:
    """Reads the partitions of one group.

    librdkafka reads bytes ahead; this decodes ahead, up to 64 MiB. The thread starts with the first ``read``.

    Args:
        settings: The source.
        plan: What to read.
        partitions: Partition keys of the group.
        columns: Columns that somebody uses.

    Guarantee: every record of ``[read_from, mark)`` once and in order; batches of a partition are adjacent.
    """

    def __init__(
        self, settings: KafkaSettings, plan: SourcePlan, partitions: Sequence[str], columns: frozenset[str]
    ) -> None:
        self._positions = {key: plan.partitions[key].read_from for key in partitions}
        self._marks = {key: plan.partitions[key].mark for key in partitions}
        self._fetcher = Fetcher(settings, plan, partitions, columns)
        self._changed = threading.Condition()
        self._ready: deque[list[MicroBatch]] = deque()
        self._ready_bytes = 0
        self._error: BaseException | None = None
        self._is_closing = False
        self._thread: threading.Thread | None = None

    @property
    def is_done(self) -> bool:
        """Whether every partition has reached its mark."""
        return all(mark is not None and self._positions[key] >= mark for key, mark in self._marks.items())

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each partition: the end of what ``read`` returned."""
        return dict(self._positions)

    def read(self) -> Sequence[MicroBatch]:
        """Return the next batches, in order; waits about 50 ms when none is ready.

        Raises:
            TransientError: No broker answers. Retryable: reading goes on when one is back.
            SourceMoved: ``KAFKA_OFFSET_EXPIRED`` or ``KAFKA_TOPIC_GONE``. Not retryable.
            TerminalError: The user may no longer read. Not retryable.
        """
        if self.is_done:
            return []
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_ahead, name="kafka-read-ahead", daemon=True)
            self._thread.start()
        with self._changed:
            if not self._ready and self._error is None:
                self._changed.wait(_WAIT_S)
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return []
            batches = self._ready.popleft()
            self._ready_bytes -= _size_bytes(batches)
            self._changed.notify_all()
        for batch in batches:
            self._positions[batch.partition] = batch.end
        return batches

    def close(self) -> None:
        """End the thread and free the consumer. Never raises."""
        with self._changed:
            self._is_closing = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._fetcher.close()

    def _read_ahead(self) -> None:
        """Fetch until closed, done, or stopped by an error; runs in the thread."""
        while not self._is_closing and not self._fetcher.is_done:
            try:
                batches = self._fetcher.fetch()
            except TransientError as error:
                self._fail(error)
                continue
            except WaxlakeError as error:
                self._fail(error)
                return
            except BaseException as error:  # noqa: BLE001 - the boundary of the thread: `read` raises it
                self._fail(
                    InternalError("cannot read ahead", code="KAFKA_READ_AHEAD", found=shorten(repr(error))), error
                )
                return
            self._hand_over(batches)

    def _fail(self, error: WaxlakeError, cause: BaseException | None = None) -> None:
        error.__cause__ = error.__cause__ or cause
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _hand_over(self, batches: list[MicroBatch]) -> None:
        size_bytes = _size_bytes(batches)
        with self._changed:
            self._error = None
            if not batches:
                return
            while self._ready and self._ready_bytes + size_bytes > _AHEAD_BYTES and not self._is_closing:
                self._changed.wait()
            self._ready.append(batches)
            self._ready_bytes += size_bytes
            self._changed.notify_all()


def _size_bytes(batches: list[MicroBatch]) -> int:
    return sum(batch.table.nbytes for batch in batches)
