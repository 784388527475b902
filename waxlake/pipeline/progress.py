"""How a run shows itself: live in a terminal, in lines elsewhere, as JSON for machines.

A listener is told of every event, from several threads, and must return at once. A reader that goes away (a closed pipe)
silences it and never stops the run.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from waxlake.pipeline.event import Event
from waxlake.pipeline.run_summary import RunSummary

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["JsonProgress", "LineProgress", "Listener", "TerminalProgress"]

_LIVE_AFTER_S = 2.0
_LINE_INTERVAL_S = 5.0
_RATE_WINDOW_S = 10.0


class Listener(Protocol):
    """Is told what happens in a run."""

    def on_event(self, event: Event) -> None:
        """Take one event. Called from any thread of the run; returns at once and never raises."""
        ...

    def close(self) -> object:
        """The run is over. Called once."""
        ...


class _Lines:
    """Writes whole lines to a stream; falls silent when nobody reads any more."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._lock = threading.Lock()
        self._is_silent = False

    def write(self, *lines: str) -> None:
        with self._lock:
            if self._is_silent:
                return
            try:
                self._stream.write("".join(f"{line}\n" for line in lines))
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: the stream was closed
                self._is_silent = True
                _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """Let the interpreter flush a broken stream at exit without an error."""
    try:
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, stream.fileno())
        os.close(number)
    except (OSError, ValueError):
        return


class JsonProgress:
    """One event a line, as JSON, on standard output.

    Args:
        stream: Where to, if not standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._lines = _Lines(stream)

    def on_event(self, event: Event) -> None:
        """Write the event."""
        self._lines.write(event.to_json())

    def close(self) -> None:
        """There is nothing left to write."""


class LineProgress:
    """Lines for logs: each step of the update, each table every few seconds, and a summary.

    Args:
        stream: Where to, if not standard output.
        interval_s: Least seconds between two lines about the same table.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = _LINE_INTERVAL_S) -> None:
        self._lines, self._interval_s = _Lines(stream), interval_s
        self._summary = RunSummary()
        self._lock = threading.Lock()
        self._shown_at_s: dict[str, float] = {}

    def on_event(self, event: Event) -> None:
        """Write a line if the event is worth one."""
        with self._lock:
            if not self._summary.take(event):
                return
            line = self._line(event)
        if line:
            self._lines.write(f"{event.timestamp:%H:%M:%S} {line}")

    def close(self) -> None:
        """Write the summary."""
        with self._lock:
            lines = self._summary.lines() if self._summary.update_id else []
        self._lines.write(*lines)

    def _line(self, event: Event) -> str:
        if event.level in ("WARN", "ERROR"):
            return f"{event.level} {event.message}" if event.event_type != "update_progress" else ""
        if event.event_type in ("create_update", "operation_progress", "planning_information"):
            return event.message
        if not event.is_commit or event.dataset is None:
            return ""
        now_s = time.monotonic()
        last_s = self._shown_at_s.setdefault(event.dataset, now_s)
        if now_s - last_s < self._interval_s:
            return ""
        self._shown_at_s[event.dataset] = now_s
        table = self._summary.tables[event.dataset]
        backlog = table.backlog_text()
        broken = f", {table.violations:,} violations" if table.violations else ""
        return f"{event.dataset}: {table.rows:,} rows{broken}{f', {backlog} to go' if backlog else ''}"


class TerminalProgress:
    """A live table in a terminal, shown once a run takes longer than a moment, and a summary at its end.

    Args:
        stream: Where to, if not standard output.
        show_after_s: Seconds before the table appears.
    """

    def __init__(self, stream: TextIO | None = None, *, show_after_s: float = _LIVE_AFTER_S) -> None:
        self._stream, self._lines = stream, _Lines(stream)
        self._summary = RunSummary()
        self._lock = threading.Lock()
        self._recent: dict[str, deque[tuple[float, int]]] = {}
        self._live: Live | None = None
        self._closed = threading.Event()
        self._timer = threading.Timer(show_after_s, self._show)
        self._timer.daemon = True
        self._timer.start()

    def on_event(self, event: Event) -> None:
        """Take the event; the table on the screen is redrawn by its own thread."""
        with self._lock:
            if not self._summary.take(event):
                return
            if event.is_commit and event.dataset:
                recent = self._recent.setdefault(event.dataset, deque(maxlen=1000))
                recent.append((time.monotonic(), event.progress["metrics"]["num_output_rows"]))
        if event.level in ("WARN", "ERROR") and event.event_type != "update_progress":
            self._warn(event)

    def close(self) -> None:
        """Take the table away and write the summary."""
        self._timer.cancel()
        with self._lock:
            self._closed.set()
            live, self._live = self._live, None
            lines = self._summary.lines() if self._summary.update_id else []
        if live is not None:
            _quietly(live.stop)
        self._lines.write(*lines)

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live

        live = Live(  # made outside the lock: it asks for the table at once
            get_renderable=self._table,
            console=Console(file=self._stream or sys.stdout),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with self._lock:
            if self._closed.is_set():
                return
            self._live = live
        _quietly(live.start)
        if self._closed.is_set():
            _quietly(live.stop)

    def _warn(self, event: Event) -> None:
        with self._lock:
            live = self._live
        line = f"{event.level} {event.message}"
        if live is None:
            self._lines.write(line)
        else:
            _quietly(lambda: live.console.print(line, markup=False, highlight=False))

    def _table(self) -> Table:
        from rich.table import Table

        with self._lock:
            elapsed_s = time.time() - self._summary.started_s if self._summary.started_s else 0.0
            table = Table(title=f"{elapsed_s:.0f} s", title_justify="left", box=None, pad_edge=False)
            table.add_column("table")
            for heading in ("rows", "rows/s", "to go", "violations"):
                table.add_column(heading, justify="right")
            for name, total in self._summary.tables.items():
                table.add_row(
                    name,
                    f"{total.rows:,}",
                    f"{self._rate(name, elapsed_s):,.0f}",
                    total.backlog_text(),
                    f"{total.violations:,}" if total.violations else "",
                )
        return table

    def _rate(self, name: str, elapsed_s: float) -> float:
        """Return rows per second over the last seconds."""
        since_s = time.monotonic() - _RATE_WINDOW_S
        rows = sum(count for at_s, count in self._recent.get(name, ()) if at_s >= since_s)
        return rows / max(1.0, min(_RATE_WINDOW_S, elapsed_s))


def _quietly(action: Any) -> None:
    """Run a screen action; a terminal that went away must not stop the run."""
    try:
        action()
    except (OSError, ValueError):
        return
