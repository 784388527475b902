"""Where a Delta table lies, and how to open, create and list it. Called by sources, sinks and the planner.

delta-rs errors are mapped to ours here and nowhere else.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pa_fs
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from waxlake.stream.errors import ExternalError, TerminalError, TransientError, shorten
from waxlake.stream.settings import StorageOptions

__all__ = [
    "FORGOTTEN",
    "METADATA_KEY",
    "REBUILT_APP_ID",
    "RELEASED",
    "REPLAYED_APP_ID",
    "TableLocation",
    "arrow_schema",
    "delta_errors",
    "is_remote",
    "stored_position",
    "unusable_sign",
]

FORGOTTEN = -1
"""Position of a source whose positions were reset: a log can't take a ``txn`` back, so this stands for none."""

REBUILT_APP_ID = "waxlake/rebuilt"
"""Version at which a table's whole content was last replaced: who begins to stream from it begins with it as it is."""

REPLAYED_APP_ID = "waxlake/replayed"
"""Version at which rows last came into a table from its quarantine: who has read an earlier one has not read everything."""

METADATA_KEY = "waxlake"
"""Key of what a commit of ours says of itself, in its metadata."""

RELEASED = "released"
"""Mark in the metadata of a commit that rewrites a quarantine table after a replay: it holds no row that was not there."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_DENIED = re.compile(r"accessdenied|invalidaccesskeyid|signaturedoesnotmatch|\b403 forbidden|\b401 unauthorized")
_AWAY = re.compile(
    r"error sending request|connect|timed out|timeout|slowdown|\b503 service|\b500 internal|\b429 too many"
)
_FORBIDDEN = re.compile(r"permission denied|\(os error (1|13)\)")
_UNUSABLE = re.compile(r"[\[\]\\^|\x00-\x1f]|%[0-9A-Fa-f]{2}")
_LOG_ENTRY_GONE = re.compile(r"not found: \S*_delta_log/", re.IGNORECASE)
_NOT_A_FOLDER = re.compile(r"not a directory|\(os error 20\)")


def is_remote(uri: str) -> bool:
    """Return whether ``uri`` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def unusable_sign(uri: str) -> str | None:
    """Return the first sign of a local path that delta-rs takes for something else, or None."""
    found = None if is_remote(uri) else _UNUSABLE.search(uri)
    return found[0] if found else None


def stored_position(handle: DeltaTable, app_id: str) -> int | None:
    """Return the position that a snapshot holds for an app id; None if it has none, or it was reset."""
    version = handle.transaction_version(app_id)
    return None if version is None or version < 0 else version


@contextmanager
def delta_errors(what: str) -> Iterator[None]:
    """Turn errors of delta-rs and of the file system into ours; a lost commit race passes through unchanged.

    Args:
        what: What was being done, and on which table, as ``read table 'orders'``.
    """
    try:
        yield
    except CommitFailedError:
        raise
    except (TableNotFoundError, DeltaError, OSError) as exc:
        raise _mapped(what, exc) from exc


def _mapped(what: str, exc: Exception) -> ExternalError:
    said = " ".join(_COLOUR.sub("", str(exc)).split())
    text, low = shorten(said, 400), said.lower()
    what = f"cannot {what}"
    if isinstance(exc, TableNotFoundError):
        return TerminalError(
            what, code="TABLE_NOT_FOUND", found="no Delta table there", remedy="It was dropped or moved"
        )
    if isinstance(exc, FileNotFoundError):
        remedy = "The table was dropped or moved, or its files were deleted"
        return TerminalError(what, code="TABLE_NOT_FOUND", found=text, remedy=remedy)
    if isinstance(exc, FileExistsError | NotADirectoryError) or _NOT_A_FOLDER.search(low):
        return TerminalError(
            what,
            code="STORAGE_NOT_WRITABLE",
            found=f"a file where a folder should be: {text}",
            remedy="Move it away, or choose another place",
        )
    if "no space left" in low or getattr(exc, "errno", None) == errno.ENOSPC:
        return TransientError(
            what, code="STORAGE_FULL", found=text, remedy="Free some space and run again: nothing is lost"
        )
    if "read-only file system" in low or getattr(exc, "errno", None) == errno.EROFS:
        remedy = "Mount it for writing and run again: nothing is lost"
        return TransientError(what, code="STORAGE_NOT_WRITABLE", found=text, remedy=remedy)
    if isinstance(exc, PermissionError) or _FORBIDDEN.search(low):
        return TerminalError(
            what, code="STORAGE_NOT_WRITABLE", found=text, remedy="Give this user the right to write there"
        )
    if _DENIED.search(low):
        remedy = "Check `storage_options` and the key's rights"
        return TerminalError(what, code="STORAGE_ACCESS_DENIED", found=text, remedy=remedy)
    if "nosuchbucket" in low:
        return TerminalError(what, code="STORAGE_NOT_FOUND", found=text, remedy="Create the bucket first")
    if _AWAY.search(low):
        return TransientError(what, code="STORAGE_UNREACHABLE", found=text, remedy="Check the endpoint and the network")
    deleted = "Files of its log were deleted. Put them back, or run again to be told what that means"
    return TerminalError(what, code="STORAGE_ERROR", found=text, remedy=deleted if _LOG_ENTRY_GONE.search(low) else "")


@dataclass(frozen=True, slots=True)
class TableLocation:
    """A Delta table's place: URI or local path, with the options of its store.

    Attributes:
        uri: Local path, or a URI such as ``s3://bucket/prefix/table``.
        options: Store options under their delta-rs names.
        name: Name used in messages.
    """

    uri: str
    options: StorageOptions = field(default_factory=StorageOptions)
    name: str = ""

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or self.uri

    @property
    def is_local(self) -> bool:
        """Whether the table lies on a local file system."""
        return not is_remote(self.uri)

    @property
    def local_path(self) -> Path:
        """The folder of a local table."""
        return Path(self.uri.removeprefix("file://"))

    def exists(self) -> bool:
        """Return whether a Delta table is there."""
        if self.is_local:
            log = self.local_path / "_delta_log"
            return log.is_dir() and any(name.endswith((".json", ".parquet")) for name in os.listdir(log))
        with delta_errors(f"look for table '{self.label}'"):
            return bool(DeltaTable.is_deltatable(self.uri, storage_options=dict(self.options)))

    def open(self, version: int | None = None) -> DeltaTable:
        """Return a handle on one snapshot.

        Args:
            version: Table version; None for the latest.

        Raises:
            TerminalError: No table there, no access. Not retryable.
            TransientError: The store does not answer. Retryable.
        """
        with delta_errors(f"open table '{self.label}'"):
            try:
                return DeltaTable(self.uri, version=version, storage_options=dict(self.options))
            except DeltaError as exc:
                if not _LOG_ENTRY_GONE.search(str(exc)):
                    raise
            # It was listed, and cleaned away before it was read: the next listing begins with a checkpoint.
            return DeltaTable(self.uri, version=version, storage_options=dict(self.options))

    def create(
        self,
        schema: pa.Schema,
        *,
        partition_by: tuple[str, ...] = (),
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> DeltaTable:
        """Create the table, once: losing the race to another creator opens what that one made.

        Raises:
            TerminalError: The place is not writable. Not retryable.
        """
        with delta_errors(f"create table '{self.label}'"):
            if self.is_local:
                self.local_path.mkdir(parents=True, exist_ok=True)
            try:
                return DeltaTable.create(
                    self.uri,
                    schema,
                    mode="error",
                    partition_by=list(partition_by) or None,
                    description=comment,
                    configuration=dict(properties or {}),
                    storage_options=dict(self.options),
                    raise_if_key_not_exists=False,
                )
            except DeltaError:
                if not self.exists():
                    raise
                return self.open()

    def filesystem(self) -> pa_fs.FileSystem:
        """Return a pyarrow file system rooted at the table, on the same store and credentials as delta-rs."""
        if self.is_local:
            return pa_fs.SubTreeFileSystem(str(self.local_path.absolute()), pa_fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return pa_fs.PyFileSystem(DeltaStorageHandler(self.uri, options=dict(self.options)))

    def log_stamp(self, version: int) -> tuple[object, ...]:
        """Return what tells one log entry from another that took its place; empty if there is none."""
        path = f"_delta_log/{version:020d}.json"
        if self.is_local:
            try:
                found = (self.local_path / path).stat()
            except FileNotFoundError:
                return ()
            return (found.st_ino, found.st_mtime_ns, found.st_size)
        with delta_errors(f"look at table '{self.label}'"):
            info = self.filesystem().get_file_info(path)
        return () if info.type == pa_fs.FileType.NotFound else (info.mtime_ns, info.size)

    def committed_at(self, version: int) -> datetime | None:
        """Return when a version was committed, by the clock of the store; None if the log does not hold it."""
        path = f"_delta_log/{version:020d}.json"
        with delta_errors(f"look at table '{self.label}'"):
            info = self.filesystem().get_file_info(path)
        return None if info.type == pa_fs.FileType.NotFound else info.mtime.astimezone(timezone.utc)

    def read_log(self, version: int) -> list[dict[str, Any]] | None:
        """Return the actions of one commit, in order; None if that version is not in the log (yet, or any more).

        Raises:
            TransientError: The store does not answer. Retryable.
        """
        path = f"_delta_log/{version:020d}.json"
        with delta_errors(f"read the log of table '{self.label}'"):
            try:
                if self.is_local:
                    text = (self.local_path / path).read_bytes()
                else:
                    with self.filesystem().open_input_file(path) as stream:
                        text = stream.read()
            except FileNotFoundError:
                return None
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """Return a table's schema as pyarrow's."""
    return pa.schema(table.schema().to_arrow())
