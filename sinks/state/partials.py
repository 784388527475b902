"""Aggregates in pieces: what is kept of rows so that their aggregates can be said later.

Counts, sums, averages, extremes and booleans are kept as partial values that combine exactly. For every other aggregate the rows
themselves are kept: the columns that it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp

from waxlake.stream.engine import open_session, quote_name
from waxlake.stream.errors import UserError
from waxlake.stream.schema import no_rows

__all__ = ["Partials", "partials_of"]

_COMBINED: Final[dict[Any, str]] = {
    exp.Count: "sum",
    exp.CountIf: "sum",
    exp.Sum: "sum",
    exp.Min: "min",
    exp.Max: "max",
    exp.LogicalAnd: "bool_and",
    exp.LogicalOr: "bool_or",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partials:
    """What is kept for some aggregates.

    Attributes:
        columns: What is kept: name and SQL over the rows of a group; over one row where rows are kept.
        combined: SQL that combines each of ``columns`` over several partial rows; empty where rows are kept.
        results: Each aggregate's name and SQL over what is kept: over one combined row, or over the rows of a group.
    """

    columns: tuple[tuple[str, str], ...]
    combined: tuple[tuple[str, str], ...]
    results: tuple[tuple[str, str], ...]

    @property
    def keeps_rows(self) -> bool:
        """Whether rows are kept rather than partial values."""
        return not self.combined


def partials_of(aggregates: Sequence[tuple[str, str]], schema: pa.Schema) -> Partials:
    """Return what has to be kept for aggregates over rows of a schema.

    Args:
        aggregates: Names and SQL, as ``("total", "sum(amount)")``.
        schema: Columns of the rows.

    Raises:
        UserError: An expression that is none of DuckDB's, an unknown column. Not retryable.
    """
    kinds = _kinds(aggregates, schema)
    parts = _Parts()
    results = []
    for (name, text), kind in zip(aggregates, kinds, strict=True):
        made = parts.result(text)
        if made is None:
            return _rows(aggregates, kinds, schema)
        results.append((name, f"CAST({made} AS {kind})"))
    found = Partials(columns=tuple(parts.columns), combined=tuple(parts.combined), results=tuple(results))
    session = open_session()
    try:
        session.register("rows_in", no_rows(schema))
        session.sql(
            "SELECT " + ", ".join(f"{sql} AS {name}" for name, sql in found.columns) + " FROM rows_in"
        ).fetchall()
    except duckdb.Error:  # an average of times, say: rows do for everything
        return _rows(aggregates, kinds, schema)
    finally:
        session.close()
    return found


def _kinds(aggregates: Sequence[tuple[str, str]], schema: pa.Schema) -> list[str]:
    """Return DuckDB's type of each aggregate."""
    session = open_session()
    try:
        session.register("rows_in", no_rows(schema))
        kinds = []
        for name, text in aggregates:
            try:
                described = session.execute(f"DESCRIBE SELECT ({text}) AS value, count(*) FROM rows_in").fetchall()
            except duckdb.Error as exc:
                code = "UNKNOWN_COLUMN" if "not found" in str(exc) else "SQL_INVALID"
                raise UserError(f"the aggregate '{name}' does not fit the rows: {str(exc).strip()}", code=code) from exc
            kinds.append(str(described[0][1]))
        return kinds
    finally:
        session.close()


def _rows(aggregates: Sequence[tuple[str, str]], kinds: Sequence[str], schema: pa.Schema) -> Partials:
    names: dict[str, None] = {}
    known = {name.lower(): name for name in schema.names}
    for _, text in aggregates:
        parsed = _parsed(text)
        used = known if parsed is None else {column.name.lower() for column in parsed.find_all(exp.Column)}
        # in the order of the rows: that of a set differs from process to process, and the shape of the state with it
        names |= {name: None for lower, name in known.items() if lower in used}
    return Partials(
        columns=tuple((name, quote_name(name)) for name in names),
        combined=(),
        results=tuple(
            (name, f"CAST(({text}) AS {kind})") for (name, text), kind in zip(aggregates, kinds, strict=True)
        ),
    )


def _parsed(text: str) -> Any:
    try:
        return sqlglot.parse_one(text, dialect="duckdb")
    except sqlglot.errors.SqlglotError:
        return None


class _Parts:
    """Gathers the partial values of several expressions; equal ones are kept once."""

    def __init__(self) -> None:
        self.columns: list[tuple[str, str]] = []
        self.combined: list[tuple[str, str]] = []

    def result(self, text: str) -> str | None:
        """Return the expression over combined partial values; None if its aggregates do not combine."""
        parsed = _parsed(text)
        if parsed is None:
            return None
        root = exp.Paren(this=parsed)
        for node in list(root.find_all(exp.AggFunc)):
            whole = node.parent if isinstance(node.parent, exp.Filter) else node
            made = self._combined(node, whole)
            if made is None:
                return None
            whole.replace(sqlglot.parse_one(made, dialect="duckdb"))
        known = {name for name, _ in self.columns}
        unknown = (exp.AggFunc, exp.Anonymous, exp.Window, exp.Subquery)
        if any(True for _ in root.find_all(*unknown)) or any(c.name not in known for c in root.find_all(exp.Column)):
            return None
        return root.sql(dialect="duckdb")

    def _combined(self, node: Any, whole: Any) -> str | None:
        more = any(value for key, value in node.args.items() if key not in ("this", "big_int"))
        if more or isinstance(node.this, exp.Distinct | exp.Order | exp.Having | exp.Limit):
            return None
        if node.find(exp.AggFunc) is not node or isinstance(
            whole.parent, exp.Window | exp.WithinGroup | exp.IgnoreNulls
        ):
            return None
        if isinstance(node, exp.Avg):
            total, count = node.copy(), node.copy()
            replaced = [
                self._kept(whole, node, kind(this=part.this), "sum")
                for kind, part in ((exp.Sum, total), (exp.Count, count))
            ]
            return f"({replaced[0]}::DOUBLE / nullif({replaced[1]}, 0))"
        how = _COMBINED.get(type(node))
        if how is None:
            return None
        kept = self._kept(whole, node, node.copy(), how)
        return f"coalesce({kept}, 0)" if isinstance(node, exp.Count | exp.CountIf) else kept

    def _kept(self, whole: Any, node: Any, part: Any, how: str) -> str:
        """Keep a partial value, with the filter of the aggregate, and return its column."""
        expression = part
        if whole is not node:
            expression = exp.Filter(this=part, expression=whole.expression.copy())
        sql = expression.sql(dialect="duckdb")
        for name, known in self.columns:
            if known == sql and (name, f"{how}({name})") in self.combined:
                return name
        name = f"__waxlake_part{len(self.columns)}"
        self.columns.append((name, sql))
        self.combined.append((name, f"{how}({name})"))
        return name
