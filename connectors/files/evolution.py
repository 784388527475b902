"""What a source does about fields that its schema does not have: found in ``_rescued_data``, before a batch is emitted.

The decoders put every undeclared field there, of any format, so a batch without rescued data costs nothing here. What is found
is added to the schema history and the reader stops before the batch (``SchemaGrown``); the run plans again and reads the batch
with the new columns. Values that do not fit an existing column change nothing: they stay in ``_rescued_data``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.text_values import infer_text_type
from connectors.files.rescued import CORRUPT_KEY, FILE_PATH_KEY
from connectors.files.schema_history import SchemaHistory
from connectors.files.settings import FilesSettings
from connectors.files.store import FoundFile, Store
from waxlake.stream.ddl import to_ddl
from waxlake.stream.errors import SchemaError, SchemaGrown, TerminalError
from waxlake.stream.growth import added_fields, merge_schemas
from waxlake.stream.schema import delta_schema

__all__ = ["Evolution"]

_NOT_FIELDS: Final = frozenset({CORRUPT_KEY, "_raw_base64", FILE_PATH_KEY, "_rescued_data", "_metadata"})
_SELF_DESCRIBING: Final = frozenset({"parquet", "avro", "orc"})
_OF_TEXT: Final = frozenset({"csv", "xml"})
_MAX_ROWS: Final = 20_000
_JSON_TYPES: Final[Mapping[str, pa.DataType]] = {
    "BIGINT": pa.int64(),
    "UBIGINT": pa.int64(),
    "HUGEINT": pa.string(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
}


class Evolution:
    """Watches the batches of one reader.

    Args:
        settings: The source's settings; their mode says what is done.
        store: Where the files are.
        schema: Columns that the reader makes.
        history: Where new ones are stored.
        name: What the user calls the source.
    """

    def __init__(
        self, settings: FilesSettings, store: Store, schema: pa.Schema, history: SchemaHistory, name: str
    ) -> None:
        self._settings, self._store, self._schema = settings, store, schema
        self._history, self._name = history, name

    def check(self, batch: pa.Table, files: Sequence[FoundFile]) -> None:
        """Look at a batch that is about to be emitted.

        Args:
            batch: Its rows, ``_rescued_data`` with the path of each row's file included.
            files: The files that they are of.

        Raises:
            SchemaGrown: It has new columns; they are stored now.
            TerminalError: ``NEW_COLUMN``: it has, and the mode is ``fail_on_new_columns``. Not retryable.
            TransientError: The store of the history does not answer. Retryable.
        """
        mode = self._settings.evolution
        if mode in ("none", "rescue"):
            return
        rescued = batch.column(self._settings.rescued_data_column)
        if rescued.null_count == len(rescued):
            return
        rescued = pc.drop_null(rescued).combine_chunks()
        grown, path = self._grown(rescued, files)
        added = added_fields(self._schema, grown)
        if not added:
            return
        shown = to_ddl(pa.schema(added))
        if mode == "fail_on_new_columns":
            raise TerminalError(
                f"cannot read file '{path}'",
                code="NEW_COLUMN",
                found=f"columns that the schema of {self._name} does not have: {shown}",
                expected="none, by schema_evolution_mode='fail_on_new_columns'",
                remedy="Declare them in schema=, choose add_new_columns or rescue, or remove the file and set "
                "on_data_loss='skip'. Rows before it are safe",
            )
        self._history.grow(self._schema, grown, path)
        raise SchemaGrown(
            f"{self._name} has new columns: {shown}",
            code="SCHEMA_GROWN",
            found=f"first in file '{path}'",
            remedy="They are stored: start again, and they are added together with their first rows",
            added=shown,
            file=path,
        )

    def _grown(self, rescued: pa.Array, files: Sequence[FoundFile]) -> tuple[pa.Schema, str]:
        """Return the schema with the fields that are new in the batch, and the first file that has one."""
        if not self._may_grow(rescued):
            return self._schema, ""
        fields = [f for f in (self._field(*item) for item in self._structure(rescued).items()) if f is not None]
        wanted = merge_schemas(self._schema, pa.schema(fields))
        names = {field.name.partition(".")[0] for field in added_fields(self._schema, wanted)}
        if not names:
            return self._schema, ""
        owners = self._owners(rescued, names)
        if self._settings.format in _SELF_DESCRIBING:
            wanted = merge_schemas(self._described(names, owners, files), wanted)
        elif not self._settings.infer_column_types:
            wanted = pa.schema(
                [*self._schema, *(pa.field(f.name, pa.string()) for f in [*wanted][len(self._schema) :])]
            )
        elif self._settings.format in _OF_TEXT:
            wanted = self._with_text_types(rescued.slice(0, _MAX_ROWS), wanted)
            nested = {field.name for field in wanted if field.name in names and pa.types.is_nested(field.type)}
            if nested:  # what is inside has types of its own
                wanted = merge_schemas(self._described(nested, owners, files), wanted)
        return wanted, owners[0] if owners else (files[0].path if files else "")

    def _may_grow(self, rescued: pa.Array) -> bool:
        """Return whether any name is unknown, or of a column with fields of its own: else nothing is new, at little cost."""
        import duckdb

        plain = {field.name.casefold() for field in self._schema if not pa.types.is_nested(field.type)}
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.register("input", pa.table({"v": rescued}))
            query = "SELECT DISTINCT unnest(json_keys(try_cast(v AS JSON))) FROM input"
            names = {str(name) for (name,) in connection.sql(query).fetchall()}
        return any(name.casefold() not in plain for name in names - _NOT_FIELDS)

    def _structure(self, rescued: pa.Array) -> dict[str, Any]:
        import duckdb

        with duckdb.connect(config={"threads": 1}) as connection:
            connection.register("input", pa.table({"v": rescued}))
            query = "SELECT json_group_structure(try_cast(v AS JSON))::VARCHAR FROM input"
            found = connection.sql(query).fetchall()[0][0]
        structure = json.loads(found) if found else None
        structure = structure if isinstance(structure, dict) else {}
        not_fields = {*_NOT_FIELDS, self._settings.rescued_data_column}
        return {name: kind for name, kind in structure.items() if name and name not in not_fields}

    def _owners(self, rescued: pa.Array, names: set[str]) -> list[str]:
        """Return the paths of the files that have some of the names, in order."""
        import duckdb

        query = f"""
            SELECT v ->> '$."{FILE_PATH_KEY}"' AS path FROM input
            WHERE list_has_any(json_keys(try_cast(v AS JSON)), ?::VARCHAR[]) GROUP BY path ORDER BY min(i)
        """
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.register("input", pa.table({"v": rescued, "i": pa.array(range(len(rescued)), pa.int64())}))
            return [str(path) for (path,) in connection.execute(query, [sorted(names)]).fetchall()]

    def _field(self, name: str, kind: object) -> pa.Field | None:
        found = _type(kind)
        if found is None:
            return None
        try:
            return delta_schema(pa.schema([pa.field(name, found)])).field(0)
        except SchemaError:  # names inside it that differ in case only: rescued
            return None

    def _described(self, names: set[str], owners: Sequence[str], files: Sequence[FoundFile]) -> pa.Schema:
        """Return the schema with the new fields as the files themselves describe them."""
        from connectors.files.inference import infer_schema  # brings every format along

        having = [file for file in files if file.path in set(owners)] or list(files)
        inferred = infer_schema(self._settings, self._store, having)
        fields = [field for field in inferred or () if field.name in names]
        return merge_schemas(self._schema, pa.schema(fields))

    def _with_text_types(self, rescued: pa.Array, wanted: pa.Schema) -> pa.Schema:
        """Return the schema with new columns of texts given the types that the texts have."""
        import duckdb

        fields = list(wanted)
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.register("input", pa.table({"v": rescued}))
            for index in range(len(self._schema), len(fields)):
                if pa.types.is_string(fields[index].type):
                    query = "SELECT json_extract_string(v, ['$.' || ?])[1] AS t FROM input"
                    path = json.dumps(fields[index].name, ensure_ascii=False)
                    texts = connection.sql(query, params=[path]).to_arrow_table().column("t").cast(pa.string())
                    kind = infer_text_type(pc.drop_null(texts).combine_chunks())
                    fields[index] = fields[index].with_type(kind)
        return pa.schema(fields)


def _type(kind: object) -> pa.DataType | None:
    """Return the type of a JSON structure; None where no value shows one yet."""
    if isinstance(kind, Mapping):
        children = [(name, _type(child)) for name, child in kind.items() if name]
        known = [(name, child) for name, child in children if child is not None]
        return pa.struct(known) if known else None
    if isinstance(kind, list):
        element = _type(kind[0]) if kind else None
        return None if element is None else pa.list_(element)
    return None if str(kind) == "NULL" else _JSON_TYPES.get(str(kind), pa.string())
