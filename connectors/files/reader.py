"""Reads the files of a ledger, in the order of their numbers, into micro-batches that no fence cuts.

Raw rows of files queue up as pieces, and a batch is as many of them as its bounds and the next fence allow. A file that
cannot be read is left out, or stops the source after the rows before it: as its options say.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import pyarrow as pa

from connectors.files.contents import FileContents, is_fresh
from connectors.files.evolution import Evolution
from connectors.files.formats import Format
from connectors.files.history import FileHistory
from connectors.files.ledger import Ledger
from connectors.files.numbered import NumberedFile, NumberedFiles
from connectors.files.piece_queue import FewerRows, PieceQueue
from connectors.files.pieces import Bounds, FileRows, Piece
from connectors.files.problems import FileProblem, changed, never_settles
from connectors.files.provenance import Provenance
from connectors.files.queue import FileQueue
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, Store
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.errors import WaxlakeError
from waxlake.stream.file_counts import FILES_FACT, FileCounts, LeftOut
from waxlake.stream.position import RowPosition
from waxlake.stream.source import PartitionPlan

__all__ = ["PARTITION", "FilesReader"]

PARTITION: Final = "files"
_LOAD_FILES: Final = 50_000
_GIVE_UP_SETTLING_S: Final = 60.0


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
        history: What is known of files that went wrong.
        evolution: Looks for new columns in each batch before it is emitted; None if nobody wants to know.
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
        history: FileHistory,
        evolution: Evolution | None = None,
    ) -> None:
        self._settings, self._store, self._ledger, self._plan = settings, store, ledger, plan
        self._identity, self._format, self._empty = identity, format, empty
        self._provenance, self._discover, self._history = provenance, discover, history
        self._evolution = evolution
        self._position = plan.read_from
        self._stored_max = max(plan.start, *plan.fences) if plan.fences else plan.start
        self._load_number = RowPosition.unpack(self._position).major
        self._limit = self._load_number
        self._files = FileQueue()
        self.is_closed = False
        self._is_resuming = True
        bounds = Bounds(
            rows=settings.max_rows_per_batch,
            size_bytes=min(settings.max_bytes_per_batch, settings.max_bytes_per_trigger or 1 << 62),
            files=settings.max_files_per_trigger or 1 << 62,
        )
        self._pieces = PieceQueue(bounds, plan.fences)
        self._contents = FileContents(settings, store, format, files=self._files, pieces=self._pieces)
        self._failure: WaxlakeError | None = None
        self._left_files = self._left_bytes = 0
        self._unsettled_since_s: float | None = None
        self._is_waiting = False
        self._listing: Future[int] | None = None
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
        self.is_closed = True
        self._contents.close()

    def read(self) -> Sequence[MicroBatch]:
        """Return the next batch, or nothing.

        Raises:
            SourceMoved: ``FILE_GONE``, ``FILE_CHANGED``: a file is not what it was when it was numbered. Not retryable.
            TerminalError: ``FILE_UNREADABLE``. Not retryable; whatever was read before it was returned before.
            TransientError: The store does not answer. Retryable.
            SchemaGrown: The next batch has new columns. Nothing more can be read; positions stay before it.
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
        self._files.append(self._history.with_repairs(self._numbered(self._load_number, last)))
        self._load_number = max(self._load_number, last)
        if self._files and self._is_resuming:
            self._is_resuming = False
            self._contents.row = self._row_at(self._files.first, self._position)
        return bool(self._files)

    def _numbered(self, first: int, last: int) -> NumberedFiles:
        is_replacing = self._settings.allow_overwrites == "replace"
        return (self._ledger.numbered_again if is_replacing else self._ledger.numbered)(first, last)

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
            self._listing = self._contents.threads.submit(self._discover)

    # -- files to pieces -----------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Read until a whole batch of pieces is there, or nothing more is to be had now."""
        self._is_waiting = False
        while not self._pieces.is_full and not self._is_waiting:
            if not self._files and not self._load():
                return
            if not self._contents.is_open and not self._is_settled(self._files.first.found):
                return
            try:
                self._contents.read_next()
            except FileProblem as problem:
                self._take_problem(problem)
            else:
                self._unsettled_since_s = None

    def _is_settled(self, found: FoundFile) -> bool:
        """Return whether a local file has been left alone long enough to be whole; one read before counts as such."""
        is_new = self._store.is_local and not self._contents.row
        if not is_new or not is_fresh(found, self._settings.settle_s, time.time()):
            return True
        now_s = time.monotonic()
        self._unsettled_since_s = self._unsettled_since_s or now_s
        if now_s - self._unsettled_since_s > _GIVE_UP_SETTLING_S:
            raise never_settles(found, self._settings.settle_s)
        return False

    def _take_problem(self, problem: FileProblem) -> None:
        """Go on from a file that cannot be read: read its new edition if nobody read the old one, leave it out, or stop."""
        file, cause = problem.file, problem.cause
        if isinstance(cause, FileGone | FileChanged) and self._leave_out_cleaned(file):
            return
        if isinstance(cause, FileChanged) and not self._contents.row and self._stored_max <= file.begin:
            self._is_waiting = not self._is_settled(cause.now)
            edition = None if self._is_waiting else self._ledger.replace_edition(file, cause.now)
            self._files.replace_first(edition or file)
            if self._is_waiting or edition is not None:
                return  # else the changed file has a number of its own
        if isinstance(cause, FileChanged) and self._contents.row and self._is_repaired(file, cause.now):
            return
        error, settings = problem.error(), self._settings
        if isinstance(cause, FileGone):
            is_ignored = settings.ignore_missing_files or settings.on_data_loss == "skip"
        elif isinstance(cause, FileChanged):
            is_ignored = settings.tracks_versions or settings.on_data_loss == "skip"
        else:
            is_ignored = settings.ignore_corrupt_files
        if is_ignored:
            state = "missing" if isinstance(cause, FileGone) else "skipped"
            self._contents.leave_out(file, state, f"{error.what}: {error.found} [{error.code}]")
            return
        self._history.note_failure(problem, error)
        raise error from problem

    def _leave_out_cleaned(self, file: NumberedFile) -> bool:
        """Leave out files that this pipeline took away itself, from a table that came later; return whether it did."""
        is_removed = self._history.is_removed(file.number)
        while is_removed and self._files and self._history.is_removed(self._files.first.number):
            self._contents.leave_out(self._files.first, "missing", "cleaned up after it was read, as clean_source asks")
        return is_removed

    def _is_repaired(self, file: NumberedFile, now: FoundFile) -> bool:
        """Go on in a file that failed half-way and was put there again; return whether it is that."""
        if self._store.is_local and is_fresh(now, self._settings.settle_s, time.time()):
            self._is_waiting = True  # it may not be whole yet
            return True
        edition = self._history.repaired(file, now, self._contents.row)
        if edition is not None:
            self._files.replace_first(edition)
        return edition is not None

    def _row_at(self, file: NumberedFile, position: int) -> int:
        row = file.row(position)
        if row < 0:
            raise changed(file, "a row of an earlier edition of the file", file.found)
        return row

    # -- pieces to batches ---------------------------------------------------------------------------------------

    def _cut(self) -> list[MicroBatch]:
        """Return the longest batch that its bounds and the next fence allow."""
        try:
            taken = self._pieces.cut(self._position)
        except FewerRows as problem:
            piece = problem.piece
            raise changed(
                piece.file, "the rows that another flow of this run has stored", piece.file.found
            ) from problem
        rows = FileRows.of(taken)
        table, rescued = self._table(rows)
        if self._evolution is not None:
            try:
                self._evolution.check(table, rows.found)
            except WaxlakeError:
                self._pieces.put_back(taken)  # the store of the schemas may be away: the caller asks again
                raise
        start, self._position = self._position, taken[-1].end
        self._left_files -= rows.ended_files
        self._left_bytes -= rows.ended_bytes
        if isinstance(taken[0], Piece) and taken[0].is_skipped:
            return self._left_out(taken[0], start)
        rest = {
            "read": int(rows.counts.sum()),
            "facts": {FILES_FACT: rows.facts(rescued)},
            "replaced": tuple(piece.file.found.path for piece in taken if isinstance(piece, Piece) and piece.replaces),
        }
        return [self._batch(table, start, self._position, **rest)]

    def _left_out(self, piece: Piece, start: int) -> list[MicroBatch]:
        """Return the sign that the rest of a file is left out, cut at fences; the last of them says why."""
        state, error = piece.left_out or ("", "")
        lost = LeftOut(piece.file.number, piece.file.found.path, state, error)
        nothing = np.zeros(1, np.int64)
        edges = list(itertools.pairwise(self._pieces.edges(start, self._position)))
        batches = []
        for a, b in edges:
            counts = FileCounts(piece.file.number, nothing, nothing, (lost,) if b == self._position else ())
            batches.append(self._batch(self._empty, a, b, skipped=(a, b), facts={FILES_FACT: counts}))
        return batches

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

    def _table(self, rows: FileRows) -> tuple[pa.Table, np.ndarray | None]:
        """Decode the rows of all files at once, say where they come from, and count the rescued ones of each file."""
        if not rows.counts.any():
            has_rescued = self._settings.rescued_data_column in self._empty.column_names
            return self._empty, np.zeros(len(rows.counts), np.int64) if has_rescued else None
        table = self._format.decode(rows.raws)
        owners = np.repeat(np.arange(len(rows.counts)), rows.counts)
        rescued = _rescued(table, self._settings.rescued_data_column, owners, len(rows.counts))
        return self._provenance.add(table, rows.found, pa.array(owners)), rescued


def _rescued(table: pa.Table, name: str, owners: np.ndarray, count: int) -> np.ndarray | None:
    """Return the number of rows with rescued data of each piece; None if that column is not made."""
    index = table.schema.get_field_index(name)
    if index < 0:
        return None
    column = table.column(index)
    if column.null_count == len(column):
        return np.zeros(count, np.int64)
    return np.bincount(owners[column.is_valid().to_numpy()], minlength=count)
