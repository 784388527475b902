"""The schema of files that nobody declared, from a bounded sample; called once, before the ledger is made.

Whatever does not fit the result later goes to ``_rescued_data``, so a narrow sample loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.files.formats import decompressed
from connectors.files.formats.csv_records import CsvRecords
from connectors.files.formats.json_lines import line_blocks
from connectors.files.formats.text_values import infer_text_type
from connectors.files.options import CsvOptions
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, Store
from waxlake.stream.errors import SchemaError, TerminalError, shorten
from waxlake.stream.schema import delta_schema

__all__ = ["infer_schema"]

_MAX_FILES: Final = 10
_MAX_BYTES: Final = 8 << 20
_MAX_ROWS: Final = 20_000
_JSON_TYPES: Final = {
    "BIGINT": pa.int64(),
    "UBIGINT": pa.int64(),
    "HUGEINT": pa.string(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
}


def infer_schema(settings: FilesSettings, store: Store, files: Sequence[FoundFile]) -> pa.Schema | None:
    """Return the columns of the first files, in order of (modification time, path); None if they show none.

    Args:
        settings: How to read them.
        store: Where they are.
        files: Files that were found; the first 10 are looked at, 8 MiB and 20,000 rows of them at most.

    Raises:
        TerminalError: ``FILE_UNREADABLE``. Not retryable.
    """
    sample = sorted(files)[:_MAX_FILES]
    options = settings.options
    if settings.format == "parquet":
        schema = _parquet(store, sample)
    elif isinstance(options, CsvOptions):
        schema = _csv(settings, options, store, sample)
    else:
        schema = _json(settings, store, sample)
    return delta_schema(_without_case_twins(schema)) if schema is not None and len(schema) else None


def _blocks(settings: FilesSettings, store: Store, files: Sequence[FoundFile], split: Any) -> Iterator[Any]:
    """Yield raw rows of the files until the sample is big enough."""
    rows = size_bytes = 0
    for file in files:
        try:
            opened = store.open(file)
        except (FileGone, FileChanged):
            continue
        try:
            for block in split(decompressed(opened.stream, file.path, settings.format), 0):
                part = block.slice(0, _MAX_ROWS - rows)
                yield part
                rows, size_bytes = rows + len(part), size_bytes + part.nbytes
                if rows >= _MAX_ROWS or size_bytes >= _MAX_BYTES:
                    return
        except (pa.ArrowException, ValueError, OSError, EOFError) as exc:
            raise _unreadable(file, exc) from exc
        finally:
            opened.stream.close()


def _csv(settings: FilesSettings, options: CsvOptions, store: Store, files: Sequence[FoundFile]) -> pa.Schema:
    records = CsvRecords(options, pa.schema([]), block_bytes=1 << 20)
    texts: dict[str, list[pa.Array]] = {}
    for table in _blocks(settings, store, files, records.blocks):
        for name in table.column_names:
            if not name.startswith("\0"):
                texts.setdefault(name, []).extend(table.column(name).chunks)
    return pa.schema([(name, _csv_type(pa.concat_arrays(chunks))) for name, chunks in texts.items()])


def _csv_type(values: pa.Array) -> pa.DataType:
    try:
        return infer_text_type(values.cast(pa.string()))
    except pa.ArrowInvalid:
        return pa.string()


def _json(settings: FilesSettings, store: Store, files: Sequence[FoundFile]) -> pa.Schema | None:
    import duckdb

    lines = [_utf8(block) for block in _blocks(settings, store, files, line_blocks)]
    if not lines:
        return None
    query = """
        SELECT json_group_structure(j)::VARCHAR
        FROM (SELECT try_cast(v AS JSON) AS j FROM input)
        WHERE json_type(j) = 'OBJECT'
    """
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("input", pa.table({"v": pa.concat_arrays(lines)}))
        found = connection.sql(query).to_arrow_table().column(0)[0].as_py()
    if found is None:
        return None
    structure = json.loads(found)
    return (
        pa.schema([(name, _json_type(kind)) for name, kind in structure.items() if name])
        if isinstance(structure, dict)
        else None
    )


def _utf8(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([value.decode("utf-8", "replace") for value in values.to_pylist()], pa.string())


def _json_type(kind: object) -> pa.DataType:
    if isinstance(kind, Mapping):
        children = [(name, _json_type(child)) for name, child in kind.items() if name]
        return pa.struct(children) if children else pa.string()
    if isinstance(kind, list):
        return pa.list_(_json_type(kind[0])) if kind else pa.list_(pa.string())
    return _JSON_TYPES.get(str(kind), pa.string())


def _parquet(store: Store, files: Sequence[FoundFile]) -> pa.Schema | None:
    fields: dict[str, pa.Field] = {}
    for file in files:
        try:
            opened = store.open(file)
        except (FileGone, FileChanged):
            continue
        try:
            schema = pq.read_schema(opened.stream)
        except (pa.ArrowException, ValueError, OSError) as exc:
            raise _unreadable(file, exc) from exc
        finally:
            opened.stream.close()
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
