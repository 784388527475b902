"""Which server answers, and whether what the tables hold is part of its history. Called by the connector, the stream and loads.

A standby that is promoted begins a new timeline where it stood: what the server before wrote beyond that place is not in its
log, and other commits lie at the same positions. Slots tell nothing of it: one may be there (synchronised, or created on the
standby), and the log that goes on beyond the tables' positions looks as if nothing were missing. So each table stores, beside
a position, the timeline it was read on, and of a first load the place of its snapshot; and every connection says which server
it talks to before anything is taken from it.

Failure points: a table's commit holds position, timeline and rows in one entry, so there is nothing in between. A server that is
replaced while a run reads ends that run's read (``SourceChanged``) before a row of the new one was emitted; planning again
compares what the tables hold by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from connectors.postgres.client import format_lsn, parse_lsn, postgres_errors
from waxlake.stream.errors import SourceChanged, SourceMoved
from waxlake.stream.source import SourcePlan

__all__ = ["SNAPSHOT", "TIMELINE", "ServerIdentity", "check_history", "check_same", "identify"]

TIMELINE: Final = "timeline"
"""Note beside a position: the timeline it was read on."""
SNAPSHOT: Final = "snapshot"
"""Note beside a position in a first load: where the snapshot of its last rows stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """The server at the other end of a connection.

    Attributes:
        system: Its system identifier; a standby has that of its primary.
        timeline: Its timeline; each promotion, and each recovery to a point in time, begins another.
        left_at: Earlier timeline to the position where this history left it.
    """

    system: str
    timeline: int
    left_at: Mapping[int, int] = field(default_factory=dict, compare=False)


def identify(connection: Any) -> ServerIdentity:
    """Return which server answers on a replication connection.

    Raises:
        TransientError: The connection is gone. Retryable.
    """
    with postgres_errors("identify a server"), connection.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        system, timeline, *_ = cursor.fetchone()
        if timeline == 1:
            return ServerIdentity(system=system, timeline=timeline)
        cursor.execute(f"TIMELINE_HISTORY {timeline}")
        content = cursor.fetchone()[1]
    text = content if isinstance(content, str) else bytes(content).decode(errors="replace")
    lines = (line.split() for line in text.splitlines())
    left_at = {int(words[0]): parse_lsn(words[1]) for words in lines if len(words) >= 2 and words[0].isdigit()}
    return ServerIdentity(system=system, timeline=timeline, left_at=left_at)


def check_same(found: ServerIdentity, expected: ServerIdentity) -> None:
    """Stop where another server answers than the one that a plan was made for.

    Raises:
        SourceChanged: Planning again settles whether tables can go on there.
    """
    if found != expected:
        raise SourceChanged(
            "another PostgreSQL server answers now",
            code="POSTGRES_SERVER_CHANGED",
            found=f"system {found.system}, timeline {found.timeline}",
            expected=f"system {expected.system}, timeline {expected.timeline}",
            remedy="Run again: whether the tables can go on there is looked at when a run is planned",
        )


def check_history(name: str, server: ServerIdentity, plan: SourcePlan) -> None:
    """Stop where tables hold what is not part of a server's history.

    Raises:
        SourceMoved: ``POSTGRES_DIVERGED``. Not retryable.
    """
    for key, part in plan.partitions.items():
        for position, notes in part.notes.items():
            timeline = notes.get(TIMELINE)
            if timeline is None or timeline == server.timeline:
                continue
            reached, left_at = notes.get(SNAPSHOT, position), server.left_at.get(timeline)
            if left_at is None or reached > left_at:
                where = "does not come from it" if left_at is None else f"left it at {format_lsn(left_at)}"
                raise SourceMoved(
                    f"cannot go on reading {name}",
                    code="POSTGRES_DIVERGED",
                    found=f"a server of timeline {server.timeline}, which {where}",
                    expected=f"timeline {timeline} up to {format_lsn(reached)}, which the tables hold ({key})",
                    remedy="The server was promoted, or restored, without the end of the log that was read. Go back to the "
                    "server before, or set on_slot_lost='resnapshot' to load the tables again",
                )
