"""Errors of the MySQL client library, turned into ours here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from waxlake.stream.errors import ExternalError, SourceMoved, TerminalError, TransientError, shorten

__all__ = ["mysql_errors"]

_ACCESS: Final = frozenset({1044, 1045, 1698, 1251, 1862})
_PRIVILEGE: Final = frozenset({1227, 1142, 1143, 1370})
_UNKNOWN: Final = frozenset({1049, 1146, 1054})
_BINLOG: Final = frozenset({1236, 1220, 1373})
_TRANSIENT: Final = frozenset(
    {1040, 1053, 1152, 1159, 1161, 1203, 1205, 1213, 2003, 2006, 2013, 2055, 3024, 1969, 1317, 1412, 1927}
)


@contextmanager
def mysql_errors(what: str) -> Iterator[None]:
    """Turn errors of PyMySQL and of the socket into ours.

    Args:
        what: What was being done, and on which object, as ``read binlog of mysql://db:3306``.

    Raises:
        TransientError: The server is away or busy. Retryable.
        SourceMoved: It no longer has the binlog asked for. Not retryable.
        TerminalError: Wrong password, missing privilege, unknown table. Not retryable.
    """
    import pymysql

    try:
        yield
    except pymysql.MySQLError as exc:
        raise error_of(what, exc.args[0] if exc.args else 0, str(exc.args[-1]) if exc.args else str(exc)) from exc
    except OSError as exc:
        raise _away(what, shorten(str(exc))) from exc


def error_of(what: str, number: object, text: str) -> ExternalError:
    """Return our error for one of the server's, by its number."""
    what, found = f"cannot {what}", f"{shorten(text, 300)} ({number})"
    if number in _ACCESS:
        remedy = "Check user and password in the URL, and from where that user may connect"
        return TerminalError(what, code="MYSQL_ACCESS_DENIED", found=found, remedy=remedy)
    if number in _PRIVILEGE:
        return TerminalError(
            what,
            code="MYSQL_PRIVILEGE_MISSING",
            found=found,
            expected="REPLICATION SLAVE and REPLICATION CLIENT on *.*, SELECT on the tables",
            remedy="GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO the user; GRANT SELECT ON the tables",
        )
    if number in _UNKNOWN:
        remedy = "Check the names; a table that was dropped keeps its rows in the lake: take it off `tables`"
        return TerminalError(what, code="MYSQL_NOT_FOUND", found=found, remedy=remedy)
    if number in _BINLOG:
        return SourceMoved(
            what,
            code="MYSQL_BINLOG_PURGED",
            found=found,
            expected="the binlog since the last position stored",
            remedy="Set on_binlog_lost='resnapshot' to load the tables anew, and keep binlogs longer (expire_logs_days)",
        )
    if number in _TRANSIENT or number in (0, ""):
        return _away(what, found)
    return TerminalError(what, code="MYSQL_ERROR", found=found)


def _away(what: str, found: str) -> TransientError:
    return TransientError(what, code="MYSQL_UNREACHABLE", found=found, remedy="Check host, port and the network")
