"""Parquet: rows of a file in its own schema, then fitted to the source's columns without any loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors.files.formats.csv_records import unique_names
from connectors.files.rescued import json_texts, objects
from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import cast_exact

__all__ = ["ParquetRows"]


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The parquet format of one source.

    Attributes:
        schema: Columns to make, in order.
        has_rescued: Whether ``_rescued_data`` is made too; if not, only the columns of the schema are read.
        max_rows: Most rows read at a time.
        max_bytes: About how many bytes are read at a time.
    """

    schema: pa.Schema
    has_rescued: bool = True
    max_rows: int = 100_000
    max_bytes: int = 32 << 20

    def split(self, contents: Sequence[bytes]) -> list[pa.Table]:
        """Return the rows of each whole file."""
        result = []
        for content in contents:
            file = pq.ParquetFile(pa.BufferReader(content))
            table = file.read(columns=self._wanted(file.schema_arrow), use_threads=False)
            result.append(table.rename_columns(unique_names(table.column_names)))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Table]:
        """Yield the rows of one file in blocks, from row ``skip_rows`` on.

        Raises:
            EOFError: The file holds fewer than ``skip_rows`` rows; the argument is how many.
        """
        file = pq.ParquetFile(stream, pre_buffer=False)
        footer = file.metadata
        if footer.num_rows < skip_rows:
            raise EOFError(footer.num_rows)
        groups, skip = list(range(footer.num_row_groups)), skip_rows
        while groups and footer.row_group(groups[0]).num_rows <= skip:
            skip -= footer.row_group(groups.pop(0)).num_rows
        wanted = self._wanted(file.schema_arrow)
        for batch in (
            file.iter_batches(self._rows_at_a_time(footer), row_groups=groups, columns=wanted) if groups else ()
        ):
            drop = min(skip, len(batch))
            skip -= drop
            if drop < len(batch):
                table = pa.Table.from_batches([batch.slice(drop)])
                yield table.rename_columns(unique_names(table.column_names))

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return rows fitted to the schema, with ``_rescued_data``."""
        groups: list[list[pa.Table]] = []
        for table in tables:
            if groups and groups[-1][0].schema.equals(table.schema):
                groups[-1].append(table)
            else:
                groups.append([table])
        return pa.concat_tables([self._fitted(pa.concat_tables(group)) for group in groups])

    def _rows_at_a_time(self, footer: pq.FileMetaData) -> int:
        size: int = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
        row_bytes = max(1, size // max(1, int(footer.num_rows)))
        return max(1, min(self.max_rows, self.max_bytes // row_bytes))

    def _wanted(self, schema: pa.Schema) -> list[str] | None:
        if self.has_rescued:
            return None
        return [name for name in schema.names if name in self.schema.names] or schema.names[:1]

    def _fitted(self, table: pa.Table) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        problems: dict[str, pa.Array] = {}
        for name in table.column_names:
            values = table.column(name).combine_chunks()
            if isinstance(values, pa.ChunkedArray):
                values = pa.concat_arrays(values.chunks)
            index = self.schema.get_field_index(name)
            if index < 0:
                lost = values.is_valid()
            else:
                columns[name], lost = _fit(values, self.schema.field(index))
            if self.has_rescued and pc.any(lost).as_py():
                problems[name] = json_texts(_only(values, lost))
        arrays = [columns.get(column.name) for column in self.schema]
        arrays = [pa.nulls(len(table), f.type) if a is None else a for a, f in zip(arrays, self.schema, strict=True)]
        if not self.has_rescued:
            return pa.table(arrays, schema=self.schema)
        fields = [*self.schema, pa.field("_rescued_data", pa.string())]
        return pa.table([*arrays, objects(problems, len(table))], schema=pa.schema(fields))


def _only(values: pa.Array, mask: pa.Array) -> pa.Array:
    """Return ``values`` where ``mask`` is true, NULL elsewhere; for any type."""
    indices = pc.if_else(mask, pa.array(range(len(values)), pa.int64()), pa.scalar(None, pa.int64()))
    return values.take(indices)


def _fit(values: pa.Array, field: pa.Field) -> tuple[pa.Array, pa.Array]:
    """Return the values in the field's type, NULL where they do not fit, and which ones did not."""
    if values.type.equals(field.type):
        return values, pa.repeat(False, len(values))
    try:
        return _exact(values, field), pa.repeat(False, len(values))
    except SchemaError as error:
        if error.code != "SCHEMA_LOSSY_CAST":
            return pa.nulls(len(values), field.type), values.is_valid()
    likely = _likely_exact(values, field.type)
    fitted = _by_halves(_only(values, likely), field)
    return fitted, pc.and_(values.is_valid(), fitted.is_null())


def _exact(values: pa.Array, field: pa.Field) -> pa.Array:
    column = cast_exact(pa.table({field.name: values}), pa.schema([field]), what="a batch").column(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def _likely_exact(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return which values come back from ``kind`` unchanged, where that can be asked; else all."""
    try:
        back = values.cast(kind, safe=False).cast(values.type, safe=False)
        return pc.fill_null(pc.equal(values, back), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return values.is_valid()


def _by_halves(values: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return _exact(values, field)
    except SchemaError:
        if len(values) == 1:
            return pa.nulls(1, field.type)
        half = len(values) // 2
        return pa.concat_arrays([_by_halves(values[:half], field), _by_halves(values[half:], field)])
