"""Reads the binlog for many tables at once, and their first loads beside it.

One connection carries the log of all tables. Batches end between transactions; a transaction that is larger than a batch is
emitted in pieces that no table commits before its end. What was fetched and not emitted is forgotten on an error: the next
attempt begins where the last batch ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from connectors.mysql.client import Client, Server
from connectors.mysql.dump import BinlogDump, Event
from connectors.mysql.failover import Told
from connectors.mysql.gtid import GtidSet
from connectors.mysql.ledger import SourceLedger
from connectors.mysql.loads import Loads
from connectors.mysql.log import Transactions
from connectors.mysql.position import LOADED, server_number, show_position
from connectors.mysql.rows import ChangeRows, RowDecoder
from connectors.mysql.settings import MySQLSettings
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import InternalError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import RowPosition
from waxlake.stream.schema import no_rows
from waxlake.stream.source import PartitionPlan, SourcePlan

__all__ = ["LOAD_SUFFIX", "Continuation", "MySQLReader"]

LOAD_SUFFIX = ":load"
_WAIT_S = 0.03
_MOVE_S = 1.0
_FETCH_BYTES = 4 << 20


class Continuation:
    """Where the positions of a plan are in the log of the server, and the transactions before each that is emitted.

    Args:
        server: The server that is read.
        ledger: Where the places of earlier servers' positions are, and which domains notes may name.
        plan: What to read.
    """

    def __init__(self, server: Server, ledger: SourceLedger, plan: SourcePlan) -> None:
        self._server, self._ledger = server, ledger
        self._origins = frozenset(ledger.origins())
        self._notes = {position: notes for part in plan.partitions.values() for position, notes in part.notes.items()}
        self._gtids: tuple[int, GtidSet] | None = None

    def place(self, position: int) -> int:
        """Return where a position is."""
        if server_number(position) == self._server.number:
            return position
        found = self._ledger.place(position, self._server.number)
        if found is None:
            raise InternalError(f"no place was found for {show_position(position)}", code="MYSQL_PLACE")
        return found

    def told(self, part: PartitionPlan) -> Told:
        """Return how the table of a partition is told to move."""
        return Told.of(part.read_from, part.fences, self._server.number, self.place)

    def gtids_at(self, client: Client, place: int) -> GtidSet | None:
        """Return the transactions before a place; None if that is not known."""
        if self._gtids is not None and self._gtids[0] == place:
            return self._gtids[1]
        noted = GtidSet.of_notes(self._notes.get(place) or self._ledger.gtids(place), place)
        if noted is not None or not self._server.has_gtids:
            return noted
        return client.gtids_at(self._server, place) if self._server.is_mariadb else None

    def noted(self, batches: Sequence[MicroBatch], log: Transactions) -> list[MicroBatch]:
        """Return batches with the transactions before their ends as notes."""
        found = log.take_gtids({batch.end for batch in batches if batch.start < batch.end <= log.position})
        if not found:
            return list(batches)
        self._gtids = log.position, found[log.position]
        new = self._gtids[1].origins - self._origins
        if new:  # before a table's commit names them
            self._ledger.add_origins(new)
            self._origins |= new
        return [
            replace(batch, notes=found[batch.end].notes(batch.end))
            if batch.start < batch.end and batch.end in found
            else batch
            for batch in batches
        ]


class MySQLReader:
    """Reads some tables. Used by one thread.

    Args:
        settings: How to read.
        client: The server.
        server: What it said of itself.
        plan: What to read.
        decoders: Table to its decoder.
        loads: The first loads.
        continuation: Where positions of the plan are in the log of this server.
    """

    def __init__(
        self,
        settings: MySQLSettings,
        client: Client,
        server: Server,
        *,
        plan: SourcePlan,
        decoders: Mapping[str, RowDecoder],
        loads: Loads,
        continuation: Continuation,
    ) -> None:
        self._settings, self._client, self._server, self._loads = settings, client, server, loads
        self._plan, self._decoders, self._continuation = plan, decoders, continuation
        streams = [name for name in plan.partitions if not name.endswith(LOAD_SUFFIX)]
        self._told = {name: continuation.told(plan.partitions[name]) for name in streams}
        self._positions = {name: continuation.place(told.position) for name, told in self._told.items()}
        self._marks = [part.mark for name, part in plan.partitions.items() if name in self._positions]
        self._mark = None if any(mark is None for mark in self._marks) else max(m or 0 for m in self._marks or [0])
        self._fences = sorted({continuation.place(f) for name in streams for f in plan.partitions[name].fences})
        self._dump: BinlogDump | None = None
        self._log: Transactions | None = None
        self._fetched: deque[Event] = deque()
        self._moved_at_s = time.monotonic()
        self._partial: set[str] = set()
        self._is_begun = False
        self._looked_up: tuple[int, str] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every table is loaded and read up to its mark."""
        return self._limit() is not None and self._loads.is_done and not self._is_behind()

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each partition."""
        return {**{name: told.position for name, told in self._told.items()}, **self._loads.positions()}

    def close(self) -> None:
        """Free the connections; never raises."""
        self._drop()
        self._loads.close()

    def read(self) -> Sequence[MicroBatch]:
        """Return what is ready."""
        if not self._is_begun:
            self._is_begun = True
            return [batch for table, place in self._positions.items() for batch in self._moved_to(table, place)]
        try:
            self._loads.advance(max(self._positions.values(), default=0), self._last_transaction)
            batches = self._stream()
            return [*batches, *self._chunks(0.0 if batches else _WAIT_S)]
        except BaseException:  # whatever it was, the connections may be in the middle of something
            self._drop()
            self._loads.drop()
            raise

    def _reached(self) -> int:
        """Return up to where the log was emitted for every table."""
        return min(self._positions.values(), default=0)

    def _limit(self) -> int | None:
        """Return the position that is not read beyond: the mark, or where a chunk waits; None for no limit."""
        chunk = self._loads.next_position()
        if chunk is not None:
            return chunk
        return self._mark if self._mark is None else max(self._mark, self._loads.last_position)

    def _is_behind(self) -> bool:
        limit = self._limit()
        return limit is None or self._reached() < limit

    def _last_transaction(self) -> str:
        """Return the last transaction before the place in the log that was reached; empty if its file has none.

        For a server that must be asked whether it is visible. (A server begins a new file when all of the one before are.)
        """
        if self._log is not None and self._log.last is not None:
            return str(self._log.last)
        reached = max(self._positions.values(), default=0)
        if self._looked_up is not None and self._looked_up[0] == reached:  # each chunk asks; the file may be large
            return self._looked_up[1]
        log = self._transactions(RowPosition(RowPosition.unpack(reached).major, 4).pack(), {})
        dump = self._client.dump(self._server, log.position)
        try:
            while log.position < reached:
                for event in dump.read(max_bytes=_FETCH_BYTES, wait_s=_WAIT_S):
                    if log.position >= reached:
                        break
                    log.feed(event)
        finally:
            dump.close()
        self._looked_up = reached, str(log.last or "")
        return self._looked_up[1]

    def _transactions(self, start: int, wanted: Mapping[str, int], gtids: GtidSet | None = None) -> Transactions:
        return Transactions(
            name=self._client.what,
            file=RowPosition.unpack(start).major,
            position=start,
            wanted=wanted,
            gtids=gtids,
            charset_of=self._charset_of,
            is_mariadb=self._server.is_mariadb,
        )

    def _drop(self) -> None:
        if self._dump is not None:
            self._dump.close()
        self._dump, self._log, self._partial = None, None, set()
        self._fetched.clear()

    def _opened(self) -> tuple[BinlogDump, Transactions]:
        if self._dump is None or self._log is None:
            start = self._reached()
            self._dump = self._client.dump(self._server, start)
            gtids = self._continuation.gtids_at(self._client, start)
            self._log = self._transactions(start, dict(self._positions), gtids)
        return self._dump, self._log

    def _charset_of(self, collation: int) -> str:
        return self._server.charsets.get(collation, "binary")

    def _stream(self) -> list[MicroBatch]:
        """Read on in the log, and return batches of what it says."""
        if not self._positions or not self._is_behind():
            return []
        dump, log = self._opened()
        if not self._fetched:
            wait_s = 0.001 if self._loads.is_busy else _WAIT_S
            self._fetched.extend(dump.read(max_bytes=_FETCH_BYTES, wait_s=wait_s))
        self._take(log)
        if log.open_bytes >= self._settings.max_bytes_per_batch:
            return self._pieces(log)
        if log.changes or self._is_move_due(log):
            return self._batches(log)
        return []

    def _take(self, log: Transactions) -> None:
        """Feed events until a batch is full, or a place is reached at which it has to end."""
        limit = self._limit()
        stops = [f for f in self._fences if f > log.position]
        stop = min([*stops[:1], *([] if limit is None else [limit])], default=None)
        most = self._settings.max_bytes_per_batch
        fetched, feed = self._fetched, log.feed
        while fetched:
            if not log.is_open and stop is not None and log.position >= stop:
                return
            feed(fetched.popleft())
            if log.size_bytes >= most or log.open_bytes >= most:
                return

    def _is_move_due(self, log: Transactions) -> bool:
        """Return whether tables without changes should move on: now and then, and where something waits for them."""
        if log.position <= self._reached():
            return False
        limit = self._limit()
        at_stop = log.position in self._fences or (limit is not None and log.position >= limit)
        return at_stop or time.monotonic() - self._moved_at_s >= _MOVE_S

    def _batches(self, log: Transactions) -> list[MicroBatch]:
        """Return the complete transactions, and move every table to their end."""
        end, changes = log.position, log.take()
        moves_all = self._is_move_due(log) or end in self._fences
        batches: list[MicroBatch] = []
        for table, position in self._positions.items():
            found = self._decoders[table].decode(changes[table]) if table in changes else None
            if found is not None:
                self._loads.note(table, found.rows)
            if (found is None and not (moves_all or table in self._partial)) or end <= position:
                continue
            batches += self._cut(table, found, end)
        if moves_all:
            self._moved_at_s = time.monotonic()
        return self._continuation.noted(batches, log)

    def _cut(self, table: str, found: ChangeRows | None, end: int) -> Iterable[MicroBatch]:
        """Yield batches of about the size asked for; each ends with a transaction."""
        if found is not None:
            ends, rows, most = found.ends, found.rows, self._settings.max_rows_per_batch
            done = 0
            while len(ends) - done > most:
                cut = int(np.searchsorted(ends, ends[done + most - 1], side="right"))
                if cut >= len(ends):
                    break
                yield from self._batch(table, rows.slice(done, cut - done), int(ends[cut - 1]))
                done = cut
            yield from self._batch(table, rows.slice(done), end)
        else:
            yield from self._batch(table, no_rows(self._decoders[table].schema), end)

    def _batch(self, table: str, rows: pa.Table, place: int) -> Iterable[MicroBatch]:
        """Yield rows that come before a place in the log, as a batch that moves the table there if it may."""
        told = self._told[table]
        yield from self._moved_to(table, self._positions[table])
        self._positions[table] = place
        ends = told.passed(place)
        if not told.fences:
            ends.append(place)
        if not ends:
            yield self._made(table, rows, told.position, told.position, is_partial=True)
            return
        self._partial.discard(table)
        for end in ends:
            start, told.position = told.position, end
            yield self._made(table, rows, start, end)
            rows = rows.slice(0, 0)

    def _moved_to(self, table: str, place: int) -> Iterable[MicroBatch]:
        """Yield batches without rows for the positions at a place that the log has reached already."""
        told = self._told[table]
        ends = told.passed(place)
        if not told.fences and told.position < place:
            ends.append(place)
        for end in ends:
            start, told.position = told.position, end
            yield self._made(table, no_rows(self._decoders[table].schema), start, end)

    def _pieces(self, log: Transactions) -> list[MicroBatch]:
        """Return what is there of a transaction that is larger than a batch; before it, what is complete."""
        batches = self._batches(log) if log.changes or log.position > self._reached() else []
        for table, changes in log.take_open().items():
            position = self._told[table].position
            rows = self._decoders[table].decode(changes).rows
            self._loads.note(table, rows)
            self._partial.add(table)
            failpoint("piece-read")
            batches.append(self._made(table, rows, position, position, is_partial=True))
        return batches

    def _chunks(self, wait_s: float) -> list[MicroBatch]:
        """Return chunks whose place in the log is reached."""
        reached = self._reached() if self._positions else LOADED
        return [
            self._made(f"{table}{LOAD_SUFFIX}", rows, start, end)
            for table, rows, start, end in self._loads.finished(reached, wait_s)
        ]

    def _made(self, partition: str, rows: pa.Table, start: int, end: int, *, is_partial: bool = False) -> MicroBatch:
        return MicroBatch(
            table=rows,
            source=self._plan.identity,
            partition=partition,
            start=start,
            end=end,
            read=rows.num_rows,
            is_partial=is_partial,
            partition_count=len(self._plan.partitions),
        )
