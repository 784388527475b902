"""The ledger of a files source: a Delta table in which each file got a number, once, before any of its rows was emitted.

Called by the connector (what is new?) and by the reader (which files have the numbers I am to read?). New files go into
one commit that also stores the next free number as a ``txn``, from a held snapshot: of two runs that find the same file at
the same time one fails, looks again and numbers only what is still new. Positions are (number, row).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from connectors.files.discovery.known import KnownNames
from connectors.files.found import FoundFile, FoundFiles
from connectors.files.ledger_compaction import (
    ledger_files,
    merged_file,
    removals,
    small_files,
    vacuum,
)
from connectors.files.ledger_rows import LEDGER_SCHEMA, found_files, ledger_rows
from connectors.files.numbered import NumberedFile, NumberedFiles
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TerminalError, TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["LEDGER_SCHEMA", "Ledger", "NumberedFile"]

_NEXT = "waxlake/ledger"
_BEGIN = "waxlake/ledger/begin"
_LOW = "waxlake/ledger/low"
_FORGOTTEN = "waxlake/ledger/forgotten"  # greatest modification time of a file that was forgotten, and 1, microseconds
_SOURCE_PROPERTY = "waxlake.source"
_SCHEMA_PROPERTY = "waxlake.schema"
_PROPERTIES = {"delta.logRetentionDuration": "interval 1 days"}  # a commit at every poll that finds something is many
_ATTEMPTS = 30
_REOPEN_AFTER_REFRESHES = 200
_RESUME_OVERLAP = 1000  # a page of S3: listing them again costs no request
_SEEN_AT_ONCE = 200_000
_MAX_EDITION = 15
_WRITER = WriterProperties(compression="ZSTD", max_row_group_size=1 << 16)  # small groups: a range of numbers reads few


class Ledger:
    """The ledger of one source. Not thread-safe: one user at a time.

    Args:
        location: Where the Delta table lies.
        source: What is listed, without credentials; a ledger never serves another source.
        tracks_versions: Whether a file that changed is a new file; else a file is its path.
    """

    def __init__(self, location: TableLocation, source: str, *, tracks_versions: bool = False) -> None:
        self._location, self._source, self._tracks_versions = location, source, tracks_versions
        self._handle: DeltaTable | None = None
        self._refreshes = 0
        self._known = KnownNames()
        self._loaded: set[str] = set()
        self._last: list[str] | None = None
        self._seen, self._seen_until = KnownNames(), 0

    @property
    def table_id(self) -> str:
        """Id of the Delta table: a ledger that was deleted and made anew counts from 0 and is another one."""
        return str(self._open().metadata().id)

    @property
    def next_number(self) -> int:
        """The number the next new file will get."""
        return int(self._open().transaction_version(_NEXT) or 0)

    @property
    def begin(self) -> int | None:
        """The number a flow without a position starts at; None until the first listing was recorded."""
        version = self._open().transaction_version(_BEGIN)
        return None if version is None else int(version)

    @property
    def low(self) -> int:
        """The first number it remembers; more than 0 after it forgot old files."""
        return int(self._open().transaction_version(_LOW) or 0)

    def stored(self, app: str) -> int | None:
        """Return a position that was stored together with files; None if there is none."""
        version = self._open().transaction_version(app)
        return None if version is None else int(version)

    def oldest_considered_us(self, max_age_s: float | None, now_s: float) -> int:
        """Return the modification time below which files do not count: they are too old, or were forgotten.

        What was forgotten stays out for good, also if the clock or the greatest age is set back: it would be read again.
        """
        forgotten = self.stored(_FORGOTTEN) or 0
        return forgotten if max_age_s is None else max(forgotten, int((now_s - max_age_s) * 1e6))

    def exists(self) -> bool:
        """Return whether the ledger was made already."""
        return self._handle is not None or self._location.exists()

    def stored_ddl(self) -> str | None:
        """Return the inferred schema that the ledger remembers; None without one, or without a ledger. Writes nothing."""
        if not self.exists():
            return None
        return dict(self._open().metadata().configuration).get(_SCHEMA_PROPERTY)

    def create(self, ddl: str | None) -> None:
        """Create the ledger unless it is there; remember ``ddl``, the inferred schema."""
        if self.exists():
            self._open()
            return
        properties = {_SOURCE_PROPERTY: self._source, **_PROPERTIES}
        if ddl is not None:
            properties[_SCHEMA_PROPERTY] = ddl
        comment = "Files that a source has seen, each with its number"
        self._handle = self._location.create(LEDGER_SCHEMA, comment=comment, properties=properties)
        self._check_source()

    def refresh(self) -> None:
        """See what other runs have recorded."""
        if self._handle is None:
            return
        self._refreshes += 1
        if self._refreshes >= _REOPEN_AFTER_REFRESHES:
            self._handle, self._refreshes = None, 0
            self._open()
            return
        with delta_errors(f"refresh the file ledger '{self._location.label}'"):
            self._handle.update_incremental()

    def known(self) -> KnownNames:
        """Return the paths that have a number, or the versions of files. Reads only what it has not read yet."""
        names = self._data_files()
        fresh = sorted(names - self._loaded)
        if fresh:
            self._known_from(fresh)
            self._loaded = names
        return self._known

    def path_to_resume_after(self) -> str:
        """Return the path 1,000 known files before the last one, in the order of paths; empty if there are not as many."""
        if self._last is None:
            self._loaded, self._last = set(), []
        self.known()
        return self._last[0] if len(self._last) == _RESUME_OVERLAP else ""

    def _known_from(self, names: Sequence[str]) -> None:
        columns = ["path", "size_bytes", "etag", "modified_at"] if self._tracks_versions else ["path"]
        with delta_errors(f"read the file ledger '{self._location.label}'"):
            for batch in self._dataset(names).to_batches(columns=columns, batch_readahead=2, fragment_readahead=2):
                paths = batch.column("path").to_pylist()
                self._known.add(found_files(batch).versions() if self._tracks_versions else paths)
                if self._last is not None:
                    self._last = sorted({*self._last, *paths})[-_RESUME_OVERLAP:]

    def unknown(self, files: Sequence[FoundFile]) -> list[FoundFile]:
        """Return the files that have no number yet."""
        return [files[index] for index in self.known().unknown(self._keys(FoundFiles.of(files)))]

    def _keys(self, files: FoundFiles) -> list[str]:
        return files.versions() if self._tracks_versions else files.paths

    def record(
        self,
        found: Iterable[FoundFile],
        *,
        include_existing: bool = True,
        by_path: bool = False,
        marks: Mapping[str, int] | None = None,
        is_due: bool = False,
    ) -> int:
        """Give each new file the next number, in order of (modification time, path), in one commit.

        Called at the start of a run and at each poll. Safe to repeat after a crash and beside another run.

        Args:
            found: Files that were found; those with a number are left alone.
            include_existing: Whether flows start before the files of the very first listing, or after them.
            by_path: Give numbers in order of paths instead.
            marks: App ids and positions to store in the same commit; none of them ever goes back.
            is_due: Whether the marks are to be stored even if no file is new.

        Returns:
            How many were new.

        Raises:
            TransientError: Others write the ledger all the time, or the store does not answer. Retryable.

        Guarantee: a file has one number, a number one file, whatever runs beside or dies in between.
        """
        candidates = self._distinct(FoundFiles.of(found))
        keys = self._keys(candidates)
        for attempt in range(_ATTEMPTS):
            new = candidates.take(self.known().unknown(keys)).sorted(by_path=by_path)
            begin = self.begin
            if not new and begin is not None and not is_due:
                return 0
            first = self.next_number
            versions = {app: max(mark, self.stored(app) or 0) for app, mark in (marks or {}).items()}
            versions[_NEXT] = first + len(new)
            if begin is None:
                versions[_BEGIN] = 0 if include_existing else first + len(new)
            if self._commit(ledger_rows(new, first), versions, attempt):
                return len(new)
        raise self._contention()

    def _distinct(self, files: FoundFiles) -> FoundFiles:
        """Return the files, of those with the same key the last one."""
        last = dict(zip(self._keys(files), range(len(files)), strict=True))
        return files if len(last) == len(files) else files.take(list(last.values()))

    def replace_edition(self, file: NumberedFile, now: FoundFile) -> NumberedFile | None:
        """Record that an unread file has changed and return its new edition, under the same number.

        Returns:
            None if the changed file has a number of its own already (only if it tracks versions).

        Raises:
            TransientError: Others write the ledger all the time. Retryable.
        """
        for attempt in range(_ATTEMPTS):
            current = self.files(file.number, file.number + 1)[0]
            if current.found.is_same_content(now):
                return current._replace(is_again=file.is_again)
            if self._tracks_versions and not self.known().unknown([now.version]):
                return None
            if current.edition >= _MAX_EDITION:
                raise TerminalError(
                    f"cannot read file '{now.path}'",
                    code="FILE_CHANGED",
                    found=f"change number {_MAX_EDITION + 1} since it was found",
                    expected="a file that is finished when it appears",
                    remedy="Write it under a name that begins with '.' or ends with .tmp, and rename it when it is whole",
                )
            edition = NumberedFile(file.number, now, current.edition + 1, is_again=file.is_again)
            if self._commit(
                ledger_rows(FoundFiles.of([now]), file.number, edition.edition), {_NEXT: self.next_number}, attempt
            ):
                return edition
        raise self._contention()

    def files(self, first: int, last: int) -> list[NumberedFile]:
        """Return the files with numbers in ``[first, last)``, in order, one by one; else as ``numbered``."""
        return list(self.numbered(first, last))

    def numbered(self, first: int, last: int) -> NumberedFiles:
        """Return the files with numbers in ``[first, last)``, in order, each in its last edition.

        Raises:
            TerminalError: Some are missing: the ledger was changed by someone else. Not retryable.
        """
        if first >= last:
            return NumberedFiles(first, FoundFiles.of(()), np.empty(0, np.int64))
        rows = self._between(first, last).sort_by([("number", "ascending"), ("edition", "ascending")])
        numbers = rows.column("number").to_numpy()
        is_latest = np.append(numbers[1:] != numbers[:-1], True)[: len(numbers)]
        if int(is_latest.sum()) != last - first:
            raise TerminalError(
                f"cannot read the file ledger '{self._location.label}'",
                code="LEDGER_DAMAGED",
                found=f"{int(is_latest.sum())} files with numbers from {first} to {last - 1}",
                expected=str(last - first),
                remedy="Rows were deleted from it. Restore it to an earlier version, or delete it and the tables that it feeds",
            )
        rows = rows if is_latest.all() else rows.filter(pa.array(is_latest))
        editions = pc.fill_null(rows.column("edition"), 0).to_numpy().astype(np.int64)
        return NumberedFiles(first, found_files(rows), editions)

    def rows(self) -> pa.Table:
        """Return what is known of every file, in the order of their numbers; of a file that changed, its last edition last."""
        rows = self._between(0, self.next_number)
        return rows.sort_by([("number", "ascending"), ("edition", "ascending")])

    def numbers(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the last number of each path that is known."""
        with delta_errors(f"read the file ledger '{self._location.label}'"):
            rows = self._dataset(sorted(self._data_files())).to_table(
                columns=["path", "number"], filter=pc.field("path").isin(list(paths))
            )
        return dict(zip(*(c.to_pylist() for c in rows.sort_by("number").columns), strict=True))

    def numbered_again(self, first: int, last: int) -> NumberedFiles:
        """Return ``numbered``, each with whether an earlier number has its path. Called with growing numbers only."""
        files = self.numbered(first, last)
        for start in range(self._seen_until, first, _SEEN_AT_ONCE):
            rows = self._between(start, min(first, start + _SEEN_AT_ONCE), ["path"])
            self._seen.add(rows.column(0).to_pylist())
        self._seen_until = max(first, self._seen_until)
        paths = files.found.paths
        again = np.ones(len(paths), np.bool_)
        again[self._seen.unknown(paths)] = False
        _, firsts = np.unique(np.array(paths, object), return_index=True)
        is_first = np.zeros(len(paths), np.bool_)
        is_first[firsts] = True
        return replace(files, again=again | ~is_first)

    def totals(self, first: int, last: int) -> tuple[int, int]:
        """Return how many files have numbers in ``[first, last)``, and their bytes; a change of edition counts twice."""
        sizes = self._between(first, last, ["size_bytes"])
        return last - first, pc.sum(sizes.column(0)).as_py() or 0

    def forget(self, max_age_s: float, now_s: float, *, below: int) -> int:
        """Forget the first files, as far as all of them are too old and have been read; return how many.

        Safe at any time: files of that age do not count any more (``oldest_considered_us``).

        Args:
            max_age_s: Age from which a file is too old, by its modification time.
            now_s: Seconds since 1970.
            below: Number up to which every table has them.
        """
        low, cutoff_us = self.low, int((now_s - max_age_s) * 1e6)
        head = [file for file in ledger_files(self._open()) if file.can_hold(low, below)]
        rows = self._between(low, below, ["number", "modified_at"])
        is_kept = pc.greater_equal(rows.column("modified_at").cast(pa.int64()), cutoff_us)
        kept = pc.min(rows.column("number").filter(is_kept)).as_py()
        last = below if kept is None else kept
        gone = [file for file in head if file.high is not None and file.high < last]
        cut = [file for file in head if file not in gone and (file.low is None or file.low < last)]
        if last <= low or not rows.num_rows:
            return 0
        newest = rows.filter(pc.less(rows.column("number"), last)).column("modified_at").cast(pa.int64())
        forgotten_us = max(self.stored(_FORGOTTEN) or 0, pc.max(newest).as_py() + 1)
        actions: list[AddAction | RemoveAction] = [*removals([*gone, *cut])]
        with delta_errors(f"write the file ledger '{self._location.label}'"):
            rest = self._dataset([file.path for file in cut]).to_table(filter=pc.field("number") >= last)
            if len(rest):
                actions.append(merged_file(self._location, rest))
        versions = {_NEXT: self.next_number, _LOW: last, _FORGOTTEN: forgotten_us}
        if not self._commit(None, versions, 0, actions=actions):
            return 0
        self._vacuum()
        return last - low

    def compact(self) -> None:
        """Merge small data files if there are many, so that the ledger opens fast; given up if another run commits."""
        small = small_files(ledger_files(self._open()))
        if not small:
            return
        names = sorted(file.path for file in small)
        self._known_from(sorted(set(names) - self._loaded))
        with delta_errors(f"read the file ledger '{self._location.label}'"):
            rows = self._dataset(names).to_table().sort_by([("number", "ascending"), ("edition", "ascending")])
        with delta_errors(f"write the file ledger '{self._location.label}'"):
            added = merged_file(self._location, rows)
        if self._commit(None, {_NEXT: self.next_number}, 0, actions=[*removals(small), added]):
            self._loaded = self._loaded - set(names) | {added.path}
            self._vacuum()

    def _vacuum(self) -> None:
        with delta_errors(f"clean up the file ledger '{self._location.label}'"):
            vacuum(self._open())

    def _commit(
        self,
        rows: pa.Table | None,
        versions: Mapping[str, int],
        attempt: int,
        actions: Sequence[AddAction | RemoveAction] = (),
    ) -> bool:
        """Write rows and move the ``txn``s from the held snapshot; return False, refreshed, if another run was first."""
        properties = CommitProperties(app_transactions=[Transaction(app, version) for app, version in versions.items()])
        failpoint("ledger-write")
        try:
            with delta_errors(f"write the file ledger '{self._location.label}'"):
                handle = self._open()
                if rows is not None and len(rows):
                    write_deltalake(
                        handle, rows, mode="append", commit_properties=properties, writer_properties=_WRITER
                    )
                else:
                    handle.create_write_transaction(
                        list(actions), mode="append", schema=handle.schema(), commit_properties=properties
                    )
        except CommitFailedError:
            self._handle = None
            time.sleep(min(0.01 * 2**attempt, 0.5))
            return False
        except (TransientError, TerminalError):
            self._handle = None  # it may have landed: look before the next attempt
            raise
        failpoint("ledger-written")
        self.refresh()
        return True

    def _contention(self) -> TransientError:
        return TransientError(
            f"cannot write the file ledger '{self._location.label}' after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )

    def _open(self) -> DeltaTable:
        if self._handle is None:
            self._handle = self._location.open()
            self._check_source()
        return self._handle

    def _check_source(self) -> None:
        found = dict(self._open().metadata().configuration).get(_SOURCE_PROPERTY)
        if found != self._source:
            raise TerminalError(
                f"cannot use the file ledger '{self._location.label}'",
                code="LEDGER_OF_ANOTHER_SOURCE",
                found=f"the files of {found}",
                expected=f"the files of {self._source}",
                remedy="The path or its glob changed. Give the flow a new name, or delete its table and the ledger",
            )

    def _data_files(self) -> set[str]:
        return {file.path for file in ledger_files(self._open())}

    def _between(self, first: int, last: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with numbers in ``[first, last)``; a file that was merged and deleted meanwhile is looked for anew."""
        where = (pc.field("number") >= first) & (pc.field("number") < last)
        for is_last_attempt in (False, True):
            names = sorted(file.path for file in ledger_files(self._open()) if file.can_hold(first, last))
            try:
                with delta_errors(f"read the file ledger '{self._location.label}'"):
                    return self._dataset(names).to_table(columns=columns, filter=where)
            except TerminalError as error:
                if error.code != "TABLE_NOT_FOUND" or is_last_attempt:
                    raise
                self._handle = None
        raise AssertionError("unreachable")

    def _dataset(self, names: Sequence[str]) -> pa_dataset.Dataset:
        return pa_dataset.dataset(
            list(names), schema=LEDGER_SCHEMA, filesystem=self._location.filesystem(), format="parquet"
        )
