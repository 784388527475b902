"""What a PostgreSQL source has to remember beside positions: ends of chunks, columns it has seen, epochs of its slot.

A chunk's end is decided once, before any of its rows is emitted: chunk ``n`` of a table means the same keys in every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.postgres.types import PostgresType
from waxlake.stream.entry_ledger import EntryLedger
from waxlake.stream.failpoints import failpoint

__all__ = ["KnownColumn", "SourceLedger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownColumn:
    """A column that a table has or once had, with the type it had first."""

    name: str
    type: PostgresType


class SourceLedger(EntryLedger):
    """The ledger of one source. May be used by several threads."""

    def exists(self) -> bool:
        """Return whether it was made already."""
        return self._location.exists()

    def bounds(self, identity: str, table: int) -> list[Sequence[str]]:
        """Return the last key of each chunk decided so far."""
        return self.values("chunk", f"{identity}/{table}")

    def add_bounds(self, identity: str, table: int, known: int, bounds: Sequence[Sequence[str]]) -> None:
        """Decide where the chunks after the first ``known`` ones end; what another run decided first stands."""
        failpoint("load-planned")
        self._append("chunk", f"{identity}/{table}", known, [list(bound) for bound in bounds])

    def columns(self, source: str, table: int) -> list[KnownColumn]:
        """Return the columns seen so far, in the order they were first seen."""
        return [
            KnownColumn(
                name=v["name"], type=PostgresType(name=v["type"], modifier=v["modifier"], is_array=v["is_array"])
            )
            for v in self.values("column", f"{source}/{table}")
        ]

    def add_columns(self, source: str, table: int, known: int, columns: Sequence[KnownColumn]) -> None:
        """Remember columns."""
        values = [
            {"name": c.name, "type": c.type.name, "modifier": c.type.modifier, "is_array": c.type.is_array}
            for c in columns
        ]
        self._append("column", f"{source}/{table}", known, values)

    def epochs(self, slot: str) -> list[Mapping[str, Any]]:
        """Return an entry for each time that the slot was made."""
        return self.values("epoch", slot)

    def add_epoch(self, slot: str, known: int, facts: Mapping[str, Any]) -> None:
        """Remember that the slot is made anew."""
        self._append("epoch", slot, known, [facts])

    def _append(self, kind: str, key: str, known: int, values: Sequence[Any]) -> None:
        """Store values behind the first ``known`` ones, unless another run was first."""
        self.add({(kind, key, known + i): value for i, value in enumerate(values)}, is_one=True)
