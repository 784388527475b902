"""The quarantine table of a table: its files are named by the commits of the table, and committed after them, once.

The manifest in a commit of the table has a number, which both tables store: where they differ, a crash fell in between, and
``finish_quarantine`` commits what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from sinks.delta.files import StoredFile, stored_files
from sinks.delta.parquet import decode_add
from waxlake.stream.delta_table import METADATA_KEY, RELEASED, TableLocation, delta_errors
from waxlake.stream.errors import TerminalError, TransientError

__all__ = [
    "MANIFEST_APP_ID",
    "Quarantine",
    "commit_quarantine",
    "finish_quarantine",
    "is_quarantine_whole",
    "stored_files_named",
]

MANIFEST_APP_ID = "waxlake/quarantine"
"""Number of the last manifest in the commits of a table."""

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Data files for the quarantine table, written but not committed.

    Attributes:
        location: The quarantine table.
        adds: Its new files.
        rows: Rows in them that are new there.
        removes: Paths of its files whose rows are in ``adds`` or in the primary commit now (a replay).
    """

    location: TableLocation
    adds: Sequence[AddAction]
    rows: int
    removes: Sequence[str] = ()

    @property
    def has_files(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.adds or self.removes)


def _quarantine_app_id(primary_id: str) -> str:
    return f"waxlake/primary/{primary_id}"


def commit_quarantine(
    location: TableLocation, primary_id: str, number: int, adds: Sequence[AddAction], removed: Sequence[str] = ()
) -> None:
    """Commit quarantine files once: their manifest number is the position."""
    app = _quarantine_app_id(primary_id)
    for _ in range(_ATTEMPTS):
        handle = location.open()
        if (handle.transaction_version(app) or 0) >= number:
            return
        facts: dict[str, Any] = {"manifest": number, **({RELEASED: True} if removed else {})}
        properties = CommitProperties(
            custom_metadata={METADATA_KEY: facts}, app_transactions=[Transaction(app, number)]
        )
        removals = [file.removal() for file in stored_files_named(handle, location, removed)]
        try:
            with delta_errors(f"commit to table '{location.label}'"):
                handle.create_write_transaction(
                    [*removals, *adds],
                    mode="append",
                    schema=handle.schema(),
                    partition_by=list(handle.metadata().partition_columns),
                    commit_properties=properties,
                )
            return
        except CommitFailedError:
            continue
    raise TransientError(
        f"cannot commit to table '{location.label}'",
        code="COMMIT_CONTENTION",
        remedy="Give it one writer and run again",
    )


def stored_files_named(handle: DeltaTable, location: TableLocation, paths: Sequence[str]) -> list[StoredFile]:
    """Return the files of a quarantine table with these paths.

    Raises:
        TerminalError: One of them is gone. Not retryable.
    """
    if not paths:
        return []
    found = [file for file in stored_files(handle) if file.path in paths]
    if len(found) == len(paths):
        return found
    raise TerminalError(
        f"cannot take replayed rows out of table '{location.label}'",
        code="QUARANTINE_CHANGED",
        found=f"{len(paths) - len(found)} of the {len(paths)} files that held them gone",
        expected="the files that were replayed",
        remedy="Someone rewrote it in the middle of a replay: rows that are in the table may still be in the quarantine, too",
    )


def is_quarantine_whole(primary: DeltaTable, quarantine: DeltaTable) -> bool:
    """Return whether a quarantine table, as it is here, holds all that the commits of its table left for it."""
    done = quarantine.transaction_version(_quarantine_app_id(str(primary.metadata().id))) or 0
    return done >= (primary.transaction_version(MANIFEST_APP_ID) or 0)


def finish_quarantine(primary: TableLocation, quarantine: TableLocation) -> bool:
    """Commit the quarantine files of the last primary commit if a crash left them out.

    Called before a table is written and at the start of a run. Idempotent.

    Returns:
        Whether something was missing.

    Raises:
        TerminalError: The primary commit that holds the manifest is gone from the log. Not retryable.
    """
    handle = primary.open()
    if is_quarantine_whole(handle, quarantine.open()):
        return False
    number = handle.transaction_version(MANIFEST_APP_ID) or 0
    for entry in handle.history():
        manifest = (entry.get(METADATA_KEY) or {}).get("quarantine")
        if manifest and manifest["number"] == number:
            adds = [decode_add(f) for f in manifest["files"]]
            commit_quarantine(quarantine, str(handle.metadata().id), number, adds, manifest.get("removed") or ())
            return True
    raise TerminalError(
        f"cannot finish table '{quarantine.label}'",
        code="QUARANTINE_MANIFEST_LOST",
        found=f"no commit of table '{primary.label}' with manifest {number}",
        remedy="Its log was cleaned before this pipeline ran again. The rejected rows are in the table's folder, uncommitted",
    )
