"""Reads polls into micro-batches, one a window; the database is asked on a thread of its own, one window ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from connectors.query.ledger import Poll, QueryLedger, Window
from connectors.query.polls import NO_MARKS, Draft, Polls
from waxlake.stream.batch import MicroBatch
from waxlake.stream.changes import CHANGE_COLUMNS, DELETE, READ, UPDATE
from waxlake.stream.position import RowPosition
from waxlake.stream.source import PartitionPlan

__all__ = ["PARTITION", "QueryReader"]

PARTITION: Final = "query"
_WAIT_S: Final = 0.04
_Read: TypeAlias = "tuple[Window, Poll, Draft] | None"


class QueryReader:
    """The reader of one run.

    Args:
        plan: What to read.
        identity: Source identity, for the batches.
        table: What the source is called in ``_table``.
        empty: A table of no rows with the columns of every batch.
        open_polls: Opens the database and the ledger; called on the reader's own thread.
        discover: Looks for changes and records a poll if there are any.
        close: Frees what ``open_polls`` opened; called on the same thread.
        poll_interval_s: Seconds between two polls in a continuous run.
    """

    def __init__(
        self,
        *,
        plan: PartitionPlan,
        identity: str,
        table: str,
        empty: pa.Table,
        open_polls: Callable[[], tuple[Polls, QueryLedger]],
        discover: Callable[[Polls, QueryLedger], None],
        close: Callable[[], None],
        poll_interval_s: float,
    ) -> None:
        self._plan, self._identity, self._table, self._empty = plan, identity, table, empty
        self._open_polls, self._discover, self._close = open_polls, discover, close
        self._poll_interval_s = poll_interval_s
        self._position = self._read_ahead = plan.read_from
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="query")
        self._ahead: Future[_Read] | None = None
        self._windows: Iterator[tuple[Window, Poll, Draft]] | None = None
        self._look_at_s = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the mark is reached."""
        return self._plan.mark is not None and self._position >= self._plan.mark

    def positions(self) -> Mapping[str, int]:
        """Return the next position."""
        return {PARTITION: self._position}

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._pool.submit(self._close)
        self._pool.shutdown(wait=True)

    def read(self) -> Sequence[MicroBatch]:
        """Return the next window, or nothing.

        Raises:
            TransientError: The database or the ledger's store does not answer. Retryable.
            TerminalError: The database refuses, or the table is gone. Not retryable.
        """
        if self.is_done:
            return []
        if self._ahead is None:
            if self._windows is None and time.monotonic() < self._look_at_s:
                return []
            self._ahead = self._pool.submit(self._next)
        if not wait([self._ahead], timeout=_WAIT_S).done:
            return []
        done, self._ahead = self._ahead, None
        try:
            found = done.result()
        except BaseException:  # whatever it was, the window is read again, from the position that was handed on
            self._windows, self._read_ahead = None, self._position
            raise
        if found is None:
            self._look_at_s = time.monotonic() + self._poll_interval_s
            return []
        self._ahead = self._pool.submit(self._next)
        batch = self._batch(*found)
        self._position = batch.end
        return [batch]

    def _next(self) -> _Read:
        """Return the next window; None if there is none now. Runs on the reader's own thread."""
        if self._windows is None:
            self._windows = self._walk()
        try:
            found = next(self._windows, None)
        except BaseException:  # whatever it was, the walk that it ended cannot go on
            self._windows = None
            raise
        if found is None:
            self._windows = None
        return found

    def _walk(self) -> Iterator[tuple[Window, Poll, Draft]]:
        polls, ledger = self._open_polls()
        ledger.load()
        at = RowPosition.unpack(self._read_ahead)
        if self._plan.mark is None and at.major >= ledger.next_poll:
            self._discover(polls, ledger)
        last = ledger.next_poll if self._plan.mark is None else RowPosition.unpack(self._plan.mark).major
        for number in range(at.major, last):
            for window, draft in _windows_of(polls, ledger, number, at.minor if number == at.major else 0):
                self._read_ahead = _end(window)
                yield window, ledger.poll(number), draft

    def _batch(self, window: Window, poll: Poll, draft: Draft) -> MicroBatch:
        start = RowPosition(window.poll, window.number).pack()
        count = len(draft.table)
        kind = READ if poll.is_full else UPDATE
        values = {
            "_change_type": np.where(draft.is_deleted, DELETE, kind),
            "_commit_position": np.full(count, start, np.int64),
            "_change_index": np.arange(count, dtype=np.int64),
            "_table": np.full(count, self._table, dtype=object),
        }
        table = draft.table
        for field in CHANGE_COLUMNS:
            if field.name not in self._empty.column_names:
                continue
            if field.name == "_commit_timestamp":
                column = pa.repeat(pa.scalar(poll.recorded_at, field.type), count)
            else:
                column = (
                    pa.array(values[field.name], field.type) if field.name in values else pa.nulls(count, field.type)
                )
            table = table.append_column(field, column)
        return MicroBatch(
            table=table.select(self._empty.column_names),
            source=self._identity,
            partition=PARTITION,
            start=start,
            end=_end(window),
            read=count,
        )


def _end(window: Window) -> int:
    return (RowPosition(window.poll + 1) if window.is_last else RowPosition(window.poll, window.number + 1)).pack()


def _windows_of(polls: Polls, ledger: QueryLedger, number: int, first: int) -> Iterator[tuple[Window, Draft]]:
    """Yield the windows of a poll from number ``first`` on: recorded ones as they are now, then new ones, recorded first."""
    poll = ledger.poll(number)
    recorded = list(ledger.windows(number))
    for window in recorded:
        if window.number >= first:
            yield window, polls.again(poll, window)
    if ledger.is_complete(number):
        return
    count, pending = len(recorded), None
    for draft in polls.new_windows(poll):
        if pending is not None:
            yield _recorded(ledger, number, count, pending, is_last=False), pending
            count += 1
        pending = draft
    last = pending if pending is not None else polls.nothing()
    yield _recorded(ledger, number, count, last, is_last=True), last


def _recorded(ledger: QueryLedger, poll: int, number: int, draft: Draft, *, is_last: bool) -> Window:
    window = Window(
        poll=poll,
        number=number,
        kind=draft.kind,
        low=draft.low,
        high=draft.high,
        is_last=is_last,
        rows=len(draft.table),
        seen=draft.seen if len(draft.seen) else NO_MARKS,
        gone=draft.gone,
        file=draft.file,
    )
    ledger.record_window(window)
    return window
