"""Raw rows of files, queued in the order of their positions, and cut where batches must end; used by the reader."""

from __future__ import annotations

from collections import deque
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

__all__ = ["Bounds", "FewerRows", "FileRows", "Piece", "PieceQueue", "Run"]

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


class FewerRows(Exception):
    """A stored position lies behind the end of a file, or in an earlier edition of it; the first argument is the piece."""

    @property
    def piece(self) -> Piece:
        """The piece that should have held the position."""
        piece: Piece = self.args[0]
        return piece


class PieceQueue:
    """Pieces not yet in a batch.

    Args:
        bounds: How big a batch may get.
        fences: Positions that no batch straddles.
    """

    def __init__(self, bounds: Bounds, fences: tuple[int, ...]) -> None:
        self._bounds = bounds
        self._fences = deque(sorted(fences))
        self._pieces: deque[Piece | Run] = deque()
        self.rows = self.size_bytes = self.files = 0

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def is_full(self) -> bool:
        """Whether a whole batch is there."""
        bounds = self._bounds
        return self.rows >= bounds.rows or self.size_bytes >= bounds.size_bytes or self.files >= bounds.files

    def append(self, piece: Piece | Run) -> None:
        """Add the piece that follows."""
        self._pieces.append(piece)
        self._count(piece, 1)

    def cut(self, position: int) -> list[Piece | Run]:
        """Take the longest run of pieces from ``position`` that bounds and fences allow; a skipped piece comes alone.

        Raises:
            FewerRows: A fence lies where the file has no row.
        """
        fence = self.next_fence(position)
        taken: list[Piece | Run] = []
        rows = size_bytes = files = 0
        bounds = self._bounds
        while self._pieces and not (taken and (self._pieces[0].is_skipped or self._is_again(taken))):
            room = Bounds(
                rows=bounds.rows - rows, size_bytes=bounds.size_bytes - size_bytes, files=bounds.files - files
            )
            piece, is_whole = self._take(room, fence)
            taken.append(piece)
            rows, size_bytes, files = rows + piece.count, size_bytes + piece.size_bytes, files + piece.files
            is_full = rows >= bounds.rows or size_bytes >= bounds.size_bytes or files >= bounds.files
            if is_full or not is_whole or (fence is not None and piece.end == fence) or piece.is_skipped:
                break
        return taken

    def put_back(self, pieces: Sequence[Piece | Run]) -> None:
        """Take back what the last ``cut`` returned."""
        for piece in reversed(pieces):
            self._push(piece)

    def _is_again(self, taken: list[Piece | Run]) -> bool:
        """Return whether the next piece begins a new version of a file that is in the batch already."""
        piece = self._pieces[0]
        if isinstance(piece, Run) or not piece.replaces:
            return False
        path = piece.file.found.path
        return any(path in o.files_in.found.paths if isinstance(o, Run) else o.file.found.path == path for o in taken)

    def next_fence(self, position: int) -> int | None:
        """Return the first fence above ``position``."""
        while self._fences and self._fences[0] <= position:
            self._fences.popleft()
        return self._fences[0] if self._fences else None

    def edges(self, start: int, end: int) -> list[int]:
        """Return ``start``, the fences between, and ``end``."""
        return [start, *(fence for fence in self._fences if start < fence < end), end]

    def _count(self, piece: Piece | Run, sign: int) -> None:
        self.rows += sign * piece.count
        self.size_bytes += sign * piece.size_bytes
        self.files += sign * piece.files

    def _pop(self) -> Piece | Run:
        piece = self._pieces.popleft()
        self._count(piece, -1)
        return piece

    def _push(self, piece: Piece | Run) -> None:
        self._pieces.appendleft(piece)
        self._count(piece, 1)

    def _take(self, room: Bounds, fence: int | None) -> tuple[Piece | Run, bool]:
        """Take what comes first, or as much of it as there is room for; return it and whether its last file is whole."""
        piece = self._pop()
        if isinstance(piece, Piece):
            return self._take_rows(piece, room, fence)
        files = piece.fitting(room, fence)
        head, rest = piece.split(files or 1)
        if rest is not None:
            self._push(rest)
        return (head, True) if files else self._take_rows(piece.piece(), room, fence)

    def _take_rows(self, piece: Piece, room: Bounds, fence: int | None) -> tuple[Piece, bool]:
        """Take a piece, or as much of it as there is room for; return it and whether it is whole."""
        if piece.is_skipped:
            return piece, True
        is_fenced = fence is not None and piece.start < fence <= piece.end and fence != piece.file.end
        until = piece.count
        if is_fenced and fence is not None:
            until = piece.file.row(fence) - piece.first_row
            if not 0 <= until <= piece.count:
                raise FewerRows(piece)
        by_bytes = max(1, room.size_bytes * piece.count // max(1, piece.size_bytes))
        fits = min(until, room.rows, by_bytes) if piece.count else 0
        if fits == piece.count and not (is_fenced and piece.is_end):
            return piece, True
        head_bytes = piece.size_bytes * fits // max(1, piece.count)
        raw = piece.raw
        head, tail = (None, None) if raw is None else (raw.slice(0, fits), raw.slice(fits))
        rest = (piece.count - fits, piece.size_bytes - head_bytes)
        self._push(Piece(piece.file, piece.first_row + fits, tail, *rest, is_end=piece.is_end))
        return Piece(piece.file, piece.first_row, head, fits, head_bytes), False
