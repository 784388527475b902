"""Parquet: rows of a file in its own schema, read a few row groups at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.files.formats.columns import ColumnFitter
from waxlake.stream.schema import no_rows

__all__ = ["ParquetRows", "parquet_schema"]


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The parquet format of one source.

    Attributes:
        fitter: Fits rows to the source's columns; without rescued data only those columns are read.
        max_rows: Most rows read at a time.
        max_bytes: About how many bytes are read at a time.
    """

    fitter: ColumnFitter
    max_rows: int = 100_000
    max_bytes: int = 32 << 20

    def split(self, contents: Sequence[bytes]) -> list[pa.Table]:
        """Return the rows of each whole file."""
        result = []
        for content in contents:
            file = _open(pa.BufferReader(content))
            table = file.read(columns=self.fitter.wanted(file.schema_arrow), use_threads=False)
            result.append(self.fitter.named(_with_instants(table, file)))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Table]:
        """Yield the rows of one file in blocks, from row ``skip_rows`` on.

        Raises:
            EOFError: The file holds fewer than ``skip_rows`` rows; the argument is how many.
        """
        file = _open(stream)
        footer = file.metadata
        if footer.num_rows < skip_rows:
            raise EOFError(footer.num_rows)
        groups, skip = list(range(footer.num_row_groups)), skip_rows
        while groups and footer.row_group(groups[0]).num_rows <= skip:
            skip -= footer.row_group(groups.pop(0)).num_rows
        wanted = self.fitter.wanted(file.schema_arrow)
        for batch in (
            file.iter_batches(self._rows_at_a_time(footer), row_groups=groups, columns=wanted) if groups else ()
        ):
            drop = min(skip, len(batch))
            skip -= drop
            if drop < len(batch):
                yield self.fitter.named(_with_instants(pa.Table.from_batches([batch.slice(drop)]), file))

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return rows fitted to the schema, with ``_rescued_data``."""
        return self.fitter.decode(tables)

    def _rows_at_a_time(self, footer: pq.FileMetaData) -> int:
        size: int = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
        row_bytes = max(1, size // max(1, int(footer.num_rows)))
        return max(1, min(self.max_rows, self.max_bytes // row_bytes))


def parquet_schema(stream: BinaryIO) -> pa.Schema:
    """Return the columns of a file, from its footer."""
    file = _open(stream)
    return _with_instants(no_rows(file.schema_arrow), file).schema


def _open(source: object) -> pq.ParquetFile:
    return pq.ParquetFile(source, pre_buffer=False, coerce_int96_timestamp_unit="us")


def _with_instants(table: pa.Table, file: pq.ParquetFile) -> pa.Table:
    """Return the table with INT96 columns in UTC: whoever writes them means instants, and the file cannot say so."""
    columns = file.schema
    for index in range(len(columns)):
        column = columns.column(index)
        place = table.schema.get_field_index(column.path)
        if column.physical_type == "INT96" and place >= 0:
            kind = pa.timestamp("us", tz="UTC")
            table = table.set_column(place, pa.field(column.path, kind), table.column(place).cast(kind))
    return table
