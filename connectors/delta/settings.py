"""What can be set about a read of a Delta table; called by ``read_stream``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from waxlake.stream.settings import Settings, StorageOptions

__all__ = ["DeltaReadSettings", "read_options"]


def _as_options(value: object) -> object:
    return StorageOptions(value) if isinstance(value, Mapping) and not isinstance(value, StorageOptions) else value


def _as_keys(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class DeltaReadSettings(Settings):
    """Settings of a stream from a Delta table."""

    starting_version: Annotated[int, Field(ge=0)] | Literal["latest"] | None = Field(
        default=None,
        description="Where a flow without positions begins: with this version's changes, or after the latest. Default: with the "
        "table as it is, or with version 0 while the log reaches back to it",
    )
    starting_timestamp: datetime | None = Field(
        default=None,
        description="Begin with the first version committed at this time or later (UTC where it has no zone)",
    )
    skip_change_commits: bool = Field(
        default=False, description="Leave out versions that update or delete rows, instead of stopping at them"
    )
    read_change_feed: bool = Field(
        default=False,
        description="Read change rows: the table as it is, as inserts, then what each version changed; `_change_type` and the "
        "other metadata columns of change rows are there when selected",
    )
    keys: Annotated[tuple[str, ...], BeforeValidator(_as_keys)] = Field(
        default=(),
        description="Columns that identify a row of a change feed: then a changed row is one update. Without them it is a delete "
        "of the old row and an insert of the new one",
    )
    ignore_dropped_columns: bool = Field(
        default=False, description="Read on where a column of the table was dropped, instead of stopping there"
    )
    storage_options: Annotated[StorageOptions | None, BeforeValidator(_as_options)] = Field(
        default=None, description="Options of the table's store, as delta-rs names them; those of the spec if left out"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DeltaReadSettings:
        if self.starting_version is not None and self.starting_timestamp is not None:
            raise ValueError("starting_version and starting_timestamp exclude each other")
        if self.read_change_feed and self.skip_change_commits:
            raise ValueError("read_change_feed and skip_change_commits exclude each other")
        if self.keys and not self.read_change_feed:
            raise ValueError("keys are for read_change_feed")
        return self

    @property
    def starting_at(self) -> datetime | None:
        """``starting_timestamp``, with a zone."""
        at = self.starting_timestamp
        return at.replace(tzinfo=timezone.utc) if at is not None and at.tzinfo is None else at


_SPELLINGS: Final = {name.replace("_", ""): name for name in DeltaReadSettings.model_fields}


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under our names; they may be spelled as in SQL and Spark, as ``readChangeFeed`` or ``SKIPCHANGECOMMITS``."""
    return {_SPELLINGS.get(name.replace("_", "").lower(), name): value for name, value in given.items()}
