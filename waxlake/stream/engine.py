"""DuckDB as every floor uses it: sessions on the one database of the process, and names and texts in SQL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from waxlake.stream.clock import held_time

if TYPE_CHECKING:
    import duckdb

__all__ = ["lazy_session", "open_session", "quote_name", "quote_text", "select_list"]

_database: duckdb.DuckDBPyConnection | None = None
_database_lock = threading.Lock()
_TIMES: Final = {
    "TIMESTAMPTZ": ("now", "current_timestamp", "get_current_timestamp", "transaction_timestamp"),
    "TIMESTAMP": ("localtimestamp", "current_localtimestamp"),
    "DATE": ("current_date", "today"),
}


def open_session() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB session of its own on this process's one in-memory database: UTC, no files, no network.

    For one thread; to be closed by whoever opened it. A session is cheap, a database is not.
    """
    import duckdb

    global _database
    with _database_lock:
        if _database is None:
            _database = duckdb.connect(config={"enable_external_access": False})
        session = _database.cursor()
    session.execute("SET TimeZone = 'UTC'")
    held = held_time()
    if held is not None:
        _hold_time(session, held)
    return session


def lazy_session() -> duckdb.DuckDBPyConnection:
    """Return what is an ``open_session`` from its first use on: the database takes a while, and not all work needs it."""
    return cast("duckdb.DuckDBPyConnection", _LazySession())


class _LazySession:
    """Hands every call on to a session that the first one opens."""

    def __init__(self) -> None:
        self._session: duckdb.DuckDBPyConnection | None = None

    def __getattr__(self, name: str) -> Any:
        if self._session is None:
            self._session = open_session()
        return getattr(self._session, name)


def _hold_time(session: duckdb.DuckDBPyConnection, at: datetime) -> None:
    """Let a session tell one time; its macros take precedence over the functions of their names."""
    for kind, names in _TIMES.items():
        value = f"CAST(TIMESTAMPTZ {quote_text(at.isoformat())} AS {kind})"
        for name in names:
            session.execute(f"CREATE OR REPLACE TEMP MACRO {name}() AS {value}")


def quote_name(name: str) -> str:
    """Return a SQL identifier for a column or table name."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(value: str) -> str:
    """Return a SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def select_list(names: Sequence[str], prefix: str = "") -> str:
    """Return column names for a SELECT list, each after ``prefix``, as ``t.``."""
    return ", ".join(prefix + quote_name(name) for name in names)
