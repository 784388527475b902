"""Which format a source has; called by the connector for each reader. A format is imported when a source has it."""

from __future__ import annotations

import pyarrow as pa

from connectors.files.formats.protocol import Format
from connectors.files.options import (
    AvroOptions,
    CsvOptions,
    JsonOptions,
    OrcOptions,
    ParquetOptions,
    TextOptions,
    XmlOptions,
)
from connectors.files.settings import FilesSettings

__all__ = ["make_format"]


def make_format(settings: FilesSettings, schema: pa.Schema, *, has_rescued: bool) -> Format:
    """Return the format of ``settings`` that makes the columns of ``schema``.

    Raises:
        SchemaError: A column that the format cannot hold. Not retryable.
        UsageError: ``EXTRA_MISSING``: the format needs a package that is not installed. Not retryable.
    """
    options = settings.options
    if isinstance(options, (ParquetOptions, OrcOptions, AvroOptions)):
        return _typed_format(settings, options, schema, has_rescued=has_rescued)
    if isinstance(options, CsvOptions):
        from connectors.files.formats.csv_records import CsvRecords

        return CsvRecords(options, schema, has_rescued)
    if isinstance(options, XmlOptions):
        from connectors.files.formats.xml_rows import XmlRows

        return XmlRows(options, schema, has_rescued=has_rescued)
    if isinstance(options, TextOptions):
        from connectors.files.formats.text_rows import TextRows

        return TextRows(options, schema, has_rescued=has_rescued)
    if isinstance(options, JsonOptions):
        return _json_format(options, schema, has_rescued=has_rescued)
    from connectors.files.formats.binary_file import BinaryFile

    return BinaryFile(schema, has_rescued=has_rescued)


def _json_format(options: JsonOptions, schema: pa.Schema, *, has_rescued: bool) -> Format:
    from connectors.files.formats.json_documents import JsonDocuments
    from connectors.files.formats.json_lines import JsonLines
    from connectors.files.formats.json_values import JsonValues

    values = JsonValues(options, schema, has_rescued=has_rescued)
    return JsonDocuments(options, values) if options.multi_line else JsonLines(options, values)


def _typed_format(
    settings: FilesSettings, options: ParquetOptions | OrcOptions | AvroOptions, schema: pa.Schema, *, has_rescued: bool
) -> Format:
    from connectors.files.formats.columns import ColumnFitter

    fitter = ColumnFitter(schema, has_rescued, options.reader_case_sensitive)
    if isinstance(options, ParquetOptions):
        from connectors.files.formats.parquet_rows import ParquetRows

        return ParquetRows(fitter, settings.max_rows_per_batch, settings.max_bytes_per_batch)
    if isinstance(options, OrcOptions):
        from connectors.files.formats.orc_rows import OrcRows

        return OrcRows(fitter)
    from connectors.files.formats.avro_rows import AvroRows

    return AvroRows(options, fitter)
