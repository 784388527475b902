"""What a source would be read for, seen without changing anything; made by connectors for ``waxlake plan``.

A connector whose ``inspect`` sets something up (a slot, a ledger) offers ``preview`` instead; of others ``inspect`` is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from waxlake.stream.batch import Backlog
from waxlake.stream.source import SourceState

__all__ = ["Previewing", "SourcePreview"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePreview:
    """A source as it is now.

    Attributes:
        state: What it holds; None if nothing was set up for it yet, so that no flow has a position in it.
        backlog: From a partition and the position to read from (None: the beginning) to what is to be read.
        note: What the first run sets up, or what cannot be told; empty for nothing.
    """

    state: SourceState | None
    backlog: Callable[[str, int | None], Backlog] = lambda partition, position: Backlog()
    note: str = ""


@runtime_checkable
class Previewing(Protocol):
    """A connector that can be looked at without setting anything up."""

    def preview(self) -> SourcePreview:
        """Return the source as it is now; creates nothing and records nothing.

        Raises:
            TerminalError: Unknown path or table, wrong credentials. Not retryable.
            TransientError: The source does not answer. Retryable.
        """
        ...
