"""The text of one SQL file: `${key}` filled in, cut into tokens, and every place in it told as line, column and caret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlglot import Token, TokenType
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import TokenError

from waxlake.stream.errors import DefinitionError, UsageError

__all__ = ["SqlText", "is_word"]

_SCAN = re.compile(
    r"""(?P<line>--[^\n]*)
      | (?P<block>/\*.*?\*/) | (?P<open_block>/\*)
      | (?P<text>'(?:[^']|'')*') | (?P<open_text>')
      | (?P<name>"(?:[^"]|"")*" | `[^`]*`) | (?P<open_name>["`])
      | (?P<end>;) | (?P<blank>\s+) | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_VALUE = re.compile(r"\$\{([^{}]*)\}")
_QUOTED = (TokenType.STRING, TokenType.IDENTIFIER, TokenType.NATIONAL_STRING, TokenType.HEREDOC_STRING)


@dataclass(slots=True)
class SqlText:
    """The text of a SQL file.

    Attributes:
        file: The file, for messages.
        original: What the file holds.
        text: The same with configuration values filled in.
        dialect: Dialect of its queries.
        shifts: For each value filled in: (offset in ``text`` after it, how much longer ``text`` is from there on).
        caller: ``file:line`` of the Python call whose text it is, if it is none of a file.
    """

    file: Path
    original: str
    text: str
    dialect: str = "duckdb"
    shifts: list[tuple[int, int]] = field(default_factory=list)
    caller: str = ""

    @classmethod
    def read(cls, file: Path, dialect: str = "duckdb") -> SqlText:
        """Read a file.

        Raises:
            UsageError: It cannot be read, or is not UTF-8. Not retryable.
        """
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(
                f"cannot read definitions from {file}",
                code="DEFINITIONS_UNREADABLE",
                found=str(exc),
                expected="SQL text in UTF-8",
            ) from exc
        return cls(file=file, original=text, text=text, dialect=dialect)

    def statements(self) -> Iterator[tuple[int, int]]:
        """Yield where each statement starts and ends in the original text, semicolons and comments between left out.

        Raises:
            DefinitionError: A text, name or comment that is not closed. Not retryable.
        """
        start, has_text = 0, False
        for match in _SCAN.finditer(self.original):
            for group, what in (("open_block", "comment"), ("open_text", "text"), ("open_name", "name")):
                if match.group(group) is not None:
                    raise self.error(f"a {what} is not closed", match.start(), code="SQL_SYNTAX")
            if match.lastgroup == "end":
                if has_text:
                    yield start, match.start()
                start, has_text = match.end(), False
            elif match.lastgroup not in ("line", "block", "blank"):
                has_text = True
        if has_text:
            yield start, len(self.original)

    def statement(self, start: int, end: int, configuration: Mapping[str, str]) -> SqlText:
        """Return the text up to ``end`` with each ``${key}`` of the statement filled in, comments left alone.

        Args:
            start: Offset of the statement in the original text.
            end: Offset after it.
            configuration: Values by key.

        Raises:
            DefinitionError: ``CONFIGURATION_MISSING``. Not retryable.
        """
        made = SqlText(self.file, self.original, "", self.dialect)
        parts, at, length = [], 0, 0
        comments = [m.span() for m in _SCAN.finditer(self.original, start, end) if m.lastgroup in ("line", "block")]
        for match in _VALUE.finditer(self.original, start, end):
            if any(a <= match.start() < b for a, b in comments):
                continue
            key = match.group(1).strip()
            if key not in configuration:
                raise self.error(
                    f"configuration value '{key}' is not set",
                    match.start(),
                    code="CONFIGURATION_MISSING",
                    remedy=f"Set it under `configuration:` in the spec, or with --param {key}=…",
                )
            parts += [self.original[at : match.start()], configuration[key]]
            length += match.start() - at + len(configuration[key])
            at = match.end()
            made.shifts.append((length, length - at))
        made.text = "".join([*parts, self.original[at:end]])
        return made

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column (both from 1) of an offset in ``text``, as they are in the file."""
        shift = next((by for after, by in reversed(self.shifts) if offset >= after), 0)
        at = min(max(offset - shift, 0), len(self.original))
        line_start = self.original.rfind("\n", 0, at) + 1
        return self.original.count("\n", 0, at) + 1, at - line_start + 1

    def where(self, offset: int) -> str:
        """Return ``file:line:column`` of an offset in ``text``; for the text of a call where that is."""
        if self.caller:
            return self.caller
        line, column = self.place(offset)
        return f"{self.file}:{line}:{column}"

    def error(self, what: str, offset: int, *, code: str, **rest: Any) -> DefinitionError:
        """Return an error that shows the line and a caret under the place."""
        line, column = self.place(offset)
        shown = (self.original.splitlines() or [""])[min(line, len(self.original.splitlines()) or 1) - 1]
        margin = "".join("\t" if c == "\t" else " " for c in shown[: column - 1])
        return DefinitionError(what, where=self.where(offset), code=code, snippet=f"  {shown}\n  {margin}^", **rest)

    def tokens(self, start: int) -> list[Token]:
        """Return the tokens of ``text`` from an offset on.

        Raises:
            DefinitionError: Text that is no SQL. Not retryable.
        """
        try:
            tokens = Dialect.get_or_raise(self.dialect).tokenize(" " * start + self.text[start:])
        except TokenError as exc:
            raise self.error(f"cannot read the SQL: {exc}", start, code="SQL_SYNTAX") from exc
        return [word for token in tokens for word in self._words(token)]

    def _words(self, token: Token) -> list[Token]:
        """Return a token of several words, as PARTITIONED BY, word by word."""
        if token.token_type in _QUOTED or " " not in token.text:
            return [token]
        words = re.finditer(r"\S+", self.text[token.start : token.end + 1])
        return [
            Token(TokenType.VAR, m.group(), start=token.start + m.start(), end=token.start + m.end() - 1) for m in words
        ]


def is_word(token: Token, *words: str) -> bool:
    """Return whether a token is one of the words, unquoted, in any case."""
    return token.token_type not in _QUOTED and token.text.upper() in words
