"""Files that are not what they were, or cannot be read: what the reader is told, and the errors that stop a flow."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import Final

from connectors.files.numbered import NumberedFile
from connectors.files.store import FileChanged, FileGone, FoundFile
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, WaxlakeError, shorten

__all__ = ["FileProblem", "changed", "gone", "iso", "log_warning", "never_settles", "unreadable"]

_LOG: Final = logging.getLogger("waxlake.files")


class FileProblem(Exception):
    """A file cannot be read, or not any further.

    Args:
        file: The file.
        row: Rows of it that were read.
        cause: ``FileGone``, ``FileChanged``, or the error that says that it cannot be decoded.
    """

    def __init__(self, file: NumberedFile, row: int, cause: FileGone | FileChanged | WaxlakeError) -> None:
        super().__init__(file, row, cause)
        self.file, self.row, self.cause = file, row, cause

    def error(self) -> WaxlakeError:
        """Return the error that stops the flow."""
        if isinstance(self.cause, FileGone):
            return gone(self.file)
        if isinstance(self.cause, FileChanged):
            return changed(self.file, f"row {self.row}", self.cause.now)
        return self.cause


def gone(file: NumberedFile) -> SourceMoved:
    """Return the error for a file that is not there any more."""
    return SourceMoved(
        f"cannot read file '{file.found.path}'",
        code="FILE_GONE",
        found="no such file",
        expected=f"the {file.found.size_bytes} bytes that were found there (file {file.number} of the ledger)",
        remedy="Put it back, or set ignore_missing_files=True to go on without it (recorded in the event log)",
    )


def changed(file: NumberedFile, expected: str, now: FoundFile) -> SourceMoved:
    """Return the error for a file that changed after a part of it was read."""
    return SourceMoved(
        f"cannot read on in file '{file.found.path}'",
        code="FILE_CHANGED",
        found=f"another content: {now.size_bytes} bytes, modified at {iso(now)}",
        expected=f"{expected} of the file of {file.found.size_bytes} bytes, modified at {iso(file.found)}",
        remedy="Put the earlier content back, or set on_data_loss='skip' to leave out the rest of it (recorded in the event "
        "log); give changed content a new file name",
    )


def unreadable(file: NumberedFile, exc: BaseException) -> TerminalError:
    """Return the error for a file that cannot be decoded."""
    return TerminalError(
        f"cannot read file '{file.found.path}'",
        code="FILE_UNREADABLE",
        found=shorten(" ".join(str(exc).split()) or type(exc).__name__, 300),
        expected=f"a whole file (number {file.number} of the ledger)",
        remedy="Put a whole file in its place and run again, or set ignore_corrupt_files=True to leave it out. Rows before it "
        "are safe",
    )


def never_settles(found: FoundFile, settle_s: float) -> TransientError:
    """Return the error for a file that is written to all the time."""
    return TransientError(
        f"cannot read file '{found.path}' yet",
        code="FILE_CHANGING",
        found=f"{found.size_bytes} bytes, written to all the time",
        expected=f"a file left alone for {settle_s:g} s",
        remedy="Write it under a name that begins with '.' or ends with .tmp, and rename it when it is whole",
    )


def iso(found: FoundFile) -> str:
    """Return when a file was modified, as text."""
    return datetime.fromtimestamp(found.modified_us / 1e6, timezone.utc).isoformat()


def log_warning(text: str) -> None:
    """Tell of what is strange and no failure where no pipeline has an event log for it."""
    _LOG.warning("%s", text)
