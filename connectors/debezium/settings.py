"""What can be set about Debezium events; called by ``read_debezium``, read by everything else here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator, model_validator

from connectors.debezium.types import SEMANTIC_TYPES, short_name
from connectors.json_records import RESCUED
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import UsageError
from waxlake.stream.schema import delta_schema
from waxlake.stream.settings import Settings, nearest

__all__ = ["DebeziumSettings"]

_PLACEHOLDER: Final = "__debezium_unavailable_value"


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, set)) else value


def _pairs(value: object) -> object:
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


class DebeziumSettings(Settings):
    """How Debezium was told to write its events, and the columns of the table that is read from them."""

    declared_schema: str | pa.Schema | None = Field(
        default=None, alias="schema", description="Columns of the table, as DDL text or a pyarrow schema; required"
    )
    tables: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        default=(),
        description="Tables to take, as schema.table (database.table for MySQL); * stands for any signs. All by default",
    )
    types: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)] = Field(
        default=(),
        description="Column to Debezium's type of it, such as MicroTimestamp, for events that carry no schema: a number in a "
        "TIMESTAMP column says nothing of its unit. An event's own schema comes first",
    )
    decimal_handling_mode: Literal["precise", "string", "double"] = Field(
        default="precise",
        description="As set in Debezium; looked at where events carry no schema. precise: base64 of the unscaled value, whose "
        "scale is that of the declared DECIMAL",
    )
    unavailable_value_placeholder: str = Field(
        default=_PLACEHOLDER,
        min_length=1,
        description="As set in Debezium: what stands for a value that did not change",
    )

    @field_validator("types")
    @classmethod
    def _known_types(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for _, kind in value:
            if short_name(kind) not in SEMANTIC_TYPES:
                raise ValueError(
                    f"{kind!r} is no type of Debezium's that needs naming. {nearest(kind, SEMANTIC_TYPES)}"
                )
        return tuple((column, short_name(kind)) for column, kind in value)

    @model_validator(mode="after")
    def _has_schema(self) -> DebeziumSettings:
        if self.declared_schema is None:
            raise UsageError(
                "cannot read Debezium events without the columns of their table",
                code="DEBEZIUM_SCHEMA_MISSING",
                remedy="Give schema='id BIGINT, name STRING, ...'; what it does not name goes to _rescued_data",
            )
        names = parse_ddl(self.declared_schema).names
        taken = sorted(set(names) & {*CHANGE_COLUMNS.names, RESCUED})
        if taken:
            raise UsageError(
                f"cannot read Debezium events with a column named {taken[0]!r}",
                code="DEBEZIUM_SCHEMA_RESERVED",
                expected=f"other names than {', '.join((*CHANGE_COLUMNS.names, RESCUED))}",
                remedy="Waxlake fills these. Leave it out of the schema",
            )
        for column, _ in self.types:
            if column not in names:
                raise UsageError(
                    f"types= names an unknown column {column!r}",
                    code="DEBEZIUM_TYPES",
                    remedy=nearest(column, names),
                )
        return self

    @property
    def schema_of_rows(self) -> pa.Schema:
        """The declared columns, with Delta's types, all nullable: a delete may carry keys only."""
        assert self.declared_schema is not None
        return pa.schema([f.with_nullable(True) for f in delta_schema(parse_ddl(self.declared_schema))])

    @property
    def table_pattern(self) -> str | None:
        """A regular expression that the names of wanted tables match in full, or None for all tables."""
        if not self.tables:
            return None
        parts = [re.escape(name).replace(r"\*", ".*") if "*" in name else re.escape(name) for name in self.tables]
        return "|".join(parts)
