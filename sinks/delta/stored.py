"""Read the data files of a snapshot: which may hold a key, single columns, and whole rows. Called by whoever rewrites files.

Key columns of files are kept in memory up to a bound, so that a file is not read twice to learn that it holds no key of the
next batch either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from sinks.delta.files import StoredFile
from waxlake.stream.delta_table import TableLocation, delta_errors

__all__ = ["FileReader", "may_hold"]

_CACHE_BYTES = 128 << 20


def may_hold(file: StoredFile, keys: Sequence[str], values: Sequence[pa.Array]) -> bool:
    """Return whether a file may hold one of some keys, by the bounds in the log.

    Args:
        file: The file.
        keys: Key columns.
        values: For each key column, the values looked for, ascending.
    """
    for name, wanted in zip(keys, values, strict=True):
        low, high = file.low.get(name), file.high.get(name)
        if name in file.partition:
            low = high = file.partition[name]
        if low is None or high is None:
            continue
        try:
            first = _first_at_least(wanted, low)
            if first == len(wanted) or wanted[first].as_py() > high:
                return False
        except (
            TypeError,
            OverflowError,
        ):  # of a type that Python does not compare with the column's, or a time it lacks
            continue
    return True


def _first_at_least(values: pa.Array, bound: Any) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle].as_py() < bound:
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(slots=True)
class FileReader:
    """Reads columns of a table's data files; those a file lacks are NULL.

    Args:
        location: The table.
        schema: Columns that its files may have, hidden ones included.
    """

    location: TableLocation
    schema: pa.Schema
    _filesystem: pa_fs.FileSystem | None = None
    _cache: OrderedDict[tuple[str, tuple[str, ...]], pa.Table] = field(default_factory=OrderedDict)
    _cached_bytes: int = 0

    def columns(self, file: StoredFile, names: Sequence[str]) -> pa.Table:
        """Return some columns of every row of a file."""
        with self._opened(file) as opened:
            return self._shaped(opened.read(columns=self._present(opened, names)), file, names)

    def keys(self, file: StoredFile, names: Sequence[str]) -> pa.Table:
        """Return columns that the next batch will ask for too."""
        key = (file.path, tuple(names))
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        table = self.columns(file, names)
        if table.nbytes <= _CACHE_BYTES // 2:
            self._cache[key] = table
            self._cached_bytes += table.nbytes
            while self._cached_bytes > _CACHE_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes
        return table

    def forget(self, files: Iterable[StoredFile]) -> None:
        """Drop the kept columns of files that are about to leave the table."""
        paths = {file.path for file in files}
        for key in [key for key in self._cache if key[0] in paths]:
            self._cached_bytes -= self._cache.pop(key).nbytes

    def groups(
        self, file: StoredFile, admit: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
    ) -> Iterator[pa.Table]:
        """Yield a file's rows, one row group at a time.

        Args:
            file: The file.
            admit: Told the bytes of a row group before it is read; held until the next is asked for.
        """
        names = self.schema.names
        with self._opened(file) as opened:
            present = self._present(opened, names)
            for number in range(opened.num_row_groups):
                with admit(opened.metadata.row_group(number).total_byte_size):
                    with delta_errors(self._what(file)):
                        rows = opened.read_row_group(number, columns=present)
                    yield self._shaped(rows, file, names)

    def _opened(self, file: StoredFile) -> pq.ParquetFile:
        if self._filesystem is None:
            self._filesystem = self.location.filesystem()
        with delta_errors(self._what(file)):
            return pq.ParquetFile(self._filesystem.open_input_file(file.file_path))

    def _what(self, file: StoredFile) -> str:
        return f"read {file.path} of table '{self.location.label}'"

    def _present(self, opened: pq.ParquetFile, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in opened.schema_arrow.names]

    def _shaped(self, rows: pa.Table, file: StoredFile, names: Sequence[str]) -> pa.Table:
        columns = []
        for name in names:
            kind = self.schema.field(name).type
            if name in file.partition:
                columns.append(pa.chunked_array([pa.repeat(pa.scalar(file.partition[name], kind), rows.num_rows)]))
            elif name in rows.column_names:
                columns.append(rows.column(name).cast(kind))
            else:
                columns.append(pa.chunked_array([pa.nulls(rows.num_rows, kind)]))
        return pa.table(columns, schema=pa.schema([self.schema.field(name).with_nullable(True) for name in names]))
