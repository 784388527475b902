"""Reads a group of Kafka partitions ahead of the dataflow: one thread fetches while the other transforms and writes."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from connectors.kafka.fetch import Fetcher
from connectors.kafka.fetched import Fetched
from connectors.kafka.records import Decoder
from connectors.kafka.settings import KafkaSettings
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import InternalError, TransientError, WaxlakeError, shorten
from waxlake.stream.source import SourcePlan

__all__ = ["KafkaReader"]

_WAIT_S: Final = 0.05
_AHEAD_BYTES: Final = 64 << 20


class _Item:
    """One fetch on its way; decoded by whichever thread has time first. Guarded by the reader's condition."""

    __slots__ = ("batches", "fetched", "is_taken")

    def __init__(self, fetched: Fetched) -> None:
        self.fetched, self.is_taken = fetched, False
        self.batches: list[MicroBatch] | None = None


class KafkaReader:
    """Reads the partitions of one group.

    Taking messages from librdkafka holds Python's interpreter lock; decoding, transforming and writing do not. So a thread
    takes messages ahead, up to 64 MiB, and the caller decodes. When the caller is the slower one, the thread has nothing
    left to fetch and decodes for it. The thread starts with the first ``read``.

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
        self._source = plan.identity
        self._positions = {key: plan.partitions[key].read_from for key in partitions}
        self._marks = {key: plan.partitions[key].mark for key in partitions}
        self._settings, self._columns = settings, columns
        self._fetcher = Fetcher(settings, plan, partitions, columns)
        self._changed = threading.Condition()
        self._items: deque[_Item] = deque()
        self._items_bytes = 0
        self._error: WaxlakeError | None = None
        self._is_closing = False
        self._thread: threading.Thread | None = None

    @functools.cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._settings, self._columns)

    @functools.cached_property
    def _thread_decoder(self) -> Decoder:
        return Decoder(self._settings, self._columns)

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
        item = self._next_item()
        if item is None:
            return []
        batches = item.batches
        if batches is None:
            batches = item.fetched.batches(self._decoder, self._source)
        for batch in batches:
            self._positions[batch.partition] = batch.end
        return batches

    def close(self) -> None:
        """End the thread and free the consumer. Never raises."""
        with self._changed:
            self._is_closing = True
            self._items.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._fetcher.close()

    def _next_item(self) -> _Item | None:
        """Take the first item, decoded or not; if the thread decodes it just now, wait for that."""
        with self._changed:
            if not self._items and self._error is None:
                self._changed.wait(_WAIT_S)
            if not self._items:
                self._raise_error()
                return None
            item = self._items[0]
            while item.is_taken and item.batches is None:
                self._raise_error()
                self._changed.wait()
            self._items.popleft()
            self._items_bytes -= item.fetched.size_bytes
            self._changed.notify_all()
            return item

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # it is raised again and again while a broker is away

    def _read_ahead(self) -> None:
        """Fetch until closed, done, or stopped by an error, then help to decode; runs in the thread."""
        try:
            while not self._is_closing and not self._fetcher.is_done:
                try:
                    fetched = self._fetcher.fetch()
                except TransientError as error:
                    self._tell(error)
                else:
                    self._tell(None)
                    self._hand_over(fetched)
            while self._decode_one():
                pass
        except WaxlakeError as error:
            self._tell(error)
        except BaseException as error:  # noqa: BLE001 - the boundary of the thread: `read` raises it
            failure = InternalError("cannot read ahead", code="KAFKA_READ_AHEAD", found=shorten(repr(error)))
            failure.__cause__ = error
            self._tell(failure)

    def _tell(self, error: WaxlakeError | None) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _hand_over(self, fetched: Fetched) -> None:
        """Put what was fetched in line; while the line is full, decode what stands in it."""
        if not fetched.pieces:
            return
        while not self._is_closing:
            with self._changed:
                if not self._items or self._items_bytes + fetched.size_bytes <= _AHEAD_BYTES:
                    self._items.append(_Item(fetched))
                    self._items_bytes += fetched.size_bytes
                    self._changed.notify_all()
                    return
            if not self._decode_one():
                with self._changed:
                    if self._items and not self._is_closing:
                        self._changed.wait(_WAIT_S)

    def _decode_one(self) -> bool:
        """Decode the first item that nobody has decoded; return whether there was one."""
        with self._changed:
            item = next((item for item in self._items if not item.is_taken), None)
            if item is None:
                return False
            item.is_taken = True
        batches = item.fetched.batches(self._thread_decoder, self._source)
        with self._changed:
            item.batches = batches
            self._changed.notify_all()
        return True
