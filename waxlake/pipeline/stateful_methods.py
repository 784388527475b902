"""The methods of a stream that need state: event time, de-duplication, windows, joins and keyed state. Nothing is read here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from waxlake.pipeline.definitions import Stateful, Step, WatermarkStep, calling_line
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    import pyarrow as pa

    from sinks.state import Operator
    from sinks.state.keyed import StateFunction

__all__ = ["Grouped", "StatefulMethods", "WindowRule", "session", "sliding", "tumbling"]

S = TypeVar("S", bound="StatefulMethods")


class StatefulMethods:
    """What a ``Stream`` can do with state. See docs/stateful.md."""

    __slots__ = ()

    def _with(self: S, step: Step) -> S:
        raise NotImplementedError

    def union(self: S, other: S) -> S:
        """Take the rows of both: a ``Stream`` does."""
        raise NotImplementedError

    def with_watermark(
        self: S,
        column: str,
        delay: str | float,
        *,
        idle: str | float = 60,
        ahead: str | float = "1 day",
        late: str = "drop",
        hold_first_load: bool = False,
    ) -> S:
        """Say which column is the event time of the stateful operator that follows, and how late rows may come.

        Args:
            column: TIMESTAMP or DATE column.
            delay: How far a row may lie behind the latest one.
            idle: How long a source partition may be silent before it no longer holds time back.
            ahead: How far beyond the clock a time may lie and still move the watermark.
            late: What becomes of rows that come later, and of rows without a time: ``drop`` counts them, ``quarantine`` sends
                them to the table's quarantine table too.
            hold_first_load: Let the watermark begin only when every source partition was read to its end once: no row of the
                first load is late, whatever its order, and all of its windows are held until then.
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
            holds_first_load=bool(hold_first_load),
        )
        return self._with(WatermarkStep(time=time, where=line))

    def drop_duplicates(self: S, keys: str | Sequence[str] | None = None, within: str | float | None = None) -> S:
        """Keep the first row of each key.

        Args:
            keys: Columns whose equality makes a duplicate, None for all of them; NULLs are equal.
            within: Span of event time within which rows are duplicates; needs a watermark. None remembers every key for ever,
                or until the watermark has passed it if the event time is one of the keys.
        """
        from sinks.state import Dedupe

        line = calling_line()
        span = None if within is None else duration_us(within, "drop_duplicates", "within", line)
        names = () if keys is None else _names(keys, "drop_duplicates", line)
        return self._stateful(Dedupe(keys=names, within_us=span), line)

    def group_by(self: S, *keys: str, window: WindowRule | None = None, mode: str | None = None) -> Grouped[S]:
        """Group by columns, and by a window of event time; ``.agg`` says what is said of each group.

        Args:
            keys: Columns.
            window: ``wl.tumbling``, ``wl.sliding`` or ``wl.session``; needs a watermark on its column.
            mode: ``append`` puts a window's row out once, when the watermark has passed its end; ``update`` keeps the rows of the
                table up to date. Without a window only ``update``.
        """
        line = calling_line()
        if window is not None and not isinstance(window, WindowRule):
            raise _invalid("group_by", "window", window, "wl.tumbling(...), wl.sliding(...) or wl.session(...)", line)
        mode = mode or ("append" if window is not None else "update")
        if mode not in ("append", "update"):
            raise _invalid("group_by", "mode", mode, "'append' or 'update'", line)
        names = _names(keys, "group_by", line) if keys else ()
        return Grouped(self, names, window, mode, line)

    def join(
        self: S,
        other: S,
        on: str | Sequence[str],
        within: str | float | tuple[str | float, str | float] | None = None,
        how: str = "inner",
    ) -> S:
        """Join with another stream: rows with equal keys whose event times are no further apart than a span.

        Args:
            other: The other stream; both have a watermark.
            on: Key columns, of the same name on both sides. NULLs match nothing.
            within: Span of event time; or two, how far the other row's time may lie before and after this one's.
            how: ``inner``, ``left``, ``right``, ``full`` or ``semi``. Rows of an outer side without a partner come when the
                watermark says that none can come any more.
        """
        from sinks.state import Join
        from sinks.state.joins import HOW

        line = calling_line()
        if how not in HOW:
            raise _invalid("join", "how", how, ", ".join(HOW), line)
        if type(other) is not type(self):
            expected = "a stream; name a table in .sql() to join with it as it is"
            raise _invalid("join", "other", type(other).__name__, expected, line)
        span: int | tuple[int, int] | None = None
        if isinstance(within, tuple) and len(within) == 2:
            earlier, later = (duration_us(part, "join", "within", line, may_be_zero=True) for part in within)
            span = (earlier, later)
        elif within is not None:
            span = duration_us(within, "join", "within", line, may_be_zero=True)
        operator = Join(on=_names(on, "join", line), within_us=span, how=how)
        return self._joined(other, operator, line)

    def _joined(self: S, other: S, operator: Operator, line: str) -> S:
        left = self._with(Stateful(operator=operator, side=0, where=line))
        return left.union(other._with(Stateful(operator=operator, side=1, where=line)))

    def map_with_state(
        self: S,
        function: StateFunction,
        keys: str | Sequence[str],
        schema: str | pa.Schema,
        state_schema: str | pa.Schema,
        timeout: str | float | None = None,
    ) -> S:
        """Apply a Python function to the rows of each commit and the state of their keys.

        Args:
            function: From (rows, state) to (output, new state), all ``pa.Table``. ``state`` has the keys, the columns of
                ``state_schema`` and ``timed_out``; a touched key without a row in the new state has none any more.
            keys: Columns that say which state belongs to a row.
            schema: Columns of the output, as DDL or Arrow schema.
            state_schema: Columns of the state beside the keys.
            timeout: Event time after a key's last row at which its state is handed over a last time and ends; needs a watermark.
        """
        from sinks.state import MapWithState
        from waxlake.pipeline.stream import as_schema

        line = calling_line()
        if not callable(function):
            raise _invalid("map_with_state", "function", function, "a function of (rows, state)", line)
        out, held = as_schema(schema), as_schema(state_schema)
        if out is None or held is None:
            raise _invalid("map_with_state", "schema", None, "schema= and state_schema=", line)
        span = None if timeout is None else duration_us(timeout, "map_with_state", "timeout", line)
        names = _names(keys, "map_with_state", line)
        operator = MapWithState(function=function, keys=names, schema=out, state_schema=held, timeout_us=span)
        return self._stateful(operator, line)

    def _stateful(self: S, operator: Operator, line: str) -> S:
        return self._with(Stateful(operator=operator, where=line))


@dataclass(frozen=True, slots=True)
class WindowRule:
    """A window as it is written: ``wl.tumbling``, ``wl.sliding``, ``wl.session``."""

    kind: str
    column: str
    size_us: int
    every_us: int = 0


@dataclass(frozen=True)
class Grouped(Generic[S]):
    """Rows grouped; ``agg`` makes a stream of them."""

    stream: S
    keys: tuple[str, ...]
    window: WindowRule | None
    mode: str
    where: str

    def agg(self, **aggregates: str) -> S:
        """Say what the columns of each group's row are, beside the keys and ``window_start`` and ``window_end``.

        Args:
            aggregates: Column names and SQL aggregates, as ``n="count(*)"``: all that DuckDB knows.
        """
        from sinks.state import Aggregate, Window

        if not aggregates or not all(isinstance(text, str) and text.strip() for text in aggregates.values()):
            raise _invalid("agg", "aggregate", aggregates, 'at least one, as n="count(*)"', self.where)
        window = None
        if self.window is not None:
            rule = self.window
            window = Window(kind=rule.kind, column=rule.column, size_us=rule.size_us, every_us=rule.every_us)
        operator = Aggregate(keys=self.keys, window=window, aggregates=tuple(aggregates.items()), mode=self.mode)
        return self.stream._stateful(operator, self.where)


def tumbling(column: str, size: str | float) -> WindowRule:
    """Return windows of one length that follow each other, for ``group_by(window=...)``.

    Args:
        column: Event time.
        size: Length.
    """
    line = calling_line()
    size_us = duration_us(size, "tumbling", "size", line)
    return WindowRule("tumbling", _name(column, "tumbling", line), size_us, size_us)


def sliding(column: str, size: str | float, every: str | float) -> WindowRule:
    """Return windows of one length that overlap, for ``group_by(window=...)``.

    Args:
        column: Event time.
        size: Length.
        every: Time between the beginnings of two windows, no longer than the length.
    """
    line = calling_line()
    size_us, every_us = duration_us(size, "sliding", "size", line), duration_us(every, "sliding", "every", line)
    if every_us > size_us:
        raise _invalid("sliding", "every", every, f"at most the length, {size!r}: rows would be in no window", line)
    return WindowRule("sliding", _name(column, "sliding", line), size_us, every_us)


def session(column: str, gap: str | float) -> WindowRule:
    """Return windows that end where a key is silent for a while, for ``group_by(window=...)``.

    Args:
        column: Event time.
        gap: Silence that ends a window.
    """
    line = calling_line()
    return WindowRule("session", _name(column, "session", line), duration_us(gap, "session", "gap", line))


def duration_us(value: object, method: str, argument: str, line: str, *, may_be_zero: bool = False) -> int:
    """Return a duration in microseconds.

    Raises:
        DefinitionError: It is none. Not retryable.
    """
    from waxlake.stream.settings import parse_duration

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
