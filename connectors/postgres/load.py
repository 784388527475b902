"""The first load of tables: chunks by key, each as of a position that is exact, while the stream goes on.

**Why a chunk is consistent with the stream.** A chunk is read in a snapshot that a temporary logical slot exported. The server
makes such a snapshot so that a transaction is visible in it if, and only if, its commit record lies before the slot's
*consistent point* P. So a row of the chunk is the row after every commit below P and before every commit from P on. Rows of a
load carry ``_commit_position = P - 1``; changes carry the position of their commit's record: whatever order rows arrive in,
sorting a key's rows by position gives its history, and no lock, no table of ours at the source and no pause of the stream is
needed.

The tempting shortcut is a race: read the server's position L, then open a snapshot, and take the rows as of L. A transaction
whose commit record lies before L may still be invisible in that snapshot (the record is written before the transaction leaves
the list of running ones; a synchronous standby stretches that gap to any length), and a row that lacks it would be sorted after
it: lost. The server's own export waits for such transactions, so a load waits too while one of them runs long.

The stream of a table begins at B, taken after the table is in the publication and before its first chunk's snapshot, so every
commit from P on is in the stream. A transaction that was running when the table was published may have changes that were not
published; it ends before the first chunk's slot is consistent, so the chunk has them.

**Why it can be resumed.** The last key of each chunk is written to the ledger before a row of it is emitted, so chunk ``n`` is
the same range of keys in every run: position ``n`` of the load is enough to go on. A chunk that is read again, after a crash,
has a later P and is as exact. The last chunk is open: keys above all bounds belong to it.

**Failure points.** ``load-planned``: before bounds are in the ledger: they are made anew. After it, before the commit of a chunk:
it is read again. After the commit: the position says so. A snapshot that ended with its connection: a new one is taken.

A table without a key has no ranges: it is one chunk in one snapshot, handed on in pieces that are one commit; its stream goes on
at P, in that same commit.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg2
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg2 import sql

from connectors.postgres.catalog import SourceTable
from connectors.postgres.client import connect, connect_replication, parse_lsn, postgres_errors
from connectors.postgres.ledger import SourceLedger
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.timeline import ServerIdentity, check_same, identify
from connectors.postgres.types import decode_as
from waxlake.stream.errors import InternalError, TransientError, WaxlakeError, shorten
from waxlake.stream.failpoints import failpoint
from waxlake.stream.load_window import is_load_open, window_closed
from waxlake.stream.schema import no_rows

__all__ = ["LOADED", "Chunk", "Loader", "current_rows"]

LOADED: Final = 1 << 62
"""Position of a load that is complete."""

_PLANNED_CHUNKS: Final = 16
_AHEAD_BYTES: Final = 64 << 20
_PIECE_BYTES: Final = 24 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a table as they were just before a position.

    Attributes:
        table: The table.
        start: Position in its load.
        end: Position after it; ``LOADED`` for the last one; ``start`` for a piece that more follows.
        snapshot: The consistent point P.
        rows: Its columns.
    """

    table: SourceTable
    start: int
    end: int
    snapshot: int
    rows: pa.Table


class Loader:
    """Loads tables ahead of the reader, a few at a time.

    Args:
        settings: The source.
        ledger: Where chunks end.
        identity: The source; bounds belong to it.
        starts: Tables to load and where each goes on.
        server: The server that is expected to answer.
        is_bounded: The run ends: when the hours for loading are over, it does not wait for the next ones.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        ledger: SourceLedger,
        identity: str,
        starts: Sequence[tuple[SourceTable, int]],
        *,
        server: ServerIdentity,
        is_bounded: bool,
    ) -> None:
        self._settings, self._ledger, self._identity, self._server = settings, ledger, identity, server
        self._is_bounded = is_bounded
        self._todo = deque(starts)
        self._changed = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._ahead_bytes = 0
        self._left = len(self._todo)
        self._error: WaxlakeError | None = None
        self._is_closing = False
        self._sessions: list[_Session] = []
        count = min(settings.load_workers, len(self._todo))
        self._threads = [
            threading.Thread(target=self._run, name=f"postgres-load-{i}", daemon=True) for i in range(count)
        ]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Whether every chunk was taken."""
        return not self._left and not self._chunks

    def take(self, wait_s: float) -> Chunk | None:
        """Return the next chunk; None if there is none yet.

        Raises:
            WaxlakeError: What ended the load.
        """
        with self._changed:
            if not self._chunks and self._error is None and self._left:
                self._changed.wait(wait_s)
            if self._chunks:
                chunk = self._chunks.popleft()
                self._ahead_bytes -= chunk.rows.nbytes
                self._changed.notify_all()
                return chunk
            if self._error is not None:
                raise self._error.with_traceback(None)
            return None

    def close(self) -> None:
        """End the threads. Never raises."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for session in self._sessions:
            session.cancel()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        """Load one table after the other; runs in a thread."""
        session = _Session(self._settings, self._server)
        self._sessions.append(session)
        try:
            while not self._is_closing:
                with self._changed:
                    if not self._todo:
                        return
                    table, start = self._todo.popleft()
                with postgres_errors(f"load table {table.name}"):
                    for chunk in self._chunks_of(session, table, start):
                        self._put(chunk)
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
        except WaxlakeError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - the boundary of the thread: `take` raises it
            failure = InternalError("cannot load a table", code="POSTGRES_LOAD", found=shorten(repr(error)))
            failure.__cause__ = error
            self._fail(failure)
        finally:
            session.close()

    def _fail(self, error: WaxlakeError) -> None:
        with self._changed:
            if not self._is_closing:
                self._error = error
            self._changed.notify_all()

    def _put(self, chunk: Chunk) -> None:
        with self._changed:
            while self._ahead_bytes > _AHEAD_BYTES and not self._is_closing:
                self._changed.wait(0.5)
            if self._is_closing:
                raise TransientError("cannot go on loading", code="POSTGRES_CLOSING")
            self._chunks.append(chunk)
            self._ahead_bytes += chunk.rows.nbytes
            self._changed.notify_all()

    def _chunks_of(self, session: _Session, table: SourceTable, start: int) -> Iterator[Chunk]:
        if not table.key:
            yield from self._whole(session, table)
            return
        number = start
        while True:
            self._await_window(session, table)
            snapshot = session.snapshot()
            bounds = self._bounds(session, table, number)
            after = bounds[number - 1] if number else None
            until = bounds[number] if number < len(bounds) else None
            rows = _rows(table, session.copy(table, _range(table, after, until)))
            end = LOADED if until is None else number + 1
            yield Chunk(table=table, start=number, end=end, snapshot=snapshot, rows=rows)
            if until is None:
                return
            number += 1

    def _await_window(self, session: _Session, table: SourceTable) -> None:
        """Wait until loads may read; nothing is held on the server meanwhile."""
        window = self._settings.load_window
        if is_load_open(window):
            return
        if self._is_bounded:
            raise window_closed(table.name, window)
        session.close()
        with self._changed:
            while not is_load_open(window) and not self._is_closing:
                self._changed.wait(0.5)
        if self._is_closing:
            raise TransientError("cannot go on loading", code="POSTGRES_CLOSING")

    def _bounds(self, session: _Session, table: SourceTable, number: int) -> Sequence[Sequence[str]]:
        """Return the last keys of chunks, those of ``number`` and a few after it decided if there are any."""
        bounds = self._ledger.bounds(self._identity, table.oid)
        if number < len(bounds):
            return bounds
        size = table.chunk_rows(self._settings.load_chunk_rows)
        after = bounds[-1] if bounds else None
        found = session.last_keys(table, after, size, _PLANNED_CHUNKS)
        if found:
            self._ledger.add_bounds(self._identity, table.oid, len(bounds), found)
            failpoint("chunk-recorded")
        return self._ledger.bounds(self._identity, table.oid)

    def _whole(self, session: _Session, table: SourceTable) -> Iterator[Chunk]:
        """Read a table without a key in one snapshot: pieces, then the end."""
        snapshot = session.snapshot(is_fresh=True)
        for text in session.copy_pieces(table):
            yield Chunk(table=table, start=0, end=0, snapshot=snapshot, rows=_rows(table, text))
        rows = _rows(table, b"")
        yield Chunk(table=table, start=0, end=LOADED, snapshot=snapshot, rows=rows)


class _Session:
    """A connection whose transaction sees the snapshot that a temporary slot exported. Used by one thread."""

    def __init__(self, settings: PostgresSettings, server: ServerIdentity) -> None:
        self._settings, self._server = settings, server
        self._dsn = settings.dsn.get_secret_value()
        self._connection: Any = None
        self._exporter: Any = None
        self._position = 0
        self._taken_at_s = 0.0

    def snapshot(self, *, is_fresh: bool = False) -> int:
        """Return the position of the snapshot; a new one if the last is old.

        Raises:
            TransientError: The server is away. Retryable.
            SourceChanged: Another server answers. Planning again settles it.
        """
        is_old = time.monotonic() - self._taken_at_s > self._settings.load_snapshot_age
        if self._connection is None or is_old or is_fresh:
            self.close()
            self._take()
        return self._position

    def _take(self) -> None:
        """Export a snapshot by a temporary slot and adopt it; the slot is dropped at once, the snapshot stays."""
        name = f"waxlake_load_{uuid.uuid4().hex[:16]}"
        with postgres_errors("take a snapshot"):
            self._exporter = connect_replication(self._dsn)
            check_same(identify(self._exporter), self._server)
            with self._exporter.cursor() as cursor:
                cursor.execute(f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY LOGICAL pgoutput')
                _, point, exported, _ = cursor.fetchone()
                self._connection = connect(self._dsn)
                with self._connection.cursor() as reading:
                    reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    reading.execute("SET TRANSACTION SNAPSHOT %s", (exported,))
            with contextlib.suppress(psycopg2.Error), self._exporter.cursor() as cursor:  # a standby cannot
                cursor.execute(
                    "SELECT pg_logical_emit_message(true, 'waxlake', '')"
                )  # so that the log reaches the point
            self._exporter.close()
            self._exporter = None
        self._position, self._taken_at_s = parse_lsn(point), time.monotonic()

    def last_keys(self, table: SourceTable, after: Sequence[str] | None, size: int, count: int) -> list[Sequence[str]]:
        """Return the last key of each of the next ``count`` chunks of ``size`` rows, from the index alone."""
        keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(key)) for key in table.key)
        query = sql.SQL(
            "SELECT {texts} FROM (SELECT {keys}, row_number() OVER (ORDER BY {keys}) AS waxlake_row FROM {table} "
            "WHERE {where} ORDER BY {keys} LIMIT {limit}) AS chunks WHERE waxlake_row % {size} = 0 ORDER BY waxlake_row"
        ).format(
            texts=texts,
            keys=keys,
            table=_from(table),
            where=_range(table, after, None),
            limit=sql.Literal(size * count),
            size=sql.Literal(size),
        )
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def copy(self, table: SourceTable, where: sql.Composable) -> bytes:
        """Return rows as CSV."""
        buffer = io.BytesIO()
        with self._connection.cursor() as cursor:
            cursor.copy_expert(_copy(table, where), buffer, size=1 << 16)
        return buffer.getvalue()

    def copy_pieces(self, table: SourceTable) -> Iterator[bytes]:
        """Return all rows as CSV, a range of blocks at a time; within one snapshot rows do not move."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_relation_size(%s::oid), current_setting('block_size')::int", (table.oid,))
            size, block_bytes = cursor.fetchone()
        blocks, step = -(-size // block_bytes), max(1, _PIECE_BYTES // block_bytes)
        for first in range(0, blocks, step):
            where = sql.SQL("{} AND ctid >= {}::tid AND ctid < {}::tid").format(
                _range(table, None, None), sql.Literal(f"({first},0)"), sql.Literal(f"({first + step},0)")
            )
            yield self.copy(table, where)

    def cancel(self) -> None:
        """Stop what is running, from another thread. Never raises."""
        for connection in (self._exporter, self._connection):
            if connection is not None:
                with contextlib.suppress(psycopg2.Error):
                    connection.cancel()

    def close(self) -> None:
        """Let go of the snapshot. Never raises."""
        for connection in (self._exporter, self._connection):
            if connection is not None:
                with contextlib.suppress(psycopg2.Error):
                    connection.close()
        self._exporter = self._connection = None


def current_rows(connection: Any, table: SourceTable, keys: Sequence[Sequence[str]]) -> pa.Table:
    """Return the rows with these keys as they are now; keys without a row are passed over.

    Raises:
        TransientError: The server is away. Retryable.
    """
    names = sql.SQL(", ").join(map(sql.Identifier, table.key))
    listed = sql.SQL(", ").join(sql.SQL("({})").format(_literals(table, key)) for key in keys)
    where = sql.SQL("({}) IN ({})").format(names, listed)
    buffer = io.BytesIO()
    with postgres_errors(f"look up rows of {table.name}"), connection.cursor() as cursor:
        cursor.copy_expert(_copy(table, where), buffer)
    return _rows(table, buffer.getvalue())


def _literals(table: SourceTable, values: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(kind))
        for value, kind in zip(values, table.key_types, strict=True)
    )


def _from(table: SourceTable) -> sql.Composable:
    name = sql.Identifier(*table.name.split(".", 1))
    return name if table.is_partitioned else sql.SQL("ONLY {}").format(name)


def _range(table: SourceTable, after: Sequence[str] | None, until: Sequence[str] | None) -> sql.Composable:
    """Return the condition for keys in ``(after, until]``, and for the publication's row filter."""
    keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
    parts: list[sql.Composable] = [sql.SQL("({})").format(sql.SQL(table.row_filter))] if table.row_filter else []
    for sign, bound in ((">", after), ("<=", until)):
        if bound is not None:
            values = _literals(table, bound)
            parts.append(sql.SQL("({}) {} ({})").format(keys, sql.SQL(sign), values))
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")


def _copy(table: SourceTable, where: sql.Composable) -> sql.Composable:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.present)
    query = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT WITH (FORMAT csv)")
    return query.format(columns, _from(table), where)


def _rows(table: SourceTable, text: bytes) -> pa.Table:
    """Return CSV text as columns: an unquoted empty value is NULL, a quoted one is empty."""
    names = [column.name for column in table.present]
    if not text:
        return no_rows(table.schema.remove_metadata())
    parsed = pa_csv.read_csv(
        pa.BufferReader(text),
        read_options=pa_csv.ReadOptions(column_names=names, block_size=max(1 << 20, len(text) + 1), use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    now = {column.name: column.type for column in table.present}
    columns = []
    for column in table.columns:
        if column.name not in now:
            columns.append(pa.nulls(parsed.num_rows, column.type.arrow))
            continue
        texts = parsed.column(column.name).combine_chunks()
        columns.append(decode_as(texts, now[column.name], column.type, what=f"column {column.name} of {table.name}"))
    return pa.table(columns, names=[column.name for column in table.columns])
