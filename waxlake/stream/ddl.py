"""Spark-style schema text, ``id BIGINT, tags ARRAY<STRING>``, to an Arrow schema and back.

Called wherever a user may write a schema as text: sources, table definitions, the SQL front end. Types and names follow
Spark SQL, so that a schema can be copied from there.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import delta_schema

__all__ = ["parse_ddl", "to_ddl"]

_SIMPLE: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "LONG": pa.int64(),
    "INT": pa.int32(),
    "INTEGER": pa.int32(),
    "SMALLINT": pa.int16(),
    "SHORT": pa.int16(),
    "TINYINT": pa.int8(),
    "BYTE": pa.int8(),
    "FLOAT": pa.float32(),
    "REAL": pa.float32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "BOOL": pa.bool_(),
    "STRING": pa.string(),
    "TEXT": pa.string(),
    "BINARY": pa.binary(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "TIMESTAMP_LTZ": pa.timestamp("us", tz="UTC"),
    "TIMESTAMP_NTZ": pa.timestamp("us"),
}
_SIZED_TEXT = ("VARCHAR", "CHAR")
_DECIMAL = ("DECIMAL", "NUMERIC", "DEC")
_NESTED = ("ARRAY", "MAP", "STRUCT")
_TYPE_NAMES = (*_SIMPLE, *_SIZED_TEXT, *_DECIMAL, *_NESTED)
_MAX_PRECISION = 38
_WIDTH = 60

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<name>[^\W\d]\w*)
      | (?P<quoted>`(?:[^`]|``)+`)
      | (?P<text>'(?:[^'\\]|''|\\.)*')
      | (?P<number>\d+)
      | (?P<mark>[<>(),:])
      | (?P<end>$)
      | (?P<other>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)

_NAMES = {
    pa.int64(): "BIGINT",
    pa.int32(): "INT",
    pa.int16(): "SMALLINT",
    pa.int8(): "TINYINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.string(): "STRING",
    pa.binary(): "BINARY",
    pa.date32(): "DATE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP",
    pa.timestamp("us"): "TIMESTAMP_NTZ",
}


def parse_ddl(text: str | pa.Schema) -> pa.Schema:
    """Read a schema from Spark-style DDL. A ``pa.Schema`` is returned unchanged.

    Types are case-insensitive: BIGINT, INT, SMALLINT, TINYINT, DOUBLE, FLOAT, BOOLEAN, STRING, BINARY, DATE, TIMESTAMP
    (microseconds, UTC), TIMESTAMP_NTZ (microseconds, no zone), DECIMAL(p,s), ARRAY<t>, MAP<k,v>, STRUCT<name: t, ...>,
    and Spark's synonyms. A length, as in VARCHAR(20), is read and not enforced. ``NOT NULL`` also goes after an element
    or a map value; a ``COMMENT`` is kept as field metadata.

    Raises:
        SchemaError: ``SCHEMA_DDL``; shows the position and the nearest type name. Not retryable.
    """
    if isinstance(text, pa.Schema):
        return text
    parser = _Parser(text)
    fields = parser.fields(closing=None)
    return pa.schema(fields)


def to_ddl(schema: pa.Schema) -> str:
    """Write a schema as DDL, so that ``parse_ddl(to_ddl(schema))`` is ``delta_schema(schema)``.

    Raises:
        SchemaError: ``SCHEMA_TYPE``, a type that no Delta table holds. Not retryable.
    """
    return ", ".join(_column(field, " ") for field in delta_schema(schema))


def _column(field: pa.Field, separator: str) -> str:
    name = field.name if re.fullmatch(r"[A-Za-z_]\w*", field.name, re.ASCII) else _quote(field.name)
    text = f"{name}{separator}{_slot(field)}"
    comment = (field.metadata or {}).get(b"comment")
    if comment is None:
        return text
    escaped = comment.decode("utf-8").replace("\\", "\\\\").replace("'", "''")
    return f"{text} COMMENT '{escaped}'"


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _slot(field: pa.Field) -> str:
    return _type_name(field.type) + ("" if field.nullable else " NOT NULL")


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pa.types.is_list(kind):
        return f"ARRAY<{_slot(kind.value_field)}>"
    if pa.types.is_map(kind):
        return f"MAP<{_type_name(kind.key_type)}, {_slot(kind.item_field)}>"
    if pa.types.is_struct(kind):
        return "STRUCT<" + ", ".join(_column(child, ": ") for child in kind) + ">"
    return _NAMES[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def shown(self) -> str:
        return "the end of the text" if self.kind == "end" else repr(self.text)


class _Parser:
    """Recursive descent over the tokens of one schema text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0

    def fields(self, closing: str | None) -> list[pa.Field]:
        """Read ``name type, name type`` up to ``closing`` (None: the end of the text)."""
        fields: list[pa.Field] = []
        seen: dict[str, str] = {}
        while True:
            token = self._peek()
            field = self._field()
            other = seen.setdefault(field.name.casefold(), field.name)
            if len(seen) == len(fields):
                self._fail(
                    token,
                    f"the column {field.name!r} after {other!r}",
                    "distinct names",
                    "Names differing only in case count as one",
                )
            fields.append(field)
            if self._accept(","):
                continue
            if closing is None and self._peek().kind == "end":
                return fields
            if closing is not None and self._accept(closing):
                return fields
            ending = "',' or the end of the text" if closing is None else f"',' or {closing!r}"
            self._fail(self._peek(), self._peek().shown, ending)

    def _field(self) -> pa.Field:
        name = self._name()
        self._accept(":")
        kind = self._type()
        nullable = not self._not_null()
        comment = self._comment()
        return pa.field(name, kind, nullable=nullable, metadata={"comment": comment} if comment is not None else None)

    def _name(self) -> str:
        token = self._take()
        if token.kind == "quoted":
            return token.text[1:-1].replace("``", "`")
        if token.kind != "name":
            self._fail(
                token,
                token.shown,
                "a column name",
                "Put a name with other signs than letters, digits and _ in `backquotes`",
            )
        return token.text

    def _type(self) -> pa.DataType:
        token = self._take()
        word = token.text.upper()
        if token.kind == "name" and word in _SIMPLE:
            return _SIMPLE[word]
        if token.kind == "name" and word in _SIZED_TEXT:
            if self._accept("("):
                self._number()
                self._expect(")")
            return pa.string()
        if token.kind == "name" and word in _DECIMAL:
            return self._decimal(token)
        if token.kind == "name" and word in _NESTED:
            return self._nested(word)
        near = difflib.get_close_matches(word, _TYPE_NAMES, n=1, cutoff=0.5)
        self._fail(
            token,
            token.shown,
            "a type",
            f"The nearest type is {near[0]}" if near else f"Types are {', '.join(_TYPE_NAMES)}",
        )

    def _decimal(self, token: _Token) -> pa.DataType:
        precision, scale = 10, 0
        if self._accept("("):
            precision = self._number()
            scale = self._number() if self._accept(",") else 0
            self._expect(")")
        if not 1 <= precision <= _MAX_PRECISION or scale > precision:
            self._fail(
                token,
                f"DECIMAL({precision},{scale})",
                f"a precision of 1 to {_MAX_PRECISION} and a scale up to the precision",
            )
        return pa.decimal128(precision, scale)

    def _nested(self, word: str) -> pa.DataType:
        self._expect("<")
        if word == "STRUCT":
            return pa.struct(self.fields(closing=">"))
        if word == "ARRAY":
            kind: pa.DataType = pa.list_(self._slot("element"))
        else:
            key = self._type()
            self._expect(",")
            kind = pa.map_(key, self._slot("value"))
        self._expect(">")
        return kind

    def _slot(self, name: str) -> pa.Field:
        kind = self._type()
        return pa.field(name, kind, nullable=not self._not_null())

    def _not_null(self) -> bool:
        if not self._word("NOT"):
            return False
        if not self._word("NULL"):
            self._fail(self._peek(), self._peek().shown, "NULL after NOT")
        return True

    def _comment(self) -> str | None:
        if not self._word("COMMENT"):
            return None
        token = self._take()
        if token.kind != "text":
            self._fail(token, token.shown, "a comment in 'single quotes'")
        return re.sub(r"''|\\(.)", lambda m: m.group(1) or "'", token.text[1:-1], flags=re.DOTALL)

    def _number(self) -> int:
        token = self._take()
        if token.kind != "number":
            self._fail(token, token.shown, "a number")
        return int(token.text)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        if token.kind != "end":
            self._next += 1
        return token

    def _accept(self, mark: str) -> bool:
        token = self._peek()
        if token.kind != "mark" or token.text != mark:
            return False
        self._next += 1
        return True

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            self._fail(self._peek(), self._peek().shown, repr(mark))

    def _word(self, word: str) -> bool:
        token = self._peek()
        if token.kind != "name" or token.text.upper() != word:
            return False
        self._next += 1
        return True

    def _fail(self, token: _Token, found: str, expected: str, remedy: str = "") -> NoReturn:
        raise SchemaError(
            f"cannot read the schema text at position {token.at}\n{_caret(self._text, token.at)}",
            code="SCHEMA_DDL",
            found=found,
            expected=expected,
            remedy=remedy,
            position=token.at,
        )


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:  # unreachable: the last alternative takes any sign
            raise SchemaError("cannot read the schema text", code="SCHEMA_DDL", found=text[at : at + 20])
        tokens.append(_Token(kind=match.lastgroup, text=match[match.lastgroup], at=match.start(match.lastgroup)))
        if match.lastgroup == "end":
            return tokens
        at = match.end()


def _caret(text: str, at: int) -> str:
    start = max(0, at - _WIDTH // 2)
    window = re.sub(r"\s", " ", text[start : start + _WIDTH])
    return f"    {window}\n    {' ' * (at - start)}^"
