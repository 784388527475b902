"""How the result of an operator changed, worked out from how its inputs changed. Called by ``refresh``.

A change is a table of rows with a weight: how many more (or, below 0, fewer) of them there are now. The changes of a join are
those of one source after the other, the ones before it as they are now, the ones behind it as they were. Where rows depend on
keys (groups, windows, the optional side of an outer join), the keys that changed are computed, and what they had and have.

What depends on the order of rows (a sum of doubles) may come out a little different when it is computed again; such changes
are not netted, so that every key that may have changed is among them, and they are good for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
from sqlglot import expressions as exp

from waxlake.pipeline.incremental.algebra import SOURCE, Block, Keyed, Node, Scan, Source, Union, rendered
from waxlake.stream.engine import quote_name, quote_text, select_list

__all__ = ["WEIGHT", "Change", "Deltas"]

WEIGHT: Final = "__w"
_ORDERED: Final = re.compile(r"(TINY|SMALL|BIG)?INT(EGER)?|DATE|TIMESTAMP|TIMESTAMP WITH TIME ZONE|VARCHAR")
_OLD: Final = "-1"
_NEW: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How the rows of a node changed.

    Attributes:
        table: Table with its columns and ``WEIGHT``.
        is_append: Rows were added and none left; each has the weight 1.
    """

    table: str
    is_append: bool


@dataclass(slots=True)
class Deltas:
    """Works out changes in one SQL session.

    Args:
        session: The session; tables made in it are temporary.
        relation: Returns the relation that holds an input as it was (True) or is (False).
        changed: Returns how an input changed, with the columns that the query uses; None if it did not.
    """

    session: duckdb.DuckDBPyConnection
    relation: Callable[[Scan, bool], str]
    changed: Callable[[Scan], Change | None]
    _made: dict[int, Change | None] = field(default_factory=dict)
    _count: int = 0

    def old(self, node: Node) -> str:
        """Return a node as it was, as a relation."""
        return node.sql(lambda scan: self.relation(scan, True))

    def new(self, node: Node) -> str:
        """Return a node as it is, as a relation."""
        return node.sql(lambda scan: self.relation(scan, False))

    def of(self, node: Node) -> Change | None:
        """Return how a node changed; None if it did not."""
        if id(node) not in self._made:
            self._made[id(node)] = self._of(node)
        return self._made[id(node)]

    def keys(self, node: Keyed) -> str | None:
        """Return a table of the keys of a node, ``k0``, ``k1``, …, whose rows may have changed; None if there are none."""
        change = self.of(node.source)
        if change is None:
            return None
        items = ", ".join(f"{rendered(key)} AS k{i}" for i, key in enumerate(node.keys)) or "1 AS k0"
        return self.filled(f"SELECT DISTINCT {items} FROM {change.table} AS {SOURCE}")

    def restricted(self, node: Keyed, relation: str, keys: str) -> str:
        """Return the SELECT of a node over only those rows of a relation that have one of some keys."""
        if not node.keys:
            return node.select(relation)
        same = " AND ".join(f"({rendered(key)}) IS NOT DISTINCT FROM __k.k{i}" for i, key in enumerate(node.keys))
        return node.select(relation, more=f" SEMI JOIN {keys} AS __k ON {same}", where=self._between(node, keys))

    def _between(self, node: Keyed, keys: str) -> str:
        """Return a condition that all keys meet, in constants: it reaches the input's files, and spares those that have none."""
        found = []
        for index, key in enumerate(node.keys):
            kind = str(self.session.sql(f"SELECT k{index} FROM {keys}").types[0])
            if not isinstance(key, exp.Column) or not _ORDERED.fullmatch(kind):
                continue
            bounds = f"SELECT min(k{index})::VARCHAR, max(k{index})::VARCHAR, count(*) - count(k{index}) FROM {keys}"
            low, high, nulls = self.session.sql(bounds).fetchall()[0]
            if low is None:
                continue
            text = f"{rendered(key)} BETWEEN CAST({quote_text(low)} AS {kind}) AND CAST({quote_text(high)} AS {kind})"
            found.append(f"({text} OR {rendered(key)} IS NULL)" if nulls else text)
        return " AND ".join(found)

    def filled(self, text: str) -> str | None:
        """Return a temporary table with the rows of a query; None if there are none."""
        name = self.table(text)
        return name if self.session.sql(f"SELECT 1 FROM {name} LIMIT 1").fetchall() else None

    def table(self, text: str) -> str:
        """Return a temporary table with the rows of a query."""
        self._count += 1
        name = f"__t{self._count}"
        self.session.execute(f"CREATE TEMP TABLE {name} AS {text}")
        return name

    def _of(self, node: Node) -> Change | None:
        if isinstance(node, Scan):
            return self.changed(node)
        if isinstance(node, Union):
            return self._of_union(node)
        return self._of_keyed(node) if isinstance(node, Keyed) else self._of_block(node)

    def _of_union(self, node: Union) -> Change | None:
        found = [(part, change) for part in node.parts if (change := self.of(part)) is not None]
        if not found:
            return None
        texts = [node.fitted(change.table, part.columns, more=f", {WEIGHT}") for part, change in found]
        is_append = all(change.is_append for _, change in found)
        return self._netted(node, " UNION ALL ".join(texts), is_append=is_append)

    def _of_keyed(self, node: Keyed) -> Change | None:
        keys = self.keys(node)
        if keys is None:
            return None
        now = self.restricted(node, self.new(node.source), keys)
        before = self.restricted(node, self.old(node.source), keys)
        text = f"SELECT *, {_NEW} AS {WEIGHT} FROM ({now}) UNION ALL SELECT *, {_OLD} AS {WEIGHT} FROM ({before})"
        return self._netted(node, text, is_append=False)

    def _of_block(self, node: Block) -> Change | None:
        terms: list[str] = []
        is_append = True
        for index, source in enumerate(node.sources):
            change = self.of(source.node)
            if change is None:
                continue
            relations = {
                other.alias: self.new(other.node) if i < index else self.old(other.node)
                for i, other in enumerate(node.sources)
                if other is not source
            }
            found = self._terms(node, source, change, relations)
            is_append = is_append and change.is_append and len(found) == 1
            terms += found
        return self._netted(node, " UNION ALL ".join(terms), is_append=is_append) if terms else None

    def _terms(self, node: Block, source: Source, change: Change, relations: Mapping[str, str]) -> list[str]:
        """Return the changes that come from one source: one SELECT over its changed rows, or what its keys have less had."""
        index = node.sources.index(source)
        second = node.sources[1].join if len(node.sources) > 1 else None
        if index < 2 and second is not None and second.kind in ("RIGHT JOIN", "FULL JOIN"):
            return self._terms_of_full(node, source, change, relations)
        if source.join is None or source.join.kind in ("JOIN", "CROSS JOIN"):
            weight = f"{quote_name(source.alias)}.{WEIGHT} AS {WEIGHT}"
            return [node.select({**relations, source.alias: change.table}, weight=weight)]
        pairs = source.join.pairs
        keys = self._keys_of(source, change, [own for _, own in pairs])
        same = " AND ".join(f"{other} = __k.k{i}" for i, (other, _) in enumerate(pairs))
        more = f" SEMI JOIN {keys} AS __k ON {same}"
        return [
            node.select({**relations, source.alias: rows}, weight=f"{weight} AS {WEIGHT}", more=more)
            for rows, weight in ((self.new(source.node), _NEW), (self.old(source.node), _OLD))
        ]

    def _terms_of_full(self, node: Block, source: Source, change: Change, relations: Mapping[str, str]) -> list[str]:
        """Return what the keys of a side of a full join have, less what they had: both sides with these keys only."""
        first, second = node.sources[0], node.sources[1]
        assert second.join is not None
        texts = {
            first.alias: [one for one, _ in second.join.pairs],
            second.alias: [other for _, other in second.join.pairs],
        }
        keys = self._keys_of(source, change, texts[source.alias])
        found = []
        for rows, weight in ((self.new(source.node), _NEW), (self.old(source.node), _OLD)):
            chosen = {**relations, source.alias: rows}
            for alias, parts in texts.items():
                same = " AND ".join(f"({part}) IS NOT DISTINCT FROM __k.k{i}" for i, part in enumerate(parts))
                name = quote_name(alias)
                chosen[alias] = f"(SELECT {name}.* FROM {chosen[alias]} AS {name} SEMI JOIN {keys} AS __k ON {same})"
            found.append(node.select(chosen, weight=f"{weight} AS {WEIGHT}"))
        return found

    def _keys_of(self, source: Source, change: Change, parts: Sequence[str]) -> str:
        items = ", ".join(f"{part} AS k{i}" for i, part in enumerate(parts))
        return self.table(f"SELECT DISTINCT {items} FROM {change.table} AS {quote_name(source.alias)}")

    def _netted(self, node: Node, text: str, *, is_append: bool) -> Change | None:
        """Return the change that a query makes: equal rows added up, those left out that come and go."""
        if not is_append and not node.inexact:
            names = select_list(node.columns)
            text = f"SELECT {names}, sum({WEIGHT})::BIGINT AS {WEIGHT} FROM ({text}) GROUP BY {names} HAVING sum({WEIGHT}) <> 0"
        table = self.filled(text)
        return None if table is None else Change(table=table, is_append=is_append)
