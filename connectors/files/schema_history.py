"""The schemas that a files source has had, beside its ledger: a Delta table with one row a version, oldest first.

The ledger itself remembers the first inferred schema; this table is made when that one grows for the first time. A version is
appended before any row is emitted that needs it. Where a crash can fall: before the commit, then the column is found again;
after it, then the next run starts with it. Of two runs that append at once one fails and merges its columns into what the
other has stored, so that a version holds all columns of those before it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from waxlake.stream.clock import utc_now
from waxlake.stream.ddl import parse_ddl, to_ddl
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.growth import added_fields, merge_schemas

__all__ = ["SchemaHistory", "SchemaVersion"]

_COLUMNS: Final = pa.schema(
    [
        pa.field("version", pa.int64(), metadata={"comment": "0 is the first schema"}),
        pa.field("schema", pa.string(), metadata={"comment": "All columns, as DDL"}),
        pa.field("added", pa.string(), metadata={"comment": "Columns and nested fields that are new in it, as DDL"}),
        pa.field("file", pa.string(), metadata={"comment": "File in which they were first seen; NULL for version 0"}),
        pa.field("changed_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "When it was stored"}),
    ]
)
_APP: Final = "waxlake/schemas"
_ATTEMPTS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """A schema that the source had from some moment on.

    Attributes:
        number: Its version (>= 0).
        ddl: All columns, as DDL.
        added: What is new in it: paths and types as DDL.
        file: Path of the file that brought it; empty for the first.
        changed_at: When it was stored; None where nobody knows.
    """

    number: int
    ddl: str
    added: str
    file: str
    changed_at: datetime | None

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return pa.schema([field.with_nullable(True) for field in parse_ddl(self.ddl)])


class SchemaHistory:
    """The history of one source. Not thread-safe: one user at a time.

    Args:
        ledger: Where the source's ledger lies; the history lies inside its folder.
    """

    def __init__(self, ledger: TableLocation) -> None:
        self._location = replace(ledger, uri=f"{ledger.uri}/_schemas", name=f"schemas of {ledger.label}")

    def versions(self) -> list[SchemaVersion]:
        """Return all versions, oldest first; none if the schema never grew."""
        return _versions(self._location.open()) if self._location.exists() else []

    def grow(self, base: pa.Schema, new: pa.Schema, file: str) -> pa.Schema:
        """Store ``new`` as the next version, unless it is known already, and return all columns.

        Args:
            base: The schema to begin with, if this is the first change.
            new: ``base`` or a later version, with further columns or nested fields.
            file: File in which they were seen.

        Raises:
            TransientError: The store does not answer, or others append all the time. Retryable.
        """
        failpoint("schema-found")
        for attempt in range(_ATTEMPTS):
            if not self._location.exists():
                self._location.create(_COLUMNS, comment="Schemas that a source has had")
            handle = self._location.open()
            known = _versions(handle)
            stored = known[-1].schema if known else base
            grown = merge_schemas(stored, new)
            if known and not added_fields(stored, grown):
                return grown
            first = [] if known else [_row(0, base, [*base], None)]
            last = [_row(len(known) + len(first), grown, added_fields(stored, grown), file)]
            if self._append(handle, first + last):
                failpoint("schema-stored")
                return grown
            time.sleep(min(0.01 * 2**attempt, 0.5))
        raise TransientError(
            f"cannot write '{self._location.label}' after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )

    def _append(self, handle: DeltaTable, rows: list[dict[str, object]]) -> bool:
        """Append from the held snapshot; return False if another run was first."""
        last = int(str(rows[-1]["version"]))
        properties = CommitProperties(app_transactions=[Transaction(_APP, last)])
        try:
            with delta_errors(f"write '{self._location.label}'"):
                table = pa.Table.from_pylist(rows, schema=_COLUMNS)
                write_deltalake(handle, table, mode="append", commit_properties=properties)
        except CommitFailedError:
            return False
        return True


def _versions(handle: DeltaTable) -> list[SchemaVersion]:
    with delta_errors(f"read '{handle.table_uri}'"):
        rows = handle.to_pyarrow_table().sort_by("version").to_pylist()
    return [
        SchemaVersion(
            number=row["version"],
            ddl=row["schema"],
            added=row["added"],
            file=row["file"] or "",
            changed_at=row["changed_at"],
        )
        for row in rows
    ]


def _row(number: int, schema: pa.Schema, added: list[pa.Field], file: str | None) -> dict[str, object]:
    return {
        "version": number,
        "schema": to_ddl(schema),
        "added": to_ddl(pa.schema(added)),
        "file": file,
        "changed_at": utc_now(),
    }
