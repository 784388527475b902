"""Hints for an inferred schema: ``id INT, place.lat DOUBLE``, laid over what inference found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import SchemaError

__all__ = ["Hint", "apply_hints", "parse_hints"]

_STEP: Final = r"(?:`(?:[^`]|``)+`|[^\W\d]\w*)"
_PATH: Final = rf"{_STEP}(?:\s*\.\s*{_STEP})*"
_HINT: Final = re.compile(rf"\s*({_PATH})(?:\s*:\s*|\s+)(\S.*?)\s*$", re.S)
_STEPS: Final = re.compile(_STEP)


@dataclass(frozen=True, slots=True)
class Hint:
    """The type of one column.

    Attributes:
        path: Its name, below those of the columns that hold it; ``key``, ``value`` and ``element`` go into maps and arrays.
        type: Its type.
    """

    path: tuple[str, ...]
    type: pa.DataType


def parse_hints(text: str) -> list[Hint]:
    """Read hints.

    Raises:
        SchemaError: ``SCHEMA_DDL``. Not retryable.
    """
    hints = []
    for part in _parts(text):
        match = _HINT.match(part)
        if match is None:
            raise SchemaError(
                "cannot read the schema hints",
                code="SCHEMA_DDL",
                found=repr(part.strip()),
                expected="a name and a type, as in id INT or place.lat DOUBLE",
            )
        path, kind = match.groups()
        names = tuple(s[1:-1].replace("``", "`") if s.startswith("`") else s for s in _STEPS.findall(path))
        hints.append(Hint(names, parse_ddl(f"hint {kind}").field(0).type))
    return hints


def apply_hints(schema: pa.Schema, hints: Sequence[Hint]) -> pa.Schema:
    """Return the schema with the hinted types; a column that is not there is added.

    Raises:
        SchemaError: ``SCHEMA_HINT``: a path goes through a column that holds no others. Not retryable.
    """
    fields = list(schema)
    for hint in hints:
        fields = _with_hint(fields, hint, 0)
    return pa.schema(fields)


def _parts(text: str) -> list[str]:
    """Cut at commas outside of brackets and quotes."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"`(?:[^`]|``)*`|'(?:[^']|'')*'|[<>(),]", text):
        sign = match[0]
        depth += (sign in "<(") - (sign in ">)")
        if sign == "," and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for part in [*parts, text[start:]] if part.strip()]


def _with_hint(fields: list[pa.Field], hint: Hint, at: int) -> list[pa.Field]:
    name, is_last = hint.path[at], at == len(hint.path) - 1
    index = next((i for i, field in enumerate(fields) if field.name == name), None)
    if index is None:
        index = next((i for i, field in enumerate(fields) if field.name.casefold() == name.casefold()), None)
    if index is None:
        kind = hint.type if is_last else pa.struct(_with_hint([], hint, at + 1))
        return [*fields, pa.field(name, kind)]
    old = fields[index]
    kind = hint.type if is_last else _inside(old.type, hint, at + 1)
    return [*fields[:index], old.with_type(kind), *fields[index + 1 :]]


def _inside(kind: pa.DataType, hint: Hint, at: int) -> pa.DataType:
    """Return a nested type with the hint laid over one of its parts."""
    step, is_last = hint.path[at], at == len(hint.path) - 1
    if pa.types.is_struct(kind):
        return pa.struct(_with_hint(list(kind), hint, at))
    if pa.types.is_list(kind) and step == "element":
        return pa.list_(hint.type if is_last else _inside(kind.value_type, hint, at + 1))
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        return pa.list_(_inside(kind.value_type, hint, at))
    if pa.types.is_map(kind) and step == "value":
        return pa.map_(kind.key_type, hint.type if is_last else _inside(kind.item_type, hint, at + 1))
    if pa.types.is_map(kind) and step == "key" and is_last:
        return pa.map_(hint.type, kind.item_type)
    raise SchemaError(
        f"cannot lay the schema hint {'.'.join(hint.path)!r} over the inferred schema",
        code="SCHEMA_HINT",
        found=f"{'.'.join(hint.path[:at])} of type {kind}",
        expected="a STRUCT, or a MAP or ARRAY with key, value or element as the next name",
        remedy="Hint at the whole column, or leave the hint out",
    )
