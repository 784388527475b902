"""Positions in a binlog as one int64: (file number, offset), always the end of a transaction; and those of a first load."""

from __future__ import annotations

import re
from typing import Final

from waxlake.stream.position import RowPosition

__all__ = ["LOADED", "binlog_position", "show_position"]

LOADED: Final = 1 << 62
"""Position of a first load that is complete; before that it is the number of the next chunk."""

_NUMBER = re.compile(r"\.(\d+)$")


def binlog_position(name: str, offset: int) -> int:
    """Return the position in a file named like ``binlog.000012``.

    Raises:
        ValueError: The name does not end with a number.
    """
    found = _NUMBER.search(name)
    if found is None:
        raise ValueError(f"not the name of a binlog file: {name!r}")
    return RowPosition(int(found[1]), offset).pack()


def show_position(position: int) -> str:
    """Return a position as a person reads it."""
    place = RowPosition.unpack(position)
    return f"binlog file {place.major} offset {place.minor}"
