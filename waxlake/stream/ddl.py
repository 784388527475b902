"""Spark-style schema text, ``id BIGINT, tags ARRAY<STRING>``, to an Arrow schema and back.

Called wherever a user may write a schema as text: sources, table definitions, the SQL front end. Types and names follow
Spark SQL, so that a schema can be copied from there.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import delta_schema

__all__ = ["CONSTRAINTS", "DEFAULT", "GENERATED", "parse_ddl", "to_ddl"]

DEFAULT = "default"
"""Key of a field's metadata: the SQL of its default."""
GENERATED = "generated"
"""Key of a field's metadata: the SQL that it always is."""
CONSTRAINTS = "constraints"
"""Key of a schema's metadata: its CHECK constraints, as JSON from name to condition."""

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


def parse_ddl(text: str | pa.Schema, *, is_table: bool = False) -> pa.Schema:
    """Read a schema from Spark-style DDL. A ``pa.Schema`` is returned unchanged.

    Types are case-insensitive: BIGINT, INT, SMALLINT, TINYINT, DOUBLE, FLOAT, BOOLEAN, STRING, BINARY, DATE, TIMESTAMP
    (microseconds, UTC), TIMESTAMP_NTZ (microseconds, no zone), DECIMAL(p,s), ARRAY<t>, MAP<k,v>, STRUCT<name: t, ...>,
    and Spark's synonyms. A length, as in VARCHAR(20), is read and not enforced. ``NOT NULL`` also goes after an element
    or a map value; a ``COMMENT`` is kept as field metadata.

    Args:
        text: The schema.
        is_table: It is that of a table: columns may have ``DEFAULT expr`` or ``GENERATED ALWAYS AS (expr)``, kept as metadata
            of the field, and ``CONSTRAINT name CHECK (expr)`` may stand among them, kept as metadata of the schema.

    Raises:
        SchemaError: ``SCHEMA_DDL``; shows the position and the nearest type name. Not retryable.
    """
    if isinstance(text, pa.Schema):
        return text
    parser = _Parser(text, is_table=is_table)
    fields = parser.fields(closing=None)
    constraints = {CONSTRAINTS: json.dumps(parser.constraints)} if parser.constraints else None
    return pa.schema(fields, metadata=constraints)


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

    def __init__(self, text: str, *, is_table: bool) -> None:
        self._text, self._is_table = text, is_table
        self.constraints: dict[str, str] = {}
        self._tokens = list(_tokens(text))
        self._next = 0

    def fields(self, closing: str | None) -> list[pa.Field]:
        """Read ``name type, name type`` up to ``closing`` (None: the end of the text)."""
        fields: list[pa.Field] = []
        seen: dict[str, str] = {}
        while True:
            token = self._peek()
            if closing is None and self._is_table and self._constraint():
                if self._accept(","):
                    continue
                if self._peek().kind == "end":
                    return fields
                self._fail(self._peek(), self._peek().shown, "',' or the end of the text")
            field = self._field(is_column=closing is None)
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

    def _field(self, *, is_column: bool) -> pa.Field:
        name = self._name()
        self._accept(":")
        kind = self._type()
        nullable, metadata = True, {}
        while True:
            comment = self._comment()
            if comment is not None:
                metadata["comment"] = comment
            elif self._not_null():
                nullable = False
            elif not (is_column and self._is_table and self._derived(metadata)):
                return pa.field(name, kind, nullable=nullable, metadata=metadata or None)

    def _derived(self, metadata: dict[str, str]) -> bool:
        """Read ``DEFAULT expr`` or ``GENERATED ALWAYS AS (expr)``; return whether one was there."""
        if self._word("DEFAULT"):
            metadata[DEFAULT] = self._expression(until=("NOT", "COMMENT", "GENERATED"))
            return True
        if not self._word("GENERATED"):
            return False
        for word in ("ALWAYS", "AS"):
            if not self._word(word):
                remedy = "Identity columns are not available" if self._peek().text.upper() == "BY" else ""
                self._fail(self._peek(), self._peek().shown, "GENERATED ALWAYS AS (expression)", remedy)
        if self._peek().text.upper() == "IDENTITY":
            self._fail(
                self._peek(), "IDENTITY", "an expression", "Identity columns are not available: delta-rs writes none"
            )
        metadata[GENERATED] = self._bracketed()
        return True

    def _constraint(self) -> bool:
        """Read ``CONSTRAINT name CHECK (expr)``; return whether one was there."""
        following = self._tokens[min(self._next + 2, len(self._tokens) - 1)]
        if self._peek().text.upper() != "CONSTRAINT" or following.text.upper() not in (
            "CHECK",
            "PRIMARY",
            "FOREIGN",
            "UNIQUE",
        ):
            return False
        self._word("CONSTRAINT")
        name = self._name()
        if not self._word("CHECK"):
            remedy = "Use an expectation with wl.unique() or wl.references(): nothing enforces keys of a Delta table"
            self._fail(self._peek(), self._peek().shown, "CHECK (condition)", remedy)
        self.constraints[name] = self._bracketed()
        return True

    def _bracketed(self) -> str:
        opening = self._peek()
        text = self._expression(until=())
        if opening.text != "(" or not text.endswith(")"):
            self._fail(opening, opening.shown, "an expression in brackets")
        return text[1:-1].strip()

    def _expression(self, until: tuple[str, ...]) -> str:
        """Read what comes before ``,`` or the end outside brackets, or one of the words; a first bracket alone ends with it."""
        start, depth, end = self._peek().at, 0, self._peek().at
        is_bracket = not until
        while True:
            token = self._peek()
            if token.kind == "end" or (depth == 0 and (token.text in (",", ")") or token.text.upper() in until)):
                break
            depth += (token.text in "([{") - (token.text in ")]}") if len(token.text) == 1 else 0
            end = token.at + len(token.text)
            self._take()
            if is_bracket and depth == 0:
                break
        if end == start:
            self._fail(self._peek(), self._peek().shown, "an expression")
        return self._text[start:end].strip()

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
