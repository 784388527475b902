"""Keep a table in shape: small files put together, files and log entries that nobody needs any more deleted.

Done by the table's own committer between two commits of the stream, so it never stands in a stream's way and no second
writer exists. What fails is left for another time and reported: the rows matter more. It is governed by table properties.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from deltalake.exceptions import CommitFailedError

from sinks.delta.compaction import CompactionPolicy, compact
from sinks.delta.files import stored_files
from sinks.delta.protocol import Committer
from waxlake.stream.delta_table import REBUILT_APP_ID, delta_errors
from waxlake.stream.errors import UsageError, WaxlakeError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.table_properties import order_columns

__all__ = [
    "MANAGED_PROPERTY",
    "MIN_FILES_PROPERTY",
    "VACUUM_EVERY_PROPERTY",
    "Maintenance",
    "MaintenanceReport",
    "NeededVersions",
]

MANAGED_PROPERTY: Final = "pipelines.autoOptimize.managed"
VACUUM_EVERY_PROPERTY: Final = "waxlake.vacuum.interval"
MIN_FILES_PROPERTY: Final = "waxlake.compaction.minFiles"
_TARGET_PROPERTY: Final = "delta.targetFileSize"
_FILES_RETENTION: Final = "delta.deletedFileRetentionDuration"
_LOG_RETENTION: Final = "delta.logRetentionDuration"
_APP_ID: Final = "waxlake/vacuumed"
_DAY: Final = timedelta(days=1)
_UNITS: Final = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": _DAY,
    "week": timedelta(weeks=1),
}
_INTERVAL = re.compile(r"(?:interval\s+)?(\d+)\s+(second|minute|hour|day|week)s?", re.IGNORECASE)
_SIZE = re.compile(r"(\d+)\s*(b|kb|mb|gb)?", re.IGNORECASE)
_SIZES: Final = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What one piece of maintenance did.

    Attributes:
        table: Table name.
        operation: ``compact``, ``vacuum`` or ``postponed``.
        figures: Files, bytes and rows; why it was postponed.
        error: What went wrong; the stream goes on.
    """

    table: str
    operation: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: WaxlakeError | None = None


class NeededVersions(NamedTuple):
    """What the readers of a table still have to read.

    Attributes:
        log: The first version whose log entry some reader has not read; it steps through those that bring no rows too.
        rows: The first of them that brings rows, for which files are needed.
    """

    log: int
    rows: int


@dataclass(slots=True)
class Maintenance:
    """Maintains one table by its committer. Used by the committer's thread.

    Args:
        committer: The table's.
        compacts: Whether small append files are put together; a merge does that itself, a replacement has none.
        needed: Returns what readers of the table have not read; None if nobody follows it.
        report: Told of everything that was done.
        clock: What time it is, for retention.
    """

    committer: Committer
    compacts: bool = True
    needed: Callable[[], NeededVersions | None] = lambda: None
    report: Callable[[MaintenanceReport], None] = lambda report: None
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
    _properties: Mapping[str, str] | None = None
    _policy: CompactionPolicy = field(default_factory=CompactionPolicy)
    _files_since: int | None = None

    @property
    def _table(self) -> str:
        return self.committer.location.label

    def after_commit(self, files: int) -> None:
        """Do what is due, after a commit that added ``files`` data files. Never raises for what goes wrong in it."""
        try:
            with delta_errors(f"maintain table '{self._table}'"):
                self._after_commit(files)
        except (WaxlakeError, CommitFailedError) as error:
            self._files_since = 0  # the next look is after as many files again
            self._tell("postponed", {}, error if isinstance(error, WaxlakeError) else None)

    def _after_commit(self, files: int) -> None:
        if self._properties is None:
            self._properties = dict(self.committer.handle.metadata().configuration)
            self._policy = _policy(self._properties, self._table)
        if self._properties.get(MANAGED_PROPERTY, "true").lower() == "false":
            return
        if self.compacts:
            self._compact(files)
        every = _interval(self._properties, VACUUM_EVERY_PROPERTY, _DAY, self._table)
        vacuumed_at_s = self.committer.stored(_APP_ID)
        since_s = vacuumed_at_s if vacuumed_at_s is not None else _created_s(self.committer)
        if self.clock().timestamp() - since_s >= every.total_seconds():
            self._vacuum()

    def _compact(self, files: int) -> None:
        """Put files together if enough may have come since the last look."""
        if self._files_since is None:
            self._files_since = len(stored_files(self.committer.handle, below_bytes=self._policy.small_bytes))
        else:
            self._files_since += files
        if self._files_since < self._policy.min_files:
            return
        self._files_since = 0
        receipt = compact(self.committer, self._policy)
        if receipt is not None:
            self._tell("compact", {k: v for k, v in receipt.metadata["maintenance"].items() if k != "operation"})

    def _vacuum(self) -> None:
        """Delete what is older than the retention, unless a reader of this pipeline still has to read it."""
        assert self._properties is not None
        needed = self.needed() or NeededVersions(
            self.committer.handle.version() + 1, self.committer.handle.version() + 1
        )
        kept = _interval(self._properties, _FILES_RETENTION, timedelta(weeks=1), self._table)
        logs = _interval(self._properties, _LOG_RETENTION, timedelta(days=30), self._table)
        now_s = int(self.clock().timestamp())
        age = self._age_of(needed.rows)
        if age > kept:
            self._mark(now_s)
            self._tell("postponed", {"first_needed_version": needed.rows, "age_s": round(age.total_seconds())})
            return
        self.committer.clean_log(deletes_expired=self._age_of(needed.log) <= logs)
        failpoint("log-cleaned")
        deleted = self.committer.vacuum({_APP_ID: now_s, REBUILT_APP_ID: self.committer.handle.version()})
        failpoint("vacuumed")
        if self.committer.stored(_APP_ID) != now_s:  # there was nothing to delete, so it made no commit
            self._mark(now_s)
        self._tell("vacuum", {"files_deleted": deleted})

    def _mark(self, now_s: int) -> None:
        self.committer.commit([], {}, identities={_APP_ID: now_s})

    def _age_of(self, version: int) -> timedelta:
        """Return how long ago a version was committed; nothing if it does not exist yet: its reader is up to date."""
        if version > self.committer.handle.version():
            return timedelta()
        at = self.committer.location.committed_at(version)
        return timedelta.max if at is None else self.clock() - at

    def _tell(self, operation: str, figures: Mapping[str, Any], error: WaxlakeError | None = None) -> None:
        self.report(MaintenanceReport(table=self._table, operation=operation, figures=figures, error=error))


def _created_s(committer: Committer) -> float:
    created = committer.handle.metadata().created_time
    return 0.0 if created is None else created / 1000


def _policy(properties: Mapping[str, str], table: str) -> CompactionPolicy:
    policy = CompactionPolicy(order_by=order_columns(properties))
    said = properties.get(_TARGET_PROPERTY)
    if said is not None:
        found = _SIZE.fullmatch(said.strip())
        if found is None:
            raise _wrong(table, _TARGET_PROPERTY, said, "a size such as '64mb'")
        size = int(found[1]) * _SIZES[(found[2] or "").lower()]
        policy = replace(policy, small_bytes=max(size // 2, 1), max_bytes=max(size, 1))
    said = properties.get(MIN_FILES_PROPERTY)
    if said is not None:
        if not said.isdecimal() or int(said) < 2:
            raise _wrong(table, MIN_FILES_PROPERTY, said, "a number of files, at least 2")
        policy = replace(policy, min_files=int(said))
    return policy


def _interval(properties: Mapping[str, str], name: str, default: timedelta, table: str) -> timedelta:
    said = properties.get(name)
    if said is None:
        return default
    found = _INTERVAL.fullmatch(said.strip())
    if found is None:
        raise _wrong(table, name, said, "a duration such as 'interval 7 days'")
    return int(found[1]) * _UNITS[found[2].lower()]


def _wrong(table: str, name: str, said: str, expected: str) -> UsageError:
    return UsageError(
        f"table '{table}' is not maintained: one of its properties cannot be read",
        code="OPTION_INVALID",
        found=f"{name} = {said!r}",
        expected=expected,
    )
