"""Time, in one place, so that tests can hold it still."""

from __future__ import annotations

import time
from datetime import datetime, timezone

__all__ = ["Clock", "utc_now"]


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(timezone.utc)


class Clock:
    """A monotonic clock in seconds."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary start; never goes back."""
        return time.monotonic()
