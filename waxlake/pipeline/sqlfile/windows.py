"""``FROM STREAM x WATERMARK c DELAY OF INTERVAL …``: windowed aggregates in SQL, as the methods of a stream make them."""

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
from waxlake.stream.engine import quote_name
from waxlake.stream.errors import DefinitionError

__all__ = ["watermark_end", "windowed"]

_WINDOWS: Final = ("window", "session_window", "tumbling", "sliding", "session")
_REFUSED: Final = ("having", "order", "limit", "offset", "joins", "with_", "distinct", "qualify", "windows")


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


def windowed(stream: Stream, text: str, query: Cursor, column: str, delay: str) -> Stream:
    """Return what a query over a stream with a watermark says.

    Args:
        stream: The stream.
        text: The query, over ``stream``, without the clause.
        query: The query as written, for mistakes.
        column: Column of the watermark.
        delay: Its delay.

    Raises:
        DefinitionError: ``SQL_NOT_STREAMING``, something that a stream has no last answer to. Not retryable.
    """
    try:
        tree: Any = sqlglot.parse_one(text, read=query.source.dialect)
    except sqlglot.errors.SqlglotError as exc:
        raise query.source.error(f"cannot parse the query: {exc}", query.offset, code="SQL_SYNTAX") from exc
    for name in tree.find_all(exp.Column):
        if name.table.lower() not in ("window", "session_window"):
            name.set("table", None)
    with at_line(query.where):
        if not isinstance(tree, exp.Select):
            raise _not_streaming(query, "something that is no SELECT")
        refused = [name for name in _REFUSED if tree.args.get(name)]
        if refused:
            raise _not_streaming(query, refused[0].rstrip("_").upper())
        if not tree.args.get("group"):
            marked = stream.with_watermark(column, delay)
            return marked._with(Query(text=text, where=query.where))
        if tree.args.get("where"):
            stream = stream.where(tree.args["where"].this.sql(dialect=query.source.dialect))
        return _grouped(stream.with_watermark(column, delay), tree, query)


def _grouped(stream: Stream, tree: Any, query: Cursor) -> Stream:
    keys, window = [], None
    for element in tree.args["group"].expressions:
        if isinstance(element, exp.Column):
            keys.append(element.name)
            continue
        if window is not None or not isinstance(element, exp.Anonymous):
            raise _not_streaming(query, f"GROUP BY {element.sql(dialect=query.source.dialect)}")
        window = _window(element, query)
    columns: list[str] = []
    aggregates: dict[str, str] = {}
    for item in tree.expressions:
        of, name = (item.this, item.alias) if isinstance(item, exp.Alias) else (item, item.name)
        if isinstance(of, exp.Column):
            made = f"window_{of.name}" if of.table.lower() in ("window", "session_window") else of.name
            columns.append(f"{quote_name(made)} AS {quote_name(name or made)}")
        elif isinstance(item, exp.Alias):
            aggregates[name] = of.sql(dialect=query.source.dialect)
            columns.append(quote_name(name))
        else:
            raise _not_streaming(query, f"{item.sql(dialect=query.source.dialect)} without a name", "AS name after it")
    grouped = stream.group_by(*keys, window=window)
    return grouped.agg(**aggregates).select(*columns)


def _window(call: Any, query: Cursor) -> WindowRule:
    arguments, name = list(call.expressions), call.name.lower()
    if name not in _WINDOWS or len(arguments) < 2 or not isinstance(arguments[0], exp.Column):
        expected = "window(column, '10 minutes'[, '5 minutes']) or session_window(column, '5 minutes')"
        raise _not_streaming(query, f"GROUP BY {call.sql(dialect=query.source.dialect)}", expected)
    column, spans = arguments[0].name, [_span(argument) for argument in arguments[1:]]
    if name in ("session_window", "session"):
        return session(column, spans[0])
    return tumbling(column, spans[0]) if len(spans) == 1 else sliding(column, spans[0], every=spans[1])


def _span(argument: Any) -> str:
    if isinstance(argument, exp.Interval):
        return f"{argument.this.name} {argument.args['unit'].name if argument.args.get('unit') else ''}".strip()
    return str(argument.name)


def _not_streaming(query: Cursor, found: str, expected: str | None = None) -> DefinitionError:
    return query.source.error(
        "a query over a stream with a watermark cannot be kept up to date",
        query.offset,
        code="SQL_NOT_STREAMING",
        found=found,
        expected=expected
        or "SELECT keys, aggregates AS names FROM STREAM x WATERMARK … [WHERE …] GROUP BY keys, window(…)",
        remedy="De-duplication, joins of streams and keyed state are methods of a stream in Python",
    )
