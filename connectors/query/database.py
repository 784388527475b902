"""A database as a query source sees it: its columns, and pages of its rows, through SQLAlchemy or DuckDB's own client.

Statements are built by SQLAlchemy for both. Values come as the driver gives them, unconverted. Used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from connectors.query.settings import QuerySettings
from connectors.query.values import Cursor
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.engine import quote_name
from waxlake.stream.errors import TerminalError, TransientError, UsageError, WaxlakeError, shorten
from waxlake.stream.schema import delta_schema
from waxlake.stream.settings import nearest

__all__ = ["Database", "Row"]

Row = Sequence[Any]
_AWAY = ("OperationalError", "InterfaceError", "DisconnectionError", "TimeoutError", "IOException")


class Database:
    """One connection to a database, opened when first needed.

    Args:
        settings: What to read.

    Attributes:
        may_lack_cursor: Whether there can be rows whose cursor is NULL, as far as is known.
    """

    def __init__(self, settings: QuerySettings) -> None:
        self._settings = settings
        self._engine: Any = None
        self._connection: Any = None
        self.may_lack_cursor = True

    # -- what there is -------------------------------------------------------------------------------------------

    def schema(self) -> pa.Schema:
        """Return the columns to read, without ``_rescued_data``.

        Raises:
            TerminalError: ``QUERY_TABLE_GONE``, ``QUERY_REFUSED``. Not retryable.
            UsageError: A named column is not there. Not retryable.
        """
        settings = self._settings
        if settings.declared_schema is not None:
            found = parse_ddl(settings.declared_schema)
        elif settings.dialect == "duckdb":
            with self._errors("read the columns"):
                found = self._duckdb().sql(f"SELECT * FROM {_quoted(settings.table)} LIMIT 0").to_arrow_table().schema
        else:
            found = self._reflected()
        for name in (*settings.include_columns, *settings.exclude_columns, *settings.key):
            if name not in found.names and name not in settings.exclude_columns:
                raise UsageError(
                    f"{self.what} has no column {name!r}",
                    code="QUERY_COLUMN_UNKNOWN",
                    remedy=nearest(name, found.names),
                )
        return delta_schema(pa.schema([f.with_nullable(True) for f in found if settings.takes(f.name)]))

    def key(self) -> tuple[str, ...]:
        """Return the columns that identify a row.

        Raises:
            TerminalError: ``QUERY_KEY_MISSING``: none given, and the table has no primary key. Not retryable.
        """
        if self._settings.key:
            return self._settings.key
        found: Sequence[str] = ()
        with self._errors("read the primary key"):
            if self._settings.dialect == "duckdb":
                rows = self._duckdb().execute(f"PRAGMA table_info('{self._settings.table}')").fetchall()
                found = [row[1] for row in rows if row[5]]
            else:
                schema, name = self._names()
                found = self._inspector().get_pk_constraint(name, schema=schema)["constrained_columns"]
        if not found:
            raise TerminalError(
                f"cannot read {self.what}",
                code="QUERY_KEY_MISSING",
                found="no primary key",
                expected="columns that identify a row",
                remedy="Give key=, as in key='id'; for rows that never change the cursor may be the key",
            )
        return tuple(found)

    @property
    def what(self) -> str:
        """The table or query and its database, for messages."""
        settings = self._settings
        return f"table '{settings.table}'" if settings.table is not None else f"query '{shorten(settings.query, 60)}'"

    @property
    def place(self) -> str:
        """The database without user and password, for names and identities."""
        from sqlalchemy.engine import make_url

        url = make_url(self._settings.url.get_secret_value())
        host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
        return f"{self._settings.dialect}://{host}/{(url.database or '').strip('/')}"

    # -- rows ----------------------------------------------------------------------------------------------------

    def highest_cursor(self) -> Cursor:
        """Return the highest cursor, or None if there is no row with one."""
        import sqlalchemy as sa

        return self._rows(sa.select(sa.func.max(self._cursor())).select_from(self._source()).where(*self._filters()))[
            0
        ][0]

    def page(
        self,
        columns: Sequence[str],
        key: Sequence[str],
        *,
        low: Cursor = None,
        high: Cursor = None,
        after: Row | None = None,
        is_null: bool = False,
    ) -> list[Row]:
        """Return the next rows in order of cursor and key; with ``is_null`` those without a cursor, in order of the key.

        Args:
            columns: Columns to read.
            key: Columns of the key.
            low: Lowest cursor, inclusive.
            high: Highest cursor, inclusive.
            after: Cursor and key of the row before.
            is_null: Whether to read rows without a cursor.

        Returns:
            Rows of ``columns``, then whether the row is marked as deleted (0 or 1), then its cursor and key.
        """
        import sqlalchemy as sa

        cursor = self._cursor()
        keys: list[Any] = [sa.column(name) for name in key]
        condition = self._settings.deletion_condition
        is_deleted: Any = sa.literal_column(f"CASE WHEN {condition} THEN 1 ELSE 0 END" if condition else "0")
        order = keys if is_null else [cursor, *keys]
        where = [cursor.is_(None)] if is_null else []
        where += [cursor >= low] if low is not None else []
        where += [cursor <= high] if high is not None else []
        where += [_after(order, after[1:] if is_null else after)] if after is not None else []
        statement: Any = (
            sa.select(*(sa.column(name) for name in columns), is_deleted, cursor.label("_c"), *keys)
            .select_from(self._source())
            .where(*self._filters(), *where)
            .order_by(*order)
            .limit(self._settings.max_rows_per_batch)
        )
        return self._rows(statement)

    def keys(self, key: Sequence[str], after: Row | None) -> list[Row]:
        """Return the keys of the next rows, in order."""
        import sqlalchemy as sa

        keys: list[Any] = [sa.column(name) for name in key]
        where = [_after(keys, after)] if after is not None else []
        statement = sa.select(*keys).select_from(self._source()).where(*self._filters(), *where).order_by(*keys)
        return self._rows(statement.limit(self._settings.max_rows_per_batch))

    def close(self) -> None:
        """Close the connection. Never raises."""
        connection, engine, self._connection, self._engine = self._connection, self._engine, None, None
        for opened, end in ((connection, "close"), (engine, "dispose")):
            if opened is not None:
                try:
                    getattr(opened, end)()
                except Exception:  # noqa: BLE001 - a connection that broke has nothing to say at its end
                    continue

    # -- inside --------------------------------------------------------------------------------------------------

    def _source(self) -> Any:
        import sqlalchemy as sa

        if self._settings.query is not None:
            return sa.text(f"({self._settings.query.rstrip().rstrip(';')}) AS waxlake_query")
        schema, name = self._names()
        return sa.table(name, schema=schema)

    def _names(self) -> tuple[str | None, str]:
        schema, _, name = str(self._settings.table).rpartition(".")
        return schema or None, name

    def _cursor(self) -> Any:
        import sqlalchemy as sa

        columns: list[Any] = [sa.column(name) for name in self._settings.cursor]
        return columns[0] if len(columns) == 1 else sa.func.coalesce(*columns)

    def _filters(self) -> list[Any]:
        import sqlalchemy as sa

        return [sa.text(f"({self._settings.row_filter})")] if self._settings.row_filter else []

    def _rows(self, statement: Any) -> list[Row]:
        with self._errors("read"):
            if self._settings.dialect == "duckdb":
                from sqlalchemy.engine.default import DefaultDialect

                compiled = statement.compile(dialect=DefaultDialect(paramstyle="qmark"))
                values = [compiled.params[name] for name in compiled.positiontup or ()]
                return _fetched(self._duckdb().sql(str(compiled), params=values))
            found: list[Row] = list(self._connected().execute(statement))
            self._connected().rollback()  # each page is a transaction of its own: none stays open between polls
            return found

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._engine_of().connect()
        return self._connection

    def _engine_of(self) -> Any:
        if self._engine is None:
            try:
                import sqlalchemy as sa
            except ModuleNotFoundError as exc:
                raise _missing("SQLAlchemy", exc) from exc
            try:
                self._engine = sa.create_engine(self._settings.url.get_secret_value(), poolclass=sa.pool.NullPool)
            except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as exc:
                raise UsageError(
                    "cannot read this URL of a database",
                    code="QUERY_URL",
                    found=self._scrubbed(exc),
                    expected="postgresql+psycopg2://user:password@host/database, mysql+pymysql://…, sqlite:///path",
                ) from None
            except ModuleNotFoundError as exc:
                raise _missing(f"the driver {exc.name!r}", exc) from exc
            if self._settings.dialect in ("mysql", "mariadb"):
                sa.event.listen(self._engine, "connect", _use_utc)
        return self._engine

    def _duckdb(self) -> Any:
        if self._connection is None:
            import duckdb

            path = self._settings.url.get_secret_value().partition(":///")[2]
            self._connection = duckdb.connect(path, read_only=path not in ("", ":memory:"))
            self._connection.execute("SET TimeZone = 'UTC'")
        return self._connection

    def _inspector(self) -> Any:
        import sqlalchemy as sa

        return sa.inspect(self._connected())

    def _reflected(self) -> pa.Schema:
        import sqlalchemy as sa

        schema, name = self._names()
        with self._errors("read the columns"):
            try:
                columns = self._inspector().get_columns(name, schema=schema)
            except sa.exc.NoSuchTableError:
                columns = []
            self._connected().rollback()
        if not columns:
            raise TerminalError(
                f"cannot read {self.what} of {self.place}",
                code="QUERY_TABLE_GONE",
                found="no such table",
                expected="a table or view",
                remedy="Was it dropped or renamed? What was read of it stays where it is",
            )
        cursors = [c for c in columns if c["name"] in self._settings.cursor]
        self.may_lack_cursor = not any(c.get("nullable") is False for c in cursors)
        return pa.schema([(c["name"], _arrow_type(c["type"], self._settings.dialect)) for c in columns])

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn what a driver raises into errors of ours, without secrets."""
        try:
            yield
        except WaxlakeError:
            raise
        except (
            Exception
        ) as exc:  # a boundary: drivers raise classes of their own and Python's, with addresses in their texts
            self.close()
            text = self._scrubbed(getattr(exc, "orig", None) or exc)
            what = f"cannot {doing} of {self.what}" if doing != "read" else f"cannot read {self.what}"
            is_away = type(exc).__name__ in _AWAY and not _is_refusal(text)
            if is_away:
                raise TransientError(
                    what, code="QUERY_DATABASE_AWAY", found=text, remedy="Is the database up, and reachable from here?"
                ) from exc
            raise TerminalError(
                what,
                code="QUERY_REFUSED",
                found=text,
                remedy="Check the names of columns, conditions, and the rights of the user",
            ) from exc

    def _scrubbed(self, exc: object) -> str:
        from sqlalchemy.engine import make_url

        text = " ".join(str(exc).split())
        try:
            password = make_url(self._settings.url.get_secret_value()).password
        except Exception:  # noqa: BLE001 - a URL that cannot be read is not shown
            return "an unreadable URL"
        return shorten(text.replace(str(password), "***") if password else text, 300)


def _fetched(found: Any) -> list[Row]:
    """Return the rows of DuckDB. It makes Python values of times with a zone only where pytz is installed: Arrow does that."""
    if "TIMESTAMP WITH TIME ZONE" not in map(str, found.types):
        rows: list[Row] = found.fetchall()
        return rows
    table = found.to_arrow_table()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _is_refusal(text: str) -> bool:
    low = text.lower()
    said = ("no such", "syntax", "password", "denied", "does not exist", "unknown column", "doesn't exist", "role")
    return any(word in low for word in said)


def _missing(what: str, exc: BaseException) -> TerminalError:
    del exc
    return TerminalError(
        "cannot read from a database",
        code="QUERY_DRIVER_MISSING",
        found=f"{what} is not installed",
        remedy="pip install 'waxlake[query]' and the driver of the database",
    )


def _use_utc(connection: Any, record: object) -> None:
    del record
    with connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+00:00'")


def _after(columns: Sequence[Any], values: Row) -> Any:
    """Return the condition that a row comes after another one in the order of ``columns``."""
    import sqlalchemy as sa

    condition = columns[-1] > values[-1]
    for column, value in zip(reversed(columns[:-1]), reversed(list(values[:-1])), strict=True):
        condition = sa.or_(column > value, sa.and_(column == value, condition))
    return condition


def _quoted(table: str | None) -> str:
    return ".".join(map(quote_name, str(table).split(".")))


def _arrow_type(kind: Any, dialect: str) -> pa.DataType:
    """Return the Arrow type that holds every value of a column exactly; text where there is none."""
    import sqlalchemy as sa

    types: list[tuple[Any, Callable[[], pa.DataType]]] = [
        (sa.Boolean, pa.bool_),
        (sa.SmallInteger, pa.int16 if dialect == "postgresql" else pa.int64),
        (sa.BigInteger, lambda: pa.decimal128(20, 0) if getattr(kind, "unsigned", False) else pa.int64()),
        (sa.Integer, pa.int32 if dialect == "postgresql" else pa.int64),
        (sa.Float, pa.float64),
        (sa.Numeric, lambda: _decimal_type(kind)),
        (sa.TIMESTAMP, lambda: pa.timestamp("us", _zone(kind, dialect))),
        (sa.DateTime, lambda: pa.timestamp("us", _zone(kind, dialect))),
        (sa.Date, pa.date32),
        (sa.LargeBinary, pa.binary),
        (sa.types._Binary, pa.binary),
    ]
    for known, make in types:
        if isinstance(kind, known):
            return make()
    return pa.string()


def _zone(kind: Any, dialect: str) -> str | None:
    is_instant = kind.timezone or (dialect in ("mysql", "mariadb") and type(kind).__name__ == "TIMESTAMP")
    return "UTC" if is_instant else None


def _decimal_type(kind: Any) -> pa.DataType:
    if kind.precision is None or kind.precision > 38 or not 0 <= (kind.scale or 0) <= kind.precision:
        return pa.string()
    return pa.decimal128(kind.precision, kind.scale or 0)
