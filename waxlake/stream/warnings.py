"""What a connector finds strange and is no failure: a warning for people, which a pipeline puts into its event log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Warns"]


@runtime_checkable
class Warns(Protocol):
    """A connector with warnings.

    Attributes:
        on_warning: Takes one, from any thread; logs it unless somebody listens.
    """

    on_warning: Callable[[str], None]
