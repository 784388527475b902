"""The schema of files that nobody declared, from a bounded sample; called once, before the ledger is made.

Whatever does not fit the result later goes to ``_rescued_data``, so a narrow sample loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final, TypeVar

import pyarrow as pa

from connectors.files.formats import decompressed
from connectors.files.formats.binary_file import BINARY_FILE_SCHEMA
from connectors.files.formats.text_rows import TEXT_SCHEMA
from connectors.files.options import (
    AvroOptions,
    BinaryFileOptions,
    FormatOptions,
    JsonOptions,
    MergedOptions,
    OrcOptions,
    ParquetOptions,
    RecordOptions,
    TextOptions,
    XmlOptions,
)
from connectors.files.partition_columns import infer_partitions
from connectors.files.sampling import Sample, record_schema
from connectors.files.schema_hints import apply_hints, parse_hints
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, Store
from waxlake.stream.errors import SchemaError, TerminalError, shorten
from waxlake.stream.schema import delta_schema

__all__ = ["infer_schema"]

_T = TypeVar("_T")
_UNREADABLE: Final = (pa.ArrowException, ValueError, OSError, EOFError)


def infer_schema(settings: FilesSettings, store: Store, files: Sequence[FoundFile]) -> pa.Schema | None:
    """Return the columns of a sample of the files; None if they show none.

    Args:
        settings: How to read them, how large the sample is, and hints.
        store: Where they are.
        files: Files that were found; those that are looked at lie evenly spread in order of (modification time, path).

    Raises:
        TerminalError: ``FILE_UNREADABLE``. Not retryable.
        SchemaError: ``SCHEMA_HINT``, a hint that does not fit. Not retryable.
    """
    options = settings.options
    schema = _fixed(options)
    if schema is None:
        schema = _of_files(settings, store, _spread(sorted(files), settings))
        if schema is None or not len(schema):
            return None
    schema = _without_case_twins(schema)
    if isinstance(options, RecordOptions) and "column_name_of_corrupt_record" in options.model_fields_set:
        schema = schema.append(pa.field(options.column_name_of_corrupt_record, pa.string()))
    for field in infer_partitions(settings, [file.path for file in files], store.root, schema.names):
        schema = schema.append(field)
    if settings.schema_hints is not None:
        schema = apply_hints(schema, parse_hints(settings.schema_hints))
    return delta_schema(schema)


def _fixed(options: FormatOptions) -> pa.Schema | None:
    """Return the columns of a format that always has the same."""
    if isinstance(options, TextOptions):
        return TEXT_SCHEMA
    if isinstance(options, BinaryFileOptions):
        return BINARY_FILE_SCHEMA
    if isinstance(options, (JsonOptions, XmlOptions)) and options.single_variant_column is not None:
        return pa.schema([(options.single_variant_column, pa.string())])
    return None


def _spread(files: Sequence[FoundFile], settings: FilesSettings) -> list[FoundFile]:
    """Return the files of the sample, the first and the last among them."""
    merges = getattr(settings.options, "merge_schema", True)
    count, most = len(files), settings.schema_inference_files if merges else 1
    if count <= most:
        return list(files)
    return [files[index * (count - 1) // (most - 1)] for index in range(most)] if most > 1 else [files[0]]


def _of_files(settings: FilesSettings, store: Store, files: Sequence[FoundFile]) -> pa.Schema | None:
    options = settings.options
    if isinstance(options, MergedOptions):
        schemas = _each(settings, store, files, lambda stream: _own_schema(stream, options))
        return _merged(schemas)
    share = max(1, settings.schema_inference_bytes // max(1, len(files)))
    sample = Sample(settings, share)
    samples = _each(settings, store, files, lambda stream: sample.of(stream))
    return record_schema(settings, samples)


def _each(settings: FilesSettings, store: Store, files: Sequence[FoundFile], look: Callable[[Any], _T]) -> Iterator[_T]:
    """Yield what ``look`` makes of each file that is still there."""
    for file in files:
        try:
            opened = store.open(file)
        except (FileGone, FileChanged):
            continue
        try:
            found = look(decompressed(opened.stream, file.path, settings.format))
        except _UNREADABLE as exc:
            raise _unreadable(file, exc) from exc
        finally:
            opened.stream.close()
        yield found


def _own_schema(stream: BinaryIO, options: MergedOptions) -> pa.Schema:
    """Return the columns that a file says it has."""
    if isinstance(options, ParquetOptions):
        from connectors.files.formats.parquet_rows import parquet_schema

        return parquet_schema(stream)
    if isinstance(options, OrcOptions):
        from connectors.files.formats.orc_rows import orc_schema

        return orc_schema(stream)
    assert isinstance(options, AvroOptions)
    from connectors.files.formats.avro_rows import avro_columns

    return avro_columns(stream, options)


def _merged(schemas: Iterator[pa.Schema]) -> pa.Schema | None:
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _wider(fields.get(field.name), _storable(field))
    return pa.schema(fields.values()) if fields else None


def _storable(field: pa.Field) -> pa.Field:
    """Return the field as Delta can hold it; STRING, with values rescued, where it cannot."""
    try:
        return delta_schema(pa.schema([field.remove_metadata()])).field(0).with_nullable(True)
    except SchemaError:
        return pa.field(field.name, pa.string())


def _wider(known: pa.Field | None, new: pa.Field) -> pa.Field:
    if known is None or known.type == new.type:
        return known or new
    try:
        both = [pa.schema([known]), pa.schema([new])]
        return pa.unify_schemas(both, promote_options="permissive").field(0)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return known


def _without_case_twins(schema: pa.Schema) -> pa.Schema:
    """Return the schema with only the first of names that differ in case: a table holds one, the others are rescued."""
    seen: set[str] = set()
    fields = []
    for field in schema:
        if field.name.casefold() not in seen:
            seen.add(field.name.casefold())
            fields.append(_without_nested_twins(field))
    return pa.schema(fields)


def _without_nested_twins(field: pa.Field) -> pa.Field:
    if pa.types.is_struct(field.type):
        inner = _without_case_twins(pa.schema(list(field.type)))
        return pa.field(field.name, pa.struct(list(inner)))
    if pa.types.is_list(field.type):
        return pa.field(field.name, pa.list_(_without_nested_twins(field.type.value_field)))
    return field


def _unreadable(file: FoundFile, exc: BaseException) -> TerminalError:
    return TerminalError(
        f"cannot infer a schema from file '{file.path}'",
        code="FILE_UNREADABLE",
        found=shorten(exc, 300),
        expected="a whole file",
        remedy="Repair or remove it, or declare the schema",
    )
