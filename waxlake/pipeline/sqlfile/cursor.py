"""Walks over the tokens of one statement: words, names, texts and bracketed parts, each mistake with its place."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import Token, TokenType

from waxlake.pipeline.sqlfile.source import SqlText, is_word
from waxlake.stream.errors import DefinitionError

__all__ = ["Cursor"]

_OPENING = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE)
_CLOSING = (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE)


class Cursor:
    """A place among the tokens of one statement.

    Args:
        source: The text.
        tokens: The statement, or a part of it.
        end: Offset in the text where the part ends, for mistakes at its end.
    """

    def __init__(self, source: SqlText, tokens: Sequence[Token], end: int | None = None) -> None:
        self.source, self.tokens, self._at = source, tokens, 0
        self._end = end if end is not None else (tokens[-1].end + 1 if tokens else 0)

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self._at >= len(self.tokens)

    @property
    def offset(self) -> int:
        """Offset in the text of the next token."""
        return self._end if self.is_at_end else self.tokens[self._at].start

    @property
    def where(self) -> str:
        """``file:line:column`` of the next token."""
        return self.source.where(self.offset)

    @property
    def is_text(self) -> bool:
        """Whether a quoted text follows."""
        return not self.is_at_end and self.tokens[self._at].token_type is TokenType.STRING

    def at(self, *words: str) -> bool:
        """Return whether these words follow, in this order."""
        rest = self.tokens[self._at : self._at + len(words)]
        return len(rest) == len(words) and all(is_word(t, w) for t, w in zip(rest, words, strict=True))

    def accept(self, *words: str) -> bool:
        """Step over these words if they follow; return whether they did."""
        if not self.at(*words):
            return False
        self._at += len(words)
        return True

    def expect(self, *words: str) -> None:
        """Step over these words.

        Raises:
            DefinitionError: Others follow. Not retryable.
        """
        if not self.accept(*words):
            raise self.wrong(" ".join(words))

    def name(self, what: str = "a name") -> str:
        """Step over a name, ``a`` or ``a.b``, and return it unquoted."""
        parts = [self._part(what)]
        while not self.is_at_end and self.tokens[self._at].token_type is TokenType.DOT:
            self._at += 1
            parts.append(self._part(what))
        return ".".join(parts)

    def _part(self, what: str) -> str:
        if self.is_at_end:
            raise self.wrong(what)
        token = self.tokens[self._at]
        if token.token_type is not TokenType.IDENTIFIER and not token.text.replace("_", "a").isalnum():
            raise self.wrong(what)
        if token.token_type in (TokenType.STRING, TokenType.NUMBER):
            raise self.wrong(what)
        self._at += 1
        return token.text

    def text(self, what: str = "a text in single quotes") -> str:
        """Step over a quoted text and return what it says."""
        if not self.is_text:
            raise self.wrong(what)
        self._at += 1
        return self.tokens[self._at - 1].text

    def bracketed(self, what: str = "'('") -> Cursor:
        """Step over a part in parentheses and return what is inside."""
        if self.is_at_end or self.tokens[self._at].token_type is not TokenType.L_PAREN:
            raise self.wrong(what)
        first, depth = self._at + 1, 0
        while not self.is_at_end:
            kind = self.tokens[self._at].token_type
            depth += (kind in _OPENING) - (kind in _CLOSING)
            self._at += 1
            if depth == 0:
                return Cursor(self.source, self.tokens[first : self._at - 1], self.tokens[self._at - 1].start)
        raise self.source.error("a bracket is not closed", self.tokens[first - 1].start, code="SQL_SYNTAX")

    def rest(self) -> Cursor:
        """Return what is left, and step to the end."""
        rest = Cursor(self.source, self.tokens[self._at :], self._end)
        self._at = len(self.tokens)
        return rest

    def until(self, *phrases: tuple[str, ...]) -> Cursor:
        """Return what comes before the first of the phrases outside brackets, or all that is left."""
        first, depth = self._at, 0
        while not self.is_at_end:
            kind = self.tokens[self._at].token_type
            if depth == 0 and any(self.at(*phrase) for phrase in phrases):
                break
            depth += (kind in _OPENING) - (kind in _CLOSING)
            self._at += 1
        return Cursor(self.source, self.tokens[first : self._at], self.offset)

    def parts(self) -> list[Cursor]:
        """Return what lies between commas outside brackets."""
        parts: list[Cursor] = []
        first, depth = self._at, 0
        for index in range(self._at, len(self.tokens)):
            kind = self.tokens[index].token_type
            depth += (kind in _OPENING) - (kind in _CLOSING)
            if kind is TokenType.COMMA and depth == 0:
                parts.append(Cursor(self.source, self.tokens[first:index], self.tokens[index].start))
                first = index + 1
        self._at = len(self.tokens)
        return [*parts, Cursor(self.source, self.tokens[first:], self._end)]

    def raw(self) -> str:
        """Return the text of what is left, as it was written; comments at its edges are left out."""
        if self.is_at_end:
            return ""
        return self.source.text[self.offset : self.tokens[-1].end + 1]

    def finish(self) -> None:
        """Require that nothing is left.

        Raises:
            DefinitionError: Something is. Not retryable.
        """
        if not self.is_at_end:
            raise self.wrong("the end of the statement")

    def wrong(self, expected: str) -> DefinitionError:
        """Return the error that something else stands here."""
        found = "the end" if self.is_at_end else f"'{self.tokens[self._at].text}'"
        return self.source.error(
            "cannot read the statement", self.offset, code="SQL_SYNTAX", found=found, expected=expected
        )
