"""Names with the pipeline's own schema in front, as `default.orders`: they stand for the table `orders`. Called by the resolver.

`USE SCHEMA gold` gives every name without a schema that one, so this is how a query there names a table of the pipeline's schema.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from waxlake.pipeline.definitions import Query, Read, SqlQuery, Step, TableRead
from waxlake.pipeline.stream import Branch

__all__ = ["in_own_schema", "known_name"]

_BEFORE_TABLE: Final = ("FROM", "JOIN", ",")


def known_name(name: str, schema: str, names: Collection[str]) -> str:
    """Return the dataset that a name stands for: itself, or without the pipeline's schema if only that is defined."""
    prefix, separator, rest = name.partition(".")
    is_own = separator and prefix.casefold() == schema.casefold() and name not in names and rest in names
    return rest if is_own else name


def in_own_schema(branch: Branch, schema: str, names: Collection[str], dialect: str) -> Branch:
    """Return a branch whose read and queries name tables of the pipeline's schema without it."""

    def step_of(step: Step) -> Step:
        return replace(step, text=_shortened(step.text, schema, names, dialect)) if isinstance(step, Query) else step

    read: Read = branch.read
    if isinstance(read, TableRead):
        read = replace(read, name=known_name(read.name, schema, names))
    elif isinstance(read, SqlQuery):
        read = replace(read, text=_shortened(read.text, schema, names, dialect))
    return replace(branch, read=read, steps=tuple(map(step_of, branch.steps)))


def _shortened(text: str, schema: str, names: Collection[str], dialect: str) -> str:
    if not re.search(rf"\b{re.escape(schema)}\W{{0,3}}\.", text, re.IGNORECASE):
        return text
    from sqlglot import Dialect, TokenType
    from sqlglot.errors import TokenError

    try:
        tokens = Dialect.get_or_raise(dialect).tokenize(text)
    except TokenError:  # compiling the query tells what is wrong with it
        return text
    cuts = []
    for index in range(len(tokens) - 2):
        first, dot, last = tokens[index : index + 3]
        before = tokens[index - 1].text.upper() if index else ""
        is_table = before.split(" ")[-1] in _BEFORE_TABLE
        is_column = before != "." and index + 3 < len(tokens) and tokens[index + 3].token_type is TokenType.DOT
        is_own = dot.token_type is TokenType.DOT and known_name(f"{first.text}.{last.text}", schema, names) == last.text
        if is_own and (is_table or is_column):
            cuts.append((first.start, last.start))
    for start, end in reversed(cuts):
        text = text[:start] + text[end:]
    return text
