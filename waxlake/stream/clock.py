"""Time, in one place, so that tests can hold it still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

__all__ = ["Clock", "held_time", "holding_time", "scheduler_now", "utc_now"]

_held: datetime | None = None


def utc_now() -> datetime:
    """Return the current time, aware, in UTC: that of the data, which a test may hold still."""
    return scheduler_now() if _held is None else _held


def scheduler_now() -> datetime:
    """Return the time of this machine, aware, in UTC, for whoever says when to be called again; it always passes."""
    return datetime.now(timezone.utc)


def held_time() -> datetime | None:
    """Return the time that a test holds still, or None."""
    return _held


@contextmanager
def holding_time(at: datetime | None) -> Iterator[None]:
    """Let ``utc_now``, and ``now()`` in SQL, be one instant for every thread while the block runs; None changes nothing."""
    global _held
    before, _held = _held, at if at is not None else _held
    try:
        yield
    finally:
        _held = before


class Clock:
    """A monotonic clock in seconds."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
        return time.monotonic()
