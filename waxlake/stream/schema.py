"""Arrow schemas and tables as a Delta table holds them: normalised, compared, and cast without any loss.

Called by sinks before a commit and by the planner when it checks declared schemas. Delta writers cast silently (1.5
into a BIGINT stores 1), so every table passes ``cast_exact`` first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from waxlake.stream.errors import SchemaError, shorten
from waxlake.stream.growth import lost_fields, merged_type

__all__ = ["SchemaChange", "cast_exact", "compare_schemas", "delta_schema", "no_rows"]

_MAX_PRECISION = 38
_SIGNED = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChange:
    """How a new schema differs from a stored one.

    Attributes:
        added: Fields that only the new schema has.
        missing: Names that only the stored schema has.
        changed: (name, stored type, new type) where both have the name with a type that does not fit.
        grown: Names of columns that have further nested fields in the new schema.
        shrunk: Paths of nested fields that only the stored schema has.
        recased: (stored name, new name) where the names differ only in case; such a name is neither added nor missing.
    """

    added: tuple[pa.Field, ...] = ()
    missing: tuple[str, ...] = ()
    changed: tuple[tuple[str, pa.DataType, pa.DataType], ...] = ()
    recased: tuple[tuple[str, str], ...] = ()
    grown: tuple[str, ...] = ()
    shrunk: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return any((self.added, self.missing, self.changed, self.recased, self.grown, self.shrunk))


def compare_schemas(stored: pa.Schema, new: pa.Schema) -> SchemaChange:
    """Compare two schemas by column name, case-sensitively; order and nullability do not count.

    Pass schemas that went through ``delta_schema``; types are compared as they are.
    """
    stored_names, new_names = set(stored.names), set(new.names)
    folded = {name.casefold(): name for name in stored.names if name not in new_names}
    recased = {
        name: folded[name.casefold()] for name in new.names if name not in stored_names and name.casefold() in folded
    }
    gone = set(recased.values())
    both = [field for field in new if field.name in stored_names]
    return SchemaChange(
        added=tuple(field for field in new if field.name not in stored_names and field.name not in recased),
        missing=tuple(name for name in stored.names if name not in new_names and name not in gone),
        changed=tuple(
            (field.name, stored.field(field.name).type, field.type)
            for field in both
            if merged_type(stored.field(field.name).type, field.type) is None
        ),
        recased=tuple((old, name) for name, old in recased.items()),
        grown=tuple(
            f.name
            for f in both
            if merged_type(stored.field(f.name).type, f.type) not in (None, stored.field(f.name).type)
        ),
        shrunk=tuple(lost_fields(stored, pa.schema(both))),
    )


def no_rows(schema: pa.Schema) -> pa.Table:
    """Return a table of these columns without rows; unlike ``Schema.empty_table`` it does not import pandas."""
    return pa.Table.from_batches([], schema)


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema a Delta table holds for ``schema``: each type replaced by the one that keeps all its values.

    Unsigned integers become the next signed type (uint64: DECIMAL(20,0)), every text type STRING, every timestamp
    microseconds in UTC or without zone, float16 FLOAT, date64 DATE. Whether each value fits is ``cast_exact``'s
    question. Of the metadata only comments stay.

    Raises:
        SchemaError: ``SCHEMA_TYPE`` for a type without a Delta equivalent (TIME, intervals, a column of NULLs without
            type); ``SCHEMA_DUPLICATE`` for names that differ only in case. Not retryable.
    """
    _check_names(schema.names, "the table")
    return pa.schema([_delta_field(field, field.name) for field in schema])


def _check_names(names: list[str], where: str) -> None:
    twice = [name for name, n in Counter(name.casefold() for name in names).items() if n > 1]
    if twice:
        found = [name for name in names if name.casefold() == twice[0]]
        raise SchemaError(
            f"cannot store the columns of {where}",
            code="SCHEMA_DUPLICATE",
            found=" and ".join(map(repr, found)),
            expected="names that differ in more than case",
            remedy="Rename one of them",
        )


def _delta_field(field: pa.Field, path: str) -> pa.Field:
    comment = (field.metadata or {}).get(b"comment")
    kind = _delta_type(field.type, path)
    return pa.field(
        field.name, kind, nullable=field.nullable, metadata=None if comment is None else {b"comment": comment}
    )


def _delta_type(kind: pa.DataType, path: str) -> pa.DataType:
    types = pa.types
    if kind in _SIGNED:
        return _SIGNED[kind]
    if types.is_signed_integer(kind) or kind in (pa.bool_(), pa.float32(), pa.float64(), pa.date32()):
        return kind
    if types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz is not None else None)
    if types.is_decimal(kind):
        return _delta_decimal(kind, path)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return pa.binary()
    if types.is_date64(kind):
        return pa.date32()
    if types.is_float16(kind):
        return pa.float32()
    return _delta_nested(kind, path)


def _delta_nested(kind: pa.DataType, path: str) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _delta_type(kind.value_type, path)
    if isinstance(kind, pa.BaseExtensionType):
        return _delta_type(kind.storage_type, path)
    if types.is_struct(kind):
        _check_names([child.name for child in kind], repr(path))
        return pa.struct([_delta_field(child, f"{path}.{child.name}") for child in kind])
    if types.is_map(kind):
        item = pa.field("value", _delta_type(kind.item_type, f"{path}.value"), nullable=kind.item_field.nullable)
        return pa.map_(_delta_type(kind.key_type, f"{path}.key"), item)
    if _is_list(kind):
        return pa.list_(
            pa.field("element", _delta_type(kind.value_type, f"{path}.element"), nullable=kind.value_field.nullable)
        )
    raise SchemaError(
        f"cannot store the column {path!r} in a Delta table",
        code="SCHEMA_TYPE",
        found=f"type {kind}",
        expected="a type that Delta has",
        remedy=_type_remedy(kind),
        column=path,
    )


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    large = types.is_large_list(kind) or types.is_large_list_view(kind)
    return bool(large or types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind))


def _type_remedy(kind: pa.DataType) -> str:
    if pa.types.is_null(kind):
        return "Give the NULL a type, as in CAST(NULL AS STRING)"
    if pa.types.is_time(kind):
        return "Cast it to STRING, or to BIGINT with its unit in the name"
    if pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return "Cast it to BIGINT with its unit in the name, such as duration_us"
    return "Cast it to STRING"


def _delta_decimal(kind: pa.DataType, path: str) -> pa.DataType:
    precision, scale = (kind.precision, kind.scale) if kind.scale >= 0 else (kind.precision - kind.scale, 0)
    if precision <= _MAX_PRECISION:
        return pa.decimal128(precision, scale)
    raise SchemaError(
        f"cannot store the column {path!r} in a Delta table",
        code="SCHEMA_TYPE",
        found=f"type {kind}",
        expected=f"at most {_MAX_PRECISION} digits",
        remedy=f"Cast it to DECIMAL({_MAX_PRECISION},s) or STRING",
        column=path,
    )


def cast_exact(table: pa.Table, schema: pa.Schema, *, what: str) -> pa.Table:
    """Return ``table`` with the columns of ``schema``, in its order, every value kept exactly.

    Called on each batch before it is written. Equal types cost no copy. A column that ``table`` lacks is filled with
    NULL. Numbers change type only where the value survives (2.0 to BIGINT, not 1.5), text is never parsed, and a
    timestamp never gains or loses its zone.

    Args:
        table: Rows, shape (n_rows, n_columns), in any column order.
        schema: Target, as ``delta_schema`` gives it.
        what: The object in the message, such as ``table 'silver.orders'``.

    Raises:
        SchemaError: ``SCHEMA_LOSSY_CAST`` for a value that would change, ``SCHEMA_MISMATCH`` for types that do not
            convert or a column too many, ``SCHEMA_NULL`` for a NULL in a NOT NULL column. Not retryable.
    """
    if table.schema.equals(schema) and all(map(_is_plain_nullable, schema)):
        return table
    _check_columns(table, schema, what)
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
            continue
        column = table.column(index)
        if column.type != field.type:
            column = _cast_column(column, field, what)
        if not _is_plain_nullable(field):
            _check_nulls(column, field, field.name, what)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema) if columns else table.select([])


def _is_plain_nullable(field: pa.Field) -> bool:
    kind = field.type
    return field.nullable and (
        kind.num_fields == 0 or all(_is_plain_nullable(kind.field(i)) for i in range(kind.num_fields))
    )


def _check_columns(table: pa.Table, schema: pa.Schema, what: str) -> None:
    names = table.schema.names
    extra = [name for name in names if schema.get_field_index(name) < 0]
    lacking = [field.name for field in schema if not field.nullable and field.name not in names]
    if extra or len(set(names)) < len(names):
        found = f"the column {extra[0]!r}" if extra else "a column name used twice"
        raise SchemaError(
            f"cannot write to {what}",
            code="SCHEMA_MISMATCH",
            found=found,
            expected="the columns " + shorten(", ".join(schema.names)),
            remedy="Drop the column, or let the table's schema evolve",
            column=extra[0] if extra else None,
        )
    if lacking:
        raise SchemaError(
            f"cannot write to {what}",
            code="SCHEMA_NULL",
            found=f"no column {lacking[0]!r}",
            expected="a value in each row, it is NOT NULL",
            remedy="Add the column to the query",
            column=lacking[0],
        )


def _check_nulls(values: pa.ChunkedArray | pa.Array, field: pa.Field, path: str, what: str) -> None:
    if not field.nullable and values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise SchemaError(
            f"cannot write to {what}",
            code="SCHEMA_NULL",
            found=f"NULL in the column {path!r}, row {row} of the batch",
            expected="a value, it is NOT NULL",
            remedy="Filter or quarantine such rows with an expectation, or make the column nullable",
            column=path,
        )
    for name, child_field, child in _children(values, field.type):
        if not (child_field.nullable and _is_plain_nullable(child_field)):
            _check_nulls(child, child_field, f"{path}.{name}", what)


def _children(values: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> list[tuple[str, pa.Field, pa.Array]]:
    """Return (name, field, values) of each child, of the rows only whose parent is not NULL."""
    if not (pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_map(kind)):
        return []
    present = values.drop_null()
    if isinstance(present, pa.ChunkedArray):
        present = present.combine_chunks()
    if pa.types.is_struct(kind):
        return [(field.name, field, pc.struct_field(present, [i])) for i, field in enumerate(kind)]
    if pa.types.is_list(kind):
        return [("element", kind.value_field, present.flatten())]
    lo, hi = (present.offsets[0].as_py(), present.offsets[-1].as_py()) if len(present) else (0, 0)
    return [("value", kind.item_field, present.items.slice(lo, hi - lo))]


class _NoSuchCastError(Exception):
    """The two types do not convert, whatever the values."""


def _cast_column(column: pa.ChunkedArray, field: pa.Field, what: str) -> pa.ChunkedArray:
    try:
        return pa.chunked_array([_cast(chunk, field.type) for chunk in column.chunks], type=field.type)
    except _NoSuchCastError as exc:
        raise SchemaError(
            f"cannot write the column {field.name!r} to {what}",
            code="SCHEMA_MISMATCH",
            found=f"type {column.type}{exc}, such as {_sample(column.drop_null())}",
            expected=f"type {field.type}",
            remedy="Cast it in the query, or change the declared type",
            column=field.name,
        ) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError) as exc:
        value = _first_lossy(column, field.type)
        raise SchemaError(
            f"cannot write the column {field.name!r} to {what} without loss",
            code="SCHEMA_LOSSY_CAST",
            found=f"{_sample(value)} of type {column.type}",
            expected=f"values that {field.type} holds exactly",
            remedy="Round or cast it in the query, or widen the declared type",
            column=field.name,
        ) from exc


def _sample(values: pa.ChunkedArray) -> str:
    """Return the first value as text; a timestamp by way of Arrow, since Python has no nanoseconds."""
    if not len(values):
        return "no value"
    if pa.types.is_timestamp(values.type):
        return str(pc.cast(values[:1], pa.string())[0].as_py())
    return shorten(repr(values[0].as_py()) if _is_text(values.type) else str(values[0]), 60)


def _first_lossy(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a slice of one row: the first that does not convert, found by halving."""
    while len(column) > 1:
        half = len(column) // 2
        try:
            for chunk in column[:half].chunks:
                _cast(chunk, kind)
            column = column[half:]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
            column = column[:half]
    return column


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast one chunk exactly; raise ``_NoSuchCastError`` or ``pa.ArrowInvalid``."""
    found, types = values.type, pa.types
    if found == kind:
        return values
    if types.is_null(found):
        return pa.nulls(len(values), kind)
    if types.is_dictionary(found) or types.is_run_end_encoded(found):
        return _cast(
            pc.cast(values, found.value_type) if types.is_dictionary(found) else pc.run_end_decode(values), kind
        )
    if isinstance(found, pa.BaseExtensionType):
        return _cast(values.storage, kind)
    for is_kind, convert in _CASTS:
        if is_kind(kind):
            return convert(values, kind)
    raise _NoSuchCastError


def _cast_integer(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not _is_number(values.type):
        raise _NoSuchCastError
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    return values.cast(kind)


def _cast_float(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not _is_number(values.type):
        raise _NoSuchCastError
    if pa.types.is_float16(values.type):
        return values.cast(pa.float32()).cast(kind)
    there = values.cast(kind)
    if pa.types.is_integer(values.type) or (values.type == pa.float32() and kind == pa.float64()):
        return there  # Arrow itself checks integers; widening is exact
    return _returns(values, there, there.cast(values.type))


def _cast_decimal(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not _is_number(values.type):
        raise _NoSuchCastError
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    if pa.types.is_integer(
        values.type
    ):  # by way of a type wide enough for any integer: Arrow judges by type, not by value
        return values.cast(pa.decimal128(20, 0)).cast(kind)
    there = values.cast(kind)
    if pa.types.is_decimal(values.type):
        return there
    return _returns(values, there, there.cast(values.type))


def _returns(values: pa.Array, there: pa.Array, back: pa.Array) -> pa.Array:
    same = pc.equal(values, back)
    if pa.types.is_floating(values.type):
        same = pc.or_(same, pc.is_nan(values))
    if pc.all(same).as_py() is False:
        raise pa.ArrowInvalid("the value does not come back")
    return there


def _cast_timestamp(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_date(values.type) and kind.tz is None:
        return values.cast(kind)
    if not pa.types.is_timestamp(values.type) or (values.type.tz is None) != (kind.tz is None):
        raise _NoSuchCastError(" (Waxlake never guesses a time zone)" if pa.types.is_timestamp(values.type) else "")
    return values.cast(kind)


def _cast_within(is_source: Callable[[pa.DataType], bool]) -> Callable[[pa.Array, pa.DataType], pa.Array]:
    def convert(values: pa.Array, kind: pa.DataType) -> pa.Array:
        if not is_source(values.type):
            raise _NoSuchCastError
        return values.cast(kind)

    return convert


def _cast_list(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not _is_list(values.type):
        raise _NoSuchCastError
    if not pa.types.is_list(values.type):
        values = values.cast(pa.list_(values.type.value_field))
    if not len(values):
        return pa.array([], kind)
    start, offsets, length = _window(values)
    elements = _cast(values.values.slice(start, length), kind.value_type)
    return pa.ListArray.from_arrays(offsets, elements, type=kind, mask=values.is_null())


def _cast_map(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_map(values.type):
        raise _NoSuchCastError
    if not len(values):
        return pa.array([], kind)
    start, offsets, length = _window(values)
    keys = _cast(values.keys.slice(start, length), kind.key_type)
    items = _cast(values.items.slice(start, length), kind.item_type)
    return pa.MapArray.from_arrays(offsets, keys, items, type=kind, mask=values.is_null())


def _window(values: pa.Array) -> tuple[int, pa.Array, int]:
    """Return (first child, offsets from zero, number of children): a slice must not judge its neighbours' values."""
    start = values.offsets[0].as_py()
    offsets = pc.subtract(values.offsets, pa.scalar(start, values.offsets.type))
    return start, offsets, offsets[-1].as_py()


def _cast_struct(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_struct(values.type):
        raise _NoSuchCastError
    extra = {child.name for child in values.type} - {child.name for child in kind}
    if extra:
        raise _NoSuchCastError(f" (the nested field {min(extra)!r} is not declared)")
    children = []
    for field in kind:
        index = values.type.get_field_index(field.name)
        children.append(
            pa.nulls(len(values), field.type) if index < 0 else _cast(pc.struct_field(values, [index]), field.type)
        )
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    variable = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(variable or pa.types.is_fixed_size_binary(kind))


_CASTS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, pa.DataType], pa.Array]], ...] = (
    (pa.types.is_integer, _cast_integer),
    (pa.types.is_floating, _cast_float),
    (pa.types.is_decimal, _cast_decimal),
    (pa.types.is_timestamp, _cast_timestamp),
    (pa.types.is_date, _cast_within(pa.types.is_date)),
    (_is_text, _cast_within(_is_text)),
    (_is_bytes, _cast_within(_is_bytes)),
    (pa.types.is_struct, _cast_struct),
    (pa.types.is_map, _cast_map),
    (_is_list, _cast_list),
)
