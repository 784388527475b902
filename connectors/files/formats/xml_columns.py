"""Values of XML rows to typed columns, column by column, and what no column holds; called by ``xml_rows``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.text_types import TextTypes

__all__ = ["XmlColumns"]


class XmlColumns:
    """Fits rows to a schema.

    Args:
        schema: Columns to make.
        types: How text becomes values.
        value_tag: Member of a STRUCT that takes the text of an element without attributes and children.
        is_case_sensitive: Whether names that differ in case are other columns.
    """

    def __init__(self, schema: pa.Schema, types: TextTypes, value_tag: str, *, is_case_sensitive: bool) -> None:
        self._schema, self._types, self._value_tag = schema, types, value_tag
        self._is_case_sensitive = is_case_sensitive

    def table(self, rows: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, list[dict[str, Any] | None]]:
        """Return typed rows, and for each what is left over."""
        columns, rests = self._members(rows, list(self._schema))
        return pa.table(columns, schema=self._schema), [rest or None for rest in rests]

    def _members(self, rows: Sequence[Any], fields: Sequence[pa.Field]) -> tuple[list[pa.Array], list[dict[str, Any]]]:
        names = {field.name for field in fields}
        rows = [self._own_case(row, names) if isinstance(row, Mapping) else {} for row in rows]
        rests = [{key: value for key, value in row.items() if key not in names} for row in rows]
        columns = []
        for field in fields:
            column, lost = self._column([row.get(field.name) for row in rows], field.type)
            columns.append(column)
            for index, value in lost.items():
                rests[index][field.name] = value
        return columns, rests

    def _own_case(self, row: Mapping[str, Any], names: set[str]) -> Mapping[str, Any]:
        if self._is_case_sensitive or row.keys() <= names:
            return row
        own = {name.casefold(): name for name in names}
        result: dict[str, Any] = {}
        for key, value in row.items():
            name = own.get(key.casefold(), key)
            result[key if name in row and name != key else name if name not in result else key] = value
        return result

    def _column(self, values: list[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, Any]]:
        """Return values in their type, and by row what is left over of them."""
        if pa.types.is_struct(kind):
            return self._struct(values, kind)
        if pa.types.is_list(kind):
            return self._list(values, kind)
        if pa.types.is_map(kind):
            return self._map(values, kind)
        if pa.types.is_string(kind):
            return pa.array([v if v is None or isinstance(v, str) else _json(v) for v in values], kind), {}
        texts = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        typed, is_lost = self._types.convert(texts, kind)
        lost = {int(i): values[i] for i in np.flatnonzero(pc.fill_null(is_lost, False).to_numpy(zero_copy_only=False))}
        lost.update({i: value for i, value in enumerate(values) if isinstance(value, (dict, list))})
        return typed, lost

    def _struct(self, values: list[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, Any]]:
        if any(field.name == self._value_tag for field in kind):
            values = [{self._value_tag: value} if isinstance(value, str) else value for value in values]
        arrays, rests = self._members(values, list(kind))
        is_other = [value is not None and not isinstance(value, Mapping) for value in values]
        lost: dict[int, Any] = {index: rest for index, rest in enumerate(rests) if rest}
        lost.update({index: values[index] for index, other in enumerate(is_other) if other})
        mask = pa.array([not isinstance(value, Mapping) for value in values], pa.bool_())
        return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=mask), lost

    def _list(self, values: list[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, Any]]:
        lists = [None if value is None else value if isinstance(value, list) else [value] for value in values]
        flat = [item for items in lists if items for item in items]
        elements, lost = self._column(flat, kind.value_type)
        lengths = [len(items) if items else 0 for items in lists]
        owners = np.repeat(np.arange(len(values)), lengths)
        bad = {int(owners[index]) for index in lost}  # inside a list there is no place to keep the rest
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
        mask = pa.array([items is None or index in bad for index, items in enumerate(lists)], pa.bool_())
        array = pa.ListArray.from_arrays(offsets, elements, type=kind, mask=mask)
        return array, {index: values[index] for index in bad}

    def _map(self, values: list[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, Any]]:
        is_map = [isinstance(value, Mapping) and pa.types.is_string(kind.key_type) for value in values]
        pairs = [list(value.items()) if fits else [] for value, fits in zip(values, is_map, strict=True)]
        items, lost = self._column([item for pair in pairs for _, item in pair], kind.item_type)
        lengths = [len(pair) for pair in pairs]
        owners = np.repeat(np.arange(len(values)), lengths)
        bad = {int(owners[index]) for index in lost} | {
            index for index, value in enumerate(values) if value is not None and not is_map[index]
        }
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
        keys = pa.array([key for pair in pairs for key, _ in pair], kind.key_type)
        mask = pa.array([not is_map[index] or index in bad for index in range(len(values))], pa.bool_())
        array = pa.MapArray.from_arrays(offsets, keys, items, type=kind, mask=mask)
        return array, {index: values[index] for index in bad}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
