"""What only files tell of their rows: paths in ``_rescued_data``, ``_metadata``, folders named ``k=v``; used by the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.malformed import MALFORMED
from connectors.files.found import FoundFiles
from connectors.files.options import BinaryFileOptions, RecordOptions
from connectors.files.partition_columns import PartitionColumns
from connectors.files.rescued import json_quote, merged, objects, with_file_path
from connectors.files.settings import FilesSettings
from waxlake.stream.errors import TerminalError, shorten

__all__ = ["METADATA_TYPE", "RESCUED", "Provenance"]

RESCUED: Final = "_rescued_data"  # as formats call it; the user may call it otherwise

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
    """Adds to decoded rows what only their files tell, and takes out the records that are not to stay.

    Attributes:
        settings: The source's settings.
        partitions: Columns from folders named ``k=v``.
        has_metadata: Whether ``_metadata`` is made.
    """

    settings: FilesSettings
    partitions: PartitionColumns
    has_metadata: bool

    def add(self, table: pa.Table, files: FoundFiles, owners: pa.Array) -> pa.Table:
        """Return the rows with the columns that their files give.

        Args:
            table: Decoded rows, shape (n_rows, n_columns).
            files: The files they come from.
            owners: Index of each row's file, shape (n_rows,).

        Raises:
            TerminalError: ``FILE_RECORD_MALFORMED`` in mode FAILFAST. Not retryable.
        """
        if MALFORMED in table.column_names:
            table, owners = self._well_formed(table, files, owners)
        if isinstance(self.settings.options, BinaryFileOptions):
            table = _with_file_columns(table, files, owners)
        paths = files.paths
        table, lost = self.partitions.fill(table, paths, owners)
        table = self._with_rescued(table, lost, paths, owners)
        if self.has_metadata:
            table = table.append_column("_metadata", _metadata(files).take(owners))
        return table

    def _with_rescued(
        self, table: pa.Table, lost: Mapping[str, pa.Array], paths: Sequence[str], owners: pa.Array
    ) -> pa.Table:
        index = table.schema.get_field_index(RESCUED)
        if index < 0:
            return table
        column = table.column(index)
        if lost:
            members = {name: json_quote(texts) for name, texts in lost.items()}
            column = pa.chunked_array([merged(column.combine_chunks(), objects(members, len(table)))])
        if column.null_count < len(table):
            names = pa.array(paths, pa.string()).take(owners)
            column = pa.chunked_array([with_file_path(column.combine_chunks(), names)])
        field = pa.field(self.settings.rescued_data_column, pa.string())
        is_same = column is table.column(index) and field.name == RESCUED
        return table if is_same else table.set_column(index, field, column)

    def _well_formed(self, table: pa.Table, files: FoundFiles, owners: pa.Array) -> tuple[pa.Table, pa.Array]:
        """Return the rows, and their files, without those of malformed records."""
        is_bad = table.column(MALFORMED).combine_chunks()
        table = table.drop_columns([MALFORMED])
        if not pc.any(is_bad).as_py():
            return table, owners
        if isinstance(self.settings.options, RecordOptions) and self.settings.options.mode == "FAILFAST":
            row = pc.index(is_bad, True).as_py()
            raise TerminalError(
                f"cannot take a record of file '{files.paths[owners[row].as_py()]}'",
                code="FILE_RECORD_MALFORMED",
                found=f"{pc.sum(is_bad).as_py()} malformed in this batch, such as {_sample(table, row)}",
                expected="well-formed records, as mode='FAILFAST' says",
                remedy="Repair the file, or set mode='PERMISSIVE' to rescue such records, 'DROPMALFORMED' to leave them out",
            )
        keep = pc.invert(is_bad)
        return table.filter(keep), owners.filter(keep)


def _sample(table: pa.Table, row: int) -> str:
    index = table.schema.get_field_index(RESCUED)
    value = table.column(index)[row].as_py() if index >= 0 else None
    return shorten(value, 100) if value else "one of its rows"


def _with_file_columns(table: pa.Table, files: FoundFiles, owners: pa.Array) -> pa.Table:
    """Return rows of format binaryfile with what the store knows of each file."""
    instants = pa.array(files.modified_us).cast(METADATA_TYPE.field(3).type)
    known = {
        "path": pa.array(files.paths, pa.string()),
        "modificationTime": instants,
        "length": pa.array(files.size_bytes),
    }
    for name, values in known.items():
        index = table.schema.get_field_index(name)
        if index >= 0:
            table = table.set_column(index, table.schema.field(index), values.take(owners))
    return table


def _metadata(files: FoundFiles) -> pa.Array:
    columns = [
        pa.array(files.paths, pa.string()),
        pa.array([path.rpartition("/")[2] for path in files.paths], pa.string()),
        pa.array(files.size_bytes),
        pa.array(files.modified_us).cast(METADATA_TYPE.field(3).type),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(METADATA_TYPE))
