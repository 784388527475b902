"""The commit protocol: rows, source positions and the fence of a table in one Delta log entry.

Where a crash can fall, and what the next run finds:

1. before the data files are written, or after: the log names none of them; positions are unchanged; rows are read again.
2. the commit was sent and its reply lost: the log holds our commit id; it is recognised, never sent again.
3. after the commit: positions are ours; whatever the source sends again ends at or before them and is dropped.
4. after the commit, before the quarantine commit: the primary commit carries the manifest; it is finished from that. A replay
   from quarantine is the same: its manifest also names the quarantine files whose rows the primary commit took over.

A commit that replaces data files (a merge) has the same points: its removes, adds, positions and fence are one log entry.
Files that another writer took away meanwhile make it stop, never commit in part: delta-rs itself would take the removal of
a file that is not there without a word.

Two runs at once: the fence is the run's number, which grows with the time it started. The newer run goes on; the older one
finds a fence above its own and stops. A newer run whose positions the older one moved meanwhile plans again, after it has
claimed the fences, so that the older one cannot move them any more.

One committer per table and run. Source: DESIGN §2; Delta protocol, "Transaction Identifiers".
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from sinks.delta.change import KEEP_LOG, Change, grow
from sinks.delta.files import StoredFile, stored_paths
from sinks.delta.parquet import encode_add
from sinks.delta.quarantine import MANIFEST_APP_ID, Quarantine, commit_quarantine, stored_files_named
from waxlake.stream.delta_table import METADATA_KEY, TableLocation, arrow_schema, delta_errors, stored_position
from waxlake.stream.errors import CommitConflict, FilesMoved, PositionMoved, TerminalError, TransientError, WaxlakeError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.growth import merge_schemas
from waxlake.stream.position import FENCE_APP_ID
from waxlake.stream.schema import compare_schemas, no_rows

__all__ = ["FENCE_APP_ID", "CommitReceipt", "Committer", "Move", "new_run_number"]

_REOPEN_AFTER_COMMITS = 200
_ATTEMPTS = 5
_HISTORY_SEARCH = 50


def new_run_number() -> int:
    """Return a number for a run: a later start has a higher one, and no two are equal."""
    return time.time_ns() // 1_000_000 << 16 | secrets.randbits(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How one commit moves one source partition's position: from ``start`` (None: none stored yet) to ``end``."""

    start: int | None
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReceipt:
    """What one commit did.

    Attributes:
        table: Table name.
        version: Table version (>= 0).
        rows: Rows added.
        size_bytes: Bytes of data files added.
        quarantined: Rows added to the quarantine table.
        duration_s: Seconds the commit took, files excluded.
        metadata: What the commit's own metadata says.
    """

    table: str
    version: int
    rows: int
    size_bytes: int
    quarantined: int
    duration_s: float
    metadata: Mapping[str, Any]


@dataclass(slots=True)
class Committer:
    """Commits to one table from one held snapshot at a time.

    Args:
        location: The table; it must exist.
        run_id: Identity of this run, unique.
        run_number: Order of this run among others, unique: the fence that it writes.
        fence_app: App id of the fence; runs of pipelines that share a table by appending to it have one each.
    """

    location: TableLocation
    run_id: str
    run_number: int = field(default_factory=new_run_number)
    fence_app: str = FENCE_APP_ID
    _handle: DeltaTable | None = None
    _table_id: str = ""
    _columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    _fence: int = 0
    _commits_on_handle: int = 0
    _log_stamp: tuple[object, ...] = ()
    _stored: dict[str, int | None] = field(default_factory=dict)

    @property
    def handle(self) -> DeltaTable:
        """The held snapshot; opened on first use, with the fence read from it."""
        if self._handle is None:
            self._handle = self.location.open()
            self._table_id = str(self._handle.metadata().id)
            self._columns = arrow_schema(self._handle)
            self._fence = max(self.run_number, (self._handle.transaction_version(self.fence_app) or 0) + 1)
            self._log_stamp = self.location.log_stamp(self._handle.version())
        return self._handle

    def stored(self, app_id: str) -> int | None:
        """Return the stored position of one source partition; None if the table has never seen it."""
        if app_id not in self._stored:
            self._stored[app_id] = stored_position(self.handle, app_id)
        return self._stored[app_id]

    def commit(
        self,
        adds: Sequence[AddAction],
        moves: Mapping[str, Move],
        *,
        rows: int = 0,
        identities: Mapping[str, int] | None = None,
        quarantine: Quarantine | None = None,
        metadata: Mapping[str, Any] | None = None,
        replacement: pa.Table | None = None,
        removes: Sequence[StoredFile] = (),
        growth: pa.Table | None = None,
    ) -> CommitReceipt:
        """Append files and move positions in one table commit, then commit the quarantine files it names.

        Called by the sink partition when a flush is due. Safe to repeat after a crash: positions already stored are
        recognised before files are written.

        Args:
            adds: Data files, already written.
            moves: App id to the move of its position; each ``start`` equals the stored position.
            rows: Rows in ``adds`` or ``growth``.
            identities: Further app ids to store, such as which topic id stands behind a name.
            quarantine: Files for the quarantine table, or None.
            metadata: Facts for the commit's metadata.
            replacement: Replace the table's whole content by these rows instead of appending ``adds``.
            removes: Files of the held snapshot that ``adds`` replaces.
            growth: Rows to be appended instead of ``adds``, in the table's schema grown by columns or nested fields: the new
                schema is in the same log entry.

        Raises:
            CommitConflict: Another writer moved a position or took the fence. Not retryable.
            FilesMoved: Another writer removed a file of ``removes``. Not retryable as it is; planning again is.
            TerminalError: The table was dropped or replaced, the store is full or closed. Not retryable.
            TransientError: The store does not answer after several attempts. Retryable.

        Guarantee: exactly once per (app id, position).
        """
        started_s = time.monotonic()
        self._require_same_table()
        if adds:
            self._require_same_columns()
        self._require_files(removes)
        for app, move in moves.items():
            self._require_position(app, move, self.stored(app))
        commit_id = uuid.uuid4().hex
        before = self.handle.version()
        versions = {self.fence_app: self._fence, **(identities or {}), **{app: move.end for app, move in moves.items()}}
        facts: dict[str, Any] = {"commit_id": commit_id, "run": self.run_id, **(metadata or {})}
        if quarantine is not None and quarantine.has_files:
            number = (self.stored(MANIFEST_APP_ID) or 0) + 1
            versions[MANIFEST_APP_ID] = number
            facts["quarantine"] = {"number": number, "files": [encode_add(add) for add in quarantine.adds]}
            if quarantine.removes:
                stored_files_named(quarantine.location.open(), quarantine.location, quarantine.removes)
                facts["quarantine"]["removed"] = list(quarantine.removes)
            failpoint("quarantine-written")
        failpoint("files-written")
        self._commit(Change(adds, removes, replacement, growth), moves, versions, facts)
        failpoint("committed")
        self._stored.update(versions)
        if quarantine is not None and quarantine.has_files:
            failpoint("quarantine-pending")
            number = versions[MANIFEST_APP_ID]
            commit_quarantine(quarantine.location, self._table_id, number, quarantine.adds, quarantine.removes)
            failpoint("quarantine-committed")
        self._refresh()
        if growth is not None:
            self._columns = arrow_schema(self.handle)
        version = self.handle.version()
        if version != before + 1:
            version = self._find_commit(commit_id, since=before) or version
        return CommitReceipt(
            table=self.location.label,
            version=version,
            rows=replacement.num_rows if replacement is not None else rows,
            size_bytes=sum(add.size for add in adds),
            quarantined=quarantine.rows if quarantine else 0,
            duration_s=time.monotonic() - started_s,
            metadata=facts,
        )

    def refresh(self) -> DeltaTable:
        """Hold the latest snapshot and return it; what is decided from it has to be committed before the next refresh.

        Raises:
            CommitConflict: A newer run has the fence. Not retryable.
            TerminalError: The table was dropped or replaced. Not retryable.
        """
        self._require_same_table()
        with delta_errors(f"refresh table '{self.location.label}'"):
            self.handle.update_incremental()
        self._log_stamp = self.location.log_stamp(self.handle.version())
        self._stored.clear()
        self._require_fence()
        return self.handle

    def claim(self) -> None:
        """Take the fence in a commit of its own, so that an older run can move no position any more.

        Raises:
            CommitConflict: A newer run has it. Not retryable.
        """
        self.commit([], {})

    def rewrite(
        self, adds: Sequence[AddAction], removes: Sequence[StoredFile], *, metadata: Mapping[str, Any]
    ) -> CommitReceipt:
        """Replace data files of the held snapshot by others that hold the same rows; no position moves.

        Args:
            adds: The new files, already written, with ``data_change`` False.
            removes: The files that they replace.
            metadata: Facts for the commit's metadata.

        Raises:
            CommitConflict: A newer run has the fence. Not retryable.
            FilesMoved: Another writer removed one of the files. Not retryable as it is.
        """
        self._require_same_table()
        self._require_same_columns()
        self._require_files(removes)
        before = self.handle.version()
        facts: dict[str, Any] = {"commit_id": uuid.uuid4().hex, "run": self.run_id, **metadata}
        change = Change(adds, removes, changes_rows=False)
        self._commit(change, {}, {FENCE_APP_ID: self._fence}, facts)
        self._refresh()
        return CommitReceipt(
            table=self.location.label,
            version=max(self.handle.version(), before + 1),
            rows=0,
            size_bytes=sum(add.size for add in adds),
            quarantined=0,
            duration_s=0.0,
            metadata=facts,
        )

    def vacuum(self, versions: Mapping[str, int]) -> int:
        """Delete files that no version within the table's retention names, and return how many.

        Args:
            versions: App ids to store with it.

        Raises:
            ExternalError: The store refuses or does not answer.
        """
        properties = CommitProperties(app_transactions=[Transaction(app, version) for app, version in versions.items()])
        with delta_errors(f"vacuum table '{self.location.label}'"):
            gone = self.handle.vacuum(
                dry_run=False, full=True, commit_properties=properties, post_commithook_properties=KEEP_LOG
            )
        self._reopen()
        return len(gone)

    def clean_log(self, *, deletes_expired: bool) -> None:
        """Write a checkpoint, and delete log entries older than the table's ``delta.logRetentionDuration`` if asked to.

        Deleted is only what the checkpoint before this one covers: who opened the table since reads none of it, however late.

        Raises:
            ExternalError: The store refuses or does not answer.
        """
        with delta_errors(f"clean the log of table '{self.location.label}'"):
            if deletes_expired:
                self.handle.cleanup_metadata()
            self.handle.create_checkpoint()
        self._reopen()

    def add_columns(self, schema: pa.Schema) -> None:
        """Add the columns and nested fields of ``schema`` that the table lacks, in a commit of their own.

        Only for rows that cannot be committed yet; others bring their columns with them (``growth``).

        Raises:
            TerminalError: The store refuses. Not retryable.
        """
        with delta_errors(f"add columns to table '{self.location.label}'"):
            rows = no_rows(merge_schemas(arrow_schema(self.handle), schema))
            grow(self.handle, rows, CommitProperties())
        self._reopen()
        self._columns = arrow_schema(self.handle)

    def _commit(
        self,
        change: Change,
        moves: Mapping[str, Move],
        versions: Mapping[str, int],
        facts: dict[str, Any],
    ) -> None:
        """Try until the commit is in the log."""
        since = self.handle.version()
        for attempt in range(1, _ATTEMPTS + 1):
            properties = CommitProperties(
                custom_metadata={METADATA_KEY: facts},
                app_transactions=[Transaction(app, version) for app, version in versions.items()],
            )
            try:
                with delta_errors(f"commit to table '{self.location.label}'"):
                    change.write(self.handle, properties)
                return
            except (CommitFailedError, TransientError, TerminalError) as failure:
                if isinstance(failure, TerminalError) and failure.code != "STORAGE_ERROR":
                    raise
                if self._has_landed(moves, str(facts["commit_id"]), since=since):
                    return
                if change.adds:
                    self._require_same_columns()
                self._require_files(change.removes)
                if attempt == _ATTEMPTS:
                    raise self._gave_up(failure) from failure
                time.sleep(0.05 * 2**attempt)

    def _has_landed(self, moves: Mapping[str, Move], commit_id: str, *, since: int) -> bool:
        """Look, until the store answers, whether the commit landed after version ``since``; else it may be tried again."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with delta_errors(f"look at table '{self.location.label}'"):
                    return self._look(moves, commit_id, since=since)
            except TransientError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _look(self, moves: Mapping[str, Move], commit_id: str, *, since: int) -> bool:
        """Return whether our commit is in the table as it is now; an error says why it can't be tried again."""
        self._reopen()
        if self._find_commit(commit_id, since=since) is not None:
            return True
        self._require_fence()
        for app, move in moves.items():
            self._require_position(app, move, stored_position(self.handle, app))
        return False

    def _require_fence(self) -> None:
        fence = self.handle.transaction_version(self.fence_app) or 0
        if fence > self._fence:
            raise CommitConflict(
                f"cannot commit to table '{self.location.label}' at version {self.handle.version()}",
                code="COMMIT_CONFLICT",
                found=f"fence {fence} of a newer run",
                expected=f"at most {self._fence}, the fence of this run",
                remedy="Another run is writing this table. It goes on, this one stops; no row is lost",
            )

    def _require_position(self, app: str, move: Move, stored: int | None) -> None:
        if stored != move.start:
            raise PositionMoved(
                f"cannot commit to table '{self.location.label}' at version {self.handle.version()}",
                code="COMMIT_CONFLICT",
                found=f"app id '{app}' at position {stored}",
                expected=f"position {move.start}",
                remedy="Another run is writing this table. Stop it, or give this flow its own name",
            )

    def _require_files(self, removes: Sequence[StoredFile]) -> None:
        """Stop if a file that is to be replaced is not in the held snapshot: its rows would be there twice, or lost."""
        if not removes:
            return
        gone = {file.path for file in removes} - stored_paths(self.handle)
        if gone:
            raise FilesMoved(
                f"cannot commit to table '{self.location.label}' at version {self.handle.version()}",
                code="COMMIT_CONFLICT",
                found=f"{len(gone)} of the {len(removes)} data files to be replaced gone, such as {min(gone)}",
                expected="the files that were read",
                remedy="Another writer changes this table. Nothing is lost: run again",
            )

    def _find_commit(self, commit_id: str, *, since: int) -> int | None:
        newer = self.handle.version() - since
        if newer <= 0:
            return None
        for entry in self.handle.history(min(newer, _HISTORY_SEARCH)):
            if (entry.get(METADATA_KEY) or {}).get("commit_id") == commit_id:
                return int(entry["version"])
        return None

    def _gave_up(self, failure: Exception) -> WaxlakeError:
        if isinstance(failure, WaxlakeError):
            return failure
        return TransientError(
            f"cannot commit to table '{self.location.label}' after {_ATTEMPTS} attempts",
            code="COMMIT_CONTENTION",
            found=str(failure),
            remedy="Other writers change this table all the time; give it one writer",
        )

    def _refresh(self) -> None:
        self._commits_on_handle += 1
        if self._commits_on_handle >= _REOPEN_AFTER_COMMITS:
            self._reopen()
            return
        with delta_errors(f"refresh table '{self.location.label}'"):
            self.handle.update_incremental()
        self._log_stamp = self.location.log_stamp(self.handle.version())

    def _require_same_table(self) -> None:
        """Stop if the table was dropped or created anew since it was opened: its log entry is not the one we saw.

        delta-rs would not notice: it would add our commit to whatever log lies there now.
        """
        if self.location.log_stamp(self.handle.version()) != self._log_stamp:
            self._reopen()

    def _require_same_columns(self) -> None:
        """Stop if a column is not what it was when the data files were written: delta-rs adds files of any schema."""
        now = arrow_schema(self.handle)
        change = compare_schemas(self._columns, now)
        lost = [*change.missing, *(name for name, _, _ in change.changed), *(name for name, _ in change.recased)]
        lost += change.shrunk
        if lost:
            raise TerminalError(
                f"cannot write table '{self.location.label}'",
                code="SCHEMA_CHANGED",
                found=", ".join(f"{f.name} {f.type}" for f in now),
                expected=", ".join(f"{name} {self._columns.field(name).type}" for name in lost),
                remedy="Someone changed its columns while it was written. Restore them, or run again to check the definitions",
            )

    def _reopen(self) -> None:
        handle = self.location.open()
        if str(handle.metadata().id) != self._table_id:
            raise TerminalError(
                f"cannot write table '{self.location.label}'",
                code="TABLE_REPLACED",
                found=f"table id {handle.metadata().id}",
                expected=self._table_id,
                remedy="Someone dropped and created it anew while it was written. Run again to start from its positions",
            )
        self._handle = handle
        self._log_stamp = self.location.log_stamp(handle.version())
        self._commits_on_handle = 0
