"""Byte budgets: how much a source may have in flight before its sinks have written it.

A source partition takes from its budget before it emits and stops emitting when nothing is left; a sink gives back what
it has written. Source and sink find the same budget by name inside one process. Across processes the sink cannot reach
it, so the end of an epoch (every sink has taken what was emitted in it) gives everything back.
"""

from __future__ import annotations

import threading
import weakref
from typing import ClassVar

__all__ = ["ByteBudget"]


class ByteBudget:
    """A bounded count of bytes in flight, shared by name inside this process.

    Args:
        name: Key under which sinks of this process find it.
        limit_bytes: Most bytes in flight; one batch may exceed it when nothing else is in flight.
    """

    _named: ClassVar[weakref.WeakValueDictionary[str, ByteBudget]] = weakref.WeakValueDictionary()

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name, self.limit_bytes = name, limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()
        ByteBudget._named[name] = self

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more may be emitted now."""
        return self._used_bytes >= self.limit_bytes

    @property
    def is_untouched(self) -> bool:
        """Whether nothing is in flight."""
        return not self._used_bytes

    def take(self, size_bytes: int) -> None:
        """Count ``size_bytes`` as in flight."""
        with self._lock:
            self._used_bytes += size_bytes

    def epoch_ended(self) -> None:
        """Forget what is in flight: every sink, wherever it runs, has received it."""
        with self._lock:
            self._used_bytes = 0

    @classmethod
    def give_back(cls, name: str, size_bytes: int) -> None:
        """Return bytes to the budget of that name, if it lives in this process."""
        budget = cls._named.get(name)
        if budget is not None and size_bytes:
            with budget._lock:
                budget._used_bytes = max(0, budget._used_bytes - size_bytes)
