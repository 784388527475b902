"""SIGTERM and SIGINT ask a run to drain.

What they start runs on a thread of its own. A handler interrupts the main thread anywhere, also where that holds the very lock
that is needed: ``Event.set()`` called from a handler hangs for ever when the main thread was just within ``Event.wait()``.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["drain_on_signals", "draining_on_signals", "note_signals"]

_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT)
_noted: Final[list[int]] = []
"""Signals that came before a run was there to drain, and were not heeded yet."""


def note_signals() -> None:
    """Let a SIGTERM or SIGINT that comes before the run can drain be heeded by ``draining_on_signals``.

    Called first thing by the command that runs: its imports take a second, and to be stopped within it is no failure. A second
    signal ends the process.
    """
    for number in _NUMBERS:
        signal.signal(number, _note)


def _note(number: int, _frame: Any) -> None:
    _noted.append(number)
    for each in _NUMBERS:
        signal.signal(each, _DEFAULTS[each])


_DEFAULTS: Final[dict[int, Any]] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


def drain_on_signals(drain: Callable[[], None]) -> None:
    """Call ``drain`` at each SIGTERM and SIGINT from now on; outside the main thread, where no handler can be set, never."""
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            signal.signal(number, lambda number, frame: _run_apart(drain))


@contextmanager
def draining_on_signals(drain: Callable[[], None]) -> Iterator[None]:
    """Call ``drain`` at the first SIGTERM or SIGINT while the block runs; a second one is taken at its word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handle(number: int, _frame: Any) -> None:
        _run_apart(drain)
        is_own = before[number] is None or before[number] is _note
        signal.signal(number, _DEFAULTS[number] if is_own else before[number])

    for number in _NUMBERS:
        before[number] = signal.signal(number, handle)
    if _noted:
        _noted.clear()
        drain()
    try:
        yield
    finally:
        for installed, handler in before.items():
            signal.signal(installed, handler)


def _run_apart(drain: Callable[[], None]) -> None:
    _thread.start_new_thread(drain, ())
