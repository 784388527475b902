"""Raw rows on their way from files into a batch: of one file, of many small ones, of all that the batch holds; for the reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from connectors.files.formats import Raw
from connectors.files.found import FoundFiles
from connectors.files.numbered import NumberedFile, NumberedFiles
from waxlake.stream.file_counts import FileCounts
from waxlake.stream.position import RowPosition

__all__ = ["Bounds", "FileRows", "Piece", "Run"]

_Int64: TypeAlias = npt.NDArray[np.int64]


@dataclass(slots=True)  # not frozen: one may be made for each file, in a third of the time
class Piece:
    """Raw rows of one file, or the sign that what is left of it is skipped.

    Attributes:
        file: The file.
        first_row: Row number of the first one.
        raw: The rows; None where there are none.
        count: How many rows.
        size_bytes: About how many bytes they are.
        is_end: Whether the file ends after them.
        left_out: State and error, if the rest of the file is left out on request.
    """

    file: NumberedFile
    first_row: int
    raw: Raw | None = None
    count: int = 0
    size_bytes: int = 0
    is_end: bool = False
    left_out: tuple[str, str] | None = None

    @property
    def files(self) -> int:
        """How many files end in it."""
        return int(self.is_end)

    @property
    def ended_bytes(self) -> int:
        """Bytes of the file if it ends in it."""
        return self.file.found.size_bytes if self.is_end else 0

    @property
    def is_skipped(self) -> bool:
        """Whether the rest of the file is left out on request."""
        return self.left_out is not None

    @property
    def replaces(self) -> bool:
        """Whether the rows of earlier versions of the file go when these come."""
        return self.file.is_again and self.first_row == 0 and not self.is_skipped

    @property
    def start(self) -> int:
        """Position of the first row."""
        return self.file.position(self.first_row)

    @property
    def end(self) -> int:
        """Position after the last row."""
        return self.file.end if self.is_end else self.file.position(self.first_row + self.count)


class Run:
    """All rows of some files that follow each other, read at once: no object for each of them.

    Args:
        files: The files; none of them replaces an earlier version.
        raw: Their rows, together.
        counts: Rows of each file, shape (n_files,).

    Attributes:
        count: How many rows.
        size_bytes: Bytes of the files.
    """

    __slots__ = ("_bytes", "_rows", "count", "counts", "files_in", "raw", "size_bytes")

    is_skipped = replaces = False

    def __init__(self, files: NumberedFiles, raw: Raw, counts: npt.NDArray[np.int64]) -> None:
        self.files_in, self.raw, self.counts = files, raw, counts
        self._rows, self._bytes = np.cumsum(counts), np.cumsum(files.found.size_bytes)
        self.count, self.size_bytes = int(self._rows[-1]), int(self._bytes[-1])

    @property
    def files(self) -> int:
        """How many files end in it."""
        return len(self.files_in)

    @property
    def ended_bytes(self) -> int:
        """Bytes of the files."""
        return self.size_bytes

    @property
    def end(self) -> int:
        """Position after the last file."""
        return RowPosition(self.files_in.end).pack()

    def fitting(self, room: Bounds, fence: int | None) -> int:
        """Return how many of the files fit whole, up to the first that fills the room, and before the fence."""
        most = min(
            _filling(self._rows, room.rows),
            _filling(self._bytes, room.size_bytes),
            room.files,
            len(self.files_in),
        )
        if fence is not None:
            most = min(most, RowPosition.unpack(fence).major - self.files_in.first)
        return max(0, most)

    def split(self, files: int) -> tuple[Run, Run | None]:
        """Return the first files and the rest."""
        if files == len(self.files_in):
            return self, None
        rows = int(self._rows[files - 1])
        head = Run(self.files_in[:files], self.raw.slice(0, rows), self.counts[:files])
        return head, Run(self.files_in[files:], self.raw.slice(rows), self.counts[files:])

    def piece(self) -> Piece:
        """Return the rows of the first file."""
        file, count = self.files_in[0], int(self.counts[0])
        return Piece(file, 0, self.raw.slice(0, count), count, file.found.size_bytes, is_end=True)


def _filling(totals: npt.NDArray[np.int64], room: int) -> int:
    """Return how many files go into a room: all that fit, but none behind the one that fills it."""
    return int(min(np.searchsorted(totals, room, "right"), np.searchsorted(totals, room, "left") + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """The raw rows of a batch, and the files that they are of.

    Attributes:
        raws: The rows.
        found: The files, once for each piece; some have no row here.
        numbers: Their numbers, shape (n_files,).
        counts: Their rows, shape (n_files,).
        ended_files: How many of them end here.
        ended_bytes: Bytes of those.
    """

    raws: Sequence[Raw]
    found: FoundFiles
    numbers: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    ended_files: int
    ended_bytes: int

    @classmethod
    def of(cls, taken: Sequence[Piece | Run]) -> FileRows:
        """Return what pieces hold together; there must be one."""
        found, numbers, counts = list[FoundFiles](), list[_Int64](), list[_Int64]()
        for is_run, group in groupby(taken, lambda piece: isinstance(piece, Run)):
            if is_run:
                for run in cast("Iterator[Run]", group):
                    found.append(run.files_in.found)
                    numbers.append(np.arange(run.files_in.first, run.files_in.end))
                    counts.append(run.counts)
                continue
            pieces = list(cast("Iterator[Piece]", group))
            found.append(FoundFiles.of(piece.file.found for piece in pieces))
            numbers.append(np.array([piece.file.number for piece in pieces]))
            counts.append(np.array([piece.count for piece in pieces]))
        return cls(
            raws=[piece.raw for piece in taken if piece.count and piece.raw is not None],
            found=FoundFiles.concat(found),
            numbers=np.concatenate(numbers),
            counts=np.concatenate(counts),
            ended_files=sum(piece.files for piece in taken),
            ended_bytes=sum(piece.ended_bytes for piece in taken),
        )

    def facts(self, rescued: npt.NDArray[np.int64] | None) -> FileCounts:
        """Return the rows of each file, from those of its pieces, and of the rescued ones among them."""
        first, size = int(self.numbers[0]), int(self.numbers[-1] - self.numbers[0]) + 1
        index = self.numbers - first
        read = np.bincount(index, self.counts, size).astype(np.int64)
        if rescued is None:
            return FileCounts(first, read)
        return FileCounts(first, read, np.bincount(index, rescued, size).astype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How big a batch may get: rows exactly; bytes and files until one more would be too many."""

    rows: int
    size_bytes: int
    files: int
