"""The data files that a snapshot of a table holds, as its log describes them. Called by whoever prunes or replaces files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.transaction import RemoveAction

from sinks.delta.parquet import partition_string

__all__ = ["StoredFile", "stored_files", "stored_paths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One data file of a snapshot.

    Attributes:
        path: Path as the log writes it, relative to the table and percent-encoded.
        size_bytes: Size of the file.
        rows: Rows in it; None if the log does not say.
        partition: Partition column to its value, in the column's type.
        low: Column to a lower bound of its values; a column without bounds is missing.
        high: Column to an upper bound.
        nulls: Column to its number of NULLs.
    """

    path: str
    size_bytes: int
    rows: int | None = None
    partition: Mapping[str, Any] = field(default_factory=dict)
    low: Mapping[str, Any] = field(default_factory=dict)
    high: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, int] = field(default_factory=dict)

    @property
    def file_path(self) -> str:
        """Path in the table's folder."""
        return unquote(self.path)

    def removal(self, *, changes_rows: bool = True) -> RemoveAction:
        """Return the action that removes the file from the table. The file itself stays until a vacuum.

        Args:
            changes_rows: Whether rows leave the table with it; False where other files hold the same rows.
        """
        partition = {name: partition_string(value) for name, value in self.partition.items()}
        return RemoveAction(self.file_path, changes_rows, int(time.time() * 1000), self.size_bytes, partition)


def stored_files(handle: DeltaTable, *, below_bytes: int | None = None) -> list[StoredFile]:
    """Return every data file of a snapshot, with the bounds its log holds; only those smaller than ``below_bytes`` if given."""
    actions = pa.table(handle.get_add_actions(flatten=False))
    if below_bytes is not None:
        actions = actions.filter(pc.less(actions.column("size_bytes"), below_bytes))
    return [
        StoredFile(
            path=row["path"],
            size_bytes=row["size_bytes"],
            rows=row.get("num_records"),
            partition=row.get("partition") or {},
            low=_known(row.get("min")),
            high=_known(row.get("max")),
            nulls=_known(row.get("null_count")),
        )
        for row in actions.to_pylist()
    ]


def stored_paths(handle: DeltaTable) -> frozenset[str]:
    """Return the path of every data file of a snapshot, as the log writes it."""
    return frozenset(pa.table(handle.get_add_actions(flatten=False)).column("path").to_pylist())


def _known(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}
