"""Named places where a test can kill the process, to prove that a crash there loses nothing.

A failpoint does nothing unless ``WAXLAKE_FAILPOINT=name:n`` was set when the process started: then the process sends
itself SIGKILL at the n-th visit of that name (1 is the first). The recovery tests set it; nothing else should.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

__all__ = [
    "DATABASE_FAILPOINTS",
    "FAILPOINTS",
    "FILES_FAILPOINTS",
    "MAINTENANCE_FAILPOINTS",
    "LEASE_FAILPOINTS",
    "MERGE_FAILPOINTS",
    "QUALITY_FAILPOINTS",
    "REFRESH_FAILPOINTS",
    "REWIND_FAILPOINTS",
    "SCHEMA_FAILPOINTS",
    "STATE_FAILPOINTS",
    "SINK_FAILPOINTS",
    "SNAPSHOT_FAILPOINTS",
    "UPLOAD_FAILPOINTS",
    "VIEW_FAILPOINTS",
    "failpoint",
]

FAILPOINTS: Final = (
    "files-written",  # data files are in the table's folder, no commit names them yet
    "committed",  # the primary commit is durable, nobody was told
    "between-tables",  # one table of a shared source has committed, the next has not
    "ledger-write",  # new files were found, the ledger commit is about to happen
    "ledger-written",  # the ledger holds the new files, no row of them was emitted
    "quarantine-written",  # quarantine files are written, the primary commit is not
    "quarantine-pending",  # the primary commit is durable, the quarantine commit is not
    "quarantine-committed",  # both are durable
)

FILES_FAILPOINTS: Final = (
    "state-fold",  # the tables hold the rows, what they say about files is not yet in the journal
    "state-folded",  # it is
    "clean-copied",  # a file that is to be moved is at its destination too
    "clean-removed",  # files are gone from the source, the journal does not say so
    "clean-noted",  # it does
)

MERGE_FAILPOINTS: Final = (
    "merge-begun",  # changes are to be merged, nothing is written
    "file-rewritten",  # what stays of a data file, and what comes, is handed to its writer
    "state-written",  # the state beside a target is written, no commit names it yet
)

STATE_FAILPOINTS: Final = (
    "state-applied",  # a stateful operator has taken the rows of a flush, nothing is written
    "state-written",  # its state is written, no commit names it yet
    "state-committed",  # it is named, files of the state before are not deleted yet
)

VIEW_FAILPOINTS: Final = (
    "view-written",  # what a refresh of a view puts in is written, nothing is committed
)

DATABASE_FAILPOINTS: Final = (
    "load-planned",  # ends of chunks of a database's first load were found, the ledger does not hold them
    "poll-recorded",  # a poll of a database is in its ledger, nothing of it was read
    "window-recorded",  # a window of a poll is in its ledger, no row of it was emitted
    "chunk-recorded",  # the end of a chunk of a first load is recorded, no row of it was emitted
    "chunk-read",  # a chunk is about to be emitted
    "piece-read",  # a piece of a large transaction is about to be emitted, the rest of it was not read
    "confirm",  # every table holds what the source is about to be told to forget
    "confirmed",  # the source was told
)

SCHEMA_FAILPOINTS: Final = (
    "schema-found",  # a new column was seen, the schema history does not hold it yet
    "schema-stored",  # the schema history holds it, no row of it was emitted
)

SNAPSHOT_FAILPOINTS: Final = (
    "snapshot-taken",  # a function returned a snapshot, it is not stored
    "snapshot-stored",  # it is stored, no row of it was emitted
)

SINK_FAILPOINTS: Final = (
    "batch-written",  # the rows of a batch are staged, no commit names them
    "batch-decided",  # a batch is decided, nothing of it was handed over
    "batch-sent",  # its records are in an open transaction of Kafka, or at the broker where there are no transactions
    "batch-delivered",  # it was handed over, the ledger does not say so
    "batch-recorded",  # it does
)

QUALITY_FAILPOINTS: Final = (
    "quality-write",  # what the commits say is about to be added to the quality table
    "quality-written",  # it is there
)

UPLOAD_FAILPOINTS: Final = (
    "upload-written",  # the rows of an upload are in data files, no commit names them
    "upload-committed",  # an upload is in the table, nobody was told
)

LEASE_FAILPOINTS: Final = (
    "lease-taken",  # an update holds the lease of its pipeline, and has shown no other sign of life
)

REFRESH_FAILPOINTS: Final = (
    "refresh-filled",  # the new tables of a full refresh are whole, it is not decided
    "refresh-decided",  # it is decided, no table is replaced
    "before-swap",  # a table is about to be replaced
    "swapped",  # a table is replaced, others may not be
)

MAINTENANCE_FAILPOINTS: Final = (
    "compaction-written",  # small files were put together, no commit names the new ones
    "compacted",  # the commit is durable
    "log-cleaned",  # old log entries are gone, old files are not
    "vacuumed",  # both are
)

REWIND_FAILPOINTS: Final = (
    "rewind-planned",  # it is known which versions tables go back to, nothing is decided
    "rewind-decided",  # it is decided, no table has gone back
    "before-rewind",  # a table is about to go back
    "rewound",  # a table has gone back, others may not have
)

_name, _, _count = os.environ.get("WAXLAKE_FAILPOINT", "").partition(":")
_left = int(_count or 1)
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if it was started to die here; else do nothing.

    Args:
        name: One of the names above.
    """
    if name != _name:
        return
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
