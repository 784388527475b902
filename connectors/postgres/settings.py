"""What can be set about a PostgreSQL source; called by ``read_postgres`` and ``PostgresSource``, read by everything else here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, SecretStr, field_validator

from waxlake.stream.delta_table import TableLocation
from waxlake.stream.load_window import LOAD_WINDOW_HELP, checked_window
from waxlake.stream.settings import Duration, Settings

if TYPE_CHECKING:
    from connectors.postgres.connector import PostgresConnector

__all__ = ["PostgresSettings"]

_SLOT = re.compile(r"[a-z0-9_]{1,63}")


class PostgresSettings(Settings):
    """Settings of a PostgreSQL source. All but ``tables`` and ``text_columns`` are shared by the flows over one slot."""

    dsn: SecretStr = Field(description="libpq URI or key=value text; shown nowhere")
    tables: tuple[str, ...] = Field(min_length=1, description="Tables, `schema.table`; `public` if no schema is given")
    slot: str = Field(default="waxlake", description="Replication slot, one a pipeline; created if it is not there")
    publication: str = Field(default="", description="Publication; that of the slot's name if not given")
    create: bool = Field(
        default=True,
        description="Create what is missing: slot, publication, tables in the publication. False only checks and says what is",
    )
    on_missing_key: Literal["fail", "append"] = Field(
        default="fail",
        description="What to do about a table without a key: stop, or take its inserts alone (append-only)",
    )
    on_slot_lost: Literal["fail", "resnapshot"] = Field(
        default="fail",
        description="What to do when the slot no longer has the changes since the last run: stop, or load the tables again",
    )
    initial_load: bool = Field(
        default=True, description="Load the rows that are there before the changes; False: changes only"
    )
    backfill_new_columns: bool = Field(
        default=False,
        description="Load a table again when its target gets a column, so that older rows have it, too; for targets with keys",
    )
    text_columns: tuple[str, ...] = Field(
        default=(), description="Columns taken as text whatever their type, `column` or `schema.table.column`"
    )
    load_chunk_rows: int = Field(default=100_000, ge=1, le=10_000_000, description="Rows in one chunk of a first load")
    load_workers: int = Field(default=2, ge=1, le=16, description="Tables that are loaded at the same time")
    load_snapshot_age: Duration = Field(
        default=60.0,
        ge=0.1,
        le=86_400,
        description="How long one snapshot is held on the source before a new one is taken",
    )
    load_window: str = Field(default="", description=LOAD_WINDOW_HELP)
    max_rows_per_batch: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Most change rows in one micro-batch"
    )
    max_bytes_per_batch: int = Field(
        default=16 << 20, ge=1024, le=1 << 30, description="Bytes of changes after which a micro-batch is closed"
    )
    lag_warning_bytes: int = Field(
        default=1 << 30, ge=1, description="Log bytes that the slot holds back from which on `waxlake status` warns"
    )

    @field_validator("tables", mode="before")
    @classmethod
    def _full_names(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return names
        return tuple(dict.fromkeys(name if "." in name else f"public.{name}" for name in names))

    @field_validator("load_window")
    @classmethod
    def _valid_window(cls, value: str) -> str:
        return checked_window(value)

    @field_validator("slot")
    @classmethod
    def _valid_slot(cls, value: str) -> str:
        if not _SLOT.fullmatch(value):
            raise ValueError(f"{value!r} is no slot name: lower-case letters, digits and '_', 63 at most")
        return value

    @property
    def publication_name(self) -> str:
        """The publication of tables with a key."""
        return self.publication or self.slot

    @property
    def append_publication_name(self) -> str:
        """The publication of tables without a key: it leaves out updates and deletes, which the source would refuse."""
        return f"{self.publication_name}_append"

    @property
    def label(self) -> str:
        """What users call it: ``postgres:`` and the tables."""
        return f"postgres:{','.join(self.tables)}"

    def connector(self, ledger: Callable[[str], TableLocation]) -> PostgresConnector:
        """Return the connector; ``ledger`` finds a place for its ledger."""
        from connectors.postgres.connector import PostgresConnector

        return PostgresConnector(self, ledger(f"postgres-{self.slot}"))

    def is_text(self, table: str, column: str) -> bool:
        """Return whether a column is to be taken as text."""
        return column in self.text_columns or f"{table}.{column}" in self.text_columns
