"""The tables a pipeline has stored: what they are, their rows, and SQL over them. Called by the commands that look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pyarrow as pa

from waxlake.pipeline.quality import quality_rows
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import UsageError, UserError
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    import duckdb

    from waxlake.pipeline.graph import Graph

__all__ = ["StoredTable", "TableFacts", "first_rows", "run_sql", "stored_tables", "table_facts"]

_UNKNOWN_TABLE = re.compile(r"Table with name \"?([\w.]+)\"? does not exist")
_FILE_STATES = re.compile(r"\b(?:cloud_)?files_state\s*\(\s*(?:TABLE\s*\(\s*)?['\"]?([\w.]+)['\"]?\s*\)?\s*\)", re.I)
_ASKS_QUALITY = re.compile(r"\bquality\b", re.IGNORECASE)
_AFTER_FROM = re.compile(r"\b(?:from|join)\s+([A-Za-z_][\w.]*)", re.I)
_READS_CATALOG = re.compile(r"\b(show|describe|information_schema|duckdb_\w+)\b", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTable:
    """A table of the pipeline.

    Attributes:
        name: Dataset name.
        kind: ``table``, ``materialized_view``, ``sink``, ``quarantine`` or ``events``.
        location: Where it lies, or will lie.
        is_ledger: It holds the positions of a sink, and no rows.
    """

    name: str
    kind: str
    location: TableLocation
    is_ledger: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table as it is now; figures are None before its first commit.

    Attributes:
        name: Dataset name.
        kind: Kind of dataset.
        path: Path or URI.
        version: Table version.
        rows: Rows.
        size_bytes: Bytes of its data files.
        files: Number of data files.
        committed_at: Time of the last commit.
    """

    name: str
    kind: str
    path: str
    version: int | None = None
    rows: int | None = None
    size_bytes: int | None = None
    files: int | None = None
    committed_at: datetime | None = None


def stored_tables(graph: Graph) -> dict[str, StoredTable]:
    """Return the tables of a pipeline by name, quarantine tables and the event log included."""
    found: dict[str, StoredTable] = {}
    for name in graph.order:
        dataset = graph.datasets[name]
        if dataset.location is not None:
            found[name] = StoredTable(
                name=name, kind=dataset.kind, location=dataset.location, is_ledger=dataset.has_ledger
            )
        if dataset.quarantine is not None:
            side = f"{name}_quarantine"
            found.setdefault(side, StoredTable(name=side, kind="quarantine", location=dataset.quarantine))
    found.setdefault("events", StoredTable(name="events", kind="events", location=graph.spec.events_location()))
    return found


def _uploaded(graph: Graph, names: Iterable[str]) -> dict[str, StoredTable]:
    """Return the tables among ``names`` that no flow writes and that lie in the storage: uploads and copies."""
    found: dict[str, StoredTable] = {}
    for name in dict.fromkeys(names):
        if name in graph.datasets or name == "events":
            continue
        try:
            location = graph.spec.table_location(name)
        except UsageError:  # a name that no table can have
            continue
        if location.exists():
            found[name] = StoredTable(name=name, kind="table", location=location)
    return found


def table_facts(table: StoredTable) -> TableFacts:
    """Return what a table is now.

    Raises:
        ExternalError: It cannot be read.
    """
    if not table.location.exists():
        return TableFacts(name=table.name, kind=table.kind, path=table.location.uri)
    handle = table.location.open()
    with delta_errors(f"read table '{table.name}'"):
        files = pa.table(handle.get_add_actions(flatten=False)).select(["size_bytes", "num_records"]).to_pydict()
        counts = files["num_records"]
        rows = handle.to_pyarrow_dataset().count_rows() if None in counts else sum(counts)
        stamp = handle.history(1)[0].get("timestamp")
    return TableFacts(
        name=table.name,
        kind=table.kind,
        path=table.location.uri,
        version=handle.version(),
        rows=None if table.is_ledger else rows,
        size_bytes=sum(files["size_bytes"]),
        files=len(counts),
        committed_at=None if stamp is None else datetime.fromtimestamp(stamp / 1000, tz=timezone.utc),
    )


def first_rows(graph: Graph, name: str, count: int) -> pa.Table:
    """Return some rows of a table.

    Raises:
        UsageError: No such table, or nothing is stored yet. Not retryable.
    """
    tables = {**stored_tables(graph), **_uploaded(graph, [name])}
    if name == "quality" and name not in tables:
        return quality_rows(graph).slice(0, count)
    if name not in tables:
        raise _missing(graph, tables, name, UsageError)
    if not tables[name].location.exists():
        raise _missing(graph, tables, name, UsageError)
    if tables[name].is_ledger:
        raise UsageError(
            f"{name!r} is a sink: its rows are not here",
            code="TABLE_NOT_STORED",
            remedy=f"waxlake status tells how far it is; rows that its rules rejected are in {name}_quarantine, if it has any",
        )
    with delta_errors(f"read table '{name}'"):
        return tables[name].location.open().to_pyarrow_dataset().head(count)


def run_sql(graph: Graph, text: str) -> pa.Table:
    """Run one query over the tables of a pipeline; it can read nothing else and change nothing.

    Args:
        graph: The pipeline.
        text: ``SELECT …`` in DuckDB's dialect, tables by name; ``files_state('table')`` and, as Auto Loader spells it,
            ``cloud_files_state(TABLE(table))`` are the files of a table.

    Raises:
        UserError: The query is wrong, or names a table that is not there. Not retryable.
    """
    import duckdb

    tables = {**stored_tables(graph), **_uploaded(graph, _AFTER_FROM.findall(text))}
    with duckdb.connect(config={"python_enable_replacements": "false"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        text = _with_file_states(connection, graph, text)
        kind = _kind_of_statement(connection, text)
        for table in _mentioned(tables, text):
            _make_view(connection, graph, table)
        if "quality" not in tables and _ASKS_QUALITY.search(text):
            connection.register("quality", quality_rows(graph))
        connection.execute("SET enable_external_access = false")
        try:
            if kind == "EXPLAIN":
                lines = [line for _, plan in connection.execute(text).fetchall() for line in str(plan).splitlines()]
                return pa.table({"plan": pa.array(lines, pa.string())})
            return connection.sql(text).to_arrow_table()
        except duckdb.Error as exc:
            unknown = _UNKNOWN_TABLE.search(str(exc))
            if unknown is not None:
                raise _missing(graph, tables, unknown[1], UserError) from None
            raise _sql_error(exc) from None


def _with_file_states(connection: duckdb.DuckDBPyConnection, graph: Graph, text: str) -> str:
    """Make what became of the files of each table that the query asks for a table of its own, and return the query on it."""
    from waxlake.pipeline.file_states import file_states

    names: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
            connection.register(f"__files_{names.index(match[1])}", file_states(graph, match[1]))
        return f"(FROM __files_{names.index(match[1])})"

    return _FILE_STATES.sub(replaced, text)


def _kind_of_statement(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    import duckdb

    try:
        statements = connection.extract_statements(text)
    except duckdb.Error as exc:
        raise _sql_error(exc) from None
    kinds = [statement.type.name.rpartition(".")[2].removesuffix("_STATEMENT") for statement in statements]
    if kinds not in (["SELECT"], ["EXPLAIN"]):
        raise UserError(
            "cannot run this here",
            code="SQL_NOT_A_QUERY",
            found=", ".join(kinds) or "nothing",
            expected="one SELECT",
            remedy="Tables are written by the pipeline only",
        )
    return str(kinds[0])


def _sql_error(exc: Exception) -> UserError:
    lines = [line for line in str(exc).splitlines() if line.strip()]
    pointer = [line for line in lines if line.startswith("LINE ")]
    near = f" (in {pointer[0].strip()!r})" if pointer else ""
    return UserError(f"cannot run the query: {lines[0] if lines else exc}{near}", code="SQL_ERROR")


def _mentioned(tables: Mapping[str, StoredTable], text: str) -> Iterator[StoredTable]:
    """Yield the tables that a query may read: those whose name is in it, or all when it asks for the catalog."""
    words = {word.casefold() for word in re.findall(r"\w+", text)}
    takes_all = _READS_CATALOG.search(text) is not None
    for name, table in tables.items():
        if (takes_all or name.rpartition(".")[2].casefold() in words) and table.location.exists():
            yield table


def _make_view(connection: duckdb.DuckDBPyConnection, graph: Graph, table: StoredTable) -> None:
    with delta_errors(f"read table '{table.name}'"):
        dataset = table.location.open().to_pyarrow_dataset()
    schema, _, plain = table.name.rpartition(".")
    source = f"__stored_{schema}_{plain}" if schema else plain
    connection.register(source, dataset)
    if schema or table.kind != "events":
        schema = schema or graph.spec.schema_name
        connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        connection.execute(f'CREATE VIEW "{schema}"."{plain}" AS SELECT * FROM temp.main."{source}"')


def _missing(graph: Graph, tables: Mapping[str, StoredTable], name: str, kind: type[UserError]) -> UserError:
    known = {table.casefold(): table for table in tables}
    if name.casefold() in known:
        return kind(
            f"table '{known[name.casefold()]}' holds nothing yet",
            code="TABLE_NOT_WRITTEN",
            remedy="Run the pipeline first: waxlake run",
        )
    dataset = graph.datasets.get(name)
    if dataset is not None:
        return kind(f"{name!r} is a temporary view: it is not stored", code="TABLE_NOT_STORED")
    return kind(f"there is no table {name!r}", code="TABLE_UNKNOWN", remedy=nearest(name, tables))
