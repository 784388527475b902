"""Which format a source has; called by the connector for each reader."""

from __future__ import annotations

import pyarrow as pa

from connectors.files.formats.csv_records import CsvRecords
from connectors.files.formats.json_lines import JsonLines
from connectors.files.formats.parquet_rows import ParquetRows
from connectors.files.formats.protocol import Format
from connectors.files.options import CsvOptions, ParquetOptions
from connectors.files.settings import FilesSettings

__all__ = ["make_format"]


def make_format(settings: FilesSettings, schema: pa.Schema, *, has_rescued: bool) -> Format:
    """Return the format of ``settings`` that makes the columns of ``schema``.

    Raises:
        SchemaError: A column that the format cannot hold. Not retryable.
    """
    options = settings.options
    if isinstance(options, CsvOptions):
        return CsvRecords(options, schema, has_rescued)
    if isinstance(options, ParquetOptions):
        return ParquetRows(schema, has_rescued, settings.max_rows_per_batch, settings.max_bytes_per_batch)
    return JsonLines(schema, has_rescued=has_rescued)
