"""How far the tables of a pipeline are behind a server's binlog. Called by `waxlake status`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.mysql.client import Client, Server
from connectors.mysql.position import binlog_position, server_number, show_position
from connectors.mysql.settings import MySQLSettings
from waxlake.stream.position import RowPosition

__all__ = ["BinlogStatus", "binlog_status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BinlogStatus:
    """The binlog of a server, and where the pipeline stands in it.

    Attributes:
        source: What the source is called.
        position: Where the table that is furthest behind stands, as file and offset; empty before the first run.
        lag_bytes: Log after that place; None where that is not known.
        kept_bytes: Log that the server still has before that place: as much may be purged without harm.
        warnings: Sentences; empty if all is well.
    """

    source: str
    position: str
    lag_bytes: int | None
    kept_bytes: int | None
    warnings: tuple[str, ...] = ()


def binlog_status(settings: MySQLSettings, server: Server, stored: Sequence[int]) -> BinlogStatus:
    """Return how far positions are behind the end of a server's binlog.

    Args:
        settings: The source.
        server: Its server, as surveyed just now.
        stored: Positions that tables hold.

    Raises:
        ExternalError: The server cannot be asked.
    """
    name = f"mysql:{settings.source_name}"
    if not stored:
        return BinlogStatus(source=name, position="", lag_bytes=None, kept_bytes=None)
    position = min(stored)
    if server_number(position) != server.number:
        said = "Another server answers by now: the next run looks for its place in that log by transaction ids"
        return BinlogStatus(
            source=name, position=show_position(position), lag_bytes=None, kept_bytes=None, warnings=(said,)
        )
    client = Client(settings)
    with contextlib.closing(client.connect_to(server)) as connection:
        rows = client.ask(connection, "SHOW BINARY LOGS")
    place = RowPosition.unpack(position)
    before = after = 0
    for row in rows:
        file = RowPosition.unpack(binlog_position(str(row["LOG_NAME"]), 0, server.number)).major
        size = int(row["FILE_SIZE"])
        before += size if file < place.major else place.minor if file == place.major else 0
        after += size if file > place.major else max(0, size - place.minor) if file == place.major else 0
    warnings = []
    if position < server.first:
        warnings.append("The server purged what comes next: on_binlog_lost='resnapshot' loads the tables again")
    if after >= settings.lag_warning_bytes:
        warnings.append(f"The tables are {after:,} bytes of log behind: run the pipeline before the server purges it")
    return BinlogStatus(
        source=name, position=show_position(position), lag_bytes=after, kept_bytes=before, warnings=tuple(warnings)
    )
