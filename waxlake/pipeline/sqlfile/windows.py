"""``FROM STREAM x WATERMARK c DELAY OF INTERVAL …``: aggregates and DISTINCT in SQL, as the methods of a stream make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlglot
from sqlglot import Token
from sqlglot import expressions as exp

from waxlake.pipeline.definitions import Query, at_line
from waxlake.pipeline.sqlfile.cursor import Cursor
from waxlake.pipeline.sqlfile.source import is_word
from waxlake.pipeline.stateful_methods import WindowRule, session, sliding, tumbling
from waxlake.pipeline.stream import Stream
from waxlake.stream.errors import DefinitionError

__all__ = [
    "grouped",
    "has_distinct",
    "interval",
    "is_of_window",
    "not_streaming",
    "offset_of",
    "parsed",
    "quoted",
    "require_streaming",
    "streamed",
    "watermark_end",
]

_WINDOWS: Final = ("window", "session_window", "tumbling", "sliding", "session")
_REFUSED: Final = ("having", "order", "limit", "offset", "with_", "qualify", "windows")


def watermark_end(query: Cursor, tokens: Sequence[Token], at: int) -> tuple[int, str, str] | None:
    """Return the index after a watermark clause, its column and its delay; None if there is none.

    Args:
        query: The query, for mistakes.
        tokens: Its tokens.
        at: Where the clause would begin.
    """
    if at >= len(tokens) or not is_word(tokens[at], "WATERMARK"):
        return None
    words = ("WATERMARK", None, "DELAY", "OF", "INTERVAL", None)
    for offset, word in enumerate(words):
        place = at + offset
        if place >= len(tokens) or (word is not None and not is_word(tokens[place], word)):
            begin = tokens[place].start if place < len(tokens) else tokens[-1].end + 1
            raise query.source.error(
                "cannot read the watermark",
                begin,
                code="SQL_SYNTAX",
                expected="WATERMARK column DELAY OF INTERVAL 10 MINUTES",
            )
    column, delay, end = tokens[at + 1].text, tokens[at + 5].text, at + 6
    has_unit = end < len(tokens) and tokens[end].text.lower().rstrip("s") in ("second", "minute", "hour", "day", "week")
    if has_unit:
        delay, end = f"{delay} {tokens[end].text}", end + 1
    return end, column, delay


def quoted(name: str, query: Cursor) -> str:
    """Return a name in quotes of the query's dialect."""
    return str(exp.to_identifier(name, quoted=True).sql(dialect=query.source.dialect))


def parsed(text: str, query: Cursor) -> Any:
    """Return the tree of a query.

    Raises:
        DefinitionError: It cannot be read. Not retryable.
    """
    try:
        return sqlglot.parse_one(text, read=query.source.dialect)
    except sqlglot.errors.SqlglotError as exc:
        raise query.source.error(f"cannot parse the query: {exc}", query.offset, code="SQL_SYNTAX") from exc


def has_distinct(text: str, query: Cursor) -> bool:
    """Return whether the SELECT that a query is takes its rows once only."""
    if not any(is_word(token, "DISTINCT") for token in query.tokens):
        return False
    tree = parsed(text, query)
    return isinstance(tree, exp.Select) and tree.args.get("distinct") is not None


def streamed(stream: Stream, text: str, query: Cursor, watermark: tuple[str, str] | None) -> Stream:
    """Return what a query over a stream says that has a watermark or takes rows once only.

    Args:
        stream: The stream.
        text: The query, over ``stream``, without the clause.
        query: The query as written, for mistakes.
        watermark: Column of the watermark, and its delay.

    Raises:
        DefinitionError: ``SQL_NOT_STREAMING``, something that a stream has no last answer to. Not retryable.
    """
    tree = parsed(text, query)
    with at_line(query.where):
        require_streaming(tree, query)
        if tree.args.get("distinct"):
            return _distinct(stream, tree, query, watermark)
        assert watermark is not None
        if not tree.args.get("group"):
            return stream.with_watermark(*watermark)._with(Query(text=text, where=query.where))
        if tree.args.get("joins"):
            raise not_streaming(
                query, "JOIN", remedy="Join in a temporary view, and aggregate over STREAM of that", word="JOIN"
            )
        for name in tree.find_all(exp.Column):
            if not is_of_window(name):
                name.set("table", None)
        if tree.args.get("where"):
            stream = stream.where(tree.args["where"].this.sql(dialect=query.source.dialect))
        return grouped(stream.with_watermark(*watermark), tree, query)


def require_streaming(tree: Any, query: Cursor) -> None:
    """Stop at what a stream has no last answer to.

    Raises:
        DefinitionError: ``SQL_NOT_STREAMING``. Not retryable.
    """
    if not isinstance(tree, exp.Select):
        raise not_streaming(query, "something that is no SELECT")
    refused = [name for name in _REFUSED if tree.args.get(name)]
    if tree.args.get("distinct") and tree.args.get("group"):
        refused.append("distinct")
    if refused:
        word = refused[0].rstrip("_").upper()
        raise not_streaming(query, word, word=word)


def is_of_window(name: Any) -> bool:
    """Return whether a column is the beginning or end of a window."""
    return bool(name.table.lower() in ("window", "session_window"))


def _distinct(stream: Stream, tree: Any, query: Cursor, watermark: tuple[str, str] | None) -> Stream:
    """Return the rows of a SELECT DISTINCT: the first of each kind that came, as ``drop_duplicates`` keeps it."""
    dialect, keys = query.source.dialect, tree.args["distinct"].args.get("on")
    tree.set("distinct", None)
    if keys is None:
        made = stream._with(Query(text=tree.sql(dialect=dialect), where=query.where))
        column = None if watermark is None else _output_name(tree, watermark[0])
        if watermark is not None and column is not None:
            made = made.with_watermark(column, watermark[1])
        return made.drop_duplicates()
    if tree.args.get("joins") or not all(isinstance(key, exp.Column) for key in keys.expressions):
        raise not_streaming(
            query,
            "DISTINCT ON of a join or an expression",
            "DISTINCT ON (columns of the stream)",
            remedy="Make the keys columns of a temporary view first",
            word="DISTINCT",
        )
    if tree.args.get("where"):
        stream = stream.where(_unqualified(tree.args["where"].this).sql(dialect=dialect))
        tree.set("where", None)
    if watermark is not None:
        stream = stream.with_watermark(*watermark)
    once = stream.drop_duplicates([key.name for key in keys.expressions])
    return once._with(Query(text=tree.sql(dialect=dialect), where=query.where))


def _unqualified(tree: Any) -> Any:
    made = tree.copy()
    for name in made.find_all(exp.Column):
        name.set("table", None)
    return made


def _output_name(tree: Any, column: str) -> str | None:
    """Return the name under which a SELECT hands a column on as it is; None if it does not."""
    for item in tree.expressions:
        of = item.unalias()
        if of.is_star:
            return column
        if isinstance(of, exp.Column) and of.name.lower() == column.lower():
            return str(item.alias_or_name)
    return None


def grouped(stream: Stream, tree: Any, query: Cursor) -> Stream:
    """Return what a GROUP BY over a stream with a watermark says; its columns carry no table."""
    keys, window = [], None
    for element in tree.args["group"].expressions:
        if isinstance(element, exp.Column):
            keys.append(element.name)
            continue
        if window is not None or not isinstance(element, exp.Anonymous):
            raise not_streaming(query, f"GROUP BY {element.sql(dialect=query.source.dialect)}", word="GROUP")
        window = _window(element, query)
    columns: list[str] = []
    aggregates: dict[str, str] = {}
    for item in tree.expressions:
        of, name = (item.this, item.alias) if isinstance(item, exp.Alias) else (item, item.name)
        if isinstance(of, exp.Column):
            made = f"window_{of.name}" if is_of_window(of) else of.name
            columns.append(f"{quoted(made, query)} AS {quoted(name or made, query)}")
        elif isinstance(item, exp.Alias):
            aggregates[name] = of.sql(dialect=query.source.dialect)
            columns.append(quoted(name, query))
        else:
            found = f"{item.sql(dialect=query.source.dialect)} without a name"
            raise not_streaming(query, found, "AS name after it")
    return stream.group_by(*keys, window=window).agg(**aggregates).select(*columns)


def _window(call: Any, query: Cursor) -> WindowRule:
    arguments, name = list(call.expressions), call.name.lower()
    if name not in _WINDOWS or len(arguments) < 2 or not isinstance(arguments[0], exp.Column):
        expected = "window(column, '10 minutes'[, '5 minutes']) or session_window(column, '5 minutes')"
        raise not_streaming(query, f"GROUP BY {call.sql(dialect=query.source.dialect)}", expected, word="GROUP")
    column, spans = arguments[0].name, [_span(argument) for argument in arguments[1:]]
    if name in ("session_window", "session"):
        return session(column, spans[0])
    return tumbling(column, spans[0]) if len(spans) == 1 else sliding(column, spans[0], every=spans[1])


def _span(argument: Any) -> str:
    return interval(argument) if isinstance(argument, exp.Interval) else str(argument.name)


def interval(argument: Any) -> str:
    """Return an INTERVAL as a duration."""
    unit = argument.args.get("unit")
    return f"{argument.this.name} {unit.name.lower() if unit else ''}".strip()


def offset_of(query: Cursor, word: str, after: int = 0) -> int:
    """Return where a word stands in a query behind an offset; where the query begins if it does not."""
    return next((t.start for t in query.tokens if t.start >= after and is_word(t, word)), query.offset)


def not_streaming(
    query: Cursor, found: str, expected: str | None = None, *, remedy: str = "", word: str = ""
) -> DefinitionError:
    """Return the error that a stream has no last answer to something, which stands at a word."""
    return query.source.error(
        "a query over a stream cannot be kept up to date",
        offset_of(query, word),
        code="SQL_NOT_STREAMING",
        found=found,
        expected=expected
        or "SELECT keys, aggregates AS names FROM STREAM x WATERMARK … [WHERE …] GROUP BY keys, window(…)",
        remedy=remedy or "Ask for it in a materialized view over the table, or of a table that a stream keeps",
    )
