"""Global transaction ids: which transactions lie before a place in a log, and how that is kept beside a table's position.

MariaDB numbers transactions by domain and tells which server wrote each (``0-1-100``); of a domain the last one is enough.
MySQL numbers them by the server that wrote them (``uuid:100``); of each there are intervals. A ``GtidSet`` is one of both, as of
one place between two transactions.

Beside a position the set is kept as notes, integers by name: for a domain its last number and the server that wrote it, for a
server of MySQL its last number. They are in the commit that stores the position and name it (``gtid/at``), so notes of an earlier
commit are never taken for those of a later one. A set of MySQL with holes has no such form: it is noted that there are some.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["NOTE_AT", "Gtid", "GtidSet", "note_names", "parse_gtid", "parse_listed", "parse_text"]

NOTE_AT: Final = "gtid/at"
_NOTE_HOLES: Final = "gtid/holes"
_NOTE: Final = "gtid/"
_SERVER: Final = "/server"

Intervals = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Gtid:
    """One transaction.

    Attributes:
        origin: MariaDB: the domain; MySQL: UUID of the server that wrote it.
        number: Its number there, from 1.
        server: MariaDB: number of the server that wrote it; MySQL: 0.
    """

    origin: str
    number: int
    server: int = 0

    def __str__(self) -> str:
        """Return it as its server writes it."""
        return f"{self.origin}-{self.server}-{self.number}" if self.origin.isdigit() else f"{self.origin}:{self.number}"


@dataclass(frozen=True, slots=True)
class GtidSet:
    """The transactions before a place in a log.

    Attributes:
        last: MariaDB: domain to its last transaction.
        ranges: MySQL: server to first and last number of each interval, in order, none touching the next.
    """

    last: Mapping[str, Gtid] = field(default_factory=dict)
    ranges: Mapping[str, Intervals] = field(default_factory=dict)

    def with_all(self, gtids: Iterable[Gtid]) -> GtidSet:
        """Return the set with transactions that follow."""
        last, ranges = dict(self.last), dict(self.ranges)
        for gtid in gtids:
            if gtid.server or gtid.origin.isdigit():
                last[gtid.origin] = gtid
            else:
                ranges[gtid.origin] = _joined((*ranges.get(gtid.origin, ()), (gtid.number, gtid.number)))
        return GtidSet(last, ranges)

    def holds(self, gtid: Gtid) -> bool:
        """Return whether a transaction is in the set, as far as its number tells."""
        known = self.last.get(gtid.origin)
        if known is not None:
            return gtid.number <= known.number
        return any(first <= gtid.number <= final for first, final in self.ranges.get(gtid.origin, ()))

    def is_within(self, other: GtidSet) -> bool:
        """Return whether all its transactions are in another set, as far as their numbers tell."""
        return not self.beyond(other)

    def beyond(self, other: GtidSet) -> tuple[str, ...]:
        """Return what is in this set and not in another, as ``0-1-5..9`` or ``uuid:5-9``."""
        found = []
        for origin, gtid in self.last.items():
            known = other.last.get(origin)
            first = known.number + 1 if known is not None else 1
            if gtid.number >= first:
                found.append(f"{origin}-{gtid.server}-{first}..{gtid.number}")
        for origin, intervals in self.ranges.items():
            missing = _without(intervals, other.ranges.get(origin, ()))
            found += [f"{origin}:{first}-{final}" for first, final in missing]
        return tuple(found)

    def notes(self, position: int) -> dict[str, int]:
        """Return what is kept beside a position."""
        notes = {NOTE_AT: position}
        for origin, gtid in self.last.items():
            notes[_NOTE + origin] = gtid.number
            notes[_NOTE + origin + _SERVER] = gtid.server
        has_holes = False
        for origin, intervals in self.ranges.items():
            has_holes = has_holes or len(intervals) > 1 or intervals[0][0] != 1
            notes[_NOTE + origin] = intervals[-1][1]
        if self.ranges:
            notes[_NOTE_HOLES] = int(has_holes)
        return notes

    @classmethod
    def of_notes(cls, notes: Mapping[str, int], position: int) -> GtidSet | None:
        """Return the set that was noted beside a position; None if none was."""
        if notes.get(NOTE_AT) != position or notes.get(_NOTE_HOLES):
            return None
        last: dict[str, Gtid] = {}
        ranges: dict[str, Intervals] = {}
        for name, number in notes.items():
            origin = name.removeprefix(_NOTE)
            if name in (NOTE_AT, _NOTE_HOLES) or name.endswith(_SERVER):
                continue
            if name + _SERVER in notes:
                last[origin] = Gtid(origin, number, notes[name + _SERVER])
            else:
                ranges[origin] = ((1, number),)
        return cls(last, ranges)

    @property
    def origins(self) -> frozenset[str]:
        """Domains, or servers, of its transactions."""
        return frozenset((*self.last, *self.ranges))

    def __str__(self) -> str:
        """Return the set as its server writes it."""
        intervals = [f"{origin}:{':'.join(_shown(one) for one in several)}" for origin, several in self.ranges.items()]
        return ",".join([*map(str, self.last.values()), *intervals])


def note_names(origins: Iterable[str]) -> tuple[str, ...]:
    """Return the names of all notes that there may be for some domains or servers."""
    names = [name for origin in origins for name in (_NOTE + origin, _NOTE + origin + _SERVER)]
    return (NOTE_AT, _NOTE_HOLES, *names)


def parse_gtid(body: bytes, server: int, *, is_mariadb: bool) -> Gtid:
    """Return the transaction that a GTID event begins.

    Args:
        body: The event after its header.
        server: Number of the server that wrote it, from its header.
        is_mariadb: Which of the two forms it has.

    Source: MariaDB, "GTID_EVENT"; MySQL internals, "Gtid_log_event".
    """
    if is_mariadb:
        return Gtid(str(int.from_bytes(body[8:12], "little")), int.from_bytes(body[:8], "little"), server)
    return Gtid(str(uuid.UUID(bytes=body[1:17])), int.from_bytes(body[17:25], "little"))


def parse_listed(body: bytes, *, is_mariadb: bool) -> GtidSet:
    """Return the set with which a binlog file begins.

    Source: MariaDB, "GTID_LIST_EVENT": of each domain the transaction listed last is the newest; MySQL internals,
    "Previous_gtids_log_event": intervals are half-open.

    Raises:
        ValueError: A form that is not known, such as MySQL's tagged ids.
    """
    if is_mariadb:
        found: dict[str, Gtid] = {}
        for i in range(int.from_bytes(body[:4], "little") & 0x0FFFFFFF):
            at = 4 + 16 * i
            domain, server = (int.from_bytes(body[at + j : at + j + 4], "little") for j in (0, 4))
            found[str(domain)] = Gtid(str(domain), int.from_bytes(body[at + 8 : at + 16], "little"), server)
        return GtidSet(last=found)
    count, at = int.from_bytes(body[:8], "little"), 8
    if count >> 48:
        raise ValueError("a set of tagged transaction ids")
    ranges: dict[str, Intervals] = {}
    for _ in range(count):
        origin, several = str(uuid.UUID(bytes=body[at : at + 16])), int.from_bytes(body[at + 16 : at + 24], "little")
        at += 24
        ends = [int.from_bytes(body[at + 8 * i : at + 8 * i + 8], "little") for i in range(2 * several)]
        ranges[origin] = _joined(tuple((a, b - 1) for a, b in zip(ends[::2], ends[1::2], strict=True)))
        at += 16 * several
    return GtidSet(ranges=ranges)


def parse_text(text: str, *, is_mariadb: bool) -> GtidSet:
    """Return a set as a server writes it: ``0-1-100,1-2-5``, or ``uuid:1-5:7,uuid:1-9``.

    Raises:
        ValueError: It is written otherwise.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if is_mariadb:
        fields = [part.split("-") for part in parts]
        return GtidSet(last={domain: Gtid(domain, int(number), int(server)) for domain, server, number in fields})
    ranges: dict[str, Intervals] = {}
    for part in parts:
        origin, *several = part.split(":")
        ends = [one.split("-") for one in several]
        if not several or any(not end.isdigit() for pair in ends for end in pair):
            raise ValueError(f"not a set of transaction ids: {part!r}")
        key = str(uuid.UUID(origin))
        ranges[key] = _joined((*ranges.get(key, ()), *((int(pair[0]), int(pair[-1])) for pair in ends)))
    return GtidSet(ranges=ranges)


def _joined(intervals: Sequence[tuple[int, int]]) -> Intervals:
    """Return intervals in order, those that touch made one."""
    made: list[tuple[int, int]] = []
    for first, final in sorted(intervals):
        if made and first <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(made[-1][1], final))
        else:
            made.append((first, final))
    return tuple(made)


def _without(intervals: Intervals, others: Intervals) -> Intervals:
    """Return what of intervals is in none of others."""
    left = list(intervals)
    for low, high in others:
        left = [
            part
            for first, final in left
            for part in ((first, min(final, low - 1)), (max(first, high + 1), final))
            if part[0] <= part[1]
        ]
    return tuple(left)


def _shown(interval: tuple[int, int]) -> str:
    return str(interval[0]) if interval[0] == interval[1] else f"{interval[0]}-{interval[1]}"
