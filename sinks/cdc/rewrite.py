"""Rewrite the data files in which rows change, two at a time: what stays of a file is copied one row group at a time.

Two threads take files from the two ends of the list, each with a writer of its own; files that lie next to each other still
come together where they are small. Row groups being read are bounded by bytes, whatever wrote them. Files that are written
here are named by nobody until the merge's commit, so a crash leaves nothing but files for a vacuum.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sinks.delta.files import StoredFile
from sinks.delta.parquet import DataFileWriter
from sinks.delta.stored import FileReader
from waxlake.stream.failpoints import failpoint

__all__ = ["LANES", "Rewrite", "rewrite_files"]

LANES: Final = 2
_READ_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What becomes of one file.

    Attributes:
        file: The file.
        dropped: Numbers of the rows that go, ascending.
        rows: Rows that come in their place.
    """

    file: StoredFile
    dropped: npt.NDArray[np.int64]
    rows: pa.Table


def rewrite_files(
    reader: FileReader, rewrites: Sequence[Rewrite], writers: Sequence[DataFileWriter], file_bytes: int
) -> None:
    """Write what stays of some files, and what comes; returns when all is handed to the writers.

    Args:
        reader: Reads the files.
        rewrites: The files, in the order in which they should lie next to each other.
        writers: One or two; each is used by one thread.
        file_bytes: Arrow bytes of a file to aim for.

    Raises:
        ExternalError: A file cannot be read or written. The writers are then to be abandoned.
    """
    left = deque(rewrites)
    room = _Room(_READ_BYTES)

    def work(take: Callable[[], Rewrite], writer: DataFileWriter) -> None:
        try:
            while left:
                try:
                    rewrite = take()
                except IndexError:  # the other thread took the last one
                    return
                _copy(reader, rewrite, writer, room)
                failpoint("file-rewritten")
                if writer.open_bytes >= file_bytes // 2:
                    writer.end_files()
        except BaseException:
            left.clear()  # the other thread need not go on
            raise

    if len(writers) == 1:
        work(left.popleft, writers[0])
        return
    with ThreadPoolExecutor(1, thread_name_prefix="merge") as pool:
        other = pool.submit(work, left.pop, writers[1])
        work(left.popleft, writers[0])
        other.result()


def _copy(reader: FileReader, rewrite: Rewrite, writer: DataFileWriter, room: _Room) -> None:
    dropped, start = rewrite.dropped, 0
    for rows in reader.groups(rewrite.file, room.taken) if len(dropped) != rewrite.file.rows else ():
        end = start + len(rows)
        first, last = np.searchsorted(dropped, [start, end])
        if first < last:
            stays = np.ones(len(rows), np.bool_)
            stays[dropped[first:last] - start] = False
            rows = rows.filter(pa.array(stays))
        start = end
        writer.append(rows)
    writer.append(rewrite.rows)


class _Room:
    """Bytes that may be in flight at once; more than that are let in when nothing else is."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._used_bytes = limit_bytes, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Wait until there is room, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used_bytes or self._used_bytes + size_bytes <= self._limit_bytes)
            self._used_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used_bytes -= size_bytes
                self._changed.notify_all()
