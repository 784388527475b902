"""Reads one SQL file into the registry of a pipeline: each statement declares a dataset or a flow, as a decorator does.

Called by ``load_graph`` for each `.sql` file. The grammar around the queries is that of Lakeflow's pipelines; the queries
themselves are DuckDB's, or Databricks' where the spec says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from waxlake.pipeline.auto_cdc import create_auto_cdc_flow, create_auto_cdc_from_snapshot_flow
from waxlake.pipeline.declare import check_options, definition_from
from waxlake.pipeline.declare_sinks import sink_from
from waxlake.pipeline.definitions import Action, DatasetKind, Expectation, FlowDefinition, at_line
from waxlake.pipeline.registry import Registry, registry_dialect
from waxlake.pipeline.rules import limits
from waxlake.pipeline.sqlfile.auto_cdc import auto_cdc_arguments, snapshot_arguments
from waxlake.pipeline.sqlfile.cursor import Cursor
from waxlake.pipeline.sqlfile.queries import relation
from waxlake.pipeline.sqlfile.snapshot_query import SnapshotQuery
from waxlake.pipeline.sqlfile.source import SqlText, is_word
from waxlake.pipeline.stream import Relation
from waxlake.stream.ddl import CONSTRAINTS, parse_ddl
from waxlake.stream.errors import SchemaError

__all__ = ["load_sql_file"]

_ACTIONS: Final[Mapping[tuple[str, ...], Action]] = {
    ("DROP", "ROW"): "drop",
    ("FAIL", "UPDATE"): "fail",
    ("QUARANTINE",): "quarantine",
}
_KINDS: Final[Mapping[tuple[str, ...], DatasetKind]] = {
    ("STREAMING", "TABLE"): "table",
    ("STREAMING", "LIVE", "TABLE"): "table",
    ("MATERIALIZED", "VIEW"): "materialized_view",
    ("TEMPORARY", "VIEW"): "temporary_view",
    ("TEMP", "VIEW"): "temporary_view",
    ("TEMPORARY", "LIVE", "VIEW"): "temporary_view",
    ("TEMPORARY", "STREAMING", "LIVE", "VIEW"): "temporary_view",
}
_STATEMENTS: Final = (
    "CREATE OR REFRESH STREAMING TABLE, CREATE OR REFRESH MATERIALIZED VIEW, CREATE TEMPORARY VIEW, CREATE FLOW, "
    "CREATE SINK, "
    "SET key = value or USE SCHEMA name"
)
_CLAUSES: Final = "COMMENT, PARTITIONED BY, CLUSTER BY, TBLPROPERTIES, LOCATION, REFRESH POLICY, USING DELTA or AS"


def load_sql_file(path: Path, registry: Registry) -> None:
    """Read the definitions of one SQL file.

    Args:
        path: The file, in UTF-8.
        registry: Where they go; its configuration fills in ``${key}``.

    Raises:
        DefinitionError: A statement that cannot be read, with file, line, column and a caret. Not retryable.
        UsageError: The file cannot be read. Not retryable.
    """
    source = SqlText.read(path, registry.dialect)
    reader = _Reader(registry)
    for start, end in source.statements():
        text = source.statement(start, end, reader.configuration)
        statement = Cursor(text, text.tokens(start))
        with at_line(statement.where):
            reader.take(statement)


def streaming_sql(query: str, where: str) -> Relation:
    """Return what the text of ``wl.sql`` over a ``STREAM`` says.

    Args:
        query: It.
        where: ``file:line`` of the call.

    Raises:
        DefinitionError: Text that cannot be read, with a caret. Not retryable.
    """
    text = SqlText(Path(where.rpartition(":")[0]), query, query, registry_dialect(), caller=where)
    with at_line(where):
        return relation(Cursor(text, text.tokens(0)))


class _Reader:
    """Takes the statements of one file in order; ``SET`` and ``USE`` hold from there to its end."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.configuration = dict(registry.configuration)
        self._schema = ""

    def take(self, statement: Cursor) -> None:
        """Take one statement."""
        if statement.accept("SET"):
            self._set(statement)
        elif statement.accept("USE"):
            self._use(statement)
        elif statement.accept("APPLY", "CHANGES", "INTO"):
            self._auto_cdc(statement, None, statement.where)
        elif statement.accept("CREATE"):
            self._create(statement)
        else:
            raise statement.wrong(_STATEMENTS)
        statement.finish()

    def _set(self, statement: Cursor) -> None:
        key = statement.name("a key")
        text = statement.rest().raw().lstrip("= \t\n")
        if not text:
            raise statement.wrong("a value")
        self.configuration[key] = text[1:-1] if text[0] == text[-1] in ("'", '"') and len(text) > 1 else text

    def _use(self, statement: Cursor) -> None:
        for word in ("SCHEMA", "DATABASE", "NAMESPACE"):
            if statement.accept(word):
                break
        self._schema = statement.name("a schema")

    def _create(self, statement: Cursor) -> None:
        if not statement.accept("OR", "REFRESH"):
            statement.accept("OR", "REPLACE")
        offset = statement.offset
        if statement.accept("FLOW"):
            self._flow(statement)
            return
        if statement.accept("SINK"):
            self._sink(statement)
            return
        for words, kind in _KINDS.items():
            if statement.accept(*words):
                self._dataset(kind, statement)
                return
        if statement.at("VIEW") or statement.at("TABLE") or statement.at("LIVE") or statement.at("PRIVATE"):
            raise statement.source.error(
                "that is nothing a pipeline keeps up to date",
                offset,
                code="SQL_STATEMENT",
                expected=_STATEMENTS,
                remedy="There is no catalog to keep a view in: CREATE TEMPORARY VIEW is not stored, CREATE MATERIALIZED VIEW is",
            )
        raise statement.wrong("STREAMING TABLE, MATERIALIZED VIEW, TEMPORARY VIEW, FLOW or SINK")

    def _dataset(self, kind: DatasetKind, statement: Cursor) -> None:
        statement.accept("IF", "NOT", "EXISTS")
        where = statement.where
        name = self._qualified(statement.name("a name"))
        options: dict[str, Any] = {}
        rules: tuple[Expectation, ...] = ()
        if statement.at("("):
            options, rules = _columns(statement.bracketed())
        clauses = _clauses(statement)
        properties = {**options.get("table_properties", {}), **clauses.get("table_properties", {})}
        options |= {**clauses, **({"table_properties": properties} if properties else {})}
        described: Relation | None = None
        if statement.accept("AS"):
            described = relation(statement.rest(), self._schema)
        elif kind != "table":
            raise statement.wrong(f"{_CLAUSES} and a query")
        elif not statement.is_at_end:
            raise statement.wrong(_CLAUSES)
        check_options(kind, options, where)
        function = None if described is None else _returning(described)
        definition = definition_from(kind, name, function, where, options)
        self._registry.add_dataset(replace(definition, expectations=rules))

    def _flow(self, statement: Cursor) -> None:
        where = statement.where
        name = statement.name("a flow name")
        if statement.accept("COMMENT"):
            statement.text()
        statement.expect("AS")
        if statement.accept("AUTO", "CDC"):
            once = statement.accept("ONCE")
            statement.expect("INTO")
            self._auto_cdc(statement, name, where, once=once)
            return
        statement.expect("INSERT")
        once = statement.accept("ONCE")
        statement.expect("INTO")
        once = statement.accept("ONCE") or once
        target = self._qualified(statement.name("a streaming table"))
        statement.expect("BY", "NAME")
        described = relation(statement.rest(), self._schema)
        self._registry.add_flow(
            FlowDefinition(name=name, target=target, function=_returning(described), where=where, once=once)
        )

    def _sink(self, statement: Cursor) -> None:
        where = statement.where
        name = self._qualified(statement.name("a name"))
        rules: tuple[Expectation, ...] = ()
        if statement.at("("):
            items = statement.bracketed()
            offset = items.offset
            columns, rules = _columns(items)
            if columns:
                raise statement.source.error(
                    "a sink has no columns of its own", offset, code="SQL_SYNTAX", expected="CONSTRAINT … EXPECT (…)"
                )
        options: dict[str, str] = {}
        comment, format = None, ""
        while not statement.is_at_end:
            if statement.accept("COMMENT"):
                comment = statement.text()
            elif statement.accept("FORMAT"):
                format = statement.name("kafka or delta").lower()
            elif statement.accept("OPTIONS"):
                options |= dict(_property(part) for part in statement.bracketed().parts())
            else:
                raise statement.wrong("FORMAT, OPTIONS or COMMENT")
        if not format:
            raise statement.wrong("FORMAT kafka or FORMAT delta")
        self._registry.add_dataset(replace(sink_from(name, format, options, where, comment), expectations=rules))

    def _auto_cdc(self, statement: Cursor, name: str | None, where: str, *, once: bool = False) -> None:
        target = self._qualified(statement.name("a streaming table"))
        statement.expect("FROM")
        if statement.accept("SNAPSHOT"):
            self._snapshots(statement, target, name, where)
            return
        arguments = auto_cdc_arguments(statement, self._schema)
        with at_line(where):
            create_auto_cdc_flow(target=target, name=name, once=once, **arguments)

    def _snapshots(self, statement: Cursor, target: str, name: str | None, where: str) -> None:
        query, version, arguments = snapshot_arguments(statement)
        source: str | SnapshotQuery
        if version is not None:
            source = SnapshotQuery(query.bracketed("a query in brackets").raw(), version.raw())
        elif query.at("("):
            source = f"{target}_snapshot"
            view = definition_from("materialized_view", source, _returning(relation(query, self._schema)), where, {})
            self._registry.add_dataset(view)
            query.rest()
        else:
            source = self._qualified(query.name("a query in brackets, or a name"))
        query.finish()
        with at_line(where):
            create_auto_cdc_from_snapshot_flow(target=target, source=source, name=name, **arguments)

    def _qualified(self, name: str) -> str:
        name = name.split(".", 1)[1] if name.upper().startswith("LIVE.") else name
        return f"{self._schema}.{name}" if self._schema and "." not in name else name


def _returning(described: Relation) -> Callable[[], Relation]:
    """Return what a decorated function is elsewhere."""
    return lambda: described


def _columns(items: Cursor) -> tuple[dict[str, Any], tuple[Expectation, ...]]:
    """Return the declared schema, as an option, and the rules of a column list."""
    columns: list[pa.Field] = []
    rules: list[Expectation] = []
    checks: dict[str, str] = {}
    for item in items.parts():
        if item.at("CONSTRAINT") and len(item.tokens) > 2 and is_word(item.tokens[2], "EXPECT"):
            item.expect("CONSTRAINT")
            rules.append(_rule(item))
            continue
        if item.is_at_end:
            raise item.wrong("a column or CONSTRAINT")
        try:
            found = parse_ddl(item.raw(), is_table=True)
            columns += found
            checks |= json.loads((found.metadata or {}).get(CONSTRAINTS.encode(), b"{}"))
        except SchemaError as exc:
            raise item.source.error(
                exc.what, item.offset, code=exc.code, found=exc.found, expected=exc.expected, remedy=exc.remedy
            ) from exc
    options: dict[str, Any] = {"schema": pa.schema(columns)} if columns else {}
    if checks:
        options["table_properties"] = {f"delta.constraints.{name}": text for name, text in checks.items()}
    return options, tuple(rules)


def _rule(item: Cursor) -> Expectation:
    where = item.where
    name = item.name("a rule name")
    item.expect("EXPECT")
    condition = item.bracketed("EXPECT (condition)").raw()
    if not condition:
        raise item.wrong("a condition")
    action: Action = "warn"
    if item.accept("ON", "VIOLATION"):
        found = [known for words, known in _ACTIONS.items() if item.accept(*words)]
        if not found:
            raise item.wrong("DROP ROW, FAIL UPDATE or QUARANTINE")
        action = found[0]
    bounds = _limits(item)
    item.finish()
    return Expectation(name=name, sql=condition, action=action, where=where, **bounds)


def _limits(item: Cursor) -> dict[str, Any]:
    """Return how much of a batch may break a rule: ``THRESHOLD '1%'``, ``MAX VIOLATIONS 10``."""
    threshold, most = None, None
    if item.accept("THRESHOLD"):
        threshold = item.text("a share in single quotes, as '1%'")
    if item.accept("MAX", "VIOLATIONS"):
        number = item.rest().raw()
        if not number.isdigit():
            raise item.wrong("a number of rows")
        most = int(number)
    return limits(threshold, most)


def _clauses(statement: Cursor) -> dict[str, Any]:
    """Return the options between the columns and the query."""
    options: dict[str, Any] = {}
    while not statement.is_at_end and not statement.at("AS"):
        if statement.accept("COMMENT"):
            options["comment"] = statement.text()
        elif statement.accept("PARTITIONED", "BY"):
            options["partition_cols"] = [part.name("a column") for part in statement.bracketed().parts()]
        elif statement.accept("CLUSTER", "BY"):
            options["cluster_by"] = (
                ["AUTO"]
                if statement.accept("AUTO")
                else [part.name("a column") for part in statement.bracketed().parts()]
            )
        elif statement.accept("TBLPROPERTIES"):
            options["table_properties"] = dict(_property(part) for part in statement.bracketed().parts())
        elif statement.accept("LOCATION"):
            options["path"] = statement.text()
        elif statement.accept("REFRESH", "POLICY"):
            policy = statement.name("AUTO, FULL, INCREMENTAL or INCREMENTAL STRICT").lower()
            options["refresh_policy"] = f"{policy}_strict" if statement.accept("STRICT") else policy
        elif not statement.accept("USING", "DELTA"):
            raise statement.wrong(_CLAUSES)
    return options


def _property(part: Cursor) -> tuple[str, str]:
    key = part.text() if part.is_text else part.name("a property")
    if not part.accept("="):
        part.accept(":")
    value = part.text() if part.is_text else part.rest().raw()
    if not value:
        raise part.wrong("a value")
    part.finish()
    return key, value
