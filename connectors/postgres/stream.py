"""Follows one replication slot: a thread takes messages ahead and gathers them to segments; the reader decodes those.

A segment ends between two commits, except inside a large one: the server sends a transaction only once it has committed, so
its rows may be handed on in pieces, which are one in the table (``MicroBatch.is_partial``). Memory stays bounded: what waits
is at most ``_AHEAD_BYTES`` and the segment that is being gathered; the server keeps the rest.

The server is told what was received every second, also while nobody takes segments, and whenever it asks, so it never gives up
on us; and what is durable, once the connector was told: never more, whatever it asks.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from connectors.postgres.pgoutput import Relation, RelationRows, parse_relation, truncate_message
from connectors.postgres.replication import Replication
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.timeline import ServerIdentity
from waxlake.stream.errors import InternalError, WaxlakeError, shorten
from waxlake.stream.failpoints import failpoint

__all__ = ["ChangeStream", "Segment"]

_AHEAD_BYTES: Final = 48 << 20
_STATUS_S: Final = 1.0
_IDLE_STATUS_S: Final = 0.1
_WAIT_S: Final = 0.05
_GATHER_S: Final = 0.2
_LOOK_ROWS: Final = 256  # how often a large commit's size is looked at
_ROWS: Final = frozenset(b"IUD")
_BEGIN, _COMMIT, _RELATION, _TRUNCATE = (ord(letter) for letter in "BCRT")
_BEGIN_BODY: Final = struct.Struct(">qqI")
_COMMIT_BODY: Final = struct.Struct(">Bqqq")


@dataclass(slots=True)
class Segment:
    """Change messages in order.

    Attributes:
        rows: Rows of each table that has any, in order of commits; a table twice if its columns changed in between.
        position: Every commit that ends at or before it is in this segment or an earlier one.
        size_bytes: Bytes of messages.
        is_partial: It ends inside a commit; ``position`` is where that commit's record begins.
        server: Position that the server named last.
    """

    rows: list[RelationRows] = field(default_factory=list)
    position: int = 0
    size_bytes: int = 0
    is_partial: bool = False
    server: int = 0


class ChangeStream:
    """The changes of one slot from a position on.

    Args:
        settings: The source.
        publications: Publications to follow.
        tables: Oids of the tables that are wanted; others in the publications are passed over.
        start: First position that is wanted.
        server: The server that is expected to answer.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        publications: Sequence[str],
        tables: Collection[int],
        start: int,
        *,
        server: ServerIdentity,
    ) -> None:
        self._settings, self._publications, self._server = settings, publications, server
        self._tables = frozenset(tables)
        self._position = start
        self._durable = self._told = 0
        self._changed = threading.Condition()
        self._segments: deque[Segment] = deque()
        self._ahead_bytes = 0
        self._error: WaxlakeError | None = None
        self._is_closing = False
        self._status_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="postgres-stream", daemon=True)
        self._replication: Replication
        self._gathering = _Gathering(self._tables)

    def start(self) -> None:
        """Connect and begin to take messages.

        Raises:
            TransientError: ``POSTGRES_UNREACHABLE``, ``POSTGRES_SLOT_IN_USE``. Retryable.
            SourceMoved: ``POSTGRES_SLOT_LOST``, ``POSTGRES_SLOT_AHEAD``. Not retryable.
            SourceChanged: Another server answers. Planning again settles it.
        """
        self._replication = Replication(
            self._settings, self._publications, self._position, server=self._server, on_asked=self._tell_server
        )
        self._thread.start()

    def take(self, wait_s: float) -> Segment | None:
        """Return the next segment; None if there is none yet.

        Raises:
            WaxlakeError: What ended the stream, once all segments before it were taken.
        """
        with self._changed:
            if not self._segments and self._error is None:
                self._changed.wait(wait_s)
            if self._segments:
                segment = self._segments.popleft()
                self._ahead_bytes -= segment.size_bytes
                self._changed.notify_all()
                return segment
            if self._error is not None:
                raise self._error.with_traceback(None)
            return None

    def confirm(self, position: int) -> None:
        """Let the server forget what lies before a position; it is told within a second."""
        self._durable = max(self._durable, position)

    def close(self) -> None:
        """End the thread and free the slot. Never raises."""
        with self._changed:
            self._is_closing = True
            self._segments.clear()
            self._changed.notify_all()
        if self._thread.ident is None:
            return
        self._thread.join()
        with contextlib.suppress(WaxlakeError):  # the connection is gone, it may be
            self._tell_server()
        self._replication.close()

    def _run(self) -> None:
        try:
            self._follow()
        except WaxlakeError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - the boundary of the thread: `take` raises it
            failure = InternalError("cannot follow a slot", code="POSTGRES_STREAM", found=shorten(repr(error)))
            failure.__cause__ = error
            self._fail(failure)

    def _fail(self, error: WaxlakeError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _follow(self) -> None:
        """Take messages until closed; runs in the thread."""
        read, gathering = self._replication.read, self._gathering
        most = self._settings.max_rows_per_batch
        while not self._is_closing:
            messages, at = read(), 0
            if not messages:
                self._idle()
            while at < len(messages):
                if messages[at][0] in _ROWS:
                    at = gathering.take_rows(messages, at, max(1, min(_LOOK_ROWS, most - gathering.count)))
                    if self._is_full:
                        self._hand_over_piece()
                    continue
                gathering.take(messages[at])
                at += 1
                if gathering.is_between_commits:
                    self._hand_over_if_due()
            self._tell_now_and_then()

    @property
    def _is_full(self) -> bool:
        gathering, settings = self._gathering, self._settings
        return gathering.size_bytes > settings.max_bytes_per_batch or gathering.count >= settings.max_rows_per_batch

    def _hand_over_if_due(self) -> None:
        gathering = self._gathering
        if not gathering.size_bytes:
            return
        if self._is_full or time.monotonic() - gathering.since_s > _GATHER_S:
            self._position = max(self._position, gathering.position)
            self._put(gathering.complete(self._position))

    def _hand_over_piece(self) -> None:
        """Hand on what came before the commit in progress, and then the rows of it that are here."""
        before, piece = self._gathering.cut()
        self._position = max(self._position, before.position)
        if before.rows:
            self._put(before)
        self._put(piece)

    def _idle(self) -> None:
        """No message is there: what was gathered is complete, and the server's position is ours if nothing is open."""
        gathering = self._gathering
        if gathering.is_between_commits:
            reached = max(self._position, gathering.position, self._replication.server)
            if gathering.size_bytes or reached > self._position:
                self._position = reached
                self._put(gathering.complete(reached))
        if time.monotonic() - self._status_at_s >= _IDLE_STATUS_S:  # the answer is the server's position
            self._tell_server(wants_reply=True)
        self._replication.wait(_WAIT_S)

    def _put(self, segment: Segment) -> None:
        segment.server = self._replication.server
        with self._changed:
            if not segment.rows and self._segments and not self._segments[-1].is_partial:
                self._segments[-1].position = segment.position  # nothing but progress: no segment of its own
                return
            most = min(_AHEAD_BYTES, 4 * self._settings.max_bytes_per_batch)
            while self._ahead_bytes > most and not self._is_closing:
                self._changed.wait(_STATUS_S / 4)
                self._tell_now_and_then()
            self._segments.append(segment)
            self._ahead_bytes += segment.size_bytes
            self._changed.notify_all()

    def _tell_now_and_then(self) -> None:
        if time.monotonic() - self._status_at_s >= _STATUS_S:
            self._tell_server()

    def _tell_server(self, *, wants_reply: bool = False) -> None:
        self._status_at_s = time.monotonic()
        durable, is_news = self._durable, self._durable > self._told
        if is_news:
            failpoint("confirm")
        self._replication.tell(max(self._position, durable), durable, wants_reply=wants_reply)
        self._told = durable
        if is_news:
            failpoint("confirmed")


class _Gathering:
    """Messages since the last segment, by table."""

    def __init__(self, tables: frozenset[int]) -> None:
        self._tables = tables
        self._relations: dict[bytes, Relation] = {}
        self._open: dict[bytes, RelationRows] = {}
        self._done: list[RelationRows] = []
        self._touched: list[RelationRows] = []
        self._commit_lsn, self._committed_at, self._commits = 0, 0, 0
        self._index = 0
        self.is_between_commits = True
        self.position = 0
        self.size_bytes = self.count = 0
        self.since_s = 0.0

    def take_rows(self, messages: Sequence[bytes], at: int, most: int) -> int:
        """Take the rows of one table that follow each other, at most some; return the place after them."""
        key, end, last = messages[at][1:5], at + 1, min(len(messages), at + most)
        while end < last and messages[end][1:5] == key and messages[end][0] in _ROWS:
            end += 1
        rows = self._open.get(key) or self._rows_of(key)
        if rows is not None:
            if rows.commit != self._commits:
                self._touch(rows)
            taken, index = messages[at:end], self._index + end - at
            rows.messages += taken
            rows.indexes += range(self._index, index)
            self._index = index
            self.count += end - at
            self.size_bytes += sum(map(len, taken))
        return end

    def take(self, payload: bytes) -> None:
        """Take a message that is no row."""
        operation = payload[0]
        if operation == _BEGIN:
            self._commit_lsn, self._committed_at, _ = _BEGIN_BODY.unpack_from(payload, 1)
            self._commits += 1
            self._index = 0
            self.is_between_commits = False
        elif operation == _COMMIT:
            self._end_commit(_COMMIT_BODY.unpack_from(payload, 1)[2])
        elif operation == _RELATION:
            self._describe(payload)
        elif operation == _TRUNCATE:
            self._truncate(payload)

    def complete(self, position: int) -> Segment:
        """Return everything gathered, which ends between two commits."""
        segment = Segment(rows=self._all(), position=position, size_bytes=self.size_bytes)
        self._forget()
        return segment

    def cut(self) -> tuple[Segment, Segment]:
        """Return what came before the commit in progress, and the rows of it that are here."""
        before, piece = Segment(position=self._commit_lsn), Segment(position=self._commit_lsn, is_partial=True)
        for rows in self._all():
            begin = rows.begin if rows.commit == self._commits else len(rows.messages)
            rest = rows.split(begin)
            if rows.messages:
                before.rows.append(rows)
            if rest.messages:
                rest.runs.append((len(rest.messages), self._commit_lsn, self._committed_at))
                piece.rows.append(rest)
        piece.size_bytes = self.size_bytes
        self._forget()
        return before, piece

    def _all(self) -> list[RelationRows]:
        return [rows for rows in (*self._done, *self._open.values()) if rows.messages]

    def _forget(self) -> None:
        self._open, self._done, self._touched = {}, [], []
        self.size_bytes = self.count = 0

    def _rows_of(self, key: bytes) -> RelationRows | None:
        relation = self._relations.get(key)
        if relation is None or relation.oid not in self._tables:
            return None
        rows = self._open[key] = RelationRows(relation)
        return rows

    def _touch(self, rows: RelationRows) -> None:
        if not self.size_bytes:
            self.since_s = time.monotonic()
        rows.commit, rows.begin = self._commits, len(rows.messages)
        self._touched.append(rows)

    def _end_commit(self, end: int) -> None:
        for rows in self._touched:
            rows.runs.append((len(rows.messages) - rows.begin, self._commit_lsn, self._committed_at))
        self._touched.clear()
        self.position = end
        self.is_between_commits = True

    def _describe(self, payload: bytes) -> None:
        relation = parse_relation(payload)
        key = payload[1:5]
        known = self._relations.get(key)
        self._relations[key] = relation
        if known is not None and known != relation and key in self._open:
            self._done.append(self._open.pop(key))

    def _truncate(self, payload: bytes) -> None:
        (count,) = struct.unpack_from(">I", payload, 1)
        for oid in struct.unpack_from(f">{count}I", payload, 6):
            key = struct.pack(">I", oid)
            relation = self._relations.get(key)
            if relation is not None and oid in self._tables:
                self.take_rows([truncate_message(relation)], 0, 1)
