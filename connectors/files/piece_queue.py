"""Raw rows of files, queued in the order of their positions, and cut where batches must end; used by the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from connectors.files.pieces import Bounds, Piece, Run

__all__ = ["FewerRows", "PieceQueue"]


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
