"""The first load of a table: chunks in the order of its key, each from a snapshot whose place in the binlog is known.

Why no change is lost or taken twice, with no lock on the source:

The stream of a table is read without a gap from a position S, taken when the table was first seen. A chunk is read from a
snapshot (REPEATABLE READ, WITH CONSISTENT SNAPSHOT) that stands at a position P; one that stands before S, or before what was
emitted, is thrown away and opened again. Nothing of the stream behind P is emitted before the chunk. The chunk is emitted when
the stream has reached P, and its rows carry ``_commit_position`` P. So the rows of a table come in the order of the log: what a
transaction before P did is in the chunk, and if it came after S it was emitted before; what one after P does follows. Applied in
that order, or in that of ``_commit_position`` whatever the order of arrival, they end at the source's rows.

What is left is to know P, the place between two transactions that the snapshot stands at. A transaction is written to the
binlog first and becomes visible in the engine a moment later, so the end of the binlog, read before or after the snapshot
begins, is not P: the snapshot may lack a transaction that lies before that end (the visibility race).

- MariaDB knows P: under the lock that orders commits it notes the binlog position of a consistent snapshot
  (``binlog_snapshot_file``, ``binlog_snapshot_position``). A chunk is exactly the table as of P.
- MySQL does not. There P is replaced by a window: the last transaction before S, or before what was emitted, is waited for
  until it is visible (``gtid_executed`` is updated after the engine has committed, and commits are in the order of the
  binlog); then the snapshot begins; then the end of the binlog, H, is read. Everything emitted is visible; everything visible
  lies before H. A row of the chunk whose key is touched by the stream up to H may be older or newer than that change: it is
  left out, since the stream carries the whole row. The others are as of H, and are emitted when the stream has reached H.

After a crash a chunk whose rows were not committed is read again from a later snapshot, with the same bounds: they are in the
ledger before a row is emitted. Deletes are never missed: a row that went before P is in neither; one that goes after P is a
change of the stream.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.mysql.client import Client, Server, SourceTable
from connectors.mysql.columns import Column
from connectors.mysql.errors import error_of, mysql_errors
from connectors.mysql.position import binlog_position
from connectors.mysql.rows import change_columns
from connectors.mysql.text_values import decode_rows, key_expression, key_literal, quote, select_expression
from waxlake.stream.changes import READ
from waxlake.stream.errors import InternalError, TerminalError, WaxlakeError, shorten
from waxlake.stream.schema import cast_exact

__all__ = ["Chunk", "ChunkRead"]

_COM_QUERY = 3
_CHUNK_BYTES = 64 << 20
_MOST_WITHOUT_KEY_BYTES = 512 << 20


@dataclass(slots=True)
class Chunk:
    """A chunk that was read.

    Attributes:
        rows: Its rows, as change rows.
        last_key: SQL literals of its last key; None if it reaches the end of the table.
    """

    rows: pa.Table
    last_key: Sequence[str] | None


@dataclass(slots=True)
class ChunkRead:
    """Reads one chunk: opened by the reading thread, read by a thread of its own.

    Args:
        client: The server.
        connection: A connection that serves nothing else meanwhile.
        table: The table.
        schema: Columns of a batch, in order.
        number: Number of the chunk.
        after: Last key of the chunk before; None for the first.
        until: Its own last key, if that is known already.
        most_rows: Most rows, where it is not.
    """

    client: Client
    connection: Any
    table: SourceTable
    schema: pa.Schema
    number: int
    after: Sequence[str] | None
    until: Sequence[str] | None
    most_rows: int
    position: int = 0
    is_exact: bool = True
    is_void: bool = False
    touched: set[tuple[Any, ...]] = field(default_factory=set)
    error: WaxlakeError | None = None
    chunk: Chunk | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def open(self, server: Server) -> None:
        """Begin the snapshot and learn its place in the binlog; the stream must not be read meanwhile."""
        ask = self.client.ask
        ask(self.connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        ask(self.connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        if server.is_mariadb:
            rows = ask(self.connection, "SHOW STATUS LIKE 'binlog_snapshot_%'")
            found = {str(row["VARIABLE_NAME"]).lower(): str(row["VALUE"]) for row in rows}
            place = found["binlog_snapshot_file"], int(found["binlog_snapshot_position"])
            self.position = binlog_position(*place, server.number)
        else:
            self.is_exact = False
            self.position = self.client.end(self.connection, server)

    def start(self) -> None:
        """Read in a thread."""
        self._thread = threading.Thread(target=self._run, name=f"mysql-chunk-{self.table.name}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Return whether it is read, after waiting for up to some seconds."""
        return self._done.wait(seconds)

    def close(self) -> None:
        """Stop reading; never raises."""
        if not self._done.is_set():
            self.connection._force_close()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.chunk = self._read()
            self.client.ask(self.connection, "COMMIT")
        except WaxlakeError as error:
            self.error = error
        except Exception as exc:  # noqa: BLE001 - the boundary of the thread: the reader raises it
            self.error = InternalError("cannot read a chunk", code="MYSQL_CHUNK", found=shorten(repr(exc)))
            self.error.__cause__ = exc
        finally:
            self._done.set()

    def _read(self) -> Chunk:
        keys = self._keys()
        wanted = [c for c in self.table.columns if c.name in self.schema.names and c.name not in self.table.dropped]
        limit = self.most_rows if keys and self.until is None else None
        if limit is not None and self.table.row_bytes:
            limit = max(1, min(limit, _CHUNK_BYTES // self.table.row_bytes))
        payloads, is_cut = self._query(self._statement(wanted, keys, limit))
        key_columns = [Column(name=k.name, kind="bytes") for k in keys]
        arrays, last = decode_rows(payloads, [*wanted, *key_columns])
        rows = self._change_rows(dict(zip([c.name for c in wanted], arrays, strict=False)), len(payloads))
        is_end = not is_cut and self.until is None and (limit is None or len(payloads) < limit)
        if is_end:
            return Chunk(rows, None)
        if self.until is not None:
            return Chunk(rows, self.until)
        literals = [key_literal(value, key) for value, key in zip(last[len(wanted) :], keys, strict=True)]
        return Chunk(rows, literals)

    def _keys(self) -> list[Column]:
        columns = {column.name: column for column in self.table.columns}
        if not all(name in columns for name in self.table.key):
            raise TerminalError(
                f"cannot load table '{self.table.full_name}'",
                code="MYSQL_NO_KEY",
                found=f"its key ({', '.join(self.table.key)}) among the columns left out",
                remedy="Take the key's columns",
            )
        return [columns[name] for name in self.table.key]

    def _statement(self, wanted: Sequence[Column], keys: Sequence[Column], limit: int | None) -> str:
        selected = [select_expression(c) for c in wanted] + [key_expression(k) for k in keys]
        conditions = []
        if self.after is not None:
            conditions.append(_compare(keys, self.after, ">"))
        if self.until is not None:
            conditions.append(f"NOT {_compare(keys, self.until, '>')}")
        text = f"SELECT {', '.join(selected) or '1'} FROM {quote(self.table.schema)}.{quote(self.table.name)}"
        text += f" WHERE {' AND '.join(conditions)}" if conditions else ""
        text += f" ORDER BY {', '.join(key_expression(k) for k in keys)}" if keys else ""
        return text + (f" LIMIT {limit}" if limit is not None else "")

    def _query(self, statement: str) -> tuple[list[bytes], bool]:
        """Return the row packets of a query, and whether there were more than memory is there for."""
        connection = self.connection
        what = f"read table '{self.table.full_name}' of {self.client.what}"
        with mysql_errors(what):
            connection._execute_command(_COM_QUERY, statement.encode())
            count = connection._read_packet().read_length_encoded_integer()
            for _ in range(count + 1):  # the columns' descriptions and what ends them
                connection._read_packet()
            return self._packets(what)

    def _packets(self, what: str) -> tuple[list[bytes], bool]:
        reader, buffer = self.connection._rfile, bytearray()
        found: list[bytes] = []
        long: list[bytes] = []
        size_bytes = 0
        while True:
            at, end = 0, len(buffer)
            while end - at >= 4:
                size = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
                if end - at - 4 < size:
                    break
                payload = bytes(memoryview(buffer)[at + 4 : at + 4 + size])
                at += 4 + size
                if size == 0xFFFFFF or long:
                    long.append(payload)
                    if size == 0xFFFFFF:
                        continue
                    payload, long = b"".join(long), []
                if payload[:1] == b"\xfe" and len(payload) < 9:
                    return found, False
                if payload[:1] == b"\xff":
                    raise error_of(what, int.from_bytes(payload[1:3], "little"), payload[9:].decode(errors="replace"))
                found.append(payload)
                size_bytes += len(payload)
            del buffer[:at]
            if self._is_too_much(size_bytes):
                self.connection._force_close()
                return found, True
            data = reader.read1(1 << 18)
            if not data:
                raise error_of(what, 2013, "the server closed the connection")
            buffer += data

    def _is_too_much(self, size_bytes: int) -> bool:
        if not self.table.key and size_bytes > _MOST_WITHOUT_KEY_BYTES:
            raise TerminalError(
                f"cannot load table '{self.table.full_name}'",
                code="MYSQL_NO_KEY",
                found=f"no key, and more than {_MOST_WITHOUT_KEY_BYTES >> 20} MiB: it cannot be read in chunks",
                remedy="Give it a key, or set initial_load=False to take its changes only",
            )
        return bool(self.table.key) and self.until is None and size_bytes > 2 * _CHUNK_BYTES

    def _change_rows(self, data: dict[str, pa.Array], count: int) -> pa.Table:
        import time

        numbers = np.arange(count, dtype=np.int64)
        same = np.ones(count, np.int64)
        metadata = change_columns(
            pa.repeat(pa.scalar(READ), count),
            same * self.position,
            numbers,
            same * int(time.time()),
            self.table.full_name,
        )
        values = {**metadata, **data}
        columns = [values[f.name] if f.name in values else pa.nulls(count, f.type) for f in self.schema]
        rows = pa.table(columns, names=self.schema.names)
        return cast_exact(rows, self.schema, what=f"the columns of table '{self.table.full_name}'")


def _compare(keys: Sequence[Column], literals: Sequence[str], sign: str) -> str:
    """Return the comparison of a composite key with literals, in a form that an index serves."""
    alternatives = []
    for i, key in enumerate(keys):
        same = [f"{key_expression(k)} = {v}" for k, v in zip(keys[:i], literals[:i], strict=True)]
        alternatives.append(" AND ".join([*same, f"{key_expression(key)} {sign} {literals[i]}"]))
    first = f"{key_expression(keys[0])} >= {literals[0]} AND " if len(keys) > 1 else ""
    return f"({first}({' OR '.join(alternatives)}))"
