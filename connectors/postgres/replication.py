"""The messages of one slot, read and answered through libpq itself.

psycopg2's cursor is asked to begin the stream and for nothing more. Reading through it answers keepalives by itself, and as
long as it believes that nothing is open (before the first change, after the description of a table) such an answer confirms
the position that the keepalive names. The tables hold that position only later: the slot would stand beyond them, and the
next run after a kill would find changes missing. Here the server hears of no position but those that ``tell`` is given.

Failure points: ``confirm`` (before a durable position is told) and ``confirmed`` (after it); told late or not at all, a position
costs the server some log, nothing else.
"""

from __future__ import annotations

import ctypes
import functools
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2

from connectors.postgres.client import connect_replication, format_lsn, mapped_error, postgres_errors
from connectors.postgres.preparation import check_confirmed, find_slot
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.timeline import ServerIdentity, check_same, identify
from waxlake.stream.engine import quote_name
from waxlake.stream.errors import TransientError, WaxlakeError, shorten

__all__ = ["Replication"]

_CHANGE, _KEEPALIVE = b"w", b"k"
_CHANGE_HEADER: Final = 25
_KEEPALIVE_FORM: Final = struct.Struct(">cqq?")
_STATUS_FORM: Final = struct.Struct(">cqqqq?")
_READ_BYTES: Final = 128 << 10
_EPOCH_2000_S: Final = 946_684_800
_NO_WAIT: Final = ctypes.c_int(1)
_SQLSTATE: Final = ord("C")


class Replication:
    """A slot that is streaming, on a connection of its own. One thread at a time.

    Args:
        settings: The source.
        publications: Publications to follow.
        start: Position to begin at.
        server: The server that is expected to answer.
        on_asked: Called while reading when the server wants an answer; it calls ``tell``.

    Guarantee: the slot moves to positions given to ``tell`` as durable, to no others.

    Raises:
        TransientError: ``POSTGRES_UNREACHABLE``, ``POSTGRES_SLOT_IN_USE``. Retryable.
        SourceMoved: ``POSTGRES_SLOT_LOST``, ``POSTGRES_SLOT_AHEAD``. Not retryable.
        SourceChanged: Another server answers. Planning again settles it.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        publications: Sequence[str],
        start: int,
        *,
        server: ServerIdentity,
        on_asked: Callable[[], None],
    ) -> None:
        self._what = f"stream from slot {settings.slot!r}"
        self._on_asked = on_asked
        self._connection = connect_replication(settings.dsn.get_secret_value())
        names = ",".join(map(quote_name, publications)).replace("'", "''")
        command = (
            f'START_REPLICATION SLOT "{settings.slot}" LOGICAL {format_lsn(start)} '
            f"(proto_version '1', publication_names '{names}')"
        )
        try:
            check_same(identify(self._connection), server)
            check_confirmed(f"slot {settings.slot!r}", find_slot(self._connection, settings.slot), start)
            with postgres_errors(self._what):
                self._connection.cursor().start_replication_expert(command, decode=False)
        except WaxlakeError:
            self._connection.close()
            raise
        self._handle = ctypes.c_void_p(self._connection.pgconn_ptr)
        self._buffer: Any = ctypes.POINTER(ctypes.c_char)()
        self._into = ctypes.byref(self._buffer)
        self._libpq, self._patient_libpq = _libpq(), _patient_libpq()
        self._arrivals = select.poll()
        self._arrivals.register(self._connection.fileno(), select.POLLIN)
        self._ended: WaxlakeError | None = None
        self.server = 0
        """Position that the server named last: every commit before it was sent."""

    def read(self) -> list[bytes]:
        """Return the next messages of pgoutput, those that are here and not too many; none if none is here.

        Raises:
            TransientError: The connection is gone. Retryable.
            SourceMoved: ``POSTGRES_SLOT_LOST``. Not retryable.
            TerminalError: The server ended the stream for another reason. Not retryable.
        """
        if self._ended is not None:
            raise self._ended
        get, free = self._libpq.PQgetCopyData, self._libpq.PQfreemem
        handle, buffer, into, no_wait = self._handle, self._buffer, self._into, _NO_WAIT
        size = get(handle, into, no_wait)
        if not size:  # only now, so that what libpq holds stays small
            if not self._libpq.PQconsumeInput(handle):
                raise self._failure(-2)
            size = get(handle, into, no_wait)
        messages: list[bytes] = []
        left = _READ_BYTES
        while size > 0:
            if buffer[0] == _CHANGE:
                messages.append(buffer[_CHANGE_HEADER:size])
                free(buffer)
            else:
                keepalive: bytes = buffer[0:size]
                free(buffer)
                self._take_keepalive(keepalive)
            left -= size
            if left < 0:
                return messages
            size = get(handle, into, no_wait)
        if size:
            self._ended = self._failure(size)
            if not messages:
                raise self._ended
        return messages

    def wait(self, wait_s: float) -> None:
        """Wait until something arrives."""
        self._arrivals.poll(wait_s * 1000)

    def tell(self, received: int, durable: int, *, wants_reply: bool = False) -> None:
        """Tell the server what was received and what is durable.

        Args:
            received: Position up to which everything was received.
            durable: Position up to which every table holds everything; 0 says nothing.
            wants_reply: Ask for a keepalive, which names the server's position.

        Raises:
            TransientError: The connection is gone. Retryable.
        """
        microseconds = int((time.time() - _EPOCH_2000_S) * 1e6)
        message = _STATUS_FORM.pack(b"r", received, durable, durable, microseconds, wants_reply)
        libpq, handle = self._patient_libpq, self._handle
        if libpq.PQputCopyData(handle, message, len(message)) != 1 or libpq.PQflush(handle) < 0:
            raise self._failure(-2)

    def close(self) -> None:
        """End the connection, which frees the slot. Never raises."""
        self._handle = ctypes.c_void_p(None)
        self._connection.close()

    def _take_keepalive(self, message: bytes) -> None:
        if len(message) != _KEEPALIVE_FORM.size or message[:1] != _KEEPALIVE:
            raise mapped_error(self._what, "", f"a message that begins with {message[:1]!r}")
        _, position, _, is_asked = _KEEPALIVE_FORM.unpack(message)
        self.server = max(self.server, position)
        if is_asked:
            self._on_asked()

    def _failure(self, size: int) -> WaxlakeError:
        """Return why there is no more to read: -1, the server ended the stream and said why; -2, the connection is gone."""
        libpq, state = self._patient_libpq, b""
        if size == -1:
            result = libpq.PQgetResult(self._handle)
            state = libpq.PQresultErrorField(result, _SQLSTATE) or b""
            text = libpq.PQresultErrorMessage(result)
            libpq.PQclear(result)
        else:
            text = libpq.PQerrorMessage(self._handle)
        said = " ".join((text or b"").decode(errors="replace").split())
        if state:
            return mapped_error(self._what, state.decode(), said)
        return TransientError(
            f"cannot {self._what}",
            code="POSTGRES_UNREACHABLE",
            found=shorten(said, 300) or "the server ended the connection",
            remedy="Check that the server runs",
        )


@functools.cache
def _libpq() -> Any:
    """Return the libpq that psycopg2 itself uses: symbols of what a library depends on are found through it.

    Its calls keep the interpreter's lock, as psycopg2's do: they never wait, and there are two for each message.
    """
    library = ctypes.PyDLL(psycopg2._psycopg.__file__)
    library.PQfreemem.restype = None
    return library


@functools.cache
def _patient_libpq() -> Any:
    """Return the same libpq for calls that may wait for the server: they let other threads run."""
    library = ctypes.CDLL(psycopg2._psycopg.__file__)
    library.PQputCopyData.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.PQresultErrorField.argtypes = [ctypes.c_void_p, ctypes.c_int]
    for name in ("PQflush", "PQgetResult", "PQresultErrorMessage", "PQclear", "PQerrorMessage"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.PQgetResult.restype = ctypes.c_void_p
    for name in ("PQresultErrorField", "PQresultErrorMessage", "PQerrorMessage"):
        getattr(library, name).restype = ctypes.c_char_p
    library.PQclear.restype = None
    return library
