"""The methods of a stream that need state: event time, de-duplication, windows, joins and keyed state. Nothing is read here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from waxlake.pipeline.definitions import Stateful, Step, WatermarkStep, calling_line
from waxlake.stream.errors import DefinitionError
from waxlake.stream.settings import parse_duration

if TYPE_CHECKING:
    from sinks.state import Operator

__all__ = ["StatefulMethods"]

S = TypeVar("S", bound="StatefulMethods")


class StatefulMethods:
    """What a ``Stream`` can do with state. See docs/stateful.md."""

    __slots__ = ()

    def _with(self: S, step: Step) -> S:
        raise NotImplementedError

    def with_watermark(
        self: S,
        column: str,
        delay: str | float,
        *,
        idle: str | float = 60,
        ahead: str | float = "1 day",
        late: str = "drop",
    ) -> S:
        """Say which column is the event time of the stateful operator that follows, and how late rows may come.

        Args:
            column: TIMESTAMP or DATE column.
            delay: How far a row may lie behind the latest one.
            idle: How long a source partition may be silent before it no longer holds time back.
            ahead: How far beyond the clock a time may lie and still move the watermark.
            late: What becomes of rows that come later, and of rows without a time: ``drop`` counts them, ``quarantine`` sends
                them to the table's quarantine table too.
        """
        from sinks.state import EventTime

        line = calling_line()
        if late not in ("drop", "quarantine"):
            raise _invalid("with_watermark", "late", late, "'drop' or 'quarantine'", line)
        time = EventTime(
            column=_name(column, "with_watermark", line),
            delay_us=duration_us(delay, "with_watermark", "delay", line, may_be_zero=True),
            idle_s=duration_us(idle, "with_watermark", "idle", line, may_be_zero=True) / 1e6,
            ahead_us=duration_us(ahead, "with_watermark", "ahead", line),
            keeps_late=late == "quarantine",
        )
        return self._with(WatermarkStep(time=time, where=line))

    def drop_duplicates(self: S, keys: str | Sequence[str], within: str | float | None = None) -> S:
        """Keep the first row of each key.

        Args:
            keys: Columns whose equality makes a duplicate; NULLs are equal.
            within: Span of event time within which rows are duplicates; needs a watermark. None remembers every key for ever,
                or until the watermark has passed it if the event time is one of the keys.
        """
        from sinks.state import Dedupe

        line = calling_line()
        span = None if within is None else duration_us(within, "drop_duplicates", "within", line)
        return self._stateful(Dedupe(keys=_names(keys, "drop_duplicates", line), within_us=span), line)

    def _stateful(self: S, operator: Operator, line: str) -> S:
        return self._with(Stateful(operator=operator, where=line))


def duration_us(value: object, method: str, argument: str, line: str, *, may_be_zero: bool = False) -> int:
    """Return a duration in microseconds.

    Raises:
        DefinitionError: It is none. Not retryable.
    """
    try:
        seconds: Any = parse_duration(value)
    except ValueError:
        seconds = None
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or seconds < 0
        or (not seconds and not may_be_zero)
    ):
        raise _invalid(method, argument, value, "a duration such as '10 minutes'", line)
    return round(seconds * 1_000_000)


def _name(value: object, method: str, line: str) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid(method, "column", value, "a column name", line)
    return value


def _names(values: str | Sequence[str], method: str, line: str) -> tuple[str, ...]:
    names = (values,) if isinstance(values, str) else tuple(values)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise _invalid(method, "keys", values, "different column names", line)
    return names


def _invalid(method: str, argument: str, found: object, expected: str, line: str) -> DefinitionError:
    return DefinitionError(
        f"{method}() cannot take this {argument}",
        where=line,
        code="ARGUMENT_INVALID",
        found=repr(found),
        expected=expected,
    )
