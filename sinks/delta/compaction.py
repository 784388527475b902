"""Put small data files together, and sort their rows where the table says so. Called by a table's own committer.

Rows do not change: the commit says so (``dataChange`` false), who follows the table has nothing to read. Where a crash can fall:

1. while the new files are written, or after: the log names none of them; a vacuum removes them.
2. after the commit: the old files are still there for whoever reads an older version; a vacuum removes them in time.

Files are put together by tiers of size, so that a row is copied once for each tier and a partition holds a bounded number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sinks.delta.files import StoredFile, stored_files
from sinks.delta.parquet import DataFileWriter, partition_string
from sinks.delta.protocol import CommitReceipt, Committer
from sinks.delta.stored import FileReader
from waxlake.stream.delta_table import arrow_schema
from waxlake.stream.failpoints import failpoint

__all__ = ["CompactionPolicy", "compact", "sorted_rows"]

_TIER = 8  # files of one tier differ in size by this factor at most
_CURVE_BITS = 16
_PIECE_ROWS = 100_000
_SORTED_BYTES = 32 << 20  # files that are sorted are in memory as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionPolicy:
    """When files are put together, and how.

    Attributes:
        min_files: Files of one tier of a partition that have to be there.
        small_bytes: Files from this size on stay as they are.
        max_bytes: Bytes of files that one compaction reads, so that the stream does not wait for long.
        order_by: Columns whose values rows are sorted by, along a Z-order curve if there are several.
    """

    min_files: int = 32
    small_bytes: int = 64 << 20
    max_bytes: int = 128 << 20
    order_by: tuple[str, ...] = ()


def compact(committer: Committer, policy: CompactionPolicy) -> CommitReceipt | None:
    """Put one group of small files together, in a commit of its own; None if there is none.

    Args:
        committer: The table's; nothing of it is waiting to be committed.
        policy: Which files.

    Raises:
        WaxlakeError: A file cannot be read, or the commit is refused; the table is as it was.
    """
    files = _chosen(stored_files(committer.refresh(), below_bytes=policy.small_bytes), policy)
    if not files:
        return None
    location, schema = committer.location, arrow_schema(committer.handle)
    partition_by = tuple(committer.handle.metadata().partition_columns)
    writer = DataFileWriter(location, partition_by, changes_rows=False)
    try:
        rows = _copy(FileReader(location, schema), files, writer, policy)
        adds = writer.finish()
    finally:
        writer.abandon()
    failpoint("compaction-written")
    figures = {
        "files_removed": len(files),
        "files_added": len(adds),
        "bytes_removed": sum(file.size_bytes for file in files),
        "bytes_added": sum(add.size for add in adds),
        "rows": rows,
    }
    receipt = committer.rewrite(adds, files, metadata={"maintenance": {"operation": "compact", **figures}})
    failpoint("compacted")
    return receipt


def _chosen(files: Sequence[StoredFile], policy: CompactionPolicy) -> list[StoredFile]:
    """Return files of one partition that are to be put together: a full tier, and what is smaller."""
    partitions: dict[tuple[Any, ...], list[StoredFile]] = {}
    for file in files:
        values = tuple(partition_string(value) for value in file.partition.values())
        partitions.setdefault(values, []).append(file)
    max_bytes = min(policy.max_bytes, _SORTED_BYTES) if policy.order_by else policy.max_bytes
    for group in sorted(partitions.values(), key=len, reverse=True):
        tiers: dict[int, int] = {}
        for file in group:
            tiers[_tier(file)] = tiers.get(_tier(file), 0) + 1
        full = [tier for tier, count in tiers.items() if count >= policy.min_files]
        if not full:
            continue
        chosen, size = [], 0
        for file in sorted(group, key=lambda file: (file.size_bytes, file.path)):
            if _tier(file) > min(full) or size + file.size_bytes > max_bytes:
                break
            chosen.append(file)
            size += file.size_bytes
        if len(chosen) > 1:
            return chosen
    return []


def _tier(file: StoredFile) -> int:
    return int(math.log(max(file.size_bytes, 1 << 12), _TIER))


def _copy(reader: FileReader, files: Sequence[StoredFile], writer: DataFileWriter, policy: CompactionPolicy) -> int:
    order_by = policy.order_by
    copied, gathered = 0, []
    for file in files:
        for rows in reader.groups(file):
            rows = rows.cast(reader.schema)
            copied += rows.num_rows
            if order_by:
                gathered.append(rows)
            else:
                writer.append(rows)
    if gathered:
        together = sorted_rows(pa.concat_tables(gathered), order_by)
        for start in range(0, copied, _PIECE_ROWS):
            writer.append(together.slice(start, _PIECE_ROWS))
    return copied


def sorted_rows(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return rows in the order of one column, or along a Z-order curve through several; a column not there is left out."""
    columns = [name for name in columns if name in rows.column_names]
    return rows.take(_order(rows, columns)) if columns and rows.num_rows else rows


def _order(rows: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Return row numbers in the order of one column, or along a Z-order curve through several (Morton 1966)."""
    if len(columns) == 1:
        return pc.sort_indices(rows, sort_keys=[(columns[0], "ascending")])
    bits = min(_CURVE_BITS, 64 // len(columns))
    code = np.zeros(rows.num_rows, dtype=np.uint64)
    for number, name in enumerate(columns):
        ranks = pc.rank(rows.column(name), tiebreaker="dense").to_numpy().astype(np.uint64)
        top = max(int(ranks.max()), 1)
        cells = ranks * np.uint64((1 << bits) - 1) // np.uint64(top)
        for bit in range(bits):
            place = np.uint64(bit * len(columns) + number)
            code |= ((cells >> np.uint64(bit)) & np.uint64(1)) << place
    return pa.array(np.argsort(code, kind="stable"))
