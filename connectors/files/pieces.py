"""Raw rows of files, queued in the order of their positions, and cut where batches must end; used by the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from connectors.files.formats import Raw
from connectors.files.ledger import NumberedFile

__all__ = ["Bounds", "FewerRows", "Piece", "PieceQueue"]


@dataclass(slots=True)  # not frozen: one is made for each file, in a third of the time
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
        self._pieces: deque[Piece] = deque()
        self.rows = self.size_bytes = self.files = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    @property
    def is_full(self) -> bool:
        """Whether a whole batch is there."""
        bounds = self._bounds
        return self.rows >= bounds.rows or self.size_bytes >= bounds.size_bytes or self.files >= bounds.files

    def append(self, piece: Piece) -> None:
        """Add the piece that follows."""
        self._pieces.append(piece)
        self._count(piece, 1)

    def cut(self, position: int) -> list[Piece]:
        """Take the longest run of pieces from ``position`` that bounds and fences allow; a skipped piece comes alone.

        Raises:
            FewerRows: A fence lies where the file has no row.
        """
        fence = self.next_fence(position)
        taken: list[Piece] = []
        rows = size_bytes = files = 0
        bounds = self._bounds
        while self._pieces and not (taken and (self._pieces[0].is_skipped or self._is_again(taken))):
            piece, is_whole = self._pieces[0], True
            fits = piece.count <= bounds.rows - rows and piece.size_bytes <= bounds.size_bytes - size_bytes
            if fence is None and fits:
                self._pieces.popleft()
                self._count(piece, -1)
            else:
                piece, is_whole = self._take(bounds.rows - rows, bounds.size_bytes - size_bytes, fence)
            taken.append(piece)
            rows, size_bytes, files = rows + piece.count, size_bytes + piece.size_bytes, files + piece.is_end
            is_full = rows >= bounds.rows or size_bytes >= bounds.size_bytes or files >= bounds.files
            if is_full or not is_whole or (fence is not None and piece.end == fence) or piece.is_skipped:
                break
        return taken

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Take back what the last ``cut`` returned."""
        for piece in reversed(pieces):
            self._pieces.appendleft(piece)
            self._count(piece, 1)

    def _is_again(self, taken: list[Piece]) -> bool:
        """Return whether the next piece begins a new version of a file that is in the batch already."""
        piece = self._pieces[0]
        if not piece.replaces:
            return False
        return any(other.file.found.path == piece.file.found.path for other in taken)

    def next_fence(self, position: int) -> int | None:
        """Return the first fence above ``position``."""
        while self._fences and self._fences[0] <= position:
            self._fences.popleft()
        return self._fences[0] if self._fences else None

    def edges(self, start: int, end: int) -> list[int]:
        """Return ``start``, the fences between, and ``end``."""
        return [start, *(fence for fence in self._fences if start < fence < end), end]

    def _count(self, piece: Piece, sign: int) -> None:
        self.rows += sign * piece.count
        self.size_bytes += sign * piece.size_bytes
        self.files += sign * piece.is_end

    def _take(self, room_rows: int, room_bytes: int, fence: int | None) -> tuple[Piece, bool]:
        """Take the first piece, or as much of it as there is room for; return it and whether it is whole."""
        piece = self._pieces.popleft()
        self._count(piece, -1)
        if piece.is_skipped:
            return piece, True
        is_fenced = fence is not None and piece.start < fence <= piece.end and fence != piece.file.end
        until = piece.count
        if is_fenced and fence is not None:
            until = piece.file.row(fence) - piece.first_row
            if not 0 <= until <= piece.count:
                raise FewerRows(piece)
        by_bytes = max(1, room_bytes * piece.count // max(1, piece.size_bytes))
        fits = min(until, room_rows, by_bytes) if piece.count else 0
        if fits == piece.count and not (is_fenced and piece.is_end):
            return piece, True
        head_bytes = piece.size_bytes * fits // max(1, piece.count)
        raw = piece.raw
        head, tail = (None, None) if raw is None else (raw.slice(0, fits), raw.slice(fits))
        rest = (piece.count - fits, piece.size_bytes - head_bytes)
        left = Piece(piece.file, piece.first_row + fits, tail, *rest, is_end=piece.is_end)
        self._pieces.appendleft(left)
        self._count(left, 1)
        return Piece(piece.file, piece.first_row, head, fits, head_bytes), False
