"""DuckDB as a pipeline uses it: sessions, queries to Arrow, names of tables, errors of SQL.

Flows, views and checks build on it; what a query means is theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from waxlake.stream.engine import open_session
from waxlake.stream.errors import DefinitionError, UserError, shorten

__all__ = [
    "STREAM",
    "StaticTables",
    "place_of",
    "referenced_tables",
    "register_tables",
    "run_query",
    "sql_failed",
    "sql_refused",
    "static_alias",
    "with_static_aliases",
    "without_columns",
]

STREAM = "stream"

StaticTables = Callable[[str], Any]
"""Returns the Arrow table or dataset behind a name, as it is now."""


def run_query(connection: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
    """Return the rows of a query as an Arrow table with Delta's types; HUGEINT becomes BIGINT."""
    relation = connection.sql(text)
    wide = [
        name
        for name, kind in zip(relation.columns, relation.types, strict=True)
        if str(kind) in ("HUGEINT", "UHUGEINT")
    ]
    table: pa.Table = relation.to_arrow_table()
    if wide or any(pa.types.is_timestamp(f.type) and f.type.tz not in (None, "UTC") for f in table.schema):
        table = table.cast(pa.schema([_plain(f, wide) for f in table.schema]))
    return table


def _plain(item: pa.Field, wide: Sequence[str]) -> pa.Field:
    if item.name in wide:
        return item.with_type(pa.int64())
    if pa.types.is_timestamp(item.type) and item.type.tz is not None:
        return item.with_type(pa.timestamp(item.type.unit, "UTC"))
    return item


def register_tables(connection: duckdb.DuckDBPyConnection, names: Iterable[str], tables: StaticTables) -> None:
    """Make datasets known to a session under their aliases."""
    for name in names:
        connection.register(static_alias(name), tables(name))


def static_alias(name: str) -> str:
    """Return the plain name under which a dataset is registered; ``schema.table`` has no dot there."""
    return name.replace(".", "__dot__")


def sql_refused(what: str, where: str, exc: duckdb.Error) -> DefinitionError:
    """Return our error for SQL that cannot work whatever the rows; the text is DuckDB's."""
    text = str(exc).strip()
    code = "SQL_INVALID"
    if "not found in FROM clause" in text or "does not have a column" in text:
        code = "UNKNOWN_COLUMN"
    elif isinstance(exc, duckdb.ParserException):
        code = "SQL_SYNTAX"
    named = _NAMED.search(text)
    where = where if named is None else place_of(next(g for g in named.groups() if g), where)
    return DefinitionError(f"{what}: {text}", where=where, code=code)


_NAMED = re.compile(r'column "([^"]+)"|column named "([^"]+)"|with name "?([\w.]+)"?|near "([^"]+)"')


def place_of(name: str, where: str) -> str:
    """Return where a name stands after a place in a SQL file, as ``file:line:column``; the place itself if it does not."""
    match = re.fullmatch(r"(.+\.sql):(\d+):(\d+)", where, re.DOTALL)
    if match is None:
        return where
    file, first, column = match.group(1), int(match.group(2)), int(match.group(3))
    try:
        with open(file, encoding="utf-8-sig") as stream:
            lines = stream.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return where
    wanted = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
    for number, line in enumerate(lines[first - 1 :], first):
        found = wanted.search(line, column - 1 if number == first else 0)
        if found is not None:
            return f"{file}:{number}:{found.start() + 1}"
    return where


def sql_failed(flow: str, where: str, exc: duckdb.Error) -> UserError:
    """Return our error for SQL that failed on some row."""
    return UserError(
        f"{where}: flow '{flow}' failed on a row: {shorten(str(exc).strip(), 400)}",
        code="SQL_FAILED",
        remedy="Use TRY_CAST or a rule with expect_or_quarantine for values that do not fit",
    )


def with_static_aliases(text: str, statics: Iterable[str]) -> str:
    """Return the query with ``schema.table`` names replaced by the names they are registered under."""
    for name in statics:
        if "." in name:
            schema, _, bare = name.rpartition(".")
            pattern = rf'(?<![\w."])"?{re.escape(schema)}"?\s*\.\s*"?{re.escape(bare)}"?(?![\w"])'
            text = re.sub(pattern, static_alias(name), text)
    return text


def without_columns(text: str, hidden: Sequence[str], where: str) -> str:
    """Return the query with metadata columns left out of every ``*`` over ``stream``."""
    import sqlglot
    from sqlglot import expressions as exp

    try:
        tree = sqlglot.parse_one(text, read="duckdb")
    except sqlglot.errors.SqlglotError as exc:
        raise DefinitionError(f"cannot parse the query: {exc}", where=where, code="SQL_SYNTAX") from exc
    for select in tree.find_all(exp.Select):
        sources = [s for s in select.find_all(exp.Table) if s.parent_select is select]
        aliases = {s.alias_or_name for s in sources if s.name == STREAM}
        if not aliases:
            continue
        for item in select.expressions:
            star = item if isinstance(item, exp.Star) else item.this if isinstance(item, exp.Column) else None
            if not isinstance(star, exp.Star) or (isinstance(item, exp.Column) and item.table not in aliases):
                continue
            key = "except_" if "except_" in exp.Star.arg_types else "except"
            already = list(star.args.get(key) or [])
            known = {e.name for e in already}
            star.set(key, [*already, *(exp.to_identifier(h, quoted=True) for h in hidden if h not in known)])
    return tree.sql(dialect="duckdb")


def referenced_tables(text: str, where: str) -> set[str]:
    """Return the names of the tables a SQL query reads, CTEs left out; nothing is looked up.

    Raises:
        DefinitionError: The text is not one SELECT. Not retryable.
    """
    row = open_session().execute("SELECT json_serialize_sql(?)", [text]).fetchone()
    parsed: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if parsed.get("error"):
        raise DefinitionError(
            f"cannot parse the query: {parsed.get('error_message', 'no SELECT')}", where=where, code="SQL_SYNTAX"
        )
    if len(parsed["statements"]) != 1:
        raise DefinitionError("a query is one SELECT", where=where, code="SQL_SYNTAX", found=len(parsed["statements"]))
    tables: set[str] = set()
    ctes: set[str] = set()
    _walk(parsed, tables, ctes)
    return tables - ctes


def _walk(node: Any, tables: set[str], ctes: set[str]) -> None:
    """Collect table and CTE names from DuckDB's syntax tree."""
    if isinstance(node, list):
        for item in node:
            _walk(item, tables, ctes)
        return
    if not isinstance(node, dict):
        return
    if node.get("type") == "BASE_TABLE":
        tables.add(".".join(part for part in (node.get("schema_name"), node.get("table_name")) if part))
    for entry in (node.get("cte_map") or {}).get("map", []):
        ctes.add(entry["key"])
    for item in node.values():
        _walk(item, tables, ctes)
