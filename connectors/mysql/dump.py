"""The stream of binlog events that a server sends to a replica: connected, framed, nothing decoded yet.

The server pushes for as long as the connection lives and sends a heartbeat when there is nothing else, so a read that waits a
moment and returns nothing is normal, and silence for long means that the connection is dead. (A dump that ends at the end of the
binlog makes MariaDB close the connection, and a client connect again, for ever: that mode is not used.)
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from pymysqlreplication.constants import BINLOG

from connectors.mysql.errors import error_of, mysql_errors
from waxlake.stream.errors import TerminalError, TransientError

__all__ = ["BinlogDump", "Event"]

_COM_BINLOG_DUMP = 0x12
_HEARTBEAT_S: Final = 0.5
_SILENCE_S: Final = 30.0
_RECEIVE_BYTES = 1 << 18
_HEADER: Final = struct.Struct("<IBIIIH")
_CONTINUED = 0xFFFFFF


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        kind: Its type code.
        timestamp_s: When the server wrote it, seconds since 1970.
        end: Offset in its file after it, modulo 2**32; 0 for an event that is in no file.
        body: What follows the header, without checksum.
        server: Number of the server that wrote it first.
    """

    kind: int
    timestamp_s: int
    end: int
    body: bytes
    server: int = 0


class BinlogDump:
    """One replica's connection.

    Args:
        connection: A PyMySQL connection; it serves nothing else from now on.
        what: The object for messages, as ``binlog of mysql://db:3306``.
        file: Name of the binlog file to start in.
        offset: Where to start: the start of an event.
        server_id: Number of this replica, unique among all replicas of the server.
    """

    def __init__(self, connection: Any, what: str, *, file: str, offset: int, server_id: int) -> None:
        self._what, self._connection = f"read {what}", connection
        self._buffer = bytearray()
        self._long: list[bytes] = []
        self._heard_at_s = time.monotonic()
        with mysql_errors(self._what):
            with connection.cursor() as cursor:
                cursor.execute("SET @master_binlog_checksum = @@global.binlog_checksum")
                cursor.execute("SET @source_binlog_checksum = @@global.binlog_checksum")
                cursor.execute(f"SET @master_heartbeat_period = {int(_HEARTBEAT_S * 1e9)}")
                cursor.execute(f"SET @source_heartbeat_period = {int(_HEARTBEAT_S * 1e9)}")
                cursor.execute("SET @mariadb_slave_capability = 4")  # GTID events as they are
                cursor.execute("SELECT @@global.binlog_checksum")
                self._checksum_bytes = 4 if str(cursor.fetchone()[0]).upper() == "CRC32" else 0
            request = struct.pack("<IHI", offset, 0, server_id) + file.encode()
            connection._execute_command(_COM_BINLOG_DUMP, request)
        self._socket = connection._sock

    def close(self) -> None:
        """Drop the connection; never raises."""
        self._connection._force_close()

    def read(self, *, max_bytes: int, wait_s: float) -> list[Event]:
        """Return events that have come, up to about ``max_bytes``; wait up to ``wait_s`` for the first.

        Raises:
            TransientError: The connection is lost. Retryable.
            SourceMoved: The server has not got this place of its binlog any more. Not retryable.
        """
        events: list[Event] = []
        size = 0
        while size < max_bytes:
            self._split(events)
            size = sum(len(event.body) for event in events) if len(events) < 64 else size + _RECEIVE_BYTES
            if not self._receive(0.0 if events else wait_s):
                break
        self._split(events)
        return events

    def _receive(self, wait_s: float) -> bool:
        """Take more bytes off the socket; return whether there were some."""
        try:
            with mysql_errors(self._what):
                self._socket.settimeout(max(wait_s, 1e-4))
                try:
                    data = self._socket.recv(_RECEIVE_BYTES)
                except TimeoutError:
                    self._refuse_silence()
                    return False
        except OSError as exc:  # pragma: no cover - `mysql_errors` maps them
            raise AssertionError from exc
        if not data:
            raise self._lost("the server closed the connection")
        self._heard_at_s = time.monotonic()
        self._buffer += data
        return True

    def _refuse_silence(self) -> None:
        if time.monotonic() - self._heard_at_s > _SILENCE_S:
            raise self._lost(f"not even a heartbeat for {_SILENCE_S:.0f} s")

    def _lost(self, found: str) -> TransientError:
        return TransientError(f"cannot {self._what}", code="MYSQL_UNREACHABLE", found=found, remedy="Is the server up?")

    def _split(self, events: list[Event]) -> None:
        """Take whole packets off the buffer."""
        buffer, at = self._buffer, 0
        end = len(buffer)
        while end - at >= 4:
            size = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
            if end - at - 4 < size:
                break
            payload = bytes(memoryview(buffer)[at + 4 : at + 4 + size])
            at += 4 + size
            if size == _CONTINUED or self._long:
                self._long.append(payload)
                if size == _CONTINUED:
                    continue
                payload, self._long = b"".join(self._long), []
            events.append(self._event(payload))
        if at:
            del buffer[:at]

    def _event(self, payload: bytes) -> Event:
        if payload[0] != 0:
            raise self._refused(payload)
        timestamp_s, kind, server, size, end, _ = _HEADER.unpack_from(payload, 1)
        if kind == BINLOG.FORMAT_DESCRIPTION_EVENT:
            self._checksum_bytes = 4 if payload[-5] == 1 else 0
        return Event(kind, timestamp_s, end, payload[20 : 1 + size - self._checksum_bytes], server)

    def _refused(self, payload: bytes) -> Exception:
        if payload[0] == 0xFE:
            return self._lost("the server ended the stream")
        if payload[0] != 0xFF:
            return TerminalError(
                f"cannot {self._what}", code="MYSQL_PROTOCOL", found=f"a packet that begins {payload[:8]!r}"
            )
        text = payload[3:].decode(errors="replace")
        return error_of(self._what, int.from_bytes(payload[1:3], "little"), text[6:] if text.startswith("#") else text)
