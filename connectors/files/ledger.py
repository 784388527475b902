"""The ledger of a files source: a Delta table in which each file got a number, once, before any of its rows was emitted.

Called by the connector (what is new?) and by the reader (which files have the numbers I am to read?). New files go into
one commit that also stores the next free number as a ``txn``, from a held snapshot: of two runs that find the same file at
the same time one fails, looks again and numbers only what is still new. Positions are (number, row).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from connectors.files.discovery.known import KnownNames
from connectors.files.ledger_compaction import (
    ledger_files,
    merged_file,
    removals,
    small_files,
    vacuum,
)
from connectors.files.store import FoundFile
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TerminalError, TransientError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import RowPosition

__all__ = ["LEDGER_SCHEMA", "Ledger", "NumberedFile"]

LEDGER_SCHEMA = pa.schema(
    [
        pa.field(
            "number", pa.int64(), metadata={"comment": "Order in which files are read; the major part of a position"}
        ),
        pa.field("path", pa.string(), metadata={"comment": "Absolute path or URI"}),
        pa.field("size_bytes", pa.int64(), metadata={"comment": "Size when it was found"}),
        pa.field(
            "modified_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "Modification time when it was found"}
        ),
        pa.field("etag", pa.string(), metadata={"comment": "Content tag of an object store, or NULL"}),
        pa.field("discovered_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "When it was found"}),
        pa.field("edition", pa.int32(), metadata={"comment": "0; more for a file that changed before anyone read it"}),
    ]
)
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
_EDITION_BITS = 32
_MAX_EDITION = 15
_WRITER = WriterProperties(compression="ZSTD", max_row_group_size=1 << 16)  # small groups: a range of numbers reads few


class NumberedFile(NamedTuple):
    """A file of the ledger.

    Attributes:
        number: Its number; files are read in this order.
        found: The file as it was when it got its number, or its last edition.
        edition: How often it changed before anyone read it, or was repaired.
        continues: Edition as which its positions count, if it is a repaired one whose first rows are the same.
        is_again: Whether an earlier number stands for an earlier version of it.
    """

    number: int
    found: FoundFile
    edition: int = 0
    continues: int | None = None
    is_again: bool = False

    @property
    def begin(self) -> int:
        """Position of its first row; also the position after the file before it."""
        return RowPosition(self.number).pack()

    @property
    def end(self) -> int:
        """Position after the file."""
        return RowPosition(self.number + 1).pack()

    def position(self, row: int) -> int:
        """Return the position of a row of this edition."""
        return RowPosition(self.number, self._counted << _EDITION_BITS | row if row else 0).pack()

    def row(self, position: int) -> int:
        """Return the row at a position inside this file; -1 if the position belongs to another edition."""
        minor = RowPosition.unpack(position).minor
        edition, row = divmod(minor, 1 << _EDITION_BITS)
        return row if edition == self._counted or not minor else -1

    @property
    def _counted(self) -> int:
        return self.edition if self.continues is None else self.continues


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
                self._known.add(_versions(batch) if self._tracks_versions else paths)
                if self._last is not None:
                    self._last = sorted({*self._last, *paths})[-_RESUME_OVERLAP:]

    def unknown(self, files: Sequence[FoundFile]) -> list[FoundFile]:
        """Return the files that have no number yet."""
        return [files[index] for index in self.known().unknown(self._keys(files))]

    def _keys(self, files: Sequence[FoundFile]) -> list[str]:
        return [file.version for file in files] if self._tracks_versions else [file.path for file in files]

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
        found = list(found)
        candidates = list(dict(zip(self._keys(found), found, strict=True)).values())
        for attempt in range(_ATTEMPTS):
            unknown = self.known().unknown(self._keys(candidates))
            new = sorted((candidates[index] for index in unknown), key=_path if by_path else None)
            begin = self.begin
            if not new and begin is not None and not is_due:
                return 0
            first = self.next_number
            versions = {app: max(mark, self.stored(app) or 0) for app, mark in (marks or {}).items()}
            versions[_NEXT] = first + len(new)
            if begin is None:
                versions[_BEGIN] = 0 if include_existing else first + len(new)
            if self._commit(_rows(new, first), versions, attempt):
                return len(new)
        raise self._contention()

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
            if self._commit(_rows([now], file.number, edition.edition), {_NEXT: self.next_number}, attempt):
                return edition
        raise self._contention()

    def files(self, first: int, last: int) -> list[NumberedFile]:
        """Return the files with numbers in ``[first, last)``, in order.

        Raises:
            TerminalError: Some are missing: the ledger was changed by someone else. Not retryable.
        """
        if first >= last:
            return []
        rows = self._between(first, last).sort_by([("number", "ascending"), ("edition", "ascending")])
        numbers = rows.column("number").to_pylist()
        etags, editions = pc.fill_null(rows.column("etag"), ""), pc.fill_null(rows.column("edition"), 0)
        found = map(
            FoundFile,
            rows.column("modified_at").cast(pa.int64()).to_pylist(),
            rows.column("path").to_pylist(),
            rows.column("size_bytes").to_pylist(),
            etags.to_pylist(),
        )
        latest = dict(zip(numbers, map(NumberedFile, numbers, found, editions.to_pylist()), strict=True))
        if len(latest) != last - first:
            raise TerminalError(
                f"cannot read the file ledger '{self._location.label}'",
                code="LEDGER_DAMAGED",
                found=f"{len(latest)} files with numbers from {first} to {last - 1}",
                expected=str(last - first),
                remedy="Rows were deleted from it. Restore it to an earlier version, or delete it and the tables that it feeds",
            )
        return list(latest.values())

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

    def files_again(self, first: int, last: int) -> list[NumberedFile]:
        """Return ``files``, each with whether an earlier number has its path. Called with growing numbers only."""
        files = self.files(first, last)
        for start in range(self._seen_until, first, _SEEN_AT_ONCE):
            rows = self._between(start, min(first, start + _SEEN_AT_ONCE), ["path"])
            self._seen.add(rows.column(0).to_pylist())
        self._seen_until = max(first, self._seen_until)
        new = set(self._seen.unknown([file.found.path for file in files]))
        before: set[str] = set()
        marked = []
        for index, file in enumerate(files):
            marked.append(file._replace(is_again=index not in new or file.found.path in before))
            before.add(file.found.path)
        return marked

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


def _path(file: FoundFile) -> str:
    return file.path


def _versions(batch: pa.RecordBatch) -> list[str]:
    columns = [batch.column(name).to_pylist() for name in ("path", "size_bytes", "etag")]
    times = batch.column("modified_at").cast(pa.int64()).to_pylist()
    rows = zip(*columns, times, strict=True)
    return [
        FoundFile(modified_us, path, size_bytes, etag or "").version for path, size_bytes, etag, modified_us in rows
    ]


def _rows(files: Sequence[FoundFile], first: int, edition: int = 0) -> pa.Table:
    times, paths, sizes, etags = zip(*files, strict=True) if files else ((), (), (), ())
    columns = {
        "number": pa.array(range(first, first + len(files)), pa.int64()),
        "path": pa.array(paths, pa.string()),
        "size_bytes": pa.array(sizes, pa.int64()),
        "modified_at": pa.array(times, pa.int64()).cast(LEDGER_SCHEMA.field("modified_at").type),
        "etag": pa.array([etag or None for etag in etags], pa.string()),
        "discovered_at": pa.repeat(pa.scalar(utc_now(), LEDGER_SCHEMA.field("discovered_at").type), len(files)),
        "edition": pa.repeat(pa.scalar(edition, pa.int32()), len(files)),
    }
    return pa.table(columns, schema=LEDGER_SCHEMA)
