"""What the query of a view is made of, after its names are resolved: scans, selections with joins, groups, unions.

Each node renders itself as SQL over the inputs as they were (``old``) or are (``new``). Built by ``analysis``, evaluated by
``delta``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sqlglot import expressions as exp

from waxlake.stream.engine import quote_name

__all__ = ["SOURCE", "Block", "Join", "Keyed", "Node", "Relations", "Scan", "Source", "Union", "rendered"]

SOURCE: Final = "__f"
"""Alias of the one source of a ``Keyed``."""

Relations: TypeAlias = "Callable[[Scan], str]"
"""Returns the relation that holds the rows of an input, on one side."""


def rendered(expression: exp.Expr) -> str:
    """Return an expression as SQL."""
    return expression.sql(dialect="duckdb")


@dataclass(slots=True, kw_only=True, eq=False)
class Scan:
    """A stored input.

    Attributes:
        name: Its name.
        columns: Its columns, in lower case.
        used: Those that the query uses.
    """

    name: str
    columns: tuple[str, ...]
    used: set[str] = field(default_factory=set)
    inexact: frozenset[int] = frozenset()

    def sql(self, relations: Relations) -> str:
        """Return it as a relation."""
        return relations(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """How a source joins what comes before it.

    Attributes:
        kind: ``JOIN``, ``LEFT JOIN``, ``RIGHT JOIN``, ``FULL JOIN``, ``SEMI JOIN``, ``ANTI JOIN`` or ``CROSS JOIN``.
        on: The condition; None for a cross join.
        pairs: Its equalities, as (expression over what comes before, expression over the source).
    """

    kind: str
    on: str | None
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One relation of a FROM clause.

    Attributes:
        alias: Its alias.
        node: What it is.
        join: How it joins those before it; None for the first.
    """

    alias: str
    node: Node
    join: Join | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Block:
    """A SELECT without groups, windows or DISTINCT: row by row over joined sources.

    Attributes:
        items: Its expressions.
        columns: Their names.
        sources: Its FROM clause; empty for constants.
        where: Its condition, or None.
        inexact: Columns that depend on the order of rows.
    """

    items: tuple[exp.Expr, ...]
    columns: tuple[str, ...]
    sources: tuple[Source, ...]
    where: exp.Expr | None
    inexact: frozenset[int] = frozenset()

    def sql(self, relations: Relations) -> str:
        """Return it as a relation."""
        return f"({self.select({s.alias: s.node.sql(relations) for s in self.sources})})"

    def select(self, relations: Mapping[str, str], *, weight: str = "", more: str = "") -> str:
        """Return the SELECT.

        Args:
            relations: Alias to relation.
            weight: A further item.
            more: Further joins.
        """
        items = [f"{rendered(item)} AS {quote_name(n)}" for item, n in zip(self.items, self.columns, strict=True)]
        text = f"SELECT {', '.join([*items, *([weight] if weight else [])])}"
        for source in self.sources:
            relation = f"{relations[source.alias]} AS {quote_name(source.alias)}"
            if source.join is None:
                text += f" FROM {relation}"
            else:
                text += f" {source.join.kind} {relation}" + (f" ON {source.join.on}" if source.join.on else "")
        return text + more + (f" WHERE {rendered(self.where)}" if self.where is not None else "")


@dataclass(slots=True, kw_only=True, eq=False)
class Keyed:
    """A SELECT whose rows belong to keys: groups, windows by partition, or DISTINCT. What has no changed key stays as it is.

    Attributes:
        kind: ``GROUP_AGGREGATE``, ``WINDOW_FUNCTION`` or ``DISTINCT``.
        items: Its expressions, over the columns of its source.
        columns: Their names.
        source: Its one source, aliased ``SOURCE``.
        keys: Expressions that separate its rows.
        groups: GROUP BY expressions; None without groups.
        having: Condition on groups, or None.
        qualify: Condition on windows, or None.
        inexact: Columns that depend on the order of rows.
        steady: Whether the set of its rows does not depend on the order of rows.
    """

    kind: str
    items: tuple[exp.Expr, ...]
    columns: tuple[str, ...]
    source: Node
    keys: tuple[exp.Expr, ...]
    groups: tuple[exp.Expr, ...] | None = None
    having: exp.Expr | None = None
    qualify: exp.Expr | None = None
    inexact: frozenset[int] = frozenset()
    steady: bool = True

    def sql(self, relations: Relations) -> str:
        """Return it as a relation."""
        return f"({self.select(self.source.sql(relations))})"

    def select(self, relation: str, *, more: str = "", where: str = "") -> str:
        """Return the SELECT over a relation in the place of the source.

        Args:
            relation: The relation.
            more: Further joins.
            where: A condition on the source's rows.
        """
        items = ", ".join(f"{rendered(i)} AS {quote_name(n)}" for i, n in zip(self.items, self.columns, strict=True))
        text = f"SELECT {'DISTINCT ' if self.kind == 'DISTINCT' else ''}{items} FROM {relation} AS {SOURCE}{more}"
        if where:
            text += f" WHERE {where}"
        if self.groups:
            text += f" GROUP BY {', '.join(rendered(group) for group in self.groups)}"
        if self.having is not None:
            text += f" HAVING {rendered(self.having)}"
        if self.qualify is not None:
            text += f" QUALIFY {rendered(self.qualify)}"
        return text

    def key_columns(self) -> tuple[int, ...] | None:
        """Return which of its columns hold the keys; None if one is not among them."""
        texts = [rendered(item) for item in self.items]
        found = [texts.index(text) if text in texts else -1 for text in map(rendered, self.keys)]
        return None if -1 in found else tuple(found)


@dataclass(slots=True, kw_only=True, eq=False)
class Union:
    """UNION ALL, by position.

    Attributes:
        parts: What is put together.
        columns: Names, those of the first part.
        types: DuckDB types of the columns.
        inexact: Columns that depend on the order of rows.
    """

    parts: Sequence[Node]
    columns: tuple[str, ...]
    types: tuple[str, ...] = ()
    inexact: frozenset[int] = frozenset()

    def sql(self, relations: Relations) -> str:
        """Return it as a relation."""
        return f"({' UNION ALL '.join(self.fitted(part.sql(relations), part.columns) for part in self.parts)})"

    def fitted(self, relation: str, columns: Sequence[str], more: str = "") -> str:
        """Return a part with the names and types of the whole."""
        kinds = self.types or ("",) * len(self.columns)
        items = [
            f"{f'CAST({quote_name(have)} AS {kind})' if kind else quote_name(have)} AS {quote_name(name)}"
            for have, name, kind in zip(columns, self.columns, kinds, strict=True)
        ]
        return f"SELECT {', '.join(items)}{more} FROM {relation} AS __p"


Node: TypeAlias = Scan | Block | Keyed | Union
