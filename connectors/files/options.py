"""Options of each format of files: names of Auto Loader in snake_case; a default that differs from its says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, field_validator

from waxlake.stream.settings import Settings

__all__ = ["OPTIONS", "CsvOptions", "FormatOptions", "JsonOptions", "ParquetOptions"]


class FormatOptions(Settings):
    """Options of one format."""


class JsonOptions(FormatOptions):
    """Options of format json."""

    multi_line: Literal[False] = Field(default=False, description="One document per line; others are not available yet")


class CsvOptions(FormatOptions):
    """Options of format csv."""

    header: bool = Field(default=True, description="The first record of a file names its columns")
    sep: str = Field(default=",", min_length=1, max_length=1, description="Character between two fields")
    quote: str = Field(default='"', max_length=1, description="Character around a field; empty for none")
    escape: str = Field(
        default="", max_length=1, description="Character that takes the next one literally; empty: a quote is doubled"
    )
    null_value: str = Field(default="", description="Unquoted text that stands for NULL")
    encoding: Literal["utf-8", "UTF-8", "utf8", "UTF8"] = Field(default="utf-8", description="Only UTF-8 for now")

    @field_validator("sep", "quote", "escape")
    @classmethod
    def _one_byte(cls, value: str) -> str:
        if not value.isascii() or value in ("\n", "\r"):
            raise ValueError("must be one ASCII character, and not a line break")
        return value


class ParquetOptions(FormatOptions):
    """Options of format parquet."""


OPTIONS: Final[Mapping[str, type[FormatOptions]]] = {"json": JsonOptions, "csv": CsvOptions, "parquet": ParquetOptions}
