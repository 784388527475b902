"""One SELECT after the other as operators: names resolved by sqlglot, one SELECT at a time, over the columns of its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb
from sqlglot import expressions as exp
from sqlglot.optimizer.qualify import qualify

from waxlake.pipeline.incremental.algebra import (
    SOURCE,
    Block,
    Join,
    Keyed,
    Node,
    Relations,
    Scan,
    Source,
    Union,
    rendered,
)
from waxlake.pipeline.incremental.functions import aggregates_in, is_exact
from waxlake.pipeline.incremental.reasons import NotIncremental

__all__ = ["Selects"]

_CLAUSES = frozenset(
    ("kind", "expressions", "from_", "joins", "where", "group", "having", "qualify", "distinct", "order", "with_")
)
_KINDS = {
    ("", ""): "JOIN",
    ("", "INNER"): "JOIN",
    ("LEFT", ""): "LEFT JOIN",
    ("LEFT", "OUTER"): "LEFT JOIN",
    ("RIGHT", ""): "RIGHT JOIN",
    ("RIGHT", "OUTER"): "RIGHT JOIN",
    ("FULL", ""): "FULL JOIN",
    ("FULL", "OUTER"): "FULL JOIN",
    ("", "SEMI"): "SEMI JOIN",
    ("", "ANTI"): "ANTI JOIN",
    ("LEFT", "SEMI"): "SEMI JOIN",
    ("LEFT", "ANTI"): "ANTI JOIN",
    ("", "CROSS"): "CROSS JOIN",
}


def _refuse(what: str, code: str = "UNSUPPORTED_OPERATOR") -> NotIncremental:
    return NotIncremental(code, what)


@dataclass(slots=True)
class Selects:
    """Turns queries into operators.

    Args:
        session: Where expressions are bound, to learn their types.
        empty: Relation without rows of a scan.
        named: Finds a table or view by its name.
    """

    session: duckdb.DuckDBPyConnection
    empty: Relations
    named: Callable[[str], Node]
    _aliases: int = field(default=0)

    def node(self, tree: exp.Expr, known: Mapping[str, Node]) -> Node:
        """Return what a query is.

        Args:
            tree: The query.
            known: Relations that its names may mean besides tables: ``stream``, and what WITH names.

        Raises:
            NotIncremental: Names the construct.
        """
        with_ = tree.args.get("with_")
        if with_ is not None:
            if with_.args.get("recursive"):
                raise _refuse("WITH RECURSIVE")
            known = dict(known)
            for cte in with_.expressions:
                known[cte.alias.casefold()] = _renamed(self.node(cte.this, known), cte)
        if isinstance(tree, exp.SetOperation):
            return self._set_operation(tree, known)
        if isinstance(tree, exp.Subquery):
            _require_plain(tree, ("this", "with_", "alias"))
            return self.node(tree.this, known)
        if not isinstance(tree, exp.Select):
            raise _refuse(type(tree).__name__.upper())
        return self._select(tree, known)

    def _set_operation(self, tree: exp.SetOperation, known: Mapping[str, Node]) -> Node:
        if not isinstance(tree, exp.Union) or tree.args.get("by_name"):
            raise _refuse("UNION BY NAME" if isinstance(tree, exp.Union) else type(tree).__name__.upper())
        _require_plain(tree, ("this", "expression", "distinct", "with_", "order"))
        parts: list[Node] = [self.node(tree.this, known), self.node(tree.expression, known)]
        if len(parts[0].columns) != len(parts[1].columns):
            raise _refuse("UNION of different columns")
        inexact = parts[0].inexact | parts[1].inexact
        union = Union(parts=parts, columns=_distinct_names(parts[0].columns), inexact=inexact)
        types = self.session.sql(f"FROM {union.sql(self.empty)}").types
        union = replace(union, types=tuple(map(str, types)))
        return self._distinct(union) if tree.args.get("distinct", True) else union

    def _select(self, tree: exp.Select, known: Mapping[str, Node]) -> Node:
        for clause, value in tree.args.items():
            if value and clause not in _CLAUSES:
                raise _refuse(clause.upper().rstrip("_"))
        if tree.args.get("kind"):
            raise _refuse("SELECT AS")
        distinct = tree.args.get("distinct")
        if distinct is not None and distinct.args.get("on"):
            raise _refuse("DISTINCT ON")
        tree = tree.copy()
        for clause in ("with_", "order", "distinct"):
            tree.set(clause, None)
        nodes = self._sources(tree, known)
        if any(isinstance(found, exp.Query) for found in tree.find_all(exp.Query) if found is not tree):
            raise _refuse("a subquery in an expression")
        if any(True for _ in tree.find_all(exp.Columns)):
            raise _refuse("COLUMNS()")
        schema: dict[str, object] = {a: dict.fromkeys(node.columns, "UNKNOWN") for a, node in nodes.items()}
        qualified = qualify(tree, schema=schema, dialect="duckdb") if schema else tree
        assert isinstance(qualified, exp.Select)
        node = self._taken_apart(qualified, nodes)
        return self._distinct(node) if distinct is not None else node

    def _sources(self, tree: exp.Select, known: Mapping[str, Node]) -> dict[str, Node]:
        """Return the relations of FROM by alias; in the tree, each becomes a plain table of that name."""
        nodes: dict[str, Node] = {}
        from_ = tree.args.get("from_")
        joins = tree.args.get("joins") or []
        for holder in [*([from_] if from_ is not None else []), *joins]:
            relation = holder.this
            if isinstance(relation, exp.Table) and isinstance(relation.this, exp.Identifier):
                _require_plain(relation, ("this", "db", "alias"))
                name = ".".join(part for part in (relation.db, relation.name) if part)
                node = known[name.casefold()] if name.casefold() in known else self.named(name)
            elif isinstance(relation, exp.Subquery):
                _require_plain(relation, ("this", "alias"))
                node = self.node(relation.this, known)
            else:
                raise _refuse(f"{rendered(relation)[:60]} in FROM")
            alias = relation.alias_or_name.casefold()
            if relation.args.get("alias") is not None:
                node = _renamed(node, relation)
            if not alias:
                self._aliases += 1
                alias = f"__s{self._aliases}"
            if alias in nodes:
                raise _refuse(f"two relations named '{alias}'")
            nodes[alias] = node
            quoted = exp.to_identifier(alias, quoted=True)
            holder.set("this", exp.Table(this=quoted, alias=exp.TableAlias(this=quoted.copy())))
        return nodes

    def _taken_apart(self, tree: exp.Select, nodes: Mapping[str, Node]) -> Node:
        items = tuple(_unaliased(item) for item in tree.expressions)
        columns = _distinct_names([item.alias_or_name or f"_col_{i}" for i, item in enumerate(tree.expressions)])
        for column in tree.find_all(exp.Column):
            if column.table not in nodes:
                raise _refuse(f"column {rendered(column)}")
            node = nodes[column.table]
            if isinstance(node, Scan):
                node.used.add(column.name.casefold())
        sources = _joined(tree, nodes)
        where = tree.args["where"].this if tree.args.get("where") else None
        group, having, qualified = tree.args.get("group"), tree.args.get("having"), tree.args.get("qualify")
        outer = [*items, *([having.this] if having else []), *([qualified.this] if qualified else [])]
        has_groups = group is not None or any(aggregates_in(item) for item in outer)
        windows = [window for item in outer for window in item.find_all(exp.Window)]
        conditions = [where, *(join for s in sources for join in _condition(tree, s))]
        if any(_uses_inexact(condition, nodes) for condition in conditions if condition is not None):
            raise _refuse("a condition on a value that depends on the order of rows", "ORDER_DEPENDENT")
        if not has_groups and not windows:
            inexact = frozenset(i for i, item in enumerate(items) if _uses_inexact(item, nodes))
            block = Block(items=items, columns=columns, sources=sources, where=where, inexact=inexact)
            return _merged(block)
        return self._keyed(tree, items, columns, nodes, sources, where, windows, has_groups=has_groups)

    def _keyed(
        self,
        tree: exp.Select,
        items: Sequence[exp.Expr],
        columns: tuple[str, ...],
        nodes: Mapping[str, Node],
        sources: tuple[Source, ...],
        where: exp.Expr | None,
        windows: Sequence[exp.Window],
        *,
        has_groups: bool,
    ) -> Keyed:
        """Return a SELECT with groups or windows, over a block of what it takes from its sources."""
        groups = _groups(tree, items) if has_groups else None
        having = tree.args["having"].this if tree.args.get("having") else None
        qualified = tree.args["qualify"].this if tree.args.get("qualify") else None
        outer = [*items, *(groups or ()), *(part for part in (having, qualified) if part is not None)]
        taken: dict[str, exp.Expr] = {}
        for part in outer:
            for column in part.find_all(exp.Column):
                taken.setdefault(rendered(column), column.copy())
        names = {text: f"c{i}" for i, text in enumerate(taken)}
        inner = tuple(taken.values()) or (exp.Literal.number(1),)
        inexact = frozenset(i for i, item in enumerate(inner) if _uses_inexact(item, nodes))
        block = Block(
            items=inner,
            columns=tuple(names.values()) or ("c0",),
            sources=sources,
            where=where,
            inexact=inexact,
        )

        def over(part: exp.Expr) -> exp.Expr:
            return part.copy().transform(
                lambda node: (
                    exp.column(names[rendered(node)], SOURCE, quoted=True) if isinstance(node, exp.Column) else node
                )
            )

        keys = [over(group) for group in groups] if groups is not None else []
        if windows:
            shared = _shared_partition([over(window) for window in windows])
            keys = [key for key in shared if groups is None or rendered(key) in set(map(rendered, keys))]
            if not keys:
                raise _refuse("window functions", "WINDOW_WITHOUT_PARTITION")
        if any(_mentions(key, inexact) for key in keys):
            raise _refuse("a key that depends on the order of rows", "ORDER_DEPENDENT")
        node = Keyed(
            kind="WINDOW_FUNCTION" if windows else "GROUP_AGGREGATE",
            items=tuple(over(item) for item in items),
            columns=columns,
            source=_merged(block),
            keys=tuple(keys),
            groups=tuple(over(group) for group in groups) if groups is not None else None,
            having=over(having) if having is not None else None,
            qualify=over(qualified) if qualified is not None else None,
        )
        return self._judged(node)

    def _judged(self, node: Keyed) -> Keyed:
        """Return a keyed SELECT with the columns marked whose values depend on the order of rows."""
        steady = all(self._is_exact(node, part) for part in (node.having, node.qualify) if part is not None)
        keys = set(map(rendered, node.keys))
        inexact = frozenset(
            i
            for i, item in enumerate(node.items)
            if rendered(item) not in keys and not (steady and self._is_exact(node, item))
        )
        return replace(node, inexact=inexact, steady=steady)

    def _is_exact(self, node: Keyed, part: exp.Expr) -> bool:
        if _mentions(part, node.source.inexact):
            return False
        for window in part.find_all(exp.Window):
            if not is_exact(window.this, [], is_window=True):
                return False
        return all(is_exact(found, self._types(node, found)) for found in aggregates_in(part))

    def _types(self, node: Keyed, function: exp.Expr) -> list[str]:
        arguments = [a for a in [function.args.get("this"), *function.expressions] if isinstance(a, exp.Expr)]
        arguments = [part for a in arguments for part in (a.expressions if isinstance(a, exp.Distinct) else [a])]
        texts = [rendered(a) for a in arguments if not isinstance(a, exp.Star)]
        if not texts:
            return []
        relation = node.source.sql(self.empty)
        return [str(kind) for kind in self.session.sql(f"SELECT {', '.join(texts)} FROM {relation} AS {SOURCE}").types]

    def _distinct(self, node: Node) -> Keyed:
        """Return DISTINCT over a node: all its columns are the key."""
        if node.inexact:
            raise _refuse("DISTINCT of values that depend on the order of rows", "ORDER_DEPENDENT")
        if isinstance(node, Scan):
            node.used.update(node.columns)
        items = tuple(exp.column(name, SOURCE, quoted=True) for name in node.columns)
        return Keyed(kind="DISTINCT", items=items, columns=node.columns, source=node, keys=items)


def _require_plain(tree: exp.Expr, allowed: Sequence[str]) -> None:
    for clause, value in tree.args.items():
        if value and clause not in allowed:
            raise _refuse(clause.upper().rstrip("_"))


def _renamed(node: Node, relation: exp.Expr) -> Node:
    alias = relation.args.get("alias")
    names = [column.name.casefold() for column in alias.args.get("columns") or ()] if alias is not None else []
    if not names:
        return node
    raise _refuse("column names after an alias")


def _distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names in lower case; of two equal ones, the later gets another: it cannot be referred to anyway."""
    found: list[str] = []
    for i, name in enumerate(names):
        lower = name.casefold()
        found.append(f"__{lower}_{i}" if lower in found else lower)
    return tuple(found)


def _unaliased(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item


def _joined(tree: exp.Select, nodes: Mapping[str, Node]) -> tuple[Source, ...]:
    """Return FROM as sources in order, each with how it joins those before."""
    from_ = tree.args.get("from_")
    if from_ is None:
        return ()
    first = from_.this.alias_or_name
    sources = [Source(alias=first, node=nodes[first])]
    for join in tree.args.get("joins") or ():
        if join.args.get("method") or join.args.get("using"):
            raise _refuse(f"{join.args.get('method') or ''} JOIN USING".strip())
        kind = _KINDS.get(((join.side or "").upper(), (join.kind or "").upper()))
        on = join.args.get("on")
        if kind == "JOIN" and on is None:
            kind = "CROSS JOIN"
        if kind is None or (kind != "CROSS JOIN") == (on is None):
            raise _refuse(rendered(join)[:60])
        alias = join.this.alias_or_name
        before = {source.alias for source in sources}
        pairs = _pairs(on, before, alias) if on is not None else ()
        if kind in ("RIGHT JOIN", "FULL JOIN") and len(sources) > 1:
            raise _refuse(f"{kind} behind another join")
        if kind not in ("JOIN", "CROSS JOIN") and not pairs:
            raise _refuse(f"{kind} without an equality")
        found = Join(kind=kind, on=rendered(on) if on is not None else None, pairs=pairs)
        sources.append(Source(alias=alias, node=nodes[alias], join=found))
    return tuple(sources)


def _pairs(on: exp.Expr, before: set[str], alias: str) -> tuple[tuple[str, str], ...]:
    """Return the equalities of a join condition."""
    pairs = []
    for part in on.flatten() if isinstance(on, exp.And) else [on]:
        part = part.unnest()
        if not isinstance(part, exp.EQ):
            continue
        for one, other in ((part.this, part.expression), (part.expression, part.this)):
            left = {column.table for column in one.find_all(exp.Column)}
            right = {column.table for column in other.find_all(exp.Column)}
            if left and left <= before and right == {alias}:
                pairs.append((rendered(one), rendered(other)))
    return tuple(pairs)


def _condition(tree: exp.Select, source: Source) -> list[exp.Expr]:
    return [
        join.args["on"]
        for join in tree.args.get("joins") or ()
        if join.this.alias_or_name == source.alias and join.args.get("on") is not None
    ]


def _uses_inexact(part: exp.Expr, nodes: Mapping[str, Node]) -> bool:
    for column in part.find_all(exp.Column):
        node = nodes[column.table]
        if node.inexact and list(node.columns).index(column.name.casefold()) in node.inexact:
            return True
    return False


def _mentions(part: exp.Expr, inexact: frozenset[int]) -> bool:
    return any(int(column.name[1:]) in inexact for column in part.find_all(exp.Column)) if inexact else False


def _groups(tree: exp.Select, items: Sequence[exp.Expr]) -> tuple[exp.Expr, ...]:
    group = tree.args.get("group")
    if group is None:
        return ()
    if any(group.args.get(kind) for kind in ("grouping_sets", "cube", "rollup", "totals")):
        raise _refuse("GROUPING SETS")
    found = [item for item in items if not aggregates_in(item)] if group.args.get("all") else group.expressions
    if any(isinstance(item, exp.Literal | exp.Cube | exp.Rollup | exp.GroupingSets | exp.Tuple) for item in found):
        raise _refuse("GROUP BY a constant" if isinstance(found[0], exp.Literal) else "GROUPING SETS")
    return tuple(found)


def _shared_partition(windows: Sequence[exp.Expr]) -> list[exp.Expr]:
    """Return the PARTITION BY expressions that all windows have."""
    shared: list[exp.Expr] | None = None
    for window in windows:
        if window.args.get("alias"):
            raise _refuse("a named window")
        texts = {rendered(part) for part in window.args.get("partition_by") or ()}
        parts = list(window.args.get("partition_by") or ()) if shared is None else shared
        shared = [part for part in parts if rendered(part) in texts]
    return shared or []


def _merged(block: Block) -> Node:
    """Return a block that only chooses, computes and filters rows of a keyed SELECT as part of that SELECT."""
    if len(block.sources) != 1:
        return block
    below = block.sources[0].node
    if not isinstance(below, Keyed) or below.kind == "DISTINCT" or any(b.find(exp.Unnest) for b in block.items):
        return block
    if block.where is not None and (below.qualify is not None or below.kind == "WINDOW_FUNCTION"):
        return block

    def inside(part: exp.Expr) -> exp.Expr:
        return part.copy().transform(
            lambda node: (
                exp.paren(below.items[below.columns.index(node.name.casefold())].copy())
                if isinstance(node, exp.Column)
                else node
            )
        )

    items = tuple(_bare(inside(item)) for item in block.items)
    having = below.having
    if not below.groups and below.kind == "GROUP_AGGREGATE" and not all(map(aggregates_in, items)):
        return block
    if block.where is not None:
        condition = inside(block.where)
        having = condition if having is None else exp.and_(having, condition)
    return replace(below, items=items, columns=block.columns, having=having, inexact=block.inexact)


def _bare(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Paren) else item
