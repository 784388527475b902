"""Rows that come with types of their own, fitted to the source's columns without any loss; used by parquet, orc and avro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.rescued import json_texts, objects
from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import cast_exact

__all__ = ["ColumnFitter", "matched_names", "unique_names"]


def unique_names(names: Sequence[str]) -> list[str]:
    """Return column names, the second ``b`` as ``b#2``, a nameless one as ``_c`` and its index."""
    seen: dict[str, int] = {}
    result = []
    for index, given in enumerate(names):
        name = given or f"_c{index}"
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def matched_names(names: Sequence[str], schema: pa.Schema, *, is_case_sensitive: bool) -> list[str]:
    """Return a file's unique column names, each spelled as the schema spells it where only case differs and may."""
    unique = unique_names(names)
    if is_case_sensitive:
        return unique
    declared = {name.casefold(): name for name in schema.names}
    taken = set(unique)
    result = []
    for name in unique:
        own = declared.get(name.casefold(), name)
        if own != name and own in taken:  # the file has the declared spelling too, or had another one of it
            own = name
        taken.add(own)
        result.append(own)
    return result


@dataclass(frozen=True, slots=True)
class ColumnFitter:
    """Fits tables in files' own schemas to the source's.

    Attributes:
        schema: Columns to make, in order.
        has_rescued: Whether ``_rescued_data`` is made too.
        is_case_sensitive: Whether names that differ in case are other columns.
    """

    schema: pa.Schema
    has_rescued: bool = True
    is_case_sensitive: bool = True

    def named(self, table: pa.Table) -> pa.Table:
        """Return the table under names that are unique and, where they may differ in case, the schema's."""
        names = matched_names(table.column_names, self.schema, is_case_sensitive=self.is_case_sensitive)
        return table if names == table.column_names else table.rename_columns(names)

    def wanted(self, schema: pa.Schema) -> list[str] | None:
        """Return the columns to read of a file; None for all."""
        if self.has_rescued or not self.is_case_sensitive:
            return None
        return [name for name in schema.names if name in self.schema.names] or schema.names[:1]

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return rows fitted to the schema, with ``_rescued_data``."""
        groups: list[list[pa.Table]] = []
        for table in tables:
            if groups and groups[-1][0].schema.equals(table.schema):
                groups[-1].append(table)
            else:
                groups.append([table])
        return pa.concat_tables([self._fitted(pa.concat_tables(group)) for group in groups])

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
