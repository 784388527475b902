"""Keeps the number of a ledger's data files small: many small ones become one, big ones are left alone; called by the ledger.

delta-rs' own compaction commits from a stale snapshot without noticing that another one removed the same files (rows are
there twice then) and takes no ``txn``; so files are merged here, and the ledger commits the exchange like anything else.

Failure points: the merged file is written and no commit names it (a later vacuum deletes it); the commit is lost to another
run (nothing happened); the vacuum does not come (the next one does).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from waxlake.stream.delta_table import TableLocation

__all__ = ["LedgerFile", "ledger_files", "merged_file", "removals", "small_files", "vacuum"]

_COMPACT_ABOVE_FILES: Final = 64
_SMALL_ROWS: Final = 100_000
_ROW_GROUP_ROWS: Final = 1 << 16  # small groups: a range of numbers reads few
_VACUUM_AFTER_H: Final = 24  # readers of an older snapshot look again when a file is gone


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A data file of a ledger, and the numbers in it; ``low`` and ``high`` are None if the log does not say."""

    path: str
    size_bytes: int
    rows: int | None
    low: int | None
    high: int | None

    def can_hold(self, first: int, last: int) -> bool:
        """Return whether numbers of ``[first, last)`` can be in it."""
        return self.low is None or self.high is None or (self.low < last and self.high >= first)


def ledger_files(handle: DeltaTable) -> list[LedgerFile]:
    """Return the data files of a snapshot."""
    actions = pa.table(handle.get_add_actions(flatten=True))
    names = ("path", "size_bytes", "num_records", "min.number", "max.number")
    absent = [None] * len(actions)
    columns = [actions.column(n).to_pylist() if n in actions.column_names else absent for n in names]
    return [LedgerFile(*values) for values in zip(*columns, strict=True)]


def small_files(files: Sequence[LedgerFile]) -> list[LedgerFile]:
    """Return the files that should be merged now; none while there are few."""
    small = [file for file in files if file.rows is None or file.rows < _SMALL_ROWS]
    return small if len(small) > _COMPACT_ABOVE_FILES else []


def merged_file(location: TableLocation, rows: pa.Table) -> AddAction:
    """Write rows as one data file that no commit names yet."""
    path = f"compacted-{uuid.uuid4().hex}.parquet"
    filesystem = location.filesystem()
    with filesystem.open_output_stream(path) as stream:
        pq.write_table(rows, stream, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
    bounds = pc.min_max(rows.column("number")).as_py()
    stats = {
        "numRecords": len(rows),
        "minValues": {"number": bounds["min"]},
        "maxValues": {"number": bounds["max"]},
        "nullCount": {"number": 0},
    }
    size_bytes = filesystem.get_file_info(path).size
    return AddAction(path, size_bytes, {}, int(time.time() * 1000), False, json.dumps(stats))


def removals(files: Sequence[LedgerFile]) -> list[RemoveAction]:
    """Return the actions that take files out of the table."""
    now_ms = int(time.time() * 1000)
    return [RemoveAction(file.path, False, now_ms, file.size_bytes, {}) for file in files]


def vacuum(handle: DeltaTable) -> None:
    """Delete files that left the table a day ago, and those that never came in."""
    handle.vacuum(_VACUUM_AFTER_H, dry_run=False, enforce_retention_duration=False, full=True)
