"""Where a position of one server is in the log of another that took its place: found by transaction ids, exactly or not at all.

The transactions that tables hold at a position are noted beside it. In the other log the same transactions must lie before one
place: then everything after it is new, and nothing before it is missing. That holds of a replica that writes its own log in the
order of its source. Where it does not, going on would lose or repeat changes, so it stops and names them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from connectors.mysql.client import Client, Server
from connectors.mysql.dump import BinlogDump
from connectors.mysql.gtid import Gtid, GtidSet
from connectors.mysql.log import Transactions
from connectors.mysql.position import server_number
from waxlake.stream.errors import SourceMoved, TransientError
from waxlake.stream.position import RowPosition

__all__ = ["Told", "find_place"]

_READ_BYTES = 1 << 20
_WAIT_S = 0.05
_REMEDY = "or set on_binlog_lost='resnapshot' to load the tables anew"


@dataclass(slots=True)
class Told:
    """How far one table was told to move, in positions as tables store them.

    The first positions after a failover may be those of the server before: where the table begins, and where other flows of it
    stand. A place between two of them has no such position: rows up to there belong to what ends at the next one.

    Attributes:
        position: Position that the table holds.
        fences: (place in this log, position) of flows that are further than the table was, both growing.
    """

    position: int
    fences: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, position: int, fences: tuple[int, ...], server: int, place: Callable[[int], int]) -> Told:
        """Return how a table is told, of a plan's positions."""
        return cls(position, [(place(fence), fence) for fence in fences if server_number(fence) != server])

    def passed(self, place: int) -> list[int]:
        """Return, and forget, the positions of other flows up to a place."""
        found = [position for at, position in self.fences if at <= place]
        self.fences = self.fences[len(found) :]
        return found


def find_place(client: Client, server: Server, wanted: GtidSet) -> int:
    """Return the place before which a server's log has some transactions and no others.

    Raises:
        SourceMoved: There is none: transactions were purged, or are not there, or in another order. Not retryable.
        TransientError: The server does not answer. Retryable.
    """
    with contextlib.closing(client.connect_to(server)) as connection:
        files = client.files(connection, server)
    before = GtidSet()
    for start in reversed(files):
        with contextlib.closing(client.dump(server, start)) as dump:
            log = Transactions(
                name=client.what,
                file=RowPosition.unpack(start).major,
                position=start,
                wanted={},
                charset_of=lambda _: "binary",
                is_mariadb=server.is_mariadb,
            )
            before = _begin(client, dump, log)
            if before.is_within(wanted):
                return _walk(client, server, dump, log=log, wanted=wanted)
    raise _cannot(
        client,
        "MYSQL_BINLOG_PURGED",
        f"its oldest binlog file begins after {', '.join(before.beyond(wanted))}, which the tables do not hold",
        f"the binlog since {wanted}",
        f"Keep binlogs longer, {_REMEDY}",
    )


def _begin(client: Client, dump: BinlogDump, log: Transactions) -> GtidSet:
    """Return the set that a file begins with."""
    silent = 0
    while log.gtids is None:
        events = dump.read(max_bytes=1, wait_s=_WAIT_S)
        silent = 0 if events else silent + 1
        for event in events:
            log.feed(event)
        if log.gtids is None and (log.committed or silent > 200):
            raise _cannot(
                client,
                "MYSQL_GTID_OFF",
                "a binlog file without the transaction ids that came before it",
                "transaction ids (gtid_mode=ON)",
                f"Go back to the server before, {_REMEDY}",
            )
    return log.gtids


def _walk(client: Client, server: Server, dump: BinlogDump, *, log: Transactions, wanted: GtidSet) -> int:
    """Read on until the transactions wanted lie before."""
    place = log.known_from
    silent = 0
    while True:
        for end, gtid in log.committed:
            if log.gtids == wanted or _is_next(log.gtids, wanted, gtid):
                return place
            if not _has(wanted, gtid):
                raise _diverged(client, gtid, log.gtids, wanted)
            log.gtids, place = (log.gtids or GtidSet()).with_all([gtid]), end
        log.committed.clear()
        if log.gtids == wanted:
            return place
        if log.position >= server.last:
            raise _missing(client, log.gtids or GtidSet(), wanted)
        events = dump.read(max_bytes=_READ_BYTES, wait_s=_WAIT_S)
        silent = 0 if events else silent + 1
        if silent > 600:
            raise TransientError(f"cannot read the binlog of {client.what}", code="MYSQL_UNREACHABLE", found="silence")
        for event in events:
            log.feed(event)


def _has(wanted: GtidSet, gtid: Gtid) -> bool:
    """Return whether a transaction is one that tables hold; one of that number that another server wrote is not."""
    last = wanted.last.get(gtid.origin)
    return wanted.holds(gtid) and (last is None or gtid.number < last.number or gtid == last)


def _is_next(before: GtidSet | None, wanted: GtidSet, gtid: Gtid) -> bool:
    """Return whether a log that knows nothing of what came before it begins with the very next transaction."""
    last = wanted.last.get(gtid.origin)
    return before == GtidSet() and len(wanted.last) == 1 and last is not None and gtid.number == last.number + 1


def _missing(client: Client, found: GtidSet, wanted: GtidSet) -> SourceMoved:
    return _cannot(
        client,
        "MYSQL_GTID_MISSING",
        f"no {', '.join(wanted.beyond(found))}, which the tables hold",
        f"a server that has {wanted}",
        f"Wait until the replica has caught up; what only the server before had is lost: {_REMEDY[3:]}",
    )


def _diverged(client: Client, gtid: Gtid, found: GtidSet | None, wanted: GtidSet) -> SourceMoved:
    return _cannot(
        client,
        "MYSQL_GTID_DIVERGED",
        f"{gtid} before {', '.join(wanted.beyond(found or GtidSet())) or wanted}",
        f"first what the tables hold, {wanted}, and then what they do not",
        f"The server has another history, or another order: {_REMEDY[3:]}",
    )


def _cannot(client: Client, code: str, found: str, expected: str, remedy: str) -> SourceMoved:
    return SourceMoved(
        f"cannot go on at another server, {client.what}", code=code, found=found, expected=expected, remedy=remedy
    )
