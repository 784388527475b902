"""What can be set about a query source; called by ``read_query`` and ``QuerySource``, read by everything else here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, SecretStr, model_validator

from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import Duration, Settings

if TYPE_CHECKING:
    from connectors.query.connector import QueryConnector

__all__ = ["QuerySettings"]


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, set)) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class QuerySettings(Settings):
    """Settings of a query source; equal settings are equal objects, so that two tables can share one read."""

    url: SecretStr = Field(description="URL of the database as SQLAlchemy takes it, or duckdb:///path. Shown nowhere")
    table: str | None = Field(default=None, min_length=1, description="Table or view, name or schema.name")
    query: str | None = Field(default=None, min_length=1, description="A SELECT, instead of a table; needs schema=")
    cursor: Names = Field(
        min_length=1,
        description="Column that grows with every change of a row; several stand for the first of them that is not NULL",
    )
    key: Names = Field(default=(), description="Columns that identify a row; a table's primary key by default")
    declared_schema: str | pa.Schema | None = Field(
        default=None, alias="schema", description="Columns, as DDL or a pyarrow schema; a table's own by default"
    )
    look_back: Annotated[Duration | None, Field(ge=0)] = Field(
        default=None,
        description="How far below the highest cursor each poll looks again for rows that were committed late: a duration for "
        "times (1 minute by default), a number for numbers (1000 by default)",
    )
    null_cursors: Literal["scan", "ignore"] = Field(
        default="scan", description="Rows whose cursor is NULL: all of them are looked at in every poll, or none ever"
    )
    deletion_condition: str | None = Field(
        default=None, min_length=1, description="SQL condition on a row that says it is deleted (soft delete)"
    )
    detect_deletes_every: Annotated[Duration | None, Field(ge=0)] = Field(
        default=None,
        description="How often all keys are read to find rows that are gone (hard delete); never by default",
    )
    row_filter: str | None = Field(default=None, min_length=1, description="SQL condition on the rows to read")
    include_columns: Names = Field(default=(), description="Columns to read; those that come later are left out")
    exclude_columns: Names = Field(default=(), description="Columns not to read; those that come later are read")
    backfill_new_columns: bool = Field(
        default=False,
        description="Read all rows again when a column is read for the first time, so that old rows get it too",
    )
    max_rows_per_batch: int = Field(default=50_000, ge=1, le=1_000_000, description="Most rows of one SELECT")
    poll_interval: Annotated[Duration, Field(ge=0.01, le=86_400)] = Field(
        default=10.0, description="Time between two polls in a continuous run"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> QuerySettings:
        if (self.table is None) == (self.query is None):
            raise UsageError(
                "read_query() takes either a table or a query", code="QUERY_TARGET", expected="one of them"
            )
        if self.query is not None and self.declared_schema is None:
            raise UsageError(
                "cannot read a query without the columns that it gives",
                code="QUERY_SCHEMA_MISSING",
                remedy="Give schema='id BIGINT, updated_at TIMESTAMP, ...'",
            )
        if self.query is not None and not self.key:
            raise UsageError("cannot read a query without key=", code="QUERY_KEY_MISSING")
        if self.include_columns and self.exclude_columns:
            raise UsageError(
                "read_query() takes include_columns or exclude_columns",
                code="QUERY_COLUMNS",
                found="both",
                remedy="include_columns leaves out what comes later, exclude_columns takes it",
            )
        return self

    @property
    def dialect(self) -> str:
        """What kind of database it is, as the URL says."""
        return self.url.get_secret_value().partition(":")[0].partition("+")[0]

    @property
    def what(self) -> str:
        """Table, or a short name of the query."""
        if self.table is not None:
            return self.table
        return f"query-{hashlib.sha256(str(self.query).encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """What users call it, without secrets."""
        return f"query:{self.what}"

    def connector(self, ledger: Callable[[str], TableLocation]) -> QueryConnector:
        """Return the connector; ``ledger`` finds a place for its ledger.

        Two sources with the same rows and the same cursor have the same ledger; what else is set does not matter.
        """
        from connectors.query.connector import QueryConnector

        place = re.sub(
            r"//[^/]*@", "//", self.url.get_secret_value().partition("?")[0]
        )  # a new password changes nothing
        rows = (self.table, self.query, self.cursor, self.key, self.row_filter, self.look_back, self.deletion_condition)
        parts = (place, *rows, self.include_columns, self.exclude_columns)
        return QueryConnector(self, ledger(f"query-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"))

    def takes(self, column: str) -> bool:
        """Return whether a column is to be read."""
        if self.include_columns:
            return column in self.include_columns
        return column not in self.exclude_columns
