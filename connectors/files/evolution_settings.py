"""The setting of what a files source does about new columns; a part of ``FilesSettings``."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

from pydantic import Field, field_validator

from waxlake.stream.settings import Settings

__all__ = ["EvolutionMode", "EvolutionSettings"]

EvolutionMode: TypeAlias = Literal[
    "add_new_columns", "add_new_columns_with_type_widening", "rescue", "fail_on_new_columns", "none"
]
_CAPITAL: Final = re.compile(r"(?<=[a-z])[A-Z]")


class EvolutionSettings(Settings):
    """What becomes of fields that the schema does not have."""

    schema_evolution_mode: EvolutionMode | None = Field(
        default=None,
        description="What to do about fields that the schema does not have: add_new_columns (the default where the schema is "
        "inferred), add_new_columns_with_type_widening, rescue, fail_on_new_columns, none (the default where it is declared)",
    )

    @field_validator("schema_evolution_mode", mode="before")
    @classmethod
    def _databricks_spelling(cls, value: object) -> object:
        return _CAPITAL.sub(lambda sign: f"_{sign[0].lower()}", value) if isinstance(value, str) else value
