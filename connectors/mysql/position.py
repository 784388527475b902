"""Positions in a binlog as one int64: (server, file number, offset), always the end of a transaction; and those of a first load.

Servers are counted from 0 as one takes the place of another: positions grow through a failover, whatever the files of the new
server are called. How a position of one server is found in the log of the next: ``connectors.mysql.failover``.
"""

from __future__ import annotations

import re
from typing import Final

from waxlake.stream.position import RowPosition

__all__ = ["LOADED", "SERVERS", "binlog_position", "file_number", "server_number", "show_position"]

LOADED: Final = 1 << 62
"""Position of a first load that is complete; before that it is the number of the next chunk."""

SERVERS: Final = 1 << 7
"""Most servers, one after the other."""

_FILE_BITS: Final = 20
_NUMBER = re.compile(r"\.(\d+)$")


def binlog_position(name: str, offset: int, server: int = 0) -> int:
    """Return the position in a file named like ``binlog.000012``.

    Raises:
        ValueError: The name does not end with a number, or with one above a million.
    """
    found = _NUMBER.search(name)
    if found is None or int(found[1]) >> _FILE_BITS:
        raise ValueError(f"not the name of a binlog file: {name!r}")
    return RowPosition(server << _FILE_BITS | int(found[1]), offset).pack()


def file_number(position: int) -> int:
    """Return the number of the binlog file."""
    return RowPosition.unpack(position).major & (1 << _FILE_BITS) - 1


def server_number(position: int) -> int:
    """Return which server's log the position is in."""
    return RowPosition.unpack(position).major >> _FILE_BITS


def show_position(position: int) -> str:
    """Return a position as a person reads it."""
    return f"binlog file {file_number(position)} offset {RowPosition.unpack(position).minor}"
