"""From the query of a view to the operators that it is made of, through temporary views; what cannot be followed is named.

The steps of a query are what ``Transform`` compiled; each is parsed, its names resolved, and taken apart. In the end the whole
is bound over inputs without rows: unless it makes the columns of the view, the query is refreshed in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import duckdb
import sqlglot

from waxlake.pipeline.definitions import SqlQuery, TableRead
from waxlake.pipeline.incremental.algebra import Node, Scan, Union
from waxlake.pipeline.incremental.functions import require_deterministic
from waxlake.pipeline.incremental.reasons import NotIncremental
from waxlake.pipeline.incremental.selects import Selects
from waxlake.pipeline.sql import STREAM, run_query, static_alias
from waxlake.pipeline.tables import EmptyTables
from waxlake.pipeline.transform import Transform
from waxlake.stream.engine import open_session, quote_name
from waxlake.stream.schema import delta_schema

if TYPE_CHECKING:
    from waxlake.pipeline.checked import BatchQuery, CheckedGraph
    from waxlake.pipeline.stream import Branch

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What a view is made of.

    Attributes:
        root: The whole query.
        scans: Its stored inputs by name.
    """

    root: Node
    scans: Mapping[str, Scan]


def analyse(checked: CheckedGraph, view: str) -> Analysis:
    """Take the query of a materialized view apart.

    Raises:
        NotIncremental: Names what cannot be followed.
    """
    session = open_session()
    try:
        return _Analyser(checked, session).analysis(view)
    finally:
        session.close()


@dataclass(slots=True)
class _Analyser:
    checked: CheckedGraph
    session: duckdb.DuckDBPyConnection
    scans: dict[str, Scan] = field(default_factory=dict)

    def analysis(self, view: str) -> Analysis:
        try:
            root = self._view(view)
            self._check_columns(view, root)
        except NotIncremental:
            raise
        except (
            Exception
        ) as error:  # whatever a parser makes of SQL that it does not know: a full refresh is right anyway
            raise NotIncremental("UNSUPPORTED_OPERATOR", f"it cannot be taken apart: {str(error)[:200]}") from error
        return Analysis(root=root, scans=self.scans)

    def _check_columns(self, view: str, root: Node) -> None:
        made = delta_schema(run_query(self.session, f"SELECT * FROM {root.sql(self._empty)} AS __q").schema)
        wanted = self.checked.queries[view].schema
        found = [field.type for field in made]
        branches = self.checked.queries[view].branches
        if any(transform.schema is not None for _, transform in branches):
            if len(made) != len(wanted) or {n.casefold() for n in made.names} != {n.casefold() for n in wanted.names}:
                raise NotIncremental(
                    "UNSUPPORTED_OPERATOR", "a declared schema with other columns than the query makes"
                )
        elif found != [field.type for field in wanted]:
            raise NotIncremental("UNSUPPORTED_OPERATOR", "the types of its columns depend on how it is written")

    def _view(self, name: str) -> Node:
        query = self.checked.queries[name]
        parts = [self._branch(query, branch, transform) for branch, transform in query.branches]
        return self._union(parts)

    def _branch(self, query: BatchQuery, branch: Branch, transform: Transform) -> Node:
        if id(branch) in query.files:
            raise NotIncremental("INPUT_NOT_DELTA", f"read_files at {branch.read.where}")
        names = {static_alias(n).casefold(): n for n in query.flow.statics} | {
            n.casefold(): n for n in query.flow.statics
        }
        if isinstance(branch.read, TableRead):
            node = self._table(branch.read.name)
            if isinstance(node, Scan) and not transform.stages:
                node.used.update(node.columns)
        else:
            assert isinstance(branch.read, SqlQuery)
            node = self._query(branch.read.text, names, {}, branch.read.where)
        for text, judged, where in transform.stages:
            if text is None:
                raise NotIncremental("PYTHON_FUNCTION", f"map_batches at {where}")
            if judged:
                raise NotIncremental("EXPECTATIONS_OF_VIEW", f"view '{judged}'")
            node = self._query(text, names, {STREAM: node}, where)
        return node

    def _query(self, text: str, names: Mapping[str, str], known: Mapping[str, Node], where: str) -> Node:
        try:
            require_deterministic(self.session, text)
            tree = sqlglot.parse_one(text, read="duckdb")
            return Selects(self.session, self._empty, lambda name: self._named(name, names)).node(tree, known)
        except NotIncremental as reason:
            if where and where not in reason.detail:
                raise NotIncremental(reason.code, f"{reason.detail} at {where}") from reason
            raise

    def _named(self, name: str, names: Mapping[str, str]) -> Node:
        if name.casefold() not in names:
            raise NotIncremental("UNSUPPORTED_OPERATOR", f"relation '{name}'")
        return self._table(names[name.casefold()])

    def _table(self, name: str) -> Node:
        dataset = self.checked.graph.datasets.get(name)
        if dataset is not None and dataset.kind == "temporary_view":
            if dataset.expectations:
                raise NotIncremental("EXPECTATIONS_OF_VIEW", f"view '{name}'")
            view = self._view(name)
            return _named_as(view, [n.casefold() for n in self.checked.schema_of(name).names])
        if name not in self.scans:
            rows = EmptyTables(self.checked)(name)
            self.scans[name] = Scan(name=name, columns=tuple(n.casefold() for n in rows.column_names))
            self.session.register(f"__empty_{len(self.scans)}", rows)
        return self.scans[name]

    def _empty(self, scan: Scan) -> str:
        return quote_name(f"__empty_{list(self.scans).index(scan.name) + 1}")

    def _union(self, parts: list[Node]) -> Node:
        if len(parts) == 1:
            return parts[0]
        union = Union(parts=parts, columns=parts[0].columns)
        return replace(union, types=tuple(map(str, self.session.sql(f"FROM {union.sql(self._empty)}").types)))


def _named_as(node: Node, columns: list[str]) -> Node:
    """Return a node with the names that a view's columns have; the order is its own."""
    if len(columns) != len(node.columns) or isinstance(node, Scan):
        return node
    return replace(node, columns=tuple(columns))
