"""What can be set about the columns of a files source; part of ``FilesSettings``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from connectors.files.schema_hints import parse_hints
from waxlake.stream.errors import SchemaError
from waxlake.stream.settings import Settings

__all__ = ["SchemaSettings"]


class SchemaSettings(Settings):
    """Where columns come from; names are those of Auto Loader in snake_case."""

    schema_hints: str | None = Field(
        default=None,
        min_length=1,
        description="Types of some columns of an inferred schema, as DDL with paths: id INT, place.lat DOUBLE",
    )
    infer_column_types: bool = Field(
        default=True,
        description="Inference looks for types; else columns of json, csv and xml are STRING. Auto Loader: false",
    )
    partition_columns: tuple[str, ...] | None = Field(
        default=None,
        description="Columns that take their values from folders named k=v, separated by commas; if not given all that an "
        "inferred schema finds and a declared one names; an empty text for none",
    )
    rescued_data_column: str = Field(
        default="_rescued_data", min_length=1, description="Name of the column of what no other column can hold"
    )
    schema_inference_files: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Most files that inference looks at, spread over time. Auto Loader: 1000",
    )
    schema_inference_bytes: int = Field(
        default=8 << 20,
        ge=1,
        le=1 << 30,
        description="Most bytes of them, shared evenly, uncompressed. Auto Loader: 50 GB",
    )
    validate_options: Literal[True] = Field(
        default=True, description="Unknown and contradictory options are errors, always"
    )

    @field_validator("schema_hints")
    @classmethod
    def _readable_hints(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_hints(value)
            except SchemaError as exc:
                raise ValueError(str(exc)) from exc
        return value

    @field_validator("partition_columns", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return tuple(value) if isinstance(value, Sequence) else value
