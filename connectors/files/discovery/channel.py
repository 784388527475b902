"""A channel of notifications, as discovery sees it: Kafka and SQS are behind it.

Exactly once: what was heard is recorded in the ledger together with the channel's positions, in one commit (Kafka), or is
taken off the queue after that commit (SQS). A crash before the commit has heard nothing; one after it hears again what the
ledger knows already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from connectors.files.discovery.events import ObjectEvent

__all__ = ["Channel", "ChannelLost", "Heard"]


class ChannelLost(Exception):
    """The channel cannot tell what is new: gone, made anew, or its events expired. The text says which."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a channel said since the last look.

    Attributes:
        events: Objects that were written, each at least once.
        positions: Ledger app id to the position after what was heard.
        ignored: Messages that were no events.
        has_more: Whether more is waiting already.
    """

    events: Sequence[ObjectEvent] = ()
    positions: Mapping[str, int] = field(default_factory=dict)
    ignored: int = 0
    has_more: bool = False


class Channel(Protocol):
    """Notifications of one source. Used by one thread at a time."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def ends(self) -> Mapping[str, int]:
        """Return the positions from which to hear on, if a full listing begins now.

        Raises:
            ChannelLost: There is no such channel, or it does not answer.
        """
        ...

    def hear(self, stored: Callable[[str], int | None]) -> Heard:
        """Return what was said since the stored positions.

        Args:
            stored: Position that the ledger holds for an app id.

        Raises:
            ChannelLost: What was said since then is not to be had: a full listing has to find it.
        """
        ...

    def recorded(self) -> None:
        """What was heard last is in the ledger: the channel may forget it."""
        ...

    def close(self) -> None:
        """Free the connection."""
        ...
