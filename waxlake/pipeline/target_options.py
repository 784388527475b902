"""What can be set about one table of ``ingest_database``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from waxlake.stream.settings import Settings

__all__ = ["TargetOptions"]


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, set)) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class TargetOptions(Settings):
    """How one table of a database is kept."""

    name: str | None = Field(default=None, min_length=1, description="Name of the target; that of the table by default")
    keys: Names = Field(default=(), description="Columns that identify a row; an append-only log needs none")
    scd_type: Literal[1, 2, "append_only"] = Field(
        default=1, description="1 for current rows, 2 for a history, append_only for a log of every change"
    )
    include_columns: Names = Field(default=(), description="Columns of the target; those that come later are left out")
    exclude_columns: Names = Field(default=(), description="Columns that the target does not get; later ones it does")
    rename_columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column of the source to its name at the target; other options take the source's names",
    )
    row_filter: str | None = Field(
        default=None,
        min_length=1,
        description="SQL condition on rows; one that no longer meets it is deleted at the target",
    )
    track_history_columns: Names = Field(
        default=(), description="scd_type 2: columns whose change opens a version; all by default"
    )
    partition_cols: Names = Field(default=(), description="Partition columns of the target")
    comment: str | None = Field(default=None, description="Table comment")
    table_properties: dict[str, str] = Field(default_factory=dict, description="Delta table properties")

    def at_target(self, names: Names) -> tuple[str, ...]:
        """Return columns by their names at the target."""
        return tuple(self.rename_columns.get(name, name) for name in names)

    @model_validator(mode="after")
    def _fits_together(self) -> TargetOptions:
        if self.include_columns and self.exclude_columns:
            raise ValueError("include_columns or exclude_columns, not both")
        if len(set(self.rename_columns.values()) - set(self.rename_columns)) < len(self.rename_columns):
            raise ValueError("rename_columns: two columns of one name, or one that is renamed itself")
        if self.scd_type != "append_only" and not self.keys:
            raise ValueError("keys are missing: only scd_type='append_only' goes without")
        if self.track_history_columns and self.scd_type != 2:
            raise ValueError("track_history_columns needs scd_type=2")
        return self
