"""From files to pieces: small ones are read whole, many at a time; big and compressed ones in blocks. Used by the reader."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from connectors.files.formats import Format, Raw, RowsOfFiles, are_compressed, decompressed, is_compressed
from connectors.files.numbered import NumberedFile, NumberedFiles
from connectors.files.piece_queue import PieceQueue
from connectors.files.pieces import Piece, Run
from connectors.files.problems import FileProblem, unreadable
from connectors.files.queue import FileQueue
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, OpenFile, Store, mapped_error, store_errors
from waxlake.stream.errors import TerminalError, WaxlakeError

__all__ = ["UNREADABLE", "FileContents", "is_fresh"]

_SMALL_BYTES: Final = 4 << 20
_GROUP_BYTES: Final = 16 << 20
_GROUP_FILES: Final = 4096
_REMOTE_GROUP_FILES: Final = 64
_REMOTE_THREADS: Final = 16
UNREADABLE: Final = (pa.ArrowException, ValueError, OSError, EOFError)

_Problem: TypeAlias = "FileGone | FileChanged | WaxlakeError | None"
_Ahead: TypeAlias = "tuple[NumberedFiles, Future[tuple[list[bytes], _Problem]]]"


def is_fresh(found: FoundFile, settle_s: float, now_s: float) -> bool:
    """Return whether a file was modified so lately that it may not be whole."""
    return abs(now_s - found.modified_us / 1e6) < settle_s


class FileContents:
    """Reads the files at the front of a queue, and takes them out of it.

    Args:
        settings: The source's settings.
        store: Where the files are.
        format: Turns bytes into rows.
        files: Files to read, in order; those read to their end are removed.
        pieces: Where raw rows go.

    Attributes:
        row: Rows of the first file that were read, or are to be stepped over.
    """

    def __init__(
        self,
        settings: FilesSettings,
        store: Store,
        format: Format,
        *,
        files: FileQueue,
        pieces: PieceQueue,
    ) -> None:
        self._settings, self._store, self._format = settings, store, format
        self._files, self._pieces = files, pieces
        self.row = 0
        self._open: tuple[OpenFile, Iterator[Raw]] | None = None
        self._ahead: _Ahead | None = None
        self._pool: ThreadPoolExecutor | None = None

    @property
    def is_open(self) -> bool:
        """Whether the first file is being read in blocks."""
        return self._open is not None

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Threads for what may wait for a store."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="files")
        return self._pool

    def read_next(self) -> None:
        """Read some more: the next block, the next small files, or the start of a big one.

        Raises:
            FileProblem: The first file is not what it was, or cannot be decoded; what lies before it was read.
            WaxlakeError: The store refuses or does not answer.
        """
        if self._open is not None:
            self._read_block()
        elif self._has_no_bytes(self._files.first):
            self._take_empty(self._files.first)
        elif self.row == 0 and self._is_small(self._files.first):
            self._read_group()
        else:
            self._open_file()

    def leave_out(self, file: NumberedFile, state: str, error: str) -> None:
        """Leave out what is left of the first file."""
        self.close_file()
        self._pieces.append(Piece(file, self.row, is_end=True, left_out=(state, error)))
        self._next_file()

    def close_file(self) -> None:
        """Close the file that is open, to be opened again."""
        if self._open is not None:
            opened, self._open = self._open[0], None
            opened.stream.close()

    def close(self) -> None:
        """Close what is open."""
        self.close_file()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _next_file(self) -> None:
        self._files.pop()
        self.row = 0

    # -- files without a byte ------------------------------------------------------------------------------------

    def _has_no_bytes(self, file: NumberedFile) -> bool:
        return not file.found.size_bytes and str(self._settings.format) != "binaryfile"

    def _take_empty(self, file: NumberedFile) -> None:
        """Take a file without a byte as one without a row, whatever its format; it was empty for a long time."""
        try:
            now = self._store.stat(file.found.path)
            if not now.is_same_content(file.found):
                raise FileChanged(now)
        except (FileGone, FileChanged) as problem:
            raise FileProblem(file, 0, problem) from problem
        self._pieces.append(Piece(file, 0, is_end=True))
        self._next_file()

    # -- small files ---------------------------------------------------------------------------------------------

    def _is_small(self, file: NumberedFile) -> bool:
        found = file.found
        return 0 < found.size_bytes <= _SMALL_BYTES and not is_compressed(found.path, self._settings.format)

    def _read_group(self) -> None:
        """Read the next small files whole, and split them together; the group after them is read meanwhile."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0][0] == self._files.first:
            group, (contents, problem) = ahead[0], ahead[1].result()
        else:
            group = self._small_group(0)
            contents, problem = self._contents(group)
        after = self._small_group(len(group)) if problem is None else None
        if after:
            self._ahead = after, self.threads.submit(self._contents, after)
        if contents:
            self._take_group(group[: len(contents)], contents)
        elif isinstance(problem, WaxlakeError):
            raise problem
        elif problem is not None:
            raise FileProblem(group[0], 0, problem)

    def _small_group(self, first: int) -> NumberedFiles:
        """Return the small files that follow, from the one at index ``first``, as many as are read at once."""
        most = min(self._settings.max_files_per_trigger or _GROUP_FILES, _GROUP_FILES)
        files = self._files.following(first, most if self._store.is_local else min(most, _REMOTE_GROUP_FILES))
        sizes = files.found.size_bytes
        is_first = np.arange(len(files)) == 0
        stops = (sizes == 0) | (sizes > _SMALL_BYTES)
        stops |= are_compressed(files.found.paths, self._settings.format)
        stops |= (np.cumsum(sizes) > _GROUP_BYTES) & ~is_first
        if self._store.is_local:
            age_us = time.time() * 1e6 - files.found.modified_us
            stops |= (abs(age_us) < self._settings.settle_s * 1e6) & (~is_first if first == 0 else True)
        return files[: int(np.argmax(stops))] if stops.any() else files

    def _contents(self, group: NumberedFiles) -> tuple[list[bytes], _Problem]:
        """Return the bytes of the files, up to the first that cannot be read or is not what it was."""
        contents: list[bytes] = []
        try:
            contents.extend(self._store.read_each(group.found, lambda: self.threads))
        except (FileGone, FileChanged, WaxlakeError) as problem:
            return contents, problem
        return contents, None

    def _take_group(self, group: NumberedFiles, contents: Sequence[bytes]) -> None:
        try:
            raws = self._format.split(contents)
        except UNREADABLE as exc:
            if len(group) == 1:
                raise FileProblem(group[0], 0, unreadable(group[0], exc)) from exc
            for index, content in enumerate(contents):
                self._take_group(group[index : index + 1], [content])
            return
        if isinstance(raws, RowsOfFiles) and group.again is None:
            self._pieces.append(Run(group, raws.rows, raws.counts))
        else:
            for file, raw in zip(group, raws, strict=True):
                self._pieces.append(Piece(file, 0, raw, len(raw), file.found.size_bytes, is_end=True))
        self._files.pop(len(group))

    # -- big and compressed files --------------------------------------------------------------------------------

    def _open_file(self) -> None:
        """Open the next file, to be read in blocks."""
        file = self._files.first
        try:
            opened = self._store.open(file.found)
        except (FileGone, FileChanged) as problem:
            raise FileProblem(file, self.row, problem) from problem
        stream = decompressed(opened.stream, file.found.path, self._settings.format)
        self._open = (opened, self._blocks(stream, self.row))

    def _blocks(self, stream: object, row: int) -> Iterator[Raw]:
        yield from self._format.blocks(stream, row)  # type: ignore[arg-type]

    def _read_block(self) -> None:
        """Read one more block of the open file."""
        file, (opened, blocks) = self._files.first, self._open or (None, None)
        if opened is None or blocks is None:
            return
        try:
            raw = self._next_block(file, opened, blocks)
            with store_errors(f"look at file '{file.found.path}'"):
                opened.verify()
        except (FileGone, FileChanged) as problem:
            self.close_file()
            raise FileProblem(file, self.row, problem) from problem
        except (WaxlakeError, FileProblem):
            self.close_file()
            raise
        count = 0 if raw is None else len(raw)
        size_bytes = 0 if raw is None else raw.nbytes
        self._pieces.append(Piece(file, self.row, raw, count, size_bytes, is_end=raw is None))
        self.row += count
        if raw is None:
            self.close_file()
            self._next_file()

    def _next_block(self, file: NumberedFile, opened: OpenFile, blocks: Iterator[Raw]) -> Raw | None:
        try:
            with nullcontext() if self._store.is_local else store_errors(f"read file '{file.found.path}'"):
                return next(blocks, None)
        except EOFError as exc:
            if exc.args and isinstance(exc.args[0], int):
                raise FileChanged(file.found) from exc
            raise FileProblem(file, self.row, unreadable(file, exc)) from exc
        except TerminalError as exc:
            opened.verify()
            if exc.code == "FILES_ACCESS_DENIED":
                raise
            raise FileProblem(file, self.row, unreadable(file, exc.__cause__ or exc)) from exc
        except UNREADABLE as exc:
            opened.verify()
            if isinstance(exc, OSError) and exc.errno is not None:  # the device or the network, not what the file holds
                raise mapped_error(f"read file '{file.found.path}'", exc) from exc
            raise FileProblem(file, self.row, unreadable(file, exc)) from exc
