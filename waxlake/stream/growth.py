"""How a schema grows: columns and nested fields are added, types stay. Called by sources, the planner and sinks."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["added_fields", "lost_fields", "merge_schemas", "merged_type"]


def merged_type(stored: pa.DataType, new: pa.DataType) -> pa.DataType | None:
    """Return ``stored`` with the nested fields that only ``new`` has; None where a type differs otherwise."""
    types = pa.types
    if stored == new:
        return stored
    if types.is_struct(stored) and types.is_struct(new):
        fields = _merged([*stored], [*new])
        return None if fields is None else pa.struct(fields)
    if types.is_list(stored) and types.is_list(new):
        value = merged_type(stored.value_type, new.value_type)
        return None if value is None else pa.list_(stored.value_field.with_type(value))
    if types.is_map(stored) and types.is_map(new) and stored.key_type == new.key_type:
        value = merged_type(stored.item_type, new.item_type)
        return None if value is None else pa.map_(stored.key_type, stored.item_field.with_type(value))
    return None


def _merged(stored: list[pa.Field], new: list[pa.Field]) -> list[pa.Field] | None:
    """Return the stored fields, grown, and those that only ``new`` has; None if some field has another type."""
    known = {field.name: index for index, field in enumerate(stored)}
    folded = {field.name.casefold() for field in stored}
    fields = list(stored)
    for field in new:
        index = known.get(field.name)
        if index is not None:
            kind = merged_type(fields[index].type, field.type)
            if kind is None:
                return None
            fields[index] = fields[index].with_type(kind)
        elif field.name.casefold() not in folded:  # a table holds one of two names that differ in case
            fields.append(field.with_nullable(True))
            folded.add(field.name.casefold())
    return fields


def merge_schemas(stored: pa.Schema, new: pa.Schema) -> pa.Schema:
    """Return ``stored`` with the columns and nested fields that only ``new`` has, nullable, at the end.

    A column that has another type in ``new`` stays as it is stored, and so does one whose name differs in case only.
    """
    fields = list(stored)
    for field in new:
        grown = _merged(fields, [field])
        fields = fields if grown is None else grown
    return pa.schema(fields)


def added_fields(stored: pa.Schema, new: pa.Schema) -> list[pa.Field]:
    """Return what ``merge_schemas`` adds: each field named by its path, as ``address.street``, with its type."""
    return _added([*stored], [*merge_schemas(stored, new)], "")


def lost_fields(stored: pa.Schema, now: pa.Schema) -> list[str]:
    """Return the paths of nested fields that only ``stored`` has, in columns that both have."""
    both = [field for field in stored if now.get_field_index(field.name) >= 0]
    pairs = [([field], [now.field(field.name)]) for field in both]
    return [field.name for before, after in pairs for field in _added(after, before, "")]


def _added(stored: list[pa.Field], grown: list[pa.Field], path: str) -> list[pa.Field]:
    known = {field.name: field.type for field in stored}
    found: list[pa.Field] = []
    for field in grown:
        if field.name not in known:
            found.append(field.with_name(path + field.name))
        elif known[field.name] != field.type:
            found += _added(_children(known[field.name]), _children(field.type), f"{path}{field.name}.")
    return found


def _children(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a STRUCT, or of the STRUCTs that a list or map holds."""
    if pa.types.is_struct(kind):
        return [*kind]
    if pa.types.is_list(kind):
        return _children(kind.value_type)
    return _children(kind.item_type) if pa.types.is_map(kind) else []
