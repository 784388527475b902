"""Where rows come from: the path in ``_rescued_data`` and the ``_metadata`` column; used by the reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from connectors.files.rescued import with_file_path
from connectors.files.store import FoundFile

__all__ = ["METADATA_TYPE", "Provenance"]

METADATA_TYPE: Final = pa.struct(
    [
        ("file_path", pa.string()),
        ("file_name", pa.string()),
        ("file_size", pa.int64()),
        ("file_modification_time", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Adds to decoded rows what only their files tell.

    Attributes:
        has_metadata: Whether ``_metadata`` is made.
    """

    has_metadata: bool

    def add(self, table: pa.Table, files: Sequence[FoundFile], owners: pa.Array) -> pa.Table:
        """Return the rows with the columns that their files give.

        Args:
            table: Decoded rows, shape (n_rows, n_columns).
            files: The files they come from.
            owners: Index of each row's file, shape (n_rows,).
        """
        index = table.schema.get_field_index("_rescued_data")
        if index >= 0 and table.column(index).null_count < len(table):
            rescued = table.column(index).combine_chunks()
            paths = pa.array([file.path for file in files], pa.string()).take(owners)
            table = table.set_column(index, table.schema.field(index), with_file_path(rescued, paths))
        if self.has_metadata:
            table = table.append_column("_metadata", _metadata(files).take(owners))
        return table


def _metadata(files: Sequence[FoundFile]) -> pa.Array:
    columns = [
        pa.array([file.path for file in files], pa.string()),
        pa.array([file.path.rpartition("/")[2] for file in files], pa.string()),
        pa.array([file.size_bytes for file in files], pa.int64()),
        pa.array([file.modified_us for file in files], pa.int64()).cast(METADATA_TYPE.field(3).type),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(METADATA_TYPE))
