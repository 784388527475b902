"""A query of a SQL file as a Stream or a Batch: each ``STREAM`` of it becomes a read, the rest a query over its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlglot
from sqlglot import Token, TokenType
from sqlglot import expressions as exp

from waxlake.pipeline import stream as api
from waxlake.pipeline.definitions import Query, SqlQuery, TableRead, at_line, located
from waxlake.pipeline.sql import STREAM
from waxlake.pipeline.sqlfile.cursor import Cursor
from waxlake.pipeline.sqlfile.joins import Reference, joined
from waxlake.pipeline.sqlfile.source import is_word
from waxlake.pipeline.sqlfile.windows import has_distinct, quoted, streamed, watermark_end
from waxlake.pipeline.stream import Batch, Branch, Relation, Stream
from waxlake.stream.errors import UserError
from waxlake.stream.settings import nearest

__all__ = ["relation", "stream_of"]

_READERS: Final[Mapping[str, Callable[..., Stream]]] = {
    name: getattr(api, name) for name in api.__all__ if name.startswith("read_")
}
_CLAUSES: Final = (
    "GROUP",
    "ORDER",
    "CLUSTER",
    "DISTRIBUTE",
    "SORT",
    "WINDOW",
    "QUALIFY",
    "ASOF",
    "POSITIONAL",
    "NATURAL",
)
_SET_WORDS: Final = (  # EXCEPT alone leaves columns out of a star
    ("UNION",),
    ("INTERSECT",),
    *(("EXCEPT", after) for after in ("SELECT", "ALL", "DISTINCT", "FROM")),
)


def relation(query: Cursor, schema: str = "") -> Relation:
    """Return what a query says.

    Args:
        query: The query.
        schema: Schema of the tables that it names without one; empty for the pipeline's.

    Raises:
        DefinitionError: Streams that cannot be joined, a reader that does not exist, an argument that is not a constant. Not
            retryable.
    """
    query = _unwrapped(query)
    if query.is_at_end:
        raise query.wrong("a query")
    streams = [index for index in range(len(query.tokens)) if _is_stream(query.tokens, index)]
    if not streams:
        text = _qualified(query.raw(), schema, query)
        return Batch((Branch(SqlQuery(text=text, where=query.where)),))
    branches: list[Branch] = []
    for part in _parts(query):
        branches += _streaming(part, schema)
    return Stream(tuple(branches))


def stream_of(reference: Cursor, schema: str = "") -> Stream:
    """Return the stream that ``STREAM(x)``, ``STREAM x``, ``STREAM read_…(…)`` or a bare table name stands for."""
    if reference.accept("STREAM") and reference.tokens[1].token_type is TokenType.L_PAREN:
        inner = reference.bracketed()
        options = _read_options(reference)
        reference.finish()
        stream = stream_of(inner, schema)
        return _with_options(stream, options, reference) if options else stream
    where, offset = reference.where, reference.offset
    name = reference.name("a table or read_kafka, read_files …")
    options = _read_options(reference)
    if reference.is_at_end:
        stream = Stream((Branch(TableRead(name=_in_schema(name, schema), where=where)),))
        return _with_options(stream, options, reference) if options else stream
    arguments = reference.bracketed()
    reference.finish()
    reader = _READERS.get(name.lower())
    if reader is None:
        raise reference.source.error(
            f"unknown source '{name}'", offset, code="SQL_UNKNOWN_SOURCE", remedy=nearest(name, _READERS)
        )
    return _called(name.lower(), reader, arguments, offset)


def _read_options(reference: Cursor) -> dict[str, Any]:
    """Return what ``WITH (SKIPCHANGECOMMITS, startingVersion = 5)`` after a table says; nothing if it is not there."""
    if not reference.accept("WITH"):
        return {}
    options: dict[str, Any] = {}
    for part in reference.bracketed().parts():
        name = part.name("an option of read_stream")
        if part.is_at_end:
            options[name] = True
            continue
        part.expect("=")
        options[name] = _constant(part.rest())
    return options


def _with_options(stream: Stream, options: Mapping[str, Any], reference: Cursor) -> Stream:
    """Return the stream of a table with options, as ``read_stream`` gives it."""
    read = stream.branches[0].read
    if not isinstance(read, TableRead):
        raise reference.wrong("a table before WITH: the options of a source are its arguments")
    with at_line(read.where), located(read.where):
        made = api.read_stream(read.name, **options)
    return Stream((Branch(made.branches[0].read, stream.branches[0].steps),))


def _unwrapped(query: Cursor) -> Cursor:
    """Return a query without brackets around the whole of it."""
    while query.tokens and query.tokens[0].token_type is TokenType.L_PAREN:
        inner = Cursor(query.source, query.tokens).bracketed()
        if len(inner.tokens) != len(query.tokens) - 2:
            break
        query = inner
    return query


def _is_stream(tokens: Sequence[Token], index: int) -> bool:
    if not is_word(tokens[index], "STREAM") or index == 0 or index + 1 >= len(tokens):
        return False
    follows = tokens[index + 1]
    is_reference = follows.token_type in (TokenType.L_PAREN, TokenType.IDENTIFIER, TokenType.VAR)
    return is_reference and (is_word(tokens[index - 1], "FROM", "JOIN") or tokens[index - 1].text == ",")


def _parts(query: Cursor) -> list[Cursor]:
    """Return the SELECTs of a UNION ALL; other set operations see one micro-batch at a time and are refused."""
    if is_word(query.tokens[0], "WITH"):
        return [query]
    parts, rest = [], Cursor(query.source, query.tokens)
    while True:
        part = rest.until(*_SET_WORDS)
        parts.append(_unwrapped(part))
        if rest.is_at_end:
            return parts
        offset = rest.offset
        if not rest.accept("UNION", "ALL"):
            raise query.source.error("a stream takes no set operation but UNION ALL", offset, code="SQL_NOT_STREAMING")
        rest.accept("BY", "NAME")


def _streaming(query: Cursor, schema: str) -> list[Branch]:
    """Return the branches of one SELECT over one stream, or over two that it joins."""
    tokens, source = query.tokens, query.source
    found = [index for index in range(len(tokens)) if _is_stream(tokens, index)]
    if not found:
        raise source.error(
            "a part of the UNION ALL reads no stream",
            query.offset,
            code="BATCH_FOR_STREAMING_TABLE",
            remedy="Write FROM STREAM(table)",
        )
    references = [_reference(query, index, schema) for index in found]
    if len(references) > 1:
        text = _qualified(_replaced(query, references, [f"{STREAM}_{n}" for n in range(len(found))]), schema, query)
        return list(joined(query, references, text).branches)
    (reference,) = references
    text = _qualified(_replaced(query, references, [STREAM]), schema, query)
    if reference.watermark is not None or has_distinct(text, query):
        return list(streamed(reference.stream, text, query, reference.watermark).branches)
    step = Query(text=text, where=query.where)
    return [Branch(branch.read, (*branch.steps, step)) for branch in reference.stream.branches]


def _reference(query: Cursor, first: int, schema: str) -> Reference:
    """Return the stream that is named at a token, with its alias and its watermark, in either order."""
    tokens = query.tokens
    last = _reference_end(tokens, first)
    if last + 1 < len(tokens) and is_word(tokens[last], "WITH") and tokens[last + 1].token_type is TokenType.L_PAREN:
        last = _reference_end(tokens, last)
    stream = stream_of(Cursor(query.source, tokens[first:last]), schema)
    read = stream.branches[0].read
    alias = read.name.rpartition(".")[2] if isinstance(read, TableRead) else ""
    shown = f" AS {quoted(alias, query)}" if alias else ""
    watermark = None
    for _ in range(2):
        marked = watermark_end(query, tokens, last)
        if marked is not None:
            last, watermark = marked[0], marked[1:]
        elif _has_alias(tokens, last):
            end = last + (tokens[last].token_type is TokenType.ALIAS)
            alias, shown = tokens[end].text, f" {query.source.text[tokens[last].start : tokens[end].end + 1]}"
            last = end + 1
    start, end = tokens[first].start, tokens[last - 1].end + 1
    return Reference(stream=stream, alias=alias, shown=shown, watermark=watermark, start=start, end=end)


def _replaced(query: Cursor, references: Sequence[Reference], names: Sequence[str]) -> str:
    """Return the text of a query with other names in the place of its streams."""
    text, at = "", query.offset
    for reference, name in zip(references, names, strict=True):
        text += query.source.text[at : reference.start] + name + reference.shown
        at = reference.end
    return text + query.source.text[at : query.tokens[-1].end + 1]


def _reference_end(tokens: Sequence[Token], first: int) -> int:
    """Return the index after ``STREAM(…)``, ``STREAM a.b`` or ``STREAM f(…)``."""
    at = first + 1
    while at + 1 < len(tokens) and tokens[at + 1].token_type is TokenType.DOT:
        at += 2
    if tokens[at].token_type is not TokenType.L_PAREN:
        at += 1
    depth = 0
    while at < len(tokens):
        kind = tokens[at].token_type
        depth += (kind is TokenType.L_PAREN) - (kind is TokenType.R_PAREN)
        if depth == 0:
            return at + 1 if kind is TokenType.R_PAREN else at
        at += 1
    return at


def _has_alias(tokens: Sequence[Token], after: int) -> bool:
    if after >= len(tokens) or is_word(tokens[after], *_CLAUSES):
        return False
    return tokens[after].token_type in (TokenType.ALIAS, TokenType.VAR, TokenType.IDENTIFIER)


def _in_schema(name: str, schema: str) -> str:
    if name.upper().startswith("LIVE."):
        name = name.split(".", 1)[1]
    return f"{schema}.{name}" if schema and "." not in name else name


def _qualified(text: str, schema: str, query: Cursor) -> str:
    """Return a query with ``USE SCHEMA`` and ``LIVE.`` made explicit in the tables it names."""
    if not schema and "LIVE." not in text.upper():
        return text
    try:
        tree = sqlglot.parse_one(text, read=query.source.dialect)
    except sqlglot.errors.SqlglotError as exc:
        raise query.source.error(f"cannot parse the query: {exc}", query.offset, code="SQL_SYNTAX") from exc
    own = {cte.alias for cte in tree.find_all(exp.CTE)} | {STREAM, *(f"{STREAM}_{number}" for number in range(9))}
    for table in tree.find_all(exp.Table):
        if table.db.upper() == "LIVE":
            table.set("db", None)
        if schema and isinstance(table.this, exp.Identifier) and not table.db and table.name not in own:
            table.set("db", exp.to_identifier(schema))
    return tree.sql(dialect=query.source.dialect)


def _called(name: str, reader: Callable[..., Stream], arguments: Cursor, offset: int) -> Stream:
    values: dict[str, Any] = {}
    positional: list[Any] = []
    for part in arguments.parts() if not arguments.is_at_end else []:
        key, value = _argument(part)
        if key is None:
            positional.append(value)
        else:
            values[key] = value
    where = arguments.source.where(offset)
    with at_line(where):
        try:
            return reader(*positional, **_with_defaults(name, values))
        except TypeError as exc:
            raise arguments.source.error(
                f"wrong arguments of {name}", offset, code="ARGUMENT_INVALID", found=str(exc)
            ) from exc
        except UserError as exc:
            what = exc.what.removeprefix(f"{where}: ")
            raise arguments.source.error(
                what, offset, code=exc.code, found=exc.found, expected=exc.expected, remedy=exc.remedy
            ) from exc


def _with_defaults(name: str, values: dict[str, Any]) -> dict[str, Any]:
    from waxlake.pipeline.declare import conf

    if name == "read_kafka" and "bootstrap_servers" not in values:
        values["bootstrap_servers"] = conf("bootstrap_servers")
    return values


def _argument(part: Cursor) -> tuple[str | None, Any]:
    tokens = part.tokens
    if len(tokens) > 2 and tokens[1].text in ("=>", ":="):
        value = Cursor(part.source, tokens[2:])
        return tokens[0].text.lower(), _constant(value)
    return None, _constant(part)


def _constant(value: Cursor) -> Any:
    """Return the Python value of a constant expression."""
    if value.is_at_end:
        raise value.wrong("a value")
    try:
        dialect = "spark" if value.at("MAP") and not value.raw().endswith("}") else "duckdb"
        tree = sqlglot.parse_one(value.raw(), read=dialect)
        return _evaluated(tree)
    except (sqlglot.errors.SqlglotError, ValueError) as exc:
        raise value.source.error(
            "an argument of a source is a constant",
            value.offset,
            code="ARGUMENT_INVALID",
            found=value.raw(),
            expected="a text, a number, true, false, NULL, [a, b] or MAP {'a': 'b'}",
        ) from exc


def _evaluated(tree: Any) -> Any:
    if isinstance(tree, exp.Literal):
        return (
            tree.this
            if tree.is_string
            else float(tree.this)
            if "." in tree.this or "e" in tree.this.lower()
            else int(tree.this)
        )
    if isinstance(tree, exp.Boolean):
        return bool(tree.this)
    if isinstance(tree, exp.Null):
        return None
    if isinstance(tree, exp.Neg):
        return -_evaluated(tree.this)
    if isinstance(tree, exp.Paren):
        return _evaluated(tree.this)
    if isinstance(tree, exp.Array):
        return [_evaluated(item) for item in tree.expressions]
    if isinstance(tree, exp.ToMap):
        return _evaluated(tree.this)
    if isinstance(tree, exp.Struct):
        return {_key(pair.this): _evaluated(pair.expression) for pair in tree.expressions}
    if isinstance(tree, exp.Map | exp.VarMap):
        return dict(zip(_evaluated(tree.args["keys"]), _evaluated(tree.args["values"]), strict=True))
    raise ValueError(type(tree).__name__)


def _key(tree: Any) -> str:
    return tree.name if isinstance(tree, exp.Identifier | exp.Var | exp.Column) else str(_evaluated(tree))
