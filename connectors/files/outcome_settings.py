"""What can be set about files that cannot be read, and about files that were read; part of ``FilesSettings``."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from waxlake.stream.settings import Duration, Settings

__all__ = ["OutcomeSettings"]

_DAY_S: Final = 86_400.0
_SHORTEST_DELETE_S: Final = 7 * _DAY_S


class OutcomeSettings(Settings):
    """What becomes of a file once it was read, or could not be; names are those of Auto Loader in snake_case."""

    ignore_corrupt_files: bool = Field(
        default=False,
        description="Leave out a file, or the rest of one, that cannot be decoded; recorded with its error. Else the flow "
        "stops there",
    )
    ignore_missing_files: bool = Field(
        default=False,
        description="Leave out a file that is gone before it was read to its end; recorded. Else the flow stops there",
    )
    clean_source: Literal["OFF", "DELETE", "MOVE"] = Field(
        default="OFF", description="What to do with a file once every table that it feeds holds it"
    )
    clean_source_retention: Duration = Field(
        default=30 * _DAY_S,
        ge=0,
        description="Time between the commit that completed a file and its clean-up; more than 7 days for DELETE",
    )
    clean_source_move_destination: str | None = Field(
        default=None, min_length=1, description="Folder that MOVE moves files to; outside the path that is read"
    )
    clean_source_allow_short_retention: bool = Field(
        default=False, description="Allow a retention of 7 days or less for DELETE: files are gone for good"
    )

    @field_validator("clean_source", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> OutcomeSettings:
        if self.clean_source == "MOVE" and self.clean_source_move_destination is None:
            raise ValueError("clean_source='MOVE' needs clean_source_move_destination")
        if self.clean_source != "MOVE" and self.clean_source_move_destination is not None:
            raise ValueError("clean_source_move_destination needs clean_source='MOVE'")
        is_short = self.clean_source_retention <= _SHORTEST_DELETE_S
        if self.clean_source == "DELETE" and is_short and not self.clean_source_allow_short_retention:
            raise ValueError(
                "clean_source='DELETE' needs a clean_source_retention of more than 7 days, or "
                "clean_source_allow_short_retention=True"
            )
        return self
