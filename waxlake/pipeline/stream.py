"""Stream and Batch: lazy descriptions of rows, as a user's functions return them. Nothing is read here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import pyarrow as pa

from waxlake.pipeline.definitions import (
    DatabaseRead,
    Decode,
    Drop,
    FilesRead,
    KafkaRead,
    MapBatches,
    Query,
    Read,
    Select,
    SqlQuery,
    Step,
    TableRead,
    Where,
    WithColumns,
    calling_line,
    located,
)
from waxlake.pipeline.stateful_methods import StatefulMethods
from waxlake.stream.errors import DefinitionError, UsageError

__all__ = [
    "Batch",
    "Branch",
    "Relation",
    "Stream",
    "read",
    "read_debezium",
    "read_files",
    "read_kafka",
    "read_mysql",
    "read_query",
    "read_stream",
    "sql",
]

R = TypeVar("R", bound="Relation")
_STREAMS: Final = re.compile(r"\b(FROM|JOIN)\s+STREAM(\s*\(|\s+read_)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Branch:
    """One read and what is done to its rows, in order."""

    read: Read
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """Rows described, not read. Every method returns a new one."""

    branches: tuple[Branch, ...]

    def _with(self: R, step: Step) -> R:
        return replace(self, branches=tuple(Branch(b.read, (*b.steps, step)) for b in self.branches))

    def sql(self: R, query: str, *, pinned: bool = False) -> R:
        """Run a query over these rows, named ``stream``; other datasets by name are read at their latest version.

        Args:
            query: ``SELECT … FROM stream …`` in DuckDB's dialect. It sees one micro-batch at a time.
            pinned: Read the other datasets at one version for the whole update: the one they had when it was planned; in a
                triggered update, tables of the pipeline as it leaves them.
        """
        return self._with(Query(text=_text(query, "sql"), where=calling_line(), pinned=bool(pinned)))

    def where(self: R, condition: str) -> R:
        """Keep the rows for which a SQL condition is true."""
        return self._with(Where(condition=_text(condition, "where"), where=calling_line()))

    def select(self: R, *expressions: str) -> R:
        """Keep SQL expressions, in this order; ``*`` stands for all columns but metadata columns."""
        if not expressions:
            raise DefinitionError(
                "select() needs at least one expression", where=calling_line(), code="ARGUMENT_MISSING"
            )
        return self._with(Select(expressions=tuple(_text(e, "select") for e in expressions), where=calling_line()))

    def with_columns(self: R, **columns: str) -> R:
        """Add columns, or replace those of the same name, by SQL expressions."""
        if not columns:
            raise DefinitionError(
                "with_columns() needs at least one column", where=calling_line(), code="ARGUMENT_MISSING"
            )
        pairs = tuple((name, _text(expression, "with_columns")) for name, expression in columns.items())
        return self._with(WithColumns(columns=pairs, where=calling_line()))

    def drop(self: R, *names: str) -> R:
        """Leave columns out."""
        return self._with(Drop(names=tuple(_text(name, "drop") for name in names), where=calling_line()))

    def map_batches(self: R, function: Callable[[pa.Table], pa.Table], schema: str | pa.Schema | None = None) -> R:
        """Apply a Python function to each micro-batch.

        Args:
            function: From table to table; vectorised. It may be called with no rows.
            schema: Columns of the result, as DDL or Arrow schema; None finds them by calling ``function`` with no rows.
        """
        return self._with(MapBatches(function=function, schema=as_schema(schema), where=calling_line()))

    def union(self: R, other: R) -> R:
        """Take the rows of both, matched by column name."""
        if not isinstance(other, Relation) or type(other) is not type(self):
            raise DefinitionError(
                "union() takes another relation of the same kind",
                where=calling_line(),
                code="UNION_MISMATCH",
                found=type(other).__name__,
                expected=type(self).__name__,
            )
        return replace(self, branches=self.branches + other.branches)


@dataclass(frozen=True, slots=True)
class Stream(Relation, StatefulMethods):
    """Rows that keep coming; the query of a streaming table."""


@dataclass(frozen=True, slots=True)
class Batch(Relation):
    """Rows as they are now; the query of a materialized view."""


def _text(value: object, method: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DefinitionError(
            f"{method}() takes SQL text",
            where=calling_line(),
            code="ARGUMENT_INVALID",
            found=repr(value),
            expected="a non-empty string",
        )
    return value.strip().rstrip(";")


def as_schema(schema: str | pa.Schema | None) -> pa.Schema | None:
    """Return a schema given as DDL text or as Arrow schema; None stays None."""
    if schema is None or isinstance(schema, pa.Schema):
        return schema
    from waxlake.stream.ddl import parse_ddl

    with located(calling_line()):
        return parse_ddl(schema)


def read_kafka(topic: str, bootstrap_servers: str, **options: Any) -> Stream:
    """Read one or more Kafka topics as a stream.

    Args:
        topic: Topic name, several separated by commas, or a pattern that starts with ``^``.
        bootstrap_servers: ``host:port``, several separated by commas.
        options: ``format``, ``schema`` (DDL), ``starting_offsets``, ``on_data_loss``, ``options`` (librdkafka settings),
            ``max_rows_per_batch``, ``max_bytes_per_batch``, ``request_timeout_s``.

    Raises:
        DefinitionError: An unknown option, a managed librdkafka key, a format without its schema. Not retryable.
    """
    from connectors.kafka import KafkaSettings

    values = {"topic": topic, "bootstrap_servers": bootstrap_servers, **options}
    with located(calling_line()):
        settings = KafkaSettings.build(f"read_kafka({topic!r})", values)
    return Stream((Branch(KafkaRead(settings=settings, where=calling_line())),))


def read_debezium(stream: Stream, schema: str | pa.Schema | None = None, **options: Any) -> Stream:
    """Read the change events that Debezium wrote to a stream, as change rows.

    The rows hold the declared columns and ``_rescued_data``; the metadata columns of change rows are there when selected.

    Args:
        stream: What carries the events: ``read_kafka`` with ``format="binary"`` or ``"string"``.
        schema: Columns of the table, as DDL or Arrow schema.
        options: ``tables``, ``types``, ``decimal_handling_mode``, ``unavailable_value_placeholder``.

    Raises:
        DefinitionError: An unknown option, no schema, or no stream. Not retryable.
    """
    from connectors.debezium import DebeziumSettings

    line = calling_line()
    if not isinstance(stream, Stream):
        raise DefinitionError(
            "read_debezium() takes a stream",
            where=line,
            code="ARGUMENT_INVALID",
            found=type(stream).__name__,
            expected="what wl.read_kafka returns",
        )
    with located(line):
        settings = DebeziumSettings.build("read_debezium()", {"schema": schema, **options})
    return stream._with(Decode(settings=settings, where=line))


def read_files(path: str, format: str, schema: str | pa.Schema | None = None, **options: Any) -> Stream:
    """Read the files that arrive under a path as a stream, each exactly once.

    Args:
        path: Local path or fsspec URI: a folder, a glob, a file. A relative one is relative to the spec's folder.
        format: ``json``, ``csv``, ``parquet``, ``avro``, ``orc``, ``text``, ``binaryfile`` or ``xml``.
        schema: Columns, as DDL or Arrow schema; None infers them from a sample.
        options: Options of Auto Loader in snake_case.

    Raises:
        DefinitionError: An unknown option or format. Not retryable.
    """
    from connectors.files import FilesSettings

    with located(calling_line()):
        settings = FilesSettings.of(path, format=format, schema=schema, **options)
    return Stream((Branch(FilesRead(settings=settings, where=calling_line())),))


def read_postgres(dsn: str, tables: Sequence[str] | str, **options: Any) -> Stream:
    """Read tables of a PostgreSQL database as a stream of changes, the rows that are there first.

    Reads over one slot share one connection, whichever tables they name. Rows are change rows: ``_change_type`` and the other
    change columns are there when selected.

    Args:
        dsn: libpq URI or key=value text.
        tables: Tables, ``schema.table``; with several, the rows have the columns of all and ``_table`` tells.
        options: ``slot``, ``publication`` and further fields of ``PostgresSettings`` (docs/postgres.md).

    Raises:
        DefinitionError: An unknown option, a value out of bounds. Not retryable.
    """
    with located(calling_line()):
        try:
            from connectors.postgres import PostgresSettings
        except ImportError as exc:
            raise UsageError(
                "cannot read PostgreSQL",
                code="POSTGRES_DRIVER_MISSING",
                found=str(exc),
                remedy="pip install 'waxlake[postgres]'",
            ) from exc
        settings = PostgresSettings.build("read_postgres", {"dsn": dsn, "tables": tables, **options})
    return Stream((Branch(DatabaseRead(settings=settings, where=calling_line())),))


def read_mysql(url: str, tables: Sequence[str] | str, **options: Any) -> Stream:
    """Read tables of a MySQL or MariaDB server as a stream of changes, the rows that are there first.

    Reads of one server share one connection, whichever tables they name. Rows are change rows: ``_change_type`` and the other
    change columns are there when selected.

    Args:
        url: ``mysql://user:password@host:port/database``.
        tables: Tables, ``database.table``; with several, the rows have the columns of all and ``_table`` tells.
        options: Further fields of ``MySQLSettings`` (docs/mysql.md).

    Raises:
        DefinitionError: An unknown option, a value out of bounds. Not retryable.
    """
    with located(calling_line()):
        try:
            from connectors.mysql import MySQLSettings
        except ImportError as exc:
            raise UsageError(
                "cannot read MySQL",
                code="MYSQL_DRIVER_MISSING",
                found=str(exc),
                remedy="pip install 'waxlake[mysql]'",
            ) from exc
        settings = MySQLSettings.of(url, tables, **options)
    return Stream((Branch(DatabaseRead(settings=settings, where=calling_line())),))


def read_query(url: str, table: str | None = None, **options: Any) -> Stream:
    """Read a table or a query of any database as a stream of change rows, polled by a cursor column.

    For databases whose log cannot be read. The rows hold the columns and ``_rescued_data``; the metadata columns of change
    rows are there when selected.

    Args:
        url: URL of the database as SQLAlchemy takes it, or ``duckdb:///path``.
        table: Table or view; or give ``query=`` and ``schema=``.
        options: ``cursor``, ``key``, ``look_back``, ``null_cursors``, ``deletion_condition``, ``detect_deletes_every``,
            ``row_filter``, ``include_columns``, ``exclude_columns``, ``backfill_new_columns``, ``poll_interval``.

    Raises:
        DefinitionError: An unknown option, neither a table nor a query, a query without its schema. Not retryable.
    """
    from connectors.query import QuerySettings

    line = calling_line()
    with located(line):
        settings = QuerySettings.build("read_query()", {"url": url, "table": table, **options})
    return Stream((Branch(DatabaseRead(settings=settings, where=line)),))


def read_stream(table: str, **options: Any) -> Stream:
    """Read the rows that are appended to a table of this pipeline, or to a Delta table at a URI, as a stream.

    Args:
        table: Name, path or URI.
        options: ``starting_version``, ``starting_timestamp``, ``skip_change_commits``, ``read_change_feed``, ``keys``,
            ``ignore_dropped_columns``, ``storage_options`` (docs/delta-sources.md).

    Raises:
        DefinitionError: An unknown option, a value out of bounds. Not retryable.
    """
    settings = None
    if options:
        from connectors.delta.settings import DeltaReadSettings, read_options

        with located(calling_line()):
            settings = DeltaReadSettings.build(f"read_stream({table!r})", read_options(options))
    return Stream((Branch(TableRead(name=table, settings=settings, where=calling_line())),))


def read(table: str) -> Batch:
    """Read a dataset of this pipeline as it is at its latest version."""
    return Batch((Branch(TableRead(name=table, where=calling_line())),))


def sql(query: str) -> R:  # type: ignore[type-var]  # the query says which kind it is, the caller knows
    """Run a query over datasets of this pipeline, by name.

    Args:
        query: A batch query over tables as they are; or one over ``STREAM(table)``, with ``WATERMARK``, as in a SQL file.

    Raises:
        DefinitionError: A query over a stream that has no last answer. Not retryable.
    """
    text, line = _text(query, "sql"), calling_line()
    if _STREAMS.search(text):
        from waxlake.pipeline.sqlfile import streaming_sql

        return cast(R, streaming_sql(text, line))
    return cast(R, Batch((Branch(SqlQuery(text=text, where=line)),)))
