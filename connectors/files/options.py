"""Options of each format of files: names of Auto Loader in snake_case; a default that differs from its says so."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from connectors.files.formats.time_patterns import TimePattern
from waxlake.stream.settings import Settings

__all__ = [
    "OPTIONS",
    "REFUSED",
    "AvroOptions",
    "BinaryFileOptions",
    "CsvOptions",
    "FormatOptions",
    "JsonOptions",
    "OrcOptions",
    "ParquetOptions",
    "RecordOptions",
    "TextOptions",
    "TypeOptions",
    "XmlOptions",
]

_UTF8: Final = frozenset({"utf-8", "utf-8-sig", "ascii"})


class FormatOptions(Settings):
    """Options of one format."""


class NamedOptions(FormatOptions):
    """Options of formats whose rows name their columns."""

    reader_case_sensitive: bool = Field(
        default=True,
        description="Columns whose names differ in case are different, and rescued; else they are the same. Fields inside "
        "a STRUCT always differ, but in xml",
    )


class MergedOptions(NamedOptions):
    """Options of formats whose files each have one schema."""

    merge_schema: bool = Field(
        default=True,
        description="Inference takes the columns of every file of the sample; else of the first one alone. Auto Loader: false",
    )


class EncodedOptions(FormatOptions):
    """Options of formats that are text."""

    encoding: str = Field(default="utf-8", description="Character encoding, by any name that Python knows")

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            name = codecs.lookup(value).name
            "".encode(name)
        except (LookupError, TypeError) as exc:
            raise ValueError(f"unknown encoding {value!r}") from exc
        return name

    @property
    def is_utf8(self) -> bool:
        """Whether the bytes can be read as they are."""
        return self.encoding in _UTF8


class TypeOptions(EncodedOptions):
    """Options of how text becomes dates and times."""

    date_format: str | None = Field(
        default=None, description="Java pattern of DATE, such as dd.MM.yyyy; ISO 8601 if not given"
    )
    timestamp_format: str | None = Field(
        default=None,
        description="Java pattern of TIMESTAMP, such as yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]; ISO 8601 if not given",
    )
    timestamp_ntz_format: str | None = Field(
        default=None, description="Java pattern of TIMESTAMP_NTZ; ISO 8601 without a zone if not given"
    )
    time_zone: str = Field(default="UTC", description="Zone of a TIMESTAMP that names none: UTC or Europe/Berlin")
    locale: Literal["en-US", "en", "en_US"] = Field(default="en-US", description="Names of months and days are English")

    @field_validator("date_format", "timestamp_format", "timestamp_ntz_format")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is not None:
            TimePattern.parse(value)
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError) as exc:
            raise ValueError(f"unknown time zone {value!r}; give a name such as Europe/Berlin, or UTC") from exc
        return value


class RecordOptions(TypeOptions):
    """Options of formats whose records can be malformed."""

    mode: Literal["PERMISSIVE", "DROPMALFORMED", "FAILFAST"] = Field(
        default="PERMISSIVE",
        description="A malformed record: its row holds NULLs and its text is rescued; it is left out; or it stops the flow. "
        "A value that does not fit its column makes no record malformed: it is rescued",
    )
    column_name_of_corrupt_record: str = Field(
        default="_corrupt_record",
        min_length=1,
        description="STRING column that takes the text of a malformed record instead of the rescued data, if the schema has "
        "it; an inferred schema has it if this option is given",
    )
    reader_case_sensitive: bool = NamedOptions.model_fields["reader_case_sensitive"]  # type: ignore[assignment]

    @field_validator("mode", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


class JsonOptions(RecordOptions):
    """Options of format json."""

    multi_line: bool = Field(
        default=False,
        description="A file holds documents over any number of lines, or an array of them; else one a line",
    )
    primitives_as_string: bool = Field(default=False, description="Inference makes numbers and booleans STRING")
    prefers_decimal: bool = Field(
        default=False, description="Inference makes fractions DECIMAL where 38 digits hold them all, else DOUBLE"
    )
    drop_field_if_all_null: bool = Field(
        default=False,
        description="Inference leaves out fields that are NULL, [] or {} in all of the sample; else STRING",
    )
    allow_comments: bool = Field(default=False, description="Take // and /* */ comments")
    allow_single_quotes: bool = Field(default=False, description="Take 'text'. Auto Loader: true")
    allow_unquoted_field_names: bool = Field(default=False, description="Take {name: 1}")
    allow_numeric_leading_zeros: bool = Field(default=False, description="Take 007 as 7")
    allow_backslash_escaping_any_character: bool = Field(default=False, description="Take a backslash before any sign")
    allow_unquoted_control_chars: bool = Field(
        default=False, description="Take control characters, as tabs, inside text"
    )
    allow_non_numeric_numbers: bool = Field(
        default=False, description="Take NaN, Infinity and -Infinity as numbers. Auto Loader: true"
    )
    single_variant_column: str | None = Field(
        default=None, min_length=1, description="One STRING column of this name takes each whole document as JSON"
    )

    @property
    def is_lenient(self) -> bool:
        """Whether anything but strict JSON is taken."""
        return any(value for name, value in self if name.startswith("allow_"))


class CsvOptions(RecordOptions):
    """Options of format csv."""

    header: bool = Field(default=True, description="The first record of a file names its columns. Auto Loader: false")
    sep: str = Field(
        default=",", min_length=1, max_length=1, description="Character between two fields; also `delimiter`"
    )
    quote: str = Field(default='"', max_length=1, description="Character around a field; empty for none")
    escape: str = Field(
        default="",
        max_length=1,
        description="Character that takes the next one literally; empty: a quote is doubled. Auto Loader: backslash",
    )
    comment: str = Field(default="", max_length=1, description="Lines that begin with this character are left out")
    null_value: str = Field(default="", description="Unquoted text that stands for NULL")
    empty_value: str = Field(default="", description="What a quoted empty field stands for in a STRING column")
    nan_value: str = Field(default="NaN", description="Text of a DOUBLE that is no number")
    positive_inf: str = Field(default="Inf", description="Text of an infinite DOUBLE")
    negative_inf: str = Field(default="-Inf", description="Text of a negative infinite DOUBLE")
    skip_rows: int = Field(default=0, ge=0, description="Lines at the beginning of each file to leave out")
    ignore_leading_white_space: bool = Field(default=False, description="White space before a field does not count")
    ignore_trailing_white_space: bool = Field(default=False, description="White space after a field does not count")
    multi_line: Literal[True] = Field(
        default=True, description="A quoted field may hold line breaks; it always may. Auto Loader: false"
    )
    merge_schema: bool = MergedOptions.model_fields["merge_schema"]  # type: ignore[assignment]
    max_columns: int = Field(default=20_480, ge=1, description="Most columns of a file; one with more is unreadable")
    max_chars_per_column: int = Field(default=-1, ge=-1, description="Longer values are rescued; -1 for no limit")
    prefer_date: bool = Field(default=True, description="Inference makes dates DATE; else TIMESTAMP")
    unescaped_quote_handling: Literal["STOP_AT_DELIMITER"] = Field(
        default="STOP_AT_DELIMITER",
        description="A quote inside an unquoted field is part of it; others are not available",
    )

    @field_validator("sep", "quote", "escape", "comment")
    @classmethod
    def _one_byte(cls, value: str) -> str:
        if not value.isascii() or value in ("\n", "\r"):
            raise ValueError("must be one ASCII character, and not a line break")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> CsvOptions:
        signs = {name: getattr(self, name) for name in ("sep", "quote", "comment")}
        given = [(name, sign) for name, sign in signs.items() if sign]
        for index, (name, sign) in enumerate(given):
            for other, same in given[index + 1 :]:
                if sign == same:
                    raise ValueError(f"{name} and {other} are both {sign!r}; give them different characters")
        if self.escape and self.escape == self.sep:
            raise ValueError(f"escape and sep are both {self.sep!r}; give them different characters")
        return self


class XmlOptions(RecordOptions):
    """Options of format xml."""

    row_tag: str = Field(min_length=1, pattern=r"^[^\s<>/&'\"=]+$", description="Element that is a row; required")
    attribute_prefix: str = Field(default="_", description="Put before an attribute's name to make its column's")
    value_tag: str = Field(
        default="_VALUE", min_length=1, description="Column of the text of an element with attributes or children"
    )
    exclude_attribute: bool = Field(default=False, description="Attributes are left out")
    ignore_surrounding_spaces: bool = Field(default=True, description="White space around a text does not count")
    ignore_namespace: bool = Field(default=False, description="Prefixes of names are left out")
    infer_schema: bool = Field(default=True, description="Inference looks for types; else every plain value is STRING")
    null_value: str | None = Field(default=None, description="Text that stands for NULL")
    prefer_date: bool = Field(default=True, description="Inference makes dates DATE; else TIMESTAMP")
    single_variant_column: str | None = Field(
        default=None, min_length=1, description="One STRING column of this name takes each whole row as JSON"
    )


class ParquetOptions(MergedOptions):
    """Options of format parquet."""

    datetime_rebase_mode: Literal["CORRECTED"] = Field(
        default="CORRECTED",
        description="Dates and timestamps as they stand, in the calendar of today; no engine here moves those of the Julian "
        "calendar. Auto Loader: LEGACY",
    )
    int96_rebase_mode: Literal["CORRECTED"] = Field(
        default="CORRECTED", description="INT96 timestamps as they stand, to the microsecond. Auto Loader: LEGACY"
    )


class OrcOptions(MergedOptions):
    """Options of format orc."""


class AvroOptions(MergedOptions):
    """Options of format avro."""

    avro_schema: str | None = Field(
        default=None, description="Reader schema as JSON, into which each file's own is resolved by the rules of Avro"
    )
    datetime_rebase_mode: Literal["CORRECTED"] = Field(
        default="CORRECTED",
        description="Dates and timestamps as they stand, in the calendar of today. Auto Loader: LEGACY",
    )

    @field_validator("avro_schema", mode="before")
    @classmethod
    def _is_json(cls, value: Any) -> Any:
        import json

        if isinstance(value, Mapping):
            return json.dumps(value)
        if isinstance(value, str):
            json.loads(value)
        return value


class TextOptions(EncodedOptions):
    """Options of format text: one column, ``value``."""

    whole_text: bool = Field(default=False, description="A file is one row; else each line is")
    line_sep: str | None = Field(
        default=None, min_length=1, max_length=64, description=r"Text between two lines; \n, \r\n and \r if not given"
    )

    @model_validator(mode="after")
    def _one_way(self) -> TextOptions:
        if self.whole_text and self.line_sep is not None:
            raise ValueError("whole_text=True and line_sep contradict each other; give one of them")
        return self


class BinaryFileOptions(FormatOptions):
    """Options of format binaryfile: none. Columns are path, modificationTime, length, content, as Spark names them."""


OPTIONS: Final[Mapping[str, type[FormatOptions]]] = MappingProxyType(
    {
        "json": JsonOptions,
        "csv": CsvOptions,
        "parquet": ParquetOptions,
        "avro": AvroOptions,
        "orc": OrcOptions,
        "text": TextOptions,
        "binaryfile": BinaryFileOptions,
        "xml": XmlOptions,
    }
)

# Options that Auto Loader has and that cannot work here, and what to do instead.
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bad_records_path": "Malformed records are rows here: see mode, column_name_of_corrupt_record and _rescued_data; "
        "expectations with QUARANTINE keep them in a table",
        "sampling_ratio": "The sample is bounded by schema_inference_files and schema_inference_bytes",
        "row_validation_xsd_path": "There is no XSD engine; check rows by expectations",
        "char_to_escape_quote_escaping": "An escape character takes any next character literally, itself included",
        "enforce_schema": "Columns of a file go by the names of its header; without one by their places",
        "schema_location": "The inferred schema lives with the pipeline's own state",
    }
)
