"""Reads the files of a ledger, in the order of their numbers, into micro-batches that no fence cuts.

Small files are read whole, many at a time, and decoded together; big and compressed ones are read in blocks. Either way
the raw rows queue up as pieces, and a batch is as many of them as its bounds and the next fence allow.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from connectors.files.formats import Format, Raw, decompressed, is_compressed
from connectors.files.ledger import Ledger, NumberedFile
from connectors.files.pieces import Bounds, FewerRows, Piece, PieceQueue
from connectors.files.provenance import Provenance
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, OpenFile, Store, store_errors
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, WaxlakeError, shorten
from waxlake.stream.position import RowPosition
from waxlake.stream.source import PartitionPlan

__all__ = ["PARTITION", "FilesReader"]

PARTITION: Final = "files"
_SMALL_BYTES: Final = 1 << 20
_GROUP_BYTES: Final = 8 << 20
_GROUP_FILES: Final = 4096
_REMOTE_GROUP_FILES: Final = 64
_REMOTE_THREADS: Final = 16
_LOAD_FILES: Final = 50_000
_GIVE_UP_SETTLING_S: Final = 60.0
_UNREADABLE = (pa.ArrowException, ValueError, OSError, EOFError)

_Problem: TypeAlias = "FileGone | FileChanged | WaxlakeError | None"
_Ahead: TypeAlias = "tuple[list[NumberedFile], Future[tuple[list[bytes], _Problem]]]"


class FilesReader:
    """The reader of one run.

    Args:
        settings: The source's settings.
        store: Where the files are.
        ledger: The ledger, for this reader alone.
        plan: What to read.
        identity: Source identity, for the batches.
        format: Turns bytes into rows.
        empty: A table of no rows with the columns of every batch.
        provenance: Adds what only files tell.
        discover: Lists and records what is new; called on another thread in a continuous run.
    """

    def __init__(
        self,
        *,
        settings: FilesSettings,
        store: Store,
        ledger: Ledger,
        plan: PartitionPlan,
        identity: str,
        format: Format,
        empty: pa.Table,
        provenance: Provenance,
        discover: Callable[[], int],
    ) -> None:
        self._settings, self._store, self._ledger, self._plan = settings, store, ledger, plan
        self._identity, self._format, self._empty = identity, format, empty
        self._provenance, self._discover = provenance, discover
        self._position = plan.read_from
        self._stored_max = max(plan.start, *plan.fences) if plan.fences else plan.start
        self._load_number = RowPosition.unpack(self._position).major
        self._limit = self._load_number
        self._files: deque[NumberedFile] = deque()
        self._row = 0
        self._is_resuming = True
        self._open: tuple[OpenFile, Iterator[Raw]] | None = None
        bounds = Bounds(
            rows=settings.max_rows_per_batch,
            size_bytes=settings.max_bytes_per_batch,
            files=settings.max_files_per_trigger or 1 << 62,
        )
        self._pieces = PieceQueue(bounds, plan.fences)
        self._failure: WaxlakeError | None = None
        self._left_files = self._left_bytes = 0
        self._unsettled_since_s: float | None = None
        self._is_waiting = False
        self._pool: ThreadPoolExecutor | None = None
        self._listing: Future[int] | None = None
        self._ahead: _Ahead | None = None
        self._list_at_s = 0.0
        self._extend(RowPosition.unpack(plan.mark).major if plan.mark is not None else ledger.next_number)

    @property
    def is_done(self) -> bool:
        """Whether the mark is reached."""
        return self._plan.mark is not None and self._position >= self._plan.mark

    def positions(self) -> Mapping[str, int]:
        """Return the next position."""
        return {PARTITION: self._position}

    def close(self) -> None:
        """Close what is open."""
        self._close_file()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self) -> Sequence[MicroBatch]:
        """Return the next batch, or nothing.

        Raises:
            SourceMoved: ``FILE_GONE``, ``FILE_CHANGED``: a file is not what it was when it was numbered. Not retryable.
            TerminalError: ``FILE_UNREADABLE``. Not retryable; whatever was read before it was returned before.
            TransientError: The store does not answer. Retryable.
        """
        if self.is_done:
            return []
        if self._failure is None:
            try:
                self._fill()
            except WaxlakeError as error:
                if not self._pieces:
                    raise
                self._failure = error
        if self._pieces:
            return self._cut()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        self._poll()
        return []

    # -- which files ---------------------------------------------------------------------------------------------

    def _extend(self, limit: int) -> None:
        """Take files up to ``limit`` into what is to be read."""
        if limit > self._limit:
            files, size_bytes = self._ledger.totals(self._limit, limit)
            self._left_files += files
            self._left_bytes += size_bytes
            self._limit = limit

    def _load(self) -> bool:
        """Load the next files from the ledger; return whether there are any."""
        last = min(self._limit, self._load_number + _LOAD_FILES)
        self._files.extend(self._ledger.files(self._load_number, last))
        self._load_number = max(self._load_number, last)
        if self._files and self._is_resuming:
            self._is_resuming = False
            self._row = self._row_at(self._files[0], self._position)
        return bool(self._files)

    def _poll(self) -> None:
        """List again now and then in a continuous run, without waiting for it."""
        if self._plan.mark is not None:
            return
        if self._listing is not None:
            if self._listing.done():
                listing, self._listing = self._listing, None
                self._list_at_s = time.monotonic() + self._settings.poll_interval_s
                listing.result()
                self._ledger.refresh()
                self._extend(self._ledger.next_number)
        elif time.monotonic() >= self._list_at_s:
            self._listing = self._threads().submit(self._discover)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="files")
        return self._pool

    # -- bytes to pieces -----------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Read until a whole batch of pieces is there, or nothing more is to be had now."""
        self._is_waiting = False
        while not self._pieces.is_full and not self._is_waiting:
            if not self._files and not self._load():
                return
            if self._open is not None:
                self._read_block()
            elif not self._is_settled(self._files[0].found):
                return
            elif self._row == 0 and self._is_small(self._files[0]):
                self._read_group()
            else:
                self._open_file()

    def _is_small(self, file: NumberedFile) -> bool:
        path = file.found.path
        return file.found.size_bytes <= _SMALL_BYTES and not is_compressed(path, self._settings.format)

    def _is_fresh(self, found: FoundFile) -> bool:
        age_s = time.time() - found.modified_us / 1e6
        return self._store.is_local and abs(age_s) < self._settings.settle_s

    def _is_settled(self, found: FoundFile) -> bool:
        """Return whether a local file has been left alone long enough to be whole; one read before counts as such."""
        if self._row or not self._is_fresh(found):
            self._unsettled_since_s = None
            return True
        now_s = time.monotonic()
        self._unsettled_since_s = self._unsettled_since_s or now_s
        if now_s - self._unsettled_since_s > _GIVE_UP_SETTLING_S:
            raise TransientError(
                f"cannot read file '{found.path}' yet",
                code="FILE_CHANGING",
                found=f"{found.size_bytes} bytes, written to all the time",
                expected=f"a file left alone for {self._settings.settle_s:g} s",
                remedy="Write it under a name that begins with '.' or ends with .tmp, and rename it when it is whole",
            )
        return False

    def _read_group(self) -> None:
        """Read the next small files whole, and split them together; the group after them is read meanwhile."""
        if self._ahead is not None and self._ahead[0][0] is self._files[0]:
            group, contents, problem = *self._ahead[:1], *self._ahead[1].result()
        else:
            group = self._small_group(0)
            contents, problem = self._contents(group)
        self._ahead = None
        after = self._small_group(len(group)) if problem is None else []
        if after:
            self._ahead = after, self._threads().submit(self._contents, after)
        if contents:
            self._take_group(group[: len(contents)], contents)
        elif isinstance(problem, WaxlakeError):
            raise problem
        elif problem is not None:
            self._take_problem(group[0], problem)

    def _small_group(self, first: int) -> list[NumberedFile]:
        """Return the small files that follow, from the one at index ``first``, as many as are read at once."""
        group: list[NumberedFile] = []
        most = min(self._settings.max_files_per_trigger or _GROUP_FILES, _GROUP_FILES)
        most = most if self._store.is_local else min(most, _REMOTE_GROUP_FILES)
        size_bytes, newest_us = 0, int((time.time() - self._settings.settle_s) * 1e6)
        for file in itertools.islice(self._files, first, first + most):
            found = file.found
            size_bytes += found.size_bytes
            is_fresh = found.modified_us > newest_us and self._is_fresh(found)
            if is_fresh or not self._is_small(file) or (group and size_bytes > _GROUP_BYTES):
                break
            group.append(file)
        return group

    def _contents(self, group: Sequence[NumberedFile]) -> tuple[list[bytes], _Problem]:
        """Return the bytes of the files, up to the first that cannot be read or is not what it was."""
        contents: list[bytes] = []
        read = self._store.read
        try:
            if self._store.is_local:
                for file in group:
                    contents.append(read(file.found))
            else:
                contents.extend(self._threads().map(lambda file: read(file.found), group))
        except (FileGone, FileChanged, WaxlakeError) as problem:
            return contents, problem
        return contents, None

    def _take_group(self, group: Sequence[NumberedFile], contents: Sequence[bytes]) -> None:
        try:
            raws = self._format.split(contents)
        except _UNREADABLE as exc:
            if len(group) == 1:
                raise _unreadable(group[0], exc) from exc
            for file, content in zip(group, contents, strict=True):
                self._take_group([file], [content])
            return
        for file, raw in zip(group, raws, strict=True):
            self._pieces.append(Piece(file, 0, raw, len(raw), file.found.size_bytes, is_end=True))
            self._files.popleft()

    def _open_file(self) -> None:
        """Open the next file, to be read in blocks."""
        file = self._files[0]
        try:
            opened = self._store.open(file.found)
        except (FileGone, FileChanged) as problem:
            self._take_problem(file, problem)
            return
        stream = decompressed(opened.stream, file.found.path, self._settings.format)
        self._open = (opened, self._blocks(stream, self._row))

    def _blocks(self, stream: Any, row: int) -> Iterator[Raw]:
        yield from self._format.blocks(stream, row)

    def _read_block(self) -> None:
        """Read one more block of the open file."""
        file, (opened, blocks) = self._files[0], self._open or (None, None)
        if opened is None or blocks is None:
            return
        try:
            raw = self._next_block(file, opened, blocks)
            with store_errors(f"look at file '{file.found.path}'"):
                opened.verify()
        except (FileGone, FileChanged) as problem:
            self._close_file()
            self._take_problem(file, problem)
            return
        except WaxlakeError:
            self._close_file()
            raise
        count = 0 if raw is None else len(raw)
        size_bytes = 0 if raw is None else raw.nbytes
        self._pieces.append(Piece(file, self._row, raw, count, size_bytes, is_end=raw is None))
        self._row += count
        if raw is None:
            self._close_file()
            self._files.popleft()
            self._row = 0

    def _next_block(self, file: NumberedFile, opened: OpenFile, blocks: Iterator[Raw]) -> Raw | None:
        try:
            with nullcontext() if self._store.is_local else store_errors(f"read file '{file.found.path}'"):
                return next(blocks, None)
        except EOFError as exc:
            if exc.args and isinstance(exc.args[0], int):
                raise FileChanged(file.found) from exc
            raise _unreadable(file, exc) from exc
        except TerminalError as exc:
            opened.verify()
            raise _unreadable(file, exc.__cause__ or exc) from exc
        except _UNREADABLE as exc:
            opened.verify()
            raise _unreadable(file, exc) from exc

    def _close_file(self) -> None:
        if self._open is not None:
            opened, self._open = self._open[0], None
            opened.stream.close()

    # -- files that are not what they were -----------------------------------------------------------------------

    def _take_problem(self, file: NumberedFile, problem: FileGone | FileChanged) -> None:
        """Go on from a file that is gone or has changed: read its new edition if nobody read the old one, skip it, or stop."""
        if isinstance(problem, FileChanged) and not self._row and self._stored_max <= file.begin:
            self._is_waiting = not self._is_settled(problem.now)
            if not self._is_waiting:
                self._files[0] = self._ledger.replace_edition(file, problem.now)
            return
        if self._settings.on_data_loss == "skip":
            self._pieces.append(Piece(file, self._row, None, 0, 0, is_end=True, is_skipped=True))
            self._files.popleft()
            self._row = 0
            return
        if isinstance(problem, FileGone):
            raise SourceMoved(
                f"cannot read file '{file.found.path}'",
                code="FILE_GONE",
                found="no such file",
                expected=f"the {file.found.size_bytes} bytes that were found there (file {file.number} of the ledger)",
                remedy="Put it back, or set on_data_loss='skip' to go on without it (recorded in the event log)",
            )
        raise _changed(file, f"row {self._row}", problem.now)

    def _row_at(self, file: NumberedFile, position: int) -> int:
        row = file.row(position)
        if row < 0:
            raise _changed(file, "a row of an earlier edition of the file", file.found)
        return row

    # -- pieces to batches ---------------------------------------------------------------------------------------

    def _cut(self) -> list[MicroBatch]:
        """Return the longest batch that its bounds and the next fence allow."""
        try:
            taken = self._pieces.cut(self._position)
        except FewerRows as problem:
            piece = problem.piece
            raise _changed(
                piece.file, "the rows that another flow of this run has stored", piece.file.found
            ) from problem
        start, self._position = self._position, taken[-1].end
        for piece in taken:
            if piece.is_end:
                self._left_files -= 1
                self._left_bytes -= piece.file.found.size_bytes
        if taken[0].is_skipped:
            edges = self._pieces.edges(start, self._position)
            return [self._batch(self._empty, a, b, skipped=(a, b)) for a, b in itertools.pairwise(edges)]
        rows = [piece for piece in taken if piece.count]
        return [self._batch(self._table(rows), start, self._position, read=sum(piece.count for piece in rows))]

    def _batch(self, table: pa.Table, start: int, end: int, **rest: Any) -> MicroBatch:
        return MicroBatch(
            table=table,
            source=self._identity,
            partition=PARTITION,
            start=start,
            end=end,
            backlog=Backlog(files=max(0, self._left_files), size_bytes=max(0, self._left_bytes)),
            **rest,
        )

    def _table(self, pieces: Sequence[Piece]) -> pa.Table:
        """Decode the rows of all pieces at once, and say where they come from."""
        if not pieces:
            return self._empty
        table = self._format.decode([piece.raw for piece in pieces if piece.raw is not None])
        files = [piece.file.found for piece in pieces]
        owners = np.repeat(np.arange(len(pieces)), [piece.count for piece in pieces])
        return self._provenance.add(table, files, pa.array(owners))


def _changed(file: NumberedFile, expected: str, now: FoundFile) -> SourceMoved:
    return SourceMoved(
        f"cannot read on in file '{file.found.path}'",
        code="FILE_CHANGED",
        found=f"another content: {now.size_bytes} bytes, modified at {_iso(now)}",
        expected=f"{expected} of the file of {file.found.size_bytes} bytes, modified at {_iso(file.found)}",
        remedy="Put the earlier content back, or set on_data_loss='skip' to leave out the rest of it (recorded in the event "
        "log); give changed content a new file name",
    )


def _iso(found: FoundFile) -> str:
    return datetime.fromtimestamp(found.modified_us / 1e6, timezone.utc).isoformat()


def _unreadable(file: NumberedFile, exc: BaseException) -> TerminalError:
    return TerminalError(
        f"cannot read file '{file.found.path}'",
        code="FILE_UNREADABLE",
        found=shorten(exc, 300),
        expected=f"a whole file (number {file.number} of the ledger)",
        remedy="Put a whole file in its place and run again, or remove it and set on_data_loss='skip'. Rows before it are safe",
    )
