"""What became of each file: a Delta table beside the ledger, which outlives the clean-up of the tables' logs.

Rows per file come from the commits of the tables that the source feeds: they are folded in here, up to a version that is
stored as a ``txn`` in the same commit, so a fold that is repeated, or made by two processes at once, adds nothing twice.
Failures and clean-up are noted by the source itself. A crash before or after a fold loses nothing: until then the commits
themselves are asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["JOURNAL_SCHEMA", "FileJournal", "journal_rows"]

JOURNAL_SCHEMA: Final = pa.schema(
    [
        pa.field("number", pa.int64(), metadata={"comment": "The file's number in the ledger"}),
        pa.field(
            "kind",
            pa.string(),
            metadata={
                "comment": "read, skipped, missing; failed, repaired; deleted, moved, changed, gone, clean_failed"
            },
        ),
        pa.field("table_id", pa.string(), metadata={"comment": "Delta id of the table that committed it, or NULL"}),
        pa.field("flow", pa.string(), metadata={"comment": "Flow that committed it, or NULL"}),
        pa.field("version", pa.int64(), metadata={"comment": "Table version of that commit, or NULL"}),
        pa.field("rows", pa.int64(), metadata={"comment": "Rows read of the file in that commit"}),
        pa.field("rescued", pa.int64(), metadata={"comment": "Those with rescued data; NULL if it was not looked at"}),
        pa.field("at", pa.timestamp("us", tz="UTC"), metadata={"comment": "When"}),
        pa.field(
            "error", pa.string(), metadata={"comment": "Why it was left out, stopped the source or was not cleaned"}
        ),
        pa.field("edition", pa.int32(), metadata={"comment": "Edition that failed, or that was repaired"}),
        pa.field("continues", pa.int32(), metadata={"comment": "Edition whose first rows a repaired one has"}),
        pa.field("digest", pa.string(), metadata={"comment": "Of the rows that were read before it failed"}),
        pa.field("moved_to", pa.string(), metadata={"comment": "Where clean-up moved it"}),
    ]
)
_ATTEMPTS: Final = 20
_COMPACT_ABOVE_FILES: Final = 64
_CLEANED: Final = "waxlake/files/cleaned"


def journal_rows(**columns: Any) -> pa.Table:
    """Return rows of the journal; columns that are not given are NULL, a single value stands for all rows."""
    count = len(columns["number"])
    arrays = []
    for item in JOURNAL_SCHEMA:
        value = columns.get(item.name)
        if value is None or isinstance(value, str | int) or hasattr(value, "tzinfo"):
            arrays.append(pa.repeat(pa.scalar(value, item.type), count))
        else:
            arrays.append(pa.array(value, item.type))
    return pa.table(arrays, schema=JOURNAL_SCHEMA)


class FileJournal:
    """The journal of one source. Not thread-safe: one user at a time.

    Args:
        ledger: Where the source's ledger lies; the journal lies beside it.
    """

    def __init__(self, ledger: TableLocation) -> None:
        self._location = TableLocation(f"{ledger.uri}_journal", ledger.options, f"journal of {ledger.label}")
        self._handle: DeltaTable | None = None

    def refresh(self) -> None:
        """See what others have noted."""
        self._handle = None

    def folded(self, app: str) -> int:
        """Return the version up to which the commits of a table are in the journal; -1 if none is."""
        version = self._version(app)
        return -1 if version is None else version

    @property
    def cleaned(self) -> int:
        """Number of the first file that clean-up has not looked at."""
        return self._version(_CLEANED) or 0

    def fold(self, rows: pa.Table, app: str, version: int) -> None:
        """Add what the commits of a table say, up to ``version``.

        Safe to repeat after a crash and beside another process: what is in the journal already is not added again.

        Raises:
            TransientError: Others write the journal all the time, or the store does not answer. Retryable.
        """
        failpoint("state-fold")
        for attempt in range(_ATTEMPTS):
            if self.folded(app) >= version:
                return
            fresh = rows.filter(pc.greater(rows.column("version"), self.folded(app)))
            if self._commit(fresh, {app: version}, attempt):
                failpoint("state-folded")
                self._compact()
                return
        raise self._contention()

    def note(self, rows: pa.Table, *, cleaned: int | None = None) -> None:
        """Add what happened to files, and up to which file clean-up has come.

        Raises:
            TransientError: Others write the journal all the time, or the store does not answer. Retryable.
        """
        for attempt in range(_ATTEMPTS):
            versions = {} if cleaned is None else {_CLEANED: max(cleaned, self.cleaned)}
            if self._commit(rows, versions, attempt):
                return
        raise self._contention()

    def removed(self) -> frozenset[int]:
        """Return the numbers of the files that clean-up took away."""
        rows = self.rows(pc.field("kind").isin(["deleted", "moved"]))
        return frozenset(rows.column("number").to_pylist())

    def rows(self, where: pc.Expression | None = None) -> pa.Table:
        """Return what is noted; nothing if there is no journal."""
        if self._handle is None and not self._location.exists():
            return JOURNAL_SCHEMA.empty_table()
        with delta_errors(f"read the {self._location.label}"):
            return self._opened().to_pyarrow_dataset().to_table(filter=where).cast(JOURNAL_SCHEMA)

    def _version(self, app: str) -> int | None:
        if self._handle is None and not self._location.exists():
            return None
        version = self._opened().transaction_version(app)
        return None if version is None else int(version)

    def _opened(self) -> DeltaTable:
        if self._handle is None:
            comment = "What became of each file of a source"
            is_there = self._location.exists()
            self._handle = self._location.open() if is_there else self._location.create(JOURNAL_SCHEMA, comment=comment)
        return self._handle

    def _commit(
        self,
        rows: pa.Table,
        versions: Mapping[str, int],
        attempt: int,
        mode: Literal["append", "overwrite"] = "append",
    ) -> bool:
        """Write rows and move ``txn``s from the held snapshot; return False if another process was first."""
        properties = CommitProperties(app_transactions=[Transaction(app, version) for app, version in versions.items()])
        handle = self._opened()
        try:
            with delta_errors(f"write the {self._location.label}"):
                if len(rows):
                    write_deltalake(handle, rows, mode=mode, commit_properties=properties)
                else:
                    handle.create_write_transaction([], "append", handle.schema(), commit_properties=properties)
        except CommitFailedError:
            self._handle = None
            time.sleep(min(0.01 * 2**attempt, 0.5))
            return False
        except BaseException:  # whatever it was, the commit may have landed: look before the next attempt
            self._handle = None
            raise
        with delta_errors(f"refresh the {self._location.label}"):
            handle.update_incremental()
        return True

    def _compact(self) -> None:
        """Rewrite many small data files as one; given up if anything came between, and tried another time."""
        handle = self._opened()
        if len(handle.file_uris()) <= _COMPACT_ABOVE_FILES:
            return
        rows = self.rows().sort_by([("number", "ascending"), ("at", "ascending")])
        versions = {_CLEANED: self.cleaned}
        if self._commit(rows, versions, 0, mode="overwrite"):
            with contextlib.suppress(DeltaError, OSError):
                self._opened().vacuum(dry_run=False)

    def _contention(self) -> TransientError:
        return TransientError(
            f"cannot write the {self._location.label} after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )
