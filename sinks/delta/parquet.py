"""Write Arrow tables as Parquet data files of a Delta table, with the statistics its log wants.

Files are written before the commit that names them; until then nobody sees them. Called by the sinks and the event log.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from waxlake.stream.delta_table import TableLocation, delta_errors

__all__ = ["DataFileWriter", "decode_add", "encode_add", "partition_string", "write_data_file"]

_SAMPLE_ROWS = 10_000
_STATS_COLUMNS = 32
_MAX_STRING_STAT = 64
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,100}")


@dataclass(slots=True)
class DataFileWriter:
    """Buffers rows and writes them as Parquet in a background thread, one row group at a time.

    At most one row group is being written while the next is being gathered; a third makes ``append`` wait, which is
    how a slow store slows the source.

    Args:
        location: Table the files belong to.
        partition_by: Partition columns, outermost first.
        row_group_bytes: Arrow bytes gathered before a row group is written.
        file_bytes: Arrow bytes after which a file is closed and the next begun.
        changes_rows: Whether rows come to the table with the files; False where they replace files that hold them.
    """

    location: TableLocation
    partition_by: tuple[str, ...] = ()
    row_group_bytes: int = 32 << 20
    file_bytes: int = 512 << 20
    changes_rows: bool = True
    rows: int = 0
    size_bytes: int = 0
    _ended_bytes: int = 0
    _schema: pa.Schema | None = None
    _gathered: list[pa.Table] = field(default_factory=list)
    _gathered_bytes: int = 0
    _open_files: dict[tuple[str | None, ...], _OpenFile] = field(default_factory=dict)
    _done: list[AddAction] = field(default_factory=list)
    _writing: Future[None] | None = None
    _executor: ThreadPoolExecutor | None = None
    _filesystem: pa_fs.FileSystem | None = None

    def append(self, table: pa.Table) -> None:
        """Take rows; returns before they are on disk.

        Args:
            table: Rows in the table's schema; where it has grown meanwhile, they begin new files.

        Raises:
            ExternalError: An earlier row group could not be written. Not retryable within this flush.
        """
        if table.num_rows == 0:
            return
        if self._schema is not None and not table.schema.equals(self._schema):
            self.end_files()
        self._schema = table.schema
        self._gathered.append(table)
        self.rows += table.num_rows
        self._gathered_bytes += table.nbytes
        self.size_bytes += table.nbytes
        if self._gathered_bytes >= self.row_group_bytes:
            self._write_gathered()

    @property
    def open_bytes(self) -> int:
        """Arrow bytes taken since ``end_files`` was last called."""
        return self.size_bytes - self._ended_bytes

    def end_files(self) -> None:
        """Close the files that are being written, in the background, so that the next rows begin others."""
        self._write_gathered(ends_files=True)
        self._ended_bytes = self.size_bytes

    def finish(self) -> list[AddAction]:
        """Write what is left, close the files and return the actions that would add them to the table."""
        self.end_files()
        self._wait()
        actions, self._done = self._done, []
        self.rows = self.size_bytes = self._ended_bytes = 0
        return actions

    def abandon(self) -> None:
        """Forget everything; files already written stay unnamed and a vacuum removes them."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        self._writing = None
        for file in self._open_files.values():
            file.abandon()
        self._open_files.clear()
        self._gathered.clear()
        self._done.clear()
        self.rows = self.size_bytes = self._gathered_bytes = self._ended_bytes = 0

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with delta_errors(f"write data files of table '{self.location.label}'"):
                writing.result()

    def _write_gathered(self, *, ends_files: bool = False) -> None:
        self._wait()
        table = pa.concat_tables(self._gathered) if self._gathered else None
        self._gathered, self._gathered_bytes = [], 0
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parquet")
        self._writing = self._executor.submit(self._write, table, ends_files)

    def _write(self, table: pa.Table | None, ends_files: bool) -> None:
        for values, rows in _split(table, self.partition_by) if table is not None else ():
            file = self._open_files.get(values)
            if file is None:
                file = self._open_files[values] = self._open(values, rows)
            file.write(rows)
        if ends_files or sum(file.arrow_bytes for file in self._open_files.values()) >= self.file_bytes:
            self._close_files()

    def _open(self, values: tuple[str | None, ...], rows: pa.Table) -> _OpenFile:
        if self._filesystem is None:
            self._filesystem = self.location.filesystem()
        folder = "".join(_folder(name, value) + "/" for name, value in zip(self.partition_by, values, strict=True))
        if folder:
            self._filesystem.create_dir(folder.rstrip("/"), recursive=True)
        return _OpenFile(
            self._filesystem, folder + _file_name(), rows, dict(zip(self.partition_by, values, strict=True))
        )

    def _close_files(self) -> None:
        for key in list(self._open_files):
            self._done.append(self._open_files.pop(key).close(changes_rows=self.changes_rows))


def write_data_file(location: TableLocation, table: pa.Table) -> AddAction:
    """Write a few rows as one data file, on this thread: it may be the last of a process that ends, which starts no other.

    Args:
        location: Table the file belongs to; it has no partitions.
        table: Rows in the table's schema.

    Raises:
        ExternalError: The store refuses or does not answer.
    """
    with delta_errors(f"write a data file of table '{location.label}'"):
        file = _OpenFile(location.filesystem(), _file_name(), table, {})
        try:
            file.write(table)
            return file.close(changes_rows=True)
        except BaseException:
            file.abandon()
            raise


def _file_name() -> str:
    return f"part-{uuid.uuid4()}-c000.zstd.parquet"


class _OpenFile:
    """One Parquet file being written, and the statistics of its columns."""

    def __init__(
        self, filesystem: pa_fs.FileSystem, path: str, first: pa.Table, partition: dict[str, str | None]
    ) -> None:
        schema = first.schema
        self.path, self.partition, self.arrow_bytes = path, partition, 0
        self._nan_columns: set[str] = set()
        self._floats = [f.name for f in schema if pa.types.is_floating(f.type)]
        self._stream = filesystem.open_output_stream(path)
        self._writer = pq.ParquetWriter(
            self._stream, schema, compression="zstd", compression_level=1, use_dictionary=_repeating(first)
        )

    def write(self, rows: pa.Table) -> None:
        for name in self._floats:
            if name not in self._nan_columns and pc.any(pc.is_nan(rows.column(name))).as_py():
                self._nan_columns.add(name)
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self.arrow_bytes += rows.nbytes

    def close(self, *, changes_rows: bool) -> AddAction:
        self._writer.close()
        size = self._stream.tell()
        self._stream.close()
        stats = _statistics(
            self._writer.writer.metadata if hasattr(self._writer.writer, "metadata") else None, self._nan_columns
        )
        return AddAction(self.path, size, self.partition, int(time.time() * 1000), changes_rows, json.dumps(stats))

    def abandon(self) -> None:
        try:
            self._writer.close()
            self._stream.close()
        except OSError:  # the file is being thrown away: that it cannot be closed changes nothing
            return


def _repeating(rows: pa.Table) -> list[str] | bool:
    """Return the columns whose values repeat enough for a dictionary: elsewhere it doubles the work and the size."""
    sample = rows.slice(0, _SAMPLE_ROWS)
    if len(sample) < _SAMPLE_ROWS:
        return True
    flat = [field.name for field in rows.schema if not pa.types.is_nested(field.type)]
    return [name for name in flat if 2 * pc.count_distinct(sample.column(name)).as_py() <= len(sample)]


def _split(table: pa.Table, partition_by: tuple[str, ...]) -> Iterator[tuple[tuple[str | None, ...], pa.Table]]:
    """Yield (partition values as Delta strings, rows without the partition columns)."""
    if not partition_by:
        yield (), table
        return
    numbers, rest = _group_numbers(table, partition_by), [n for n in table.column_names if n not in partition_by]
    order, sizes = np.argsort(numbers, kind="stable"), np.bincount(numbers)
    keys, others = table.select(partition_by), table.select(rest)
    if len(sizes) > 1:
        keys, others = keys.take(order), others.take(order)
    start = 0
    for size in sizes:
        values = tuple(partition_string(_python(keys.column(name)[start])) for name in partition_by)
        yield values, others.slice(start, size)
        start += size


def _group_numbers(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return for each row the number of its combination of values, dense from 0.

    By identity of values, not by comparing them: NaN equals nothing, and 0.0 equals -0.0, so that rows found by comparison
    would be in no group, or in two.
    """
    numbers: npt.NDArray[np.int64] = np.zeros(len(table), np.int64)
    for position, name in enumerate(names):
        encoded: Any = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
        numbers = numbers * len(encoded.dictionary) + encoded.indices.to_numpy(zero_copy_only=False)
        if position:
            numbers = np.unique(numbers, return_inverse=True)[1].reshape(-1)
    return numbers


def _python(scalar: pa.Scalar) -> Any:
    """Return a value as Python has it; as text if it is a time before the year 1 or after 9999, which Python has not."""
    try:
        return scalar.as_py()
    except OverflowError:
        return scalar.cast(pa.string()).as_py()


def partition_string(value: Any) -> str | None:
    """Return a partition value as the Delta protocol writes it ("Partition Value Serialization")."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _folder(name: str, value: str | None) -> str:
    return f"{_plain(name)}={_plain('__HIVE_DEFAULT_PARTITION__' if value is None else value)}"


def _plain(text: str) -> str:
    """Return a folder name free of characters that stores and readers escape differently; the log holds the value."""
    return text if _PLAIN.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _statistics(metadata: pq.FileMetaData | None, nan_columns: set[str]) -> dict[str, Any]:
    """Return Delta statistics from the footer of a written file ("Per-file Statistics")."""
    if metadata is None:
        return {}
    stats: dict[str, Any] = {"numRecords": metadata.num_rows, "minValues": {}, "maxValues": {}, "nullCount": {}}
    flat = [i for i in range(metadata.num_columns) if "." not in metadata.schema.column(i).path][:_STATS_COLUMNS]
    for index in flat:
        name = metadata.schema.column(index).path
        chunks = [metadata.row_group(g).column(index).statistics for g in range(metadata.num_row_groups)]
        if any(c is None or not c.has_null_count for c in chunks):
            continue
        stats["nullCount"][name] = sum(c.null_count for c in chunks)
        ranged = [c for c in chunks if c.has_min_max]
        all_null = stats["nullCount"][name] == metadata.num_rows
        if all_null or len(ranged) != len([c for c in chunks if c.num_values]) or name in nan_columns:
            continue
        try:
            low, high = _stat(min(c.min for c in ranged)), _stat(max(c.max for c in ranged))
        except OverflowError:  # a time before the year 1 or after 9999
            continue
        if low is not None and high is not None:
            stats["minValues"][name], stats["maxValues"][name] = low, high
    return stats


def _stat(value: Any) -> Any:
    """Return a bound as JSON holds it exactly; None when it cannot, which leaves the column without bounds."""
    if isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= _MAX_STRING_STAT else None
    if isinstance(value, datetime):
        text = value.replace(tzinfo=None).isoformat(timespec="microseconds")
        return text + "Z" if value.tzinfo is not None else text
    if isinstance(value, date):
        return value.isoformat()
    return None


def encode_add(action: AddAction) -> dict[str, Any]:
    """Return an action as plain JSON, for a manifest."""
    return {
        "path": action.path,
        "size": action.size,
        "partition": dict(action.partition_values),
        "at": action.modification_time,
        "stats": action.stats,
    }


def decode_add(data: dict[str, Any]) -> AddAction:
    """Return the action that ``encode_add`` wrote."""
    return AddAction(data["path"], data["size"], data["partition"], data["at"], True, data["stats"])
