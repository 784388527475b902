"""What functions promise: the same result each time, and one that does not depend on the order of rows. Called by analysis."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlglot import expressions as exp

from waxlake.pipeline.incremental.algebra import rendered
from waxlake.pipeline.incremental.reasons import NotIncremental

if TYPE_CHECKING:
    import duckdb

__all__ = ["aggregates_in", "function_name", "is_exact", "require_deterministic"]

_TIMES: Final = frozenset(
    ("current_date", "current_timestamp", "current_time", "localtimestamp", "localtime", "current_user", "session_user")
)
_ALWAYS_EXACT: Final = frozenset(
    ("count", "count_star", "count_if", "countif", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor")
)
_EXACT_OF_EXACT: Final = frozenset(("sum", "avg", "mean"))
_EXACT_TYPES: Final = re.compile(r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BOOLEAN|DECIMAL.*)", re.IGNORECASE)
_EXACT_WINDOWS: Final = frozenset(("rank", "dense_rank", "percent_rank", "cume_dist"))
_LEADING_NAME = re.compile(r"[a-z_]\w*", re.IGNORECASE)


@cache
def _catalog() -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the functions that give another result each time, and of the aggregates, as DuckDB lists them."""
    from waxlake.stream.engine import open_session

    session = open_session()
    try:
        rows = session.execute("SELECT function_name, function_type, stability FROM duckdb_functions()").fetchall()
    finally:
        session.close()
    unstable = {name for name, _, stability in rows if stability not in (None, "CONSISTENT") and name != "error"}
    return frozenset(unstable) | _TIMES, frozenset(name for name, kind, _ in rows if kind == "aggregate")


def function_name(node: exp.Expr) -> str:
    """Return the name of a function as DuckDB knows it."""
    found = _LEADING_NAME.match(rendered(node))
    return found[0].lower() if found else ""


def require_deterministic(session: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse a query with a function whose result is another one each time.

    Raises:
        NotIncremental: ``NON_DETERMINISTIC_FUNCTION``, and which.
    """
    rows = session.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
    unstable, _ = _catalog()
    for name in _names(json.loads(rows[0][0])):
        if name in unstable:
            raise NotIncremental("NON_DETERMINISTIC_FUNCTION", f"{name}()")


def _names(node: Any) -> Iterator[str]:
    """Yield the names of functions in DuckDB's syntax tree, and of columns that may be times."""
    if isinstance(node, list):
        for item in node:
            yield from _names(item)
    elif isinstance(node, dict):
        if isinstance(node.get("function_name"), str):
            yield node["function_name"].lower()
        if node.get("type") == "COLUMN_REF" and len(node.get("column_names", ())) == 1:
            name = node["column_names"][0].lower()
            if name in _TIMES:
                yield name
        for item in node.values():
            yield from _names(item)


def aggregates_in(node: exp.Expr | None) -> list[exp.Expr]:
    """Return the aggregate functions of an expression, those over windows left out."""
    if node is None:
        return []
    _, aggregates = _catalog()
    return [
        found
        for found in node.find_all(exp.Func)
        if not isinstance(found, exp.Filter)
        and function_name(found) in aggregates
        and not _is_windowed(found)
        and not isinstance(found, exp.And | exp.Or | exp.Xor)
    ]


def _is_windowed(node: exp.Expr) -> bool:
    while isinstance(node.parent, exp.Filter | exp.IgnoreNulls | exp.RespectNulls | exp.WithinGroup):
        node = node.parent
    return isinstance(node.parent, exp.Window) and node.arg_key == "this"


def is_exact(function: exp.Expr, kinds: list[str], *, is_window: bool = False) -> bool:
    """Return whether the result of an aggregate or window function is the same in whatever order the rows come.

    Args:
        function: The function.
        kinds: DuckDB types of its arguments.
        is_window: Whether it is over a window.
    """
    name = function_name(function)
    if is_window:
        return name in _EXACT_WINDOWS
    if name in _ALWAYS_EXACT:
        return True
    return name in _EXACT_OF_EXACT and all(_EXACT_TYPES.fullmatch(kind) for kind in kinds)
