"""Groups that only got new rows: what they held and what came, put together without reading the input again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import duckdb
import pyarrow as pa
from sqlglot import expressions as exp

from waxlake.pipeline.incremental.algebra import Keyed, rendered
from waxlake.pipeline.incremental.functions import aggregates_in, function_name
from waxlake.pipeline.incremental.target import same
from waxlake.pipeline.sql import run_query
from waxlake.stream.engine import quote_name

__all__ = ["merged_groups"]

_MERGES: Final = {
    "count": "coalesce(h.{0}, 0) + d.{0}",
    "count_star": "coalesce(h.{0}, 0) + d.{0}",
    "count_if": "coalesce(h.{0} + d.{0}, h.{0}, d.{0})",
    "sum": "coalesce(h.{0} + d.{0}, h.{0}, d.{0})",
    "min": "least(h.{0}, d.{0})",
    "max": "greatest(h.{0}, d.{0})",
    "bool_and": "coalesce(h.{0} AND d.{0}, h.{0}, d.{0})",
    "bool_or": "coalesce(h.{0} OR d.{0}, h.{0}, d.{0})",
}


def merged_groups(
    session: duckdb.DuckDBPyConnection, node: Keyed, came: str, held: pa.Table, names: Sequence[str]
) -> pa.Table | None:
    """Return the groups that got rows, brought up to date; None if one of the aggregates cannot be carried on.

    Args:
        session: Where it is computed.
        node: The view: groups of one relation.
        came: Table of the rows that came to that relation.
        held: The stored rows of these groups.
        names: The view's name of each column.
    """
    if node.kind != "GROUP_AGGREGATE" or node.having is not None or node.qualify is not None:
        return None
    keys = set(map(rendered, node.keys))
    items = []
    for index, (item, name) in enumerate(zip(node.items, names, strict=True)):
        quoted = quote_name(name)
        if rendered(item) in keys:
            items.append(f"d.{quoted}")
            continue
        merge = None if index in node.inexact else _merge_of(item)
        if merge is None:
            return None
        items.append(f"{merge.format(quoted)} AS {quoted}")
    made = run_query(session, node.select(came)).rename_columns(list(names))
    session.register("__came", made)
    session.register("__held", held)
    groups = [names[i] for i in node.key_columns() or ()]
    return run_query(
        session, f"SELECT {', '.join(items)} FROM __came AS d LEFT JOIN __held AS h ON {same(groups, 'd', 'h')}"
    )


def _merge_of(item: exp.Expr) -> str | None:
    """Return how two results of an aggregate become one, if the item is nothing but such an aggregate."""
    function = item.this if isinstance(item, exp.Filter) else item
    if aggregates_in(item) != [function] or any(True for _ in item.find_all(exp.Distinct, exp.Order, exp.Window)):
        return None
    if function_name(function) in ("min", "max") and function.expressions:
        return None
    return _MERGES.get(function_name(function))
