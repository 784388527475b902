"""Clean-up of files that were read: deleted or moved once every table that they feed has held them for long enough.

Called by the connector while a run goes on and at its end. A file is touched only if each table of this pipeline that reads
its path holds it, through whatever source; its content is still what was read; and the retention, counted from the commit
that completed it, has passed. Other pipelines cannot be known. What cannot be cleaned is noted and tried again.

Failure points: a copy is made and the source is still there (the copy is recognised, only the source is removed); files are
gone and the journal does not say so (they are found gone, and noted); the journal is written (nothing is done again).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.journal import FileJournal, journal_rows
from connectors.files.ledger import Ledger
from connectors.files.numbered import NumberedFile
from connectors.files.problems import log_warning
from connectors.files.removal import Removal, Removed
from waxlake.stream.clock import utc_now
from waxlake.stream.errors import TransientError, WaxlakeError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import RowPosition

if TYPE_CHECKING:
    from connectors.files.settings import FilesSettings

__all__ = ["Cleaner", "OtherReader"]

_WINDOW_FILES: Final = 2_000
_THREADS: Final = 16
_LOOK_AGAIN_S: Final = 5.0
_RETRY_FIRST_S: Final = 10.0
_RETRY_MAX_S: Final = 3600.0


class OtherReader(Protocol):
    """Another source of this pipeline, which may read some of the same files."""

    def covers(self, path: str) -> bool:
        """Return whether it reads a file of that path."""
        ...

    def numbers(self, paths: Sequence[str]) -> Mapping[str, int]:
        """Return the last number of each path that it knows."""
        ...

    def position(self) -> int | None:
        """Return the smallest position that its tables hold; None if one has none."""
        ...


@dataclass(slots=True)
class Cleaner:
    """Cleans up after one source. Used by one thread at a time.

    Args:
        settings: What to do, and when.
        ledger: The ledger, for the cleaner alone.
        journal: Where it is noted, for the cleaner alone.
        removal: Removes one file.
        others: Other sources that may read the same files.
        warn: Takes what could not be cleaned up and why, for people.
    """

    settings: FilesSettings
    ledger: Ledger
    journal: FileJournal
    removal: Removal
    others: Sequence[OtherReader] = ()
    warn: Callable[[str], None] = log_warning
    _next_at_s: float = 0.0
    _retried: dict[int, tuple[int, float]] = field(default_factory=dict)

    def clean(self, durable: int, *, until_s: float | None) -> int:
        """Clean up what is due; return how many files were removed.

        Args:
            durable: Position that every table of this source holds.
            until_s: Monotonic time at which to stop; None to go on until nothing is due.

        Raises:
            TransientError: The storage of the journal does not answer. Retryable.
        """
        if until_s is not None and time.monotonic() < self._next_at_s:
            return 0
        self.journal.refresh()
        self.ledger.refresh()
        last = RowPosition.unpack(durable).major
        removed = self._retry(last, is_last_call=until_s is None)
        while until_s is None or time.monotonic() < until_s:
            first = max(self.journal.cleaned, self.ledger.begin or 0, self.ledger.low)
            files = self._due(first, last)
            if not files:
                break
            removed += self._take(files, cleaned=files[-1].number + 1)
        return removed

    def _due(self, first: int, last: int) -> list[NumberedFile]:
        """Return the next files whose time has come and which nobody needs any more."""
        files = self.ledger.files(first, min(last, first + _WINDOW_FILES))
        self._next_at_s = time.monotonic() + _LOOK_AGAIN_S
        if not files:
            return []
        times = _completed_at(self.journal.rows(pc.field("number") >= first), [file.number for file in files])
        latest = utc_now() - timedelta(seconds=self.settings.clean_source_retention)
        due = 0
        while due < len(files) and (at := times[due]) is not None and at <= latest:
            due += 1
        if not due and times[0] is not None:
            self._next_at_s = time.monotonic() + max(_LOOK_AGAIN_S, (times[0] - latest).total_seconds())
        return self._free(files[:due])

    def _free(self, files: list[NumberedFile]) -> list[NumberedFile]:
        """Return the files up to the first that another source has not read to its end."""
        for other in self.others:
            shared = [file.found.path for file in files if other.covers(file.found.path)]
            if not shared:
                continue
            held = RowPosition.unpack(other.position() or 0).major
            numbers = other.numbers(shared)
            for index, file in enumerate(files):
                if file.found.path in shared and not numbers.get(file.found.path, held) < held:
                    files = files[:index]
                    break
        return files

    def _retry(self, last: int, *, is_last_call: bool) -> int:
        """Try again what could not be removed: in each run once more, and while it goes on less and less often."""
        noted = self.journal.rows(pc.field("kind").isin(["clean_failed", "deleted", "moved", "changed", "gone"]))
        if "clean_failed" not in pc.unique(noted.column("kind")).to_pylist():
            return 0
        kinds: dict[int, str] = {}
        for row in noted.select(["number", "kind", "at"]).sort_by("at").to_pylist():
            kinds[row["number"]] = row["kind"]
        now_s, low = time.monotonic(), self.ledger.low
        files = []
        for number in sorted(n for n, kind in kinds.items() if kind == "clean_failed" and low <= n < last):
            count, at_s = self._retried.get(number, (0, now_s))
            if is_last_call or now_s >= at_s:
                self._retried[number] = (count + 1, now_s + min(_RETRY_FIRST_S * 2**count, _RETRY_MAX_S))
                files += self.ledger.files(number, number + 1)
        return self._take(self._free(files), cleaned=None) if files else 0

    def _take(self, files: Sequence[NumberedFile], *, cleaned: int | None) -> int:
        """Remove files and note what became of them."""
        left_out = self._left_out(files)
        todo = [file for file in files if file.number not in left_out]
        if self.removal.is_local:
            done = [self._remove(file) for file in todo]
        else:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="files-clean") as pool:
                done = list(pool.map(self._remove, todo))
        failpoint("clean-removed")
        rows = journal_rows(
            number=[file.number for file in todo],
            kind=[outcome.kind for outcome in done],
            at=utc_now(),
            error=[outcome.error for outcome in done],
            moved_to=[outcome.moved_to for outcome in done],
        )
        self.journal.note(rows, cleaned=cleaned)
        failpoint("clean-noted")
        return sum(outcome.kind in ("deleted", "moved") for outcome in done)

    def _left_out(self, files: Sequence[NumberedFile]) -> set[int]:
        """Return the files that were left out because they cannot be read: nobody has their rows, so they stay."""
        low, high = files[0].number, files[-1].number
        where = (pc.field("kind") == "skipped") & (pc.field("number") >= low) & (pc.field("number") <= high)
        return set(self.journal.rows(where).column("number").to_pylist())

    def _remove(self, file: NumberedFile) -> Removed:
        try:
            return self.removal.remove(file)
        except TransientError:
            raise  # the store is away: nothing is noted, all of it is tried again
        except WaxlakeError as error:
            self.warn(f"file '{file.found.path}' was read and is not cleaned up: {error}")
            return Removed("clean_failed", error=str(error))


def _completed_at(noted: pa.Table, numbers: Sequence[int]) -> list[datetime | None]:
    """Return when each file was completed in the last of its tables; None where it is not known yet.

    Positions grow with time, so a file of which no commit tells (of an earlier release) is as old as the next one at least.
    """
    of_commits = noted.filter(pc.is_in(noted.column("kind"), pa.array(["read", "skipped", "missing"])))
    latest = of_commits.group_by("number").aggregate([("at", "max")])
    known = dict(zip(latest.column("number").to_pylist(), latest.column("at_max").to_pylist(), strict=True))
    bound = min((at for number, at in known.items() if number > numbers[-1]), default=None)
    times: list[datetime | None] = []
    for number in reversed(numbers):
        bound = known.get(number, bound)
        times.append(bound)
    return times[::-1]
