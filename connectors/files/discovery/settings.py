"""What can be set about how new files are found; part of ``FilesSettings``."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from connectors.files.globs import glob_regex
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import Duration, Settings, StorageOptions

__all__ = ["DiscoverySettings"]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.I)
_DEFAULT_BACKFILL_S: Final = 86_400.0
_SHORTEST_AGE_S: Final = 86_400.0


def _bytes(value: object) -> object:
    """Return bytes for text such as ``10g`` or ``512 MB``; units are powers of 1024."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"found {value!r}, expected a number of bytes, as 1048576, '512m' or '10g'")
    power = " kmgt".index(found[2].lower() or " ")
    return int(float(found[1]) * 1024**power)


def _instant(value: object) -> object:
    """Return an aware datetime for ISO text or a datetime; without a zone it is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(f"found {value!r}, expected a time such as '2026-11-22T08:30:00Z'") from None
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=timezone.utc)
    return value


def _overwrites(value: object) -> object:
    return {True: "append", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _options(value: object) -> object:
    return StorageOptions(value) if isinstance(value, dict) else value


Bytes: TypeAlias = Annotated[int, BeforeValidator(_bytes)]
Instant: TypeAlias = Annotated[datetime, BeforeValidator(_instant)]


class DiscoverySettings(Settings):
    """Which files count, and how the source learns of them; names are those of Auto Loader in snake_case."""

    path_glob_filter: str | None = Field(
        default=None, min_length=1, description="Read only files whose name fits this glob: * ? [a-z] {a,b}"
    )
    recursive: bool = Field(default=True, description="Read files of sub-folders too")
    use_strict_globber: Literal[True] = Field(
        default=True, description="* never crosses a slash, ** does: there is one dialect, and it is the strict one"
    )
    modified_after: Instant | None = Field(default=None, description="Read only files modified after this time")
    modified_before: Instant | None = Field(default=None, description="Read only files modified before this time")
    include_existing_files: bool = Field(
        default=True, description="Read the files that were there before the first run; looked at in the first run only"
    )
    allow_overwrites: Annotated[Literal["off", "append", "replace"], BeforeValidator(_overwrites)] = Field(
        default="off",
        description="A file whose content changed after it was read: off leaves it alone; append reads it as a new file, its "
        "older rows stay; replace lets its older rows leave the table in the commit that brings the new ones",
    )
    replace_column: str = Field(
        default="file_path",
        min_length=1,
        description="allow_overwrites='replace': column of the target table that holds `_metadata.file_path`",
    )
    ordering: Literal["modification_time", "path"] = Field(
        default="modification_time",
        description="Order in which files that were found together are read: by (modification time, path), or by path; files "
        "that are found later come later",
    )
    max_files_per_trigger: int | None = Field(default=None, ge=1, description="Most files in one micro-batch")
    max_bytes_per_trigger: Bytes | None = Field(
        default=None,
        ge=1,
        description="Most bytes in one micro-batch, as 1048576 or '10g'; a bigger file takes several. The lower of this, "
        "max_bytes_per_batch and max_files_per_trigger holds",
    )
    settle_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Seconds that a local file must have been left alone before it is read; objects of a store appear whole",
    )
    poll_interval_s: float = Field(
        default=2.0, ge=0.01, le=86_400, description="Seconds between two looks for new files in a continuous run"
    )
    fetch_parallelism: int = Field(default=16, ge=1, le=256, description="Most requests of a listing at a time")
    use_incremental_listing: bool = Field(
        default=False,
        description="Names only grow: list from the last known path on (1,000 known files before it, to be safe), and all of it "
        "every backfill_interval",
    )
    backfill_interval: Duration | None = Field(
        default=None,
        ge=1,
        description="Time between two full listings when files are found by notifications or by incremental listing; "
        "1 day if not given",
    )
    max_file_age: Duration | None = Field(
        default=None,
        ge=_SHORTEST_AGE_S,
        description="Files modified longer ago are neither read nor remembered. Trap: a file that arrives with an older "
        "modification time is missed; 90 days or more is advised",
    )
    manifest: str | None = Field(
        default=None,
        min_length=1,
        description="File or glob of files that list the paths to read (text, CSV, JSON), instead of a listing of the path",
    )
    use_notifications: bool = Field(
        default=False, description="Learn of new files from the store's events: needs notification_topic or queue_url"
    )
    notification_topic: str | None = Field(default=None, description="Kafka topic with S3 events, as MinIO sends them")
    notification_bootstrap_servers: str | None = Field(default=None, description="Brokers of notification_topic")
    notification_options: Annotated[StorageOptions, BeforeValidator(_options)] = Field(
        default_factory=StorageOptions,
        repr=False,
        description="Settings of librdkafka for notification_topic (security, tuning)",
    )
    queue_url: str | None = Field(default=None, description="SQS queue with S3 events; access as for storage_options")
    region: str | None = Field(default=None, description="Region of queue_url; taken from it if not given")

    @field_validator("path_glob_filter")
    @classmethod
    def _readable_glob(cls, value: str | None) -> str | None:
        if value is not None:
            glob_regex(value)
        return value

    @model_validator(mode="after")
    def _discovery_fits_together(self) -> DiscoverySettings:
        _require(
            self.use_notifications == bool(self.notification_topic or self.queue_url),
            "use_notifications=True and one of notification_topic and queue_url go together",
        )
        _require(not (self.notification_topic and self.queue_url), "give notification_topic or queue_url, not both")
        _require(
            bool(self.notification_topic) == bool(self.notification_bootstrap_servers),
            "notification_topic and notification_bootstrap_servers go together",
        )
        ways = [self.use_notifications, self.use_incremental_listing, self.manifest is not None]
        _require(
            sum(ways) <= 1, "use_notifications, use_incremental_listing and manifest exclude each other: choose one"
        )
        _require(
            self.backfill_interval is None or self.use_notifications or self.use_incremental_listing,
            "backfill_interval needs use_notifications or use_incremental_listing: without them every look is a full listing",
        )
        after, before = self.modified_after, self.modified_before
        _require(after is None or before is None or after < before, "modified_after must lie before modified_before")
        return self

    @property
    def selection(self) -> tuple[object, ...]:
        """What decides which files get numbers, besides path and glob; empty if nothing is set. Part of a ledger's identity."""
        chosen = (self.allow_overwrites, self.modified_after, self.modified_before, self.manifest)
        age = self.max_file_age is not None
        return () if chosen == ("off", None, None, None) and not age else (*map(str, chosen), age)

    @property
    def full_listing_every_s(self) -> float:
        """Seconds between two full listings; 0 if every look is one."""
        if self.use_notifications or self.use_incremental_listing:
            return self.backfill_interval or _DEFAULT_BACKFILL_S
        return 0.0

    @property
    def tracks_versions(self) -> bool:
        """Whether a file that changed is a new file."""
        return self.allow_overwrites != "off"


def _require(is_fine: bool, rule: str) -> None:
    if not is_fine:
        raise UsageError("cannot use these options of read_files together", code="OPTION_CONFLICT", remedy=rule)
