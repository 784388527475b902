"""Connections to PostgreSQL: made with fixed session settings, their errors mapped to ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg2
from psycopg2 import extensions
from psycopg2.extras import LogicalReplicationConnection

from connectors.postgres.types import SESSION
from waxlake.stream.errors import ExternalError, SourceMoved, TerminalError, TransientError, UsageError, shorten

__all__ = [
    "connect",
    "connect_replication",
    "format_lsn",
    "mapped_error",
    "parse_lsn",
    "postgres_errors",
    "server_label",
]

_CONNECT_TIMEOUT_S: Final = 10
_TRANSIENT: Final = re.compile(r"08...|57P0[1-5]|53...|40001|40P01|XX000|25P0[23]|55P03")
_DENIED: Final = re.compile(r"28...")
_AWAY: Final = re.compile(
    r"connection refused|could not connect|timeout expired|timed out|server closed|terminat|starting up|shutting down|"
    r"could not translate|could not receive|could not send|connection (already )?(is )?closed|not yet accepting|no connection|"
    r"connection reset|broken pipe|ssl connection has been closed|network is unreachable|in recovery mode|too many clients|"
    r"remaining connection slots|eof detected|no route to host|lost synchronization|is the server running|"
    r"no message from the libpq",
    re.I,
)
_LOST: Final = re.compile(
    r"has already been removed|can no longer (get|be)|invalidated|replication slot .* does not exist", re.I
)


def format_lsn(lsn: int) -> str:
    """Return an LSN as the server writes it, ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Return the integer of an LSN."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def server_label(dsn: str) -> str:
    """Return ``host:port/database`` of a DSN, without user and password.

    Raises:
        UsageError: ``POSTGRES_DSN``: it is no DSN. Its text is not shown: it may hold a password. Not retryable.
    """
    parts = _parts(dsn)
    return (
        f"{parts.get('host') or 'local'}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"
    )


def _parts(dsn: str) -> dict[str, str]:
    try:
        return dict(extensions.parse_dsn(dsn))
    except psycopg2.ProgrammingError:
        raise UsageError(
            "cannot read the DSN of a PostgreSQL database",
            code="POSTGRES_DSN",
            expected="postgresql://user:password@host:5432/database, or 'host=… dbname=… user=…'",
            remedy="Escape special characters of a URI's password, as %40 for @",
        ) from None


def connect(dsn: str) -> Any:
    """Return an autocommit connection.

    Raises:
        TerminalError: ``POSTGRES_AUTHENTICATION``, ``POSTGRES_DATABASE_MISSING``. Not retryable.
        TransientError: ``POSTGRES_UNREACHABLE``. Retryable.
    """
    connection = _connected(dsn)
    connection.autocommit = True
    return connection


def connect_replication(dsn: str) -> Any:
    """Return a connection that speaks the replication protocol; errors as for ``connect``."""
    return _connected(dsn, connection_factory=LogicalReplicationConnection)


def _connected(dsn: str, **rest: Any) -> Any:
    parts = _parts(dsn)
    fixed = " ".join(f"-c {key}={value}" for key, value in SESSION.items())
    values = {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "application_name": "waxlake",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        **parts,
        "options": f"{parts.get('options', '')} {fixed}".strip(),
    }
    with postgres_errors(f"connect to PostgreSQL at {server_label(dsn)}"):
        return psycopg2.connect(**values, **rest)


@contextlib.contextmanager
def postgres_errors(what: str) -> Iterator[None]:
    """Let errors of psycopg2 come out as ours.

    Raises:
        TransientError: ``POSTGRES_UNREACHABLE``, ``POSTGRES_SLOT_IN_USE``. Retryable.
        SourceMoved: ``POSTGRES_SLOT_LOST``. Not retryable.
        TerminalError: Anything else. Not retryable.
    """
    try:
        yield
    except psycopg2.Error as exc:
        raise mapped_error(what, exc.pgcode or "", " ".join(str(exc).split())) from exc


def mapped_error(what: str, state: str, text: str) -> ExternalError:
    """Return our error for one of the server or of libpq.

    Args:
        what: What failed, after "cannot".
        state: SQLSTATE; empty if there is none.
        text: What was said, in one line.
    """
    said, what = shorten(text, 300), f"cannot {what}"
    if state == "55006" or "is active for PID" in text:
        return TransientError(
            what,
            code="POSTGRES_SLOT_IN_USE",
            found=said,
            expected="a slot that nobody reads",
            remedy="Another run or program reads this slot. Stop it, or give this pipeline a slot of its own",
        )
    if _LOST.search(text):
        return SourceMoved(
            what,
            code="POSTGRES_SLOT_LOST",
            found=said,
            expected="a slot that still has the changes since the last run",
            remedy="Set on_slot_lost='resnapshot' to load the tables again, and max_slot_wal_keep_size to a larger value",
        )
    if _DENIED.match(state) or re.search(
        r"authentication failed|pg_hba\.conf|no password supplied|role .* does not exist", text
    ):
        remedy = "Check user and password of the DSN, and pg_hba.conf (a replication connection has its own lines)"
        return TerminalError(what, code="POSTGRES_AUTHENTICATION", found=said, remedy=remedy)
    if state == "3D000" or re.search(r"database .* does not exist", text):
        return TerminalError(what, code="POSTGRES_DATABASE_MISSING", found=said, remedy="Correct the DSN")
    if _TRANSIENT.fullmatch(state) or (not state and _AWAY.search(text)):
        return TransientError(what, code="POSTGRES_UNREACHABLE", found=said, remedy="Check that the server runs")
    if state == "42501":
        return TerminalError(
            what, code="POSTGRES_PRIVILEGE", found=said, remedy="Grant it; docs/postgres.md lists what is needed"
        )
    return TerminalError(what, code="POSTGRES_ERROR", found=said)
