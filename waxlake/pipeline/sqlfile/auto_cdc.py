"""The SQL forms of AUTO CDC, clauses in any order.

``AUTO CDC INTO t FROM STREAM(s) KEYS (k) … SEQUENCE BY c``, and ``… FROM SNAPSHOT (q) [WITH VERSION (v)] KEYS (k) …``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from waxlake.pipeline.sqlfile.cursor import Cursor
from waxlake.pipeline.sqlfile.queries import stream_of

__all__ = ["auto_cdc_arguments", "snapshot_arguments"]

_CLAUSES: Final = (
    ("KEYS",),
    ("IGNORE", "NULL", "UPDATES"),
    ("APPLY", "AS", "DELETE", "WHEN"),
    ("APPLY", "AS", "TRUNCATE", "WHEN"),
    ("SEQUENCE", "BY"),
    ("COLUMNS",),
    ("STORED", "AS", "SCD", "TYPE"),
    ("TRACK", "HISTORY", "ON"),
)
_SNAPSHOT_CLAUSES: Final = (
    ("WITH", "VERSION"),
    ("KEYS",),
    ("STORED", "AS", "SCD", "TYPE"),
    ("TRACK", "HISTORY", "ON"),
)
_Clauses = tuple[tuple[str, ...], ...]


def auto_cdc_arguments(statement: Cursor, schema: str = "") -> dict[str, Any]:
    """Return the arguments of ``create_auto_cdc_flow`` that follow ``FROM``, target and name left out.

    Args:
        statement: What comes after ``FROM``, to the end.
        schema: Schema of a table that is named without one.

    Raises:
        DefinitionError: A clause that is unknown, given twice or missing. Not retryable.
    """
    source = statement.until(*_CLAUSES)
    if source.is_at_end:
        raise source.wrong("STREAM(table)")
    arguments = _arguments(statement, _CLAUSES, needed=(("KEYS",), ("SEQUENCE", "BY")))
    return {"source": stream_of(source, schema), **arguments}


def snapshot_arguments(statement: Cursor) -> tuple[Cursor, Cursor | None, dict[str, Any]]:
    """Return query or name of a snapshot, the query of its version, and arguments of ``create_auto_cdc_from_snapshot_flow``.

    Args:
        statement: What comes after ``FROM SNAPSHOT``, to the end.

    Raises:
        DefinitionError: A clause that is unknown, given twice or missing. Not retryable.
    """
    source = statement.until(*_SNAPSHOT_CLAUSES)
    if source.is_at_end or (source.at("(") and Cursor(source.source, source.tokens).bracketed().is_at_end):
        raise source.wrong("a query in brackets, or a name")
    arguments = _arguments(statement, _SNAPSHOT_CLAUSES, needed=(("KEYS",),))
    return source, arguments.pop("version", None), arguments


def _arguments(statement: Cursor, clauses: _Clauses, needed: _Clauses) -> dict[str, Any]:
    """Return what clauses say, to the end of a statement."""
    arguments: dict[str, Any] = {}
    seen: set[tuple[str, ...]] = set()
    while not statement.is_at_end:
        offset = statement.offset
        clause = next((words for words in clauses if statement.accept(*words)), None)
        if clause is None:
            raise statement.wrong(", ".join(" ".join(words) for words in clauses))
        if clause in seen:
            raise statement.source.error(f"{' '.join(clause)} is there twice", offset, code="SQL_SYNTAX")
        seen.add(clause)
        body = statement.until(*clauses)
        if body.is_at_end and clause != ("IGNORE", "NULL", "UPDATES"):
            raise body.wrong(f"something after {' '.join(clause)}")
        arguments |= _READERS[clause](body)
    for clause in needed:
        if clause not in seen:
            raise statement.wrong(" ".join(clause))
    return arguments


def _version(body: Cursor) -> dict[str, Any]:
    query = body.bracketed("a query in brackets")
    body.finish()
    if query.is_at_end:
        raise query.wrong("a query")
    return {"version": query}


def _keys(body: Cursor) -> dict[str, Any]:
    names = _names(body)
    body.finish()
    return {"keys": names}


def _ignore_nulls(body: Cursor) -> dict[str, Any]:
    if body.is_at_end:
        return {"ignore_null_updates": True}
    body.expect("ON")
    chosen = _choice(body, "ignore_null_updates_column_list", "ignore_null_updates_except_column_list")
    return chosen or {"ignore_null_updates": True}


def _columns(body: Cursor) -> dict[str, Any]:
    return _choice(body, "column_list", "except_column_list")


def _history(body: Cursor) -> dict[str, Any]:
    return _choice(body, "track_history_column_list", "track_history_except_column_list")


def _scd_type(body: Cursor) -> dict[str, Any]:
    kind = body.rest().raw()
    if kind not in ("1", "2"):
        raise Cursor(body.source, body.tokens).wrong("1 or 2")
    return {"stored_as_scd_type": int(kind)}


def _text(name: str) -> Callable[[Cursor], dict[str, Any]]:
    return lambda body: {name: body.rest().raw()}


def _choice(body: Cursor, wanted: str, unwanted: str) -> dict[str, Any]:
    """Return ``a, b``, ``(a, b)``, ``*`` or ``* EXCEPT (a, b)`` as one of two arguments."""
    if body.accept("*"):
        if body.is_at_end:
            return {}
        body.expect("EXCEPT")
        names, argument = _names(body), unwanted
    elif body.at("("):
        names, argument = _names(body), wanted
    else:
        names, argument = [part.name("a column") for part in body.parts()], wanted
    body.finish()
    return {argument: names}


def _names(body: Cursor) -> list[str]:
    return [part.name("a column") for part in body.bracketed("columns in brackets").parts()]


_READERS: Final[Mapping[tuple[str, ...], Callable[[Cursor], dict[str, Any]]]] = {
    ("KEYS",): _keys,
    ("WITH", "VERSION"): _version,
    ("IGNORE", "NULL", "UPDATES"): _ignore_nulls,
    ("APPLY", "AS", "DELETE", "WHEN"): _text("apply_as_deletes"),
    ("APPLY", "AS", "TRUNCATE", "WHEN"): _text("apply_as_truncates"),
    ("SEQUENCE", "BY"): _text("sequence_by"),
    ("COLUMNS",): _columns,
    ("STORED", "AS", "SCD", "TYPE"): _scd_type,
    ("TRACK", "HISTORY", "ON"): _history,
}
