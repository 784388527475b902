"""JSON records to typed rows as a source's options say; without options it is ``JsonDecoder`` and nothing else.

Each option costs only the rows that need it: records that are no strict JSON, names in another case, dates in a pattern.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.json_lenient import strict_json
from connectors.files.formats.malformed import CorruptRecords
from connectors.files.formats.text_types import TextTypes
from connectors.files.options import JsonOptions
from connectors.files.rescued import json_texts, merged, objects
from connectors.json_exact import ExactDecoder, is_record
from connectors.json_records import RESCUED, JsonDecoder

__all__ = ["JsonValues"]

_RAW: Final = r'^\{"_raw(?:_base64)?":'
_THREADS: Final = min(4, os.cpu_count() or 1)  # one reader reads all files of a source, so cores are free
_SPELLINGS: Final = 8  # ways to spell the names of a batch that are worth a decoder each


class JsonValues:
    """Decodes JSON records.

    Args:
        options: Options of the format.
        schema: Columns to make.
        has_rescued: Whether ``_rescued_data`` is made too.

    Raises:
        SchemaError: A type that no Delta table holds. Not retryable.
    """

    def __init__(self, options: JsonOptions, schema: pa.Schema, *, has_rescued: bool) -> None:
        self._options, self._schema, self._has_rescued = options, schema, has_rescued
        self._types = TextTypes.of(options)
        self._corrupt = CorruptRecords(options, schema)
        read = [field for field in schema if field.name != self._corrupt.column]
        self._read = pa.schema([field.with_type(self._read_type(field.type)) for field in read])
        self._texts = [field.name for field in read if self._read.field(field.name).type != field.type]
        self._is_plain = not (
            options.is_lenient or self._corrupt.is_wanted or self._texts or not options.reader_case_sensitive
        )
        self._decoder = JsonDecoder(self._read, with_rescued=has_rescued or not self._is_plain, threads=_THREADS)
        self._exact = ExactDecoder(self._read, takes_names=options.allow_non_numeric_numbers)
        self._spellings: dict[tuple[str, ...], JsonDecoder] = {}
        names = "|".join(re.escape(name) for name in self._read.names)
        self._any_name = f'(?i)"(?:{names})":'

    def decode(self, values: pa.Array) -> pa.Table:
        """Return typed rows, one for each record."""
        if self._options.single_variant_column is not None:
            return self._documents(values)
        table = self._decoder.decode(values)
        if self._is_plain:
            return table
        table = table.combine_chunks()
        if not self._options.reader_case_sensitive:
            table = self._respelled(table, values)
        malformed = _malformed(table, values)
        if self._options.is_lenient and len(malformed):
            table, malformed = self._reread(table, values, malformed)
        rescued = table.column(RESCUED).combine_chunks()
        columns = {field.name: _one(table.column(field.name)) for field in self._read}
        for name in self._texts:
            columns[name], lost = self._typed(columns[name], self._schema.field(name).type)
            rescued = merged(rescued, objects({name: lost}, len(table)))
        return self._finished(columns, rescued, values, malformed)

    def _finished(
        self, columns: Mapping[str, pa.Array], rescued: pa.Array, values: pa.Array, malformed: np.ndarray
    ) -> pa.Table:
        texts = pa.nulls(len(values), pa.string())
        if self._corrupt.is_wanted and len(malformed):
            mask = np.zeros(len(values), bool)
            mask[malformed] = True
            raw = [value.decode("utf-8", "backslashreplace") for value in values.take(pa.array(malformed)).to_pylist()]
            texts = pc.replace_with_mask(texts, pa.array(mask), pa.array(raw, pa.string()))
            if self._corrupt.column is not None:
                rescued = pc.if_else(pa.array(mask), pa.scalar(None, pa.string()), rescued)
        whole = [columns.get(field.name, pa.nulls(len(values), field.type)) for field in self._schema]
        table = pa.table(whole, schema=self._schema)
        if self._has_rescued:
            table = table.append_column(RESCUED, rescued)
        return self._corrupt.place(table, texts) if self._corrupt.is_wanted else table

    # -- one column of documents ---------------------------------------------------------------------------------

    def _documents(self, values: pa.Array) -> pa.Table:
        is_json = np.array([_is_json(value) for value in values.to_pylist()], bool)
        malformed = np.flatnonzero(~is_json)
        texts = pa.array([_readable(value) for value in values.to_pylist()], pa.string())
        kept = pc.if_else(pa.array(is_json), texts, pa.scalar(None, pa.string()))
        raw = pc.if_else(pa.array(is_json), pa.scalar(None, pa.string()), texts)
        rescued = objects({"_raw": json_texts(raw)}, len(values))
        return self._finished({str(self._options.single_variant_column): kept}, rescued, values, malformed)

    # -- names in another case -----------------------------------------------------------------------------------

    def _respelled(self, table: pa.Table, values: pa.Array) -> pa.Table:
        """Decode again the rows with a name in another case, under the names as they spell them."""
        todo = self._misspelled(table)
        for _ in range(_SPELLINGS):
            if not len(todo):
                break
            spelled = self._spelled(table, int(todo[0]))
            if spelled is None:
                todo = todo[1:]
                continue
            again = self._decoder_for(spelled).decode(values.take(pa.array(todo))).rename_columns(table.column_names)
            fine = np.setdiff1d(np.arange(len(todo)), self._misspelled(again))
            fine = np.union1d(fine, [0])  # the row whose spelling this is has no better one
            table = _replaced(table, todo[fine], again.take(pa.array(fine)))
            todo = np.delete(todo, fine)
        return table

    def _misspelled(self, table: pa.Table) -> np.ndarray:
        found = pc.match_substring_regex(_one(table.column(RESCUED)), self._any_name)
        return np.flatnonzero(pc.fill_null(found, False).to_numpy(zero_copy_only=False))

    def _spelled(self, table: pa.Table, row: int) -> tuple[str, ...] | None:
        """Return the names as the row spells them; None if it spells them right."""
        rest = json.loads(table.column(RESCUED)[row].as_py())
        there = {key.casefold(): key for key in reversed(rest) if key not in self._read.names}
        names = []
        for field in self._read:
            has_own = table.column(field.name)[row].is_valid or field.name in rest
            names.append(field.name if has_own else there.get(field.name.casefold(), field.name))
        return tuple(names) if names != self._read.names else None

    def _decoder_for(self, names: tuple[str, ...]) -> JsonDecoder:
        if names not in self._spellings:
            if len(self._spellings) >= _SPELLINGS:
                self._spellings.clear()
            fields = [field.with_name(name) for field, name in zip(self._read, names, strict=True)]
            self._spellings[names] = JsonDecoder(pa.schema(fields))
        return self._spellings[names]

    # -- records that are no strict JSON -------------------------------------------------------------------------

    def _reread(self, table: pa.Table, values: pa.Array, malformed: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        strict = [strict_json(value, self._options) for value in values.take(pa.array(malformed)).to_pylist()]
        is_read = np.array([text is not None and is_record(text) for text in strict], bool)
        if is_read.any():
            texts = [text for text, is_fine in zip(strict, is_read, strict=True) if is_fine and text is not None]
            again = pa.table(self._exact.decode(texts), names=table.column_names)
            table = _replaced(table, malformed[is_read], again)
        return table, malformed[~is_read]

    # -- text in a pattern ---------------------------------------------------------------------------------------

    def _read_type(self, kind: pa.DataType) -> pa.DataType:
        """Return the type to read a column as, STRING wherever an option says how its text is meant."""
        if pa.types.is_struct(kind):
            return pa.struct([field.with_type(self._read_type(field.type)) for field in kind])
        if pa.types.is_list(kind):
            return pa.list_(kind.value_field.with_type(self._read_type(kind.value_type)))
        is_time = pa.types.is_temporal(kind)
        return pa.string() if is_time and not self._types.is_plain(kind) else kind

    def _typed(self, values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
        """Return values in their type, NULL where something in them does not fit, and the JSON text of those."""
        typed, is_lost = self._converted(values, kind)
        if not is_lost.any():
            return typed, pa.nulls(len(values), pa.string())
        lost = pa.array(is_lost)
        numbers = pa.array(np.where(is_lost, -1, np.arange(len(values))))
        typed = typed.take(pc.if_else(lost, pa.scalar(None, pa.int64()), numbers))
        texts = values.filter(lost)
        return typed, pc.replace_with_mask(pa.nulls(len(values), pa.string()), lost, json_texts(texts))

    def _converted(self, values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
        """Return values in their type, and the rows in which one does not fit."""
        if values.type == kind:
            return values, np.zeros(len(values), bool)
        if pa.types.is_struct(kind):
            parts = [self._converted(pc.struct_field(values, [i]), field.type) for i, field in enumerate(kind)]
            lost = np.logical_or.reduce([part[1] for part in parts])
            arrays = [part[0] for part in parts]
            return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=values.is_null()), lost
        if pa.types.is_list(kind):
            elements, is_lost = self._converted(values.flatten(), kind.value_type)
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
            owners = np.repeat(np.arange(len(values)), lengths)
            lost = np.bincount(owners[is_lost], minlength=len(values)) > 0
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            return pa.ListArray.from_arrays(offsets, elements, type=kind, mask=values.is_null()), lost
        typed, is_missing = self._types.convert(values, kind)
        return typed, pc.fill_null(is_missing, False).to_numpy(zero_copy_only=False)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _malformed(table: pa.Table, values: pa.Array) -> np.ndarray:
    """Return the rows whose record is no JSON object."""
    found = pc.match_substring_regex(_one(table.column(RESCUED)), _RAW)
    rows = np.flatnonzero(pc.fill_null(found, False).to_numpy(zero_copy_only=False))
    if not len(rows):
        return rows
    is_bad = [not is_record(value) for value in values.take(pa.array(rows)).to_pylist()]
    return np.asarray(rows[np.array(is_bad, bool)])


def _replaced(table: pa.Table, rows: np.ndarray, by: pa.Table) -> pa.Table:
    """Return the table with some rows replaced."""
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    both = pa.concat_tables([table, by.cast(table.schema)]).combine_chunks()
    return both.take(pa.array(order)).combine_chunks()


def _is_json(value: Any) -> bool:
    def refuse(constant: str) -> float:
        raise ValueError(constant)

    try:
        json.loads(value.decode("utf-8"), parse_constant=refuse, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _readable(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
