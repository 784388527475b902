"""The first loads of a reader: which chunks are read now, and which may be emitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.mysql.client import Client, Server, SourceTable
from connectors.mysql.ledger import SourceLedger
from connectors.mysql.load import ChunkRead
from connectors.mysql.position import LOADED, show_position
from connectors.mysql.settings import MySQLSettings
from waxlake.stream.changes import CHANGE_TYPE, TRUNCATE
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.load_window import is_load_open, window_closed
from waxlake.stream.source import PartitionPlan

__all__ = ["Loads"]

_VISIBLE_S = 30.0


class Loads:
    """Chunks of several tables, a few at a time. Used by one thread; each chunk is read by one of its own.

    Args:
        client: The server.
        server: What it said of itself.
        ledger: Where chunks end.
        tables: The tables that are not loaded yet, by full name.
        schemas: Table to the columns of its batches.
        plans: Table to what is to be read of its load; positions are numbers of chunks.
        suffix: What its partition is called behind the table.
        settings: How to read.
    """

    def __init__(
        self,
        client: Client,
        server: Server,
        ledger: SourceLedger,
        *,
        tables: Mapping[str, SourceTable],
        schemas: Mapping[str, pa.Schema],
        plans: Mapping[str, PartitionPlan],
        suffix: str,
        settings: MySQLSettings,
    ) -> None:
        self._client, self._server, self._ledger = client, server, ledger
        self._tables, self._schemas, self._suffix = tables, schemas, suffix
        self._settings = settings
        self._positions = {table: plan.read_from for table, plan in plans.items()}
        self._marks = {table: LOADED if plan.mark is None else plan.mark for table, plan in plans.items()}
        self._is_bounded = any(plan.mark is not None for plan in plans.values())
        self._reads: dict[str, ChunkRead] = {}
        self._idle: list[Any] = []
        self.last_position = 0
        """Position of the last chunk that was emitted: tables are followed at least so far."""

    @property
    def is_done(self) -> bool:
        """Whether every table is loaded."""
        return all(position >= self._marks[table] for table, position in self._positions.items())

    @property
    def is_busy(self) -> bool:
        """Whether a chunk is being read."""
        return bool(self._reads)

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each load, by partition."""
        return {f"{table}{self._suffix}": position for table, position in self._positions.items()}

    def next_position(self) -> int | None:
        """Return the smallest place in the log at which a chunk waits to be emitted."""
        return min((read.position for read in self._reads.values()), default=None)

    def advance(self, reached: int, last_transaction: Callable[[], str]) -> None:
        """Begin chunks, as many as may be read at the same time. The log must not be read meanwhile.

        Args:
            reached: Up to where the log was emitted for any table: a snapshot must not stand before that.
            last_transaction: Returns the last transaction before that.

        Raises:
            SourceChanged: ``LOAD_WINDOW_CLOSED``: the run ends, and what is left is for a later one.
        """
        window = self._settings.load_window
        for table, number in self._positions.items():
            if len(self._reads) >= self._settings.load_workers:
                return
            if number < self._marks[table] and table not in self._reads:
                if not is_load_open(window):
                    if self._is_bounded and not self._reads:
                        raise window_closed(table, window)
                    return
                self._reads[table] = self._begun(self._tables[table], number, reached, last_transaction)

    def note(self, table: str, changes: pa.Table) -> None:
        """Take notice of changes that are emitted while a chunk of their table is read that may hold them or not."""
        read = self._reads.get(table)
        if read is None or read.is_exact:
            return
        if pc.any(pc.equal(changes.column(CHANGE_TYPE), TRUNCATE)).as_py():
            read.is_void = True
        read.touched.update(_keys(changes, read.table))

    def finished(self, reached: int, wait_s: float) -> Iterator[tuple[str, pa.Table, int, int]]:
        """Yield (table, rows, start, end) of chunks that are read and whose place in the log is reached."""
        ready = sorted((r for r in self._reads.values() if r.position <= reached), key=lambda r: r.position)
        for read in ready:
            if not read.wait(wait_s if read is ready[0] else 0.0):
                continue
            name = read.table.full_name
            if read.error is not None:
                raise read.error
            assert read.chunk is not None
            end = LOADED
            if read.chunk.last_key is not None:
                end = read.number + 1
                if not self._ledger.end_chunk(name, read.number, read.chunk.last_key):
                    self._release(name)  # another run decided its end meanwhile: read it again
                    continue
            failpoint("chunk-read")
            start, self._positions[name] = self._positions[name], end
            self.last_position = max(self.last_position, read.position)
            self._release(name)
            yield name, self._certain(read, read.chunk.rows), start, end

    def _certain(self, read: ChunkRead, rows: pa.Table) -> pa.Table:
        """Return the rows of a chunk without those that the log told of meanwhile."""
        if read.is_void:
            return rows.slice(0, 0)
        if not read.touched:
            return rows
        return rows.filter(pa.array([key not in read.touched for key in _keys(rows, read.table)], pa.bool_()))

    def _release(self, table: str) -> None:
        read = self._reads.pop(table)
        if read.connection.open:
            self._idle.append(read.connection)
        if self.is_done:
            self.close()

    def _begun(self, table: SourceTable, number: int, reached: int, last_transaction: Callable[[], str]) -> ChunkRead:
        connection = self._idle.pop() if self._idle else self._client.connect_to(self._server)
        name = table.full_name
        read = ChunkRead(
            client=self._client,
            connection=connection,
            table=table,
            schema=self._schemas[name],
            number=number,
            after=self._ledger.last_key(name, number - 1) if number else None,
            until=self._ledger.last_key(name, number),
            most_rows=self._settings.load_chunk_rows,
        )
        if not self._server.is_mariadb:
            self._await_visible(connection, last_transaction())
        deadline_s = time.monotonic() + _VISIBLE_S
        read.open(self._server)
        while read.position < reached:  # what was emitted is in the binlog, and not in the engine yet
            if time.monotonic() > deadline_s:
                raise self._not_visible(f"the transactions before {show_position(reached)}")
            time.sleep(0.002)
            self._client.ask(connection, "COMMIT")
            read.open(self._server)
        read.start()
        return read

    def _await_visible(self, connection: Any, transaction: str) -> None:
        """Wait until a transaction that the binlog holds is visible in the engine, too."""
        deadline_s = time.monotonic() + _VISIBLE_S
        while transaction:
            rows = self._client.ask(
                connection, "SELECT GTID_SUBSET(%s, @@global.gtid_executed) AS seen", (transaction,)
            )
            if rows[0]["SEEN"]:
                return
            if time.monotonic() > deadline_s:
                raise self._not_visible(f"transaction {transaction}")
            time.sleep(0.005)

    def _not_visible(self, what: str) -> TransientError:
        return TransientError(
            f"cannot load tables of {self._client.what}",
            code="MYSQL_UNREACHABLE",
            found=f"{what} in the binlog, and not committed after {_VISIBLE_S:.0f} s",
            remedy="Does the server wait for a semi-synchronous replica?",
        )

    def drop(self) -> None:
        """Forget what is being read; it begins again."""
        self.close()

    def close(self) -> None:
        """Free the connections; never raises."""
        for read in self._reads.values():
            read.close()
            read.connection._force_close()
        for connection in self._idle:
            connection._force_close()
        self._reads, self._idle = {}, []


def _keys(rows: pa.Table, table: SourceTable) -> list[tuple[Any, ...]]:
    return list(zip(*(rows.column(name).to_pylist() for name in table.key), strict=True))
