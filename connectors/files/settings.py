"""What can be set about a files source; called by ``read_files`` and ``FilesSource``, read by everything else here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from connectors.files.discovery.settings import DiscoverySettings
from connectors.files.evolution_settings import EvolutionMode, EvolutionSettings
from connectors.files.options import OPTIONS, REFUSED, FormatOptions, JsonOptions, XmlOptions
from connectors.files.outcome_settings import OutcomeSettings
from connectors.files.schema_settings import SchemaSettings
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import StorageOptions, nearest

__all__ = ["FORMATS", "FilesSettings"]

FORMATS: Final = tuple(OPTIONS)
_MANAGED: Final = frozenset({"path", "format", "options", "declared_schema"})


class FilesSettings(SchemaSettings, OutcomeSettings, DiscoverySettings, EvolutionSettings):
    """Settings of a files source; option names are those of Auto Loader in snake_case."""

    path: str = Field(
        min_length=1, description="Folder, file or glob: a local path, or an fsspec URI (s3://bucket/prefix)"
    )
    format: Literal["json", "csv", "parquet", "avro", "orc", "text", "binaryfile", "xml"] = Field(
        description="Format of the files"
    )
    declared_schema: str | pa.Schema | None = Field(
        default=None, alias="schema", description="Columns as DDL or a pyarrow schema; inferred once if not given"
    )
    storage_options: StorageOptions = Field(
        default_factory=StorageOptions,
        repr=False,
        description="Options of the files' store, under their delta-rs names",
    )
    max_rows_per_batch: int = Field(default=100_000, ge=1, le=10_000_000, description="Most rows in one micro-batch")
    max_bytes_per_batch: int = Field(
        default=32 << 20, ge=1, le=1 << 30, description="Bytes after which a micro-batch is closed"
    )
    on_data_loss: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do about a file that is gone, or was changed, before it was read to its end",
    )
    options: FormatOptions = Field(description="Options of the format")

    @field_validator("storage_options", mode="before")
    @classmethod
    def _hide_secrets(cls, value: object) -> object:
        return StorageOptions(value) if isinstance(value, Mapping) and not isinstance(value, StorageOptions) else value

    @field_validator("declared_schema")
    @classmethod
    def _readable_schema(cls, value: str | pa.Schema | None) -> str | pa.Schema | None:
        if value is not None:
            parse_ddl(value)
        return value

    @model_validator(mode="after")
    def _consistent_schema(self) -> FilesSettings:
        if self.declared_schema is not None and self.schema_hints is not None:
            raise ValueError(
                "schema and schema_hints contradict each other: hints are for an inferred schema; give one"
            )
        options = self.options
        is_variant = isinstance(options, (JsonOptions, XmlOptions)) and options.single_variant_column is not None
        if is_variant and (self.declared_schema is not None or self.schema_hints is not None):
            raise ValueError("single_variant_column is the whole schema; leave schema and schema_hints out")
        return self

    @property
    def evolution(self) -> EvolutionMode:
        """The evolution mode in force."""
        return self.schema_evolution_mode or ("none" if self.declared_schema is not None else "add_new_columns")

    @property
    def evolves(self) -> bool:
        """Whether new columns are added."""
        return self.evolution.startswith("add_new_columns")

    @classmethod
    def of(cls, path: str, *, format: str, schema: str | pa.Schema | None = None, **options: Any) -> FilesSettings:
        """Return the settings of ``read_files(path, format=..., schema=..., **options)``.

        Raises:
            UsageError: An unknown format or option, one of another format, or a value out of bounds. Not retryable.
            SchemaError: ``SCHEMA_DDL``: a typo in the schema. Not retryable.
        """
        what = f"read_files({path!r})"
        kind = str(format).lower()
        if kind not in FORMATS:
            raise UsageError(f"{what}: unknown format {format!r}", code="OPTION_INVALID", remedy=nearest(kind, FORMATS))
        options = _renamed(what, options)
        valid = {*cls.model_fields, "schema"} - _MANAGED | set(OPTIONS[kind].model_fields)
        for name in options:
            if name not in valid:
                raise _strange(what, name, kind, valid)
        mine = {name: value for name, value in options.items() if name in OPTIONS[kind].model_fields}
        rest = {name: value for name, value in options.items() if name not in mine}
        values = {
            "path": str(path),
            "format": kind,
            "schema": schema,
            **rest,
            "options": OPTIONS[kind].build(what, mine),
        }
        settings: FilesSettings = cls.build(what, values)
        return settings


def _renamed(what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the one that has two names under the first of them."""
    if "delimiter" not in options:
        return dict(options)
    if "sep" in options:
        raise UsageError(f"{what}: sep and delimiter are one option", code="OPTION_INVALID", remedy="Give one of them")
    return {("sep" if name == "delimiter" else name): value for name, value in options.items()}


def _strange(what: str, name: str, format: str, valid: Iterable[str]) -> UsageError:
    """Return the error for an option that the format does not have."""
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])|[.]", r"_\1", name.removeprefix("cloudFiles.")).lower()
    if name != snake and snake in valid:
        return UsageError(
            f"{what}: unknown option {name!r}", code="OPTION_INVALID", remedy=f"Its name here is {snake!r}"
        )
    if snake in REFUSED:
        return UsageError(f"{what}: option {name!r} is not available", code="OPTION_INVALID", remedy=REFUSED[snake])
    others = [other for other, model in OPTIONS.items() if snake in model.model_fields]
    if others:
        return UsageError(
            f"{what}: option {name!r} belongs to format {' and '.join(map(repr, others))}",
            code="OPTION_INVALID",
            found=f"format {format!r}",
            remedy="Leave it out, or change the format",
        )
    return UsageError(f"{what}: unknown option {name!r}", code="OPTION_INVALID", remedy=nearest(snake, valid))
