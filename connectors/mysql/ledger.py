"""What a MySQL source has to remember beside positions.

Where chunks of a first load end, where streams began, columns it has seen, how often it began anew, and the servers that took
each other's place. The end of a chunk is decided once, before any of its rows is emitted: chunk ``n`` of a table means the same
keys in every run. A chunk that reaches the end of its table has no end that could be written: the table may have grown when it is
read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from connectors.mysql.columns import Column
from waxlake.stream.entry_ledger import Entry, EntryLedger
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["SourceLedger"]


class SourceLedger(EntryLedger):
    """The ledger of one source. May be used by several threads."""

    def last_key(self, table: str, chunk: int) -> Sequence[str] | None:
        """Return the last key of a chunk, as SQL literals; None if nobody has decided it yet."""
        found: Sequence[str] | None = self.get("chunk", table, chunk)
        return found

    def end_chunk(self, table: str, chunk: int, last_key: Sequence[str]) -> bool:
        """Decide where a chunk ends; return whether it is there, and not where another run decided before."""
        kept = self.add({("chunk", table, chunk): list(last_key)})
        failpoint("chunk-recorded")
        return bool(kept["chunk", table, chunk] == list(last_key))

    def begin(self, epoch: int, table: str) -> int | None:
        """Return where the stream of a table began; None if it is new."""
        found: int | None = self.get("begin", table, epoch)
        return found

    def begins(self, epoch: int, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return where the streams of tables began; one that is new begins at the position given."""
        kept = self.add({("begin", table, epoch): position for table, position in positions.items()})
        return {table: kept["begin", table, epoch] for table in positions}

    def columns(self, table: str) -> list[Column]:
        """Return the columns seen so far, in the order they were first seen."""
        return [Column(**{**value, "members": tuple(value["members"])}) for value in self.values("column", table)]

    def add_columns(self, table: str, columns: Sequence[Column]) -> None:
        """Remember columns that are new."""
        known = self.columns(table)
        names = {column.name for column in known}
        new = [column for column in columns if column.name not in names]
        if new:
            self.add({("column", table, len(known) + i): asdict(column) for i, column in enumerate(new)})

    def epoch(self) -> int:
        """Return how often everything began anew."""
        return len(self.values("epoch"))

    def former(self) -> tuple[str, ...]:
        """Return the identities that the source had before it began anew."""
        return tuple(dict.fromkeys(identity for epoch in self.values("epoch") for identity in epoch["former"]))

    def begin_epoch(self, reason: str) -> None:
        """Note that everything begins anew, and that tables filled so far are to be filled again."""
        self.add({("epoch", "", self.epoch()): {"reason": reason, "former": self.values("identity")}})

    def add_identity(self, identity: str) -> None:
        """Remember an identity that the source has."""
        known = self.values("identity")
        if identity not in known:
            self.add({("identity", "", len(known)): identity})

    def servers(self) -> Sequence[str]:
        """Return the servers that took each other's place, the first one first."""
        return [str(identity) for identity in self.values("server")]

    def add_server(self, number: int, identity: str, places: Mapping[int, int]) -> Mapping[int, int]:
        """Remember which server comes after ``number`` others, and where in its log positions of those before are.

        Returns:
            The places that stand: another run may have been first.
        """
        entries: dict[Entry, Any] = {("place", str(position), number): place for position, place in places.items()}
        kept = self.add({("server", "", number): identity, **entries})
        if kept["server", "", number] != identity:
            raise TransientError(
                f"cannot write the ledger '{self._location.label}'",
                code="LEDGER_CONTENTION",
                found=f"server {kept['server', '', number]}",
                expected=f"server {identity}",
                remedy="Another run of this pipeline found another server at the address at the same time",
            )
        return {position: kept["place", str(position), number] for position in places}

    def place(self, position: int, number: int) -> int | None:
        """Return where a position of an earlier server is in the log of one; None if nobody looked for it yet."""
        found: int | None = self.get("place", str(position), number)
        return found

    def gtids(self, position: int) -> Mapping[str, int]:
        """Return the notes of a position at which a stream began."""
        return self.get("gtids", str(position), 0) or {}

    def add_gtids(self, position: int, notes: Mapping[str, int]) -> None:
        """Remember the notes of a position at which streams begin."""
        self.add({("gtids", str(position), 0): dict(notes)})

    def origins(self) -> Sequence[str]:
        """Return the domains, or servers, whose transactions notes may name."""
        return [str(origin) for origin in self.values("origin")]

    def add_origins(self, origins: Iterable[str]) -> None:
        """Remember domains before a table's commit names them."""
        known = self.origins()
        new = sorted(set(origins).difference(known))
        if new:
            self.add({("origin", "", len(known) + i): origin for i, origin in enumerate(new)})
