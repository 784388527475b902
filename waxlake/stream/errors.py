"""Every error Waxlake raises on purpose, in one tree.

    WaxlakeError
    ├── UserError                 what the user wrote cannot work; never retried
    │   ├── UsageError            a command or spec is wrong (exit code 2)
    │   ├── DefinitionError       a definition is wrong; names its file and line
    │   ├── SchemaError           a schema or a type does not fit
    │   └── ExpectationFailed     an `expect_or_fail` rule met a row that breaks it
    ├── ExternalError             something outside is not as it must be
    │   ├── TransientError        it may pass: retried with back-off
    │   ├── SchemaGrown           a source has new columns; planning again adds them (exit code 75)
    │   └── TerminalError         it will not pass by itself
    │       ├── SourceMoved       the source no longer holds what the table expects next
    │       ├── SourceChanged     the source has columns that the plan does not know; planning again settles it
    │       └── CommitConflict    a newer run has taken the table
    │           └── PositionMoved an older run moved it; planning again settles who goes on
    │               └── FilesMoved another writer took away files that were to be replaced
    └── InternalError             a promise of ours is broken: a defect, please report it

A text reads: what failed, on which object: found …, expected …. What to do. [CODE]
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

__all__ = [
    "CommitConflict",
    "DefinitionError",
    "ExpectationFailed",
    "ExternalError",
    "FilesMoved",
    "InternalError",
    "PositionMoved",
    "SchemaError",
    "SchemaGrown",
    "SourceChanged",
    "SourceMoved",
    "TerminalError",
    "TransientError",
    "UsageError",
    "UserError",
    "WaxlakeError",
    "shorten",
]


class WaxlakeError(Exception):
    """An error with a stable code, the facts as attributes, and a text that says what to do.

    Args:
        what: What failed, and on which object.
        code: Stable upper-case code, such as ``COMMIT_CONFLICT``.
        found: What was there.
        expected: What should have been there.
        remedy: What the user can do about it, as a sentence.
        facts: Further values worth reading by a machine; kept in ``self.facts``.
    """

    is_retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        code: str,
        found: object | None = None,
        expected: object | None = None,
        remedy: str = "",
        **facts: Any,
    ) -> None:
        self.what, self.code, self.found, self.expected = what, code, found, expected
        self.remedy, self.facts = remedy, facts
        super().__init__(self._text())

    def _text(self) -> str:
        seen = []
        if self.found is not None:
            seen.append(f"found {self.found}")
        if self.expected is not None:
            seen.append(f"expected {self.expected}")
        text = _sentence(self.what + (": " + ", ".join(seen) if seen else ""))
        if self.remedy:
            text += " " + _sentence(self.remedy)
        return f"{text} [{self.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"code": self.code, "found": self.found, "expected": self.expected, "remedy": self.remedy}
        return (_rebuild, (type(self), self.what, {**state, **self.facts}))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "…")) else text + "."


def _line_in_sql(where: str) -> str:
    """Return the line of a place ``file.sql:line:column`` with a caret under it; nothing of any other place."""
    match = re.fullmatch(r"(.+\.sql):(\d+):(\d+)", where, re.DOTALL)
    if match is None:
        return ""
    try:
        with open(match[1], encoding="utf-8-sig") as stream:
            line = stream.read().splitlines()[int(match[2]) - 1]
    except (OSError, UnicodeDecodeError, IndexError):
        return ""
    margin = "".join("\t" if c == "\t" else " " for c in line[: int(match[3]) - 1])
    return f"  {line}\n  {margin}^"


def _rebuild(kind: type[WaxlakeError], what: str, state: dict[str, Any]) -> WaxlakeError:
    return kind(what, **state)


class UserError(WaxlakeError):
    """What the user wrote cannot work. Not retryable."""


class UsageError(UserError):
    """A command line, an option or the spec is wrong. Not retryable; exit code 2."""

    exit_code: ClassVar[int] = 2


class DefinitionError(UserError):
    """A definition in a pipeline file is wrong. Not retryable.

    Args:
        where: ``file:line`` of the definition, shown first.
        snippet: The line itself with a caret under the place, shown last; read from a SQL file if it is not given.
    """

    def __init__(self, what: str, *, where: str = "", snippet: str = "", **rest: Any) -> None:
        self.where, self.snippet = where, snippet or _line_in_sql(where)
        super().__init__(f"{where}: {what}" if where else what, **rest)
        if self.snippet:
            self.facts["snippet"] = self.snippet

    def _text(self) -> str:
        return f"{super()._text()}\n{self.snippet}" if self.snippet else super()._text()


class SchemaError(UserError):
    """A schema, or a value against its schema, does not fit. Not retryable."""


class ExpectationFailed(UserError):
    """Rows broke an ``expect_or_fail`` rule; nothing of their batch was committed. Not retryable."""


class ExternalError(WaxlakeError):
    """Something outside Waxlake is not as it must be."""


class TransientError(ExternalError):
    """It may pass: a broker that is away, a store that throttles. Retryable."""

    is_retryable: ClassVar[bool] = True


class SchemaGrown(ExternalError):
    """A source has columns that the run was not planned with. They are stored: planning again reads on with them.

    Not retryable as it is; a run in one process plans again by itself. Exit code 75, for whoever restarts a process.
    """

    exit_code: ClassVar[int] = 75


class TerminalError(ExternalError):
    """It will not pass by itself: wrong credentials, a missing bucket. Not retryable."""


class SourceMoved(TerminalError):
    """The source no longer holds what the table expects next: going on would lose rows. Not retryable."""


class SourceChanged(TerminalError):
    """The source has columns that the run was not planned for. Not retryable as it is; planning again is."""


class CommitConflict(TerminalError):
    """Another run writes this table. Not retryable."""


class PositionMoved(CommitConflict):
    """The table's position is not where this run planned from. Not retryable as it is; planning again is."""


class FilesMoved(PositionMoved):
    """Data files that a commit was to replace are gone from the table. Not retryable as it is; planning again is."""


class InternalError(WaxlakeError):
    """A promise of ours does not hold. Not retryable; a defect."""

    @classmethod
    def of(cls, exc: BaseException, what: str) -> InternalError:
        """Return the error for an exception that nothing expected; ``what`` says what failed, and on which object."""
        from waxlake.stream.settings import redact

        while exc.__cause__ is not None:  # an engine wraps what was raised
            exc = exc.__cause__
        return cls(
            what,
            code="INTERNAL",
            found=f"{type(exc).__name__}: {shorten(redact({'text': str(exc)})['text'], 300)}",
            remedy="What was committed stays. Please report this with what WAXLAKE_DEBUG=1 shows",
        )


def shorten(value: object, limit: int = 120) -> str:
    """Return ``str(value)`` cut to ``limit`` characters, for a sample inside a message."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
