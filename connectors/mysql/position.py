"""Positions in a binlog as one int64: what the reader emits, what tables store, what the planner compares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["LOADED", "BinlogPosition"]

LOADED: Final = 1 << 62
"""Position of a first load that is complete; before that it is the number of the next chunk."""

_OFFSET_BITS = 36
_FILE_BITS = 26
_NUMBER = re.compile(r"\.(\d+)$")


@dataclass(frozen=True, slots=True, order=True)
class BinlogPosition:
    """A place between two events of a binlog.

    Attributes:
        file: Number of the binlog file, 0 to 2**26 - 1.
        offset: Byte offset in the file, 0 to 2**36 - 1.
        is_inside: Whether it lies inside a transaction. A server sends a transaction from its start only, so a reader that
            goes on here first looks for the start.
    """

    file: int
    offset: int
    is_inside: bool = False

    def pack(self) -> int:
        """Return the position as one int64; the order of positions is the order of the integers.

        Raises:
            ValueError: A part is out of range.
        """
        if not (0 <= self.file < 1 << _FILE_BITS and 0 <= self.offset < 1 << _OFFSET_BITS):
            raise ValueError(f"binlog position out of range: {self}")
        return (self.file << _OFFSET_BITS | self.offset) << 1 | self.is_inside

    @classmethod
    def unpack(cls, packed: int) -> BinlogPosition:
        """Return the position that ``pack`` encoded."""
        place = packed >> 1
        return cls(place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1), bool(packed & 1))

    @classmethod
    def of(cls, name: str, offset: int) -> BinlogPosition:
        """Return the position in a file named like ``binlog.000012``.

        Raises:
            ValueError: The name does not end with a number.
        """
        found = _NUMBER.search(name)
        if found is None:
            raise ValueError(f"not the name of a binlog file: {name!r}")
        return cls(int(found[1]), offset)

    def __str__(self) -> str:
        return f"binlog file {self.file} offset {self.offset}"
