"""What of a JSON record the declared columns do not hold, worked out by DuckDB over a column of texts.

``JsonDecoder`` comes here with batches that its strict parser refuses. Two questions are answered without a Python loop:
``by_shape`` decodes the rows that all look like the first one and proves it by writing them out again; ``sort`` tells
for each other row which columns fit and what is left over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["SUSPECT", "JsonEngine", "Shape", "Sorted"]

SUSPECT = "?"  # signature of a row that only the exact decoder may judge

_MIN_SHAPE_SHARE = 0.25
_SHAPE_MISSES = 3
_SHAPE_PAUSE_BATCHES = 50

_ENGINE_TYPES = {
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.string(): "VARCHAR",
    pa.timestamp("us", tz="UTC"): "VARCHAR",
    pa.timestamp("us"): "VARCHAR",
    pa.date32(): "VARCHAR",
}
# DuckDB keeps integers of any length but reads fractions as doubles: a number with an exponent, with more than 15 digits
# or with many zeros behind the point may come back spelled differently, or shorter.
_LONG = "|".join(f"[0-9]{{{k}}}[.][0-9]{{{16 - k}}}" for k in range(1, 15))
_EXOTIC_NUMBER = rf"[:,\[]\s*-?(?:{_LONG}|[0-9]{{15,}}[.]|[0-9]+[.]000000|[0-9]+(?:[.][0-9]+)?[eE])"
_FRACTION = r"[0-9][.eE]"
_NOT_FINITE = r"(?:^|[:,\[])-?(?i:nan|inf)"


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys of a record, in order, and whether the producer writes spaces between them."""

    keys: tuple[str, ...]
    is_spaced: bool


@dataclass(frozen=True, slots=True)
class Sorted:
    """How rows fit the schema.

    Attributes:
        signature: One text per row, one sign per column: ``.`` fits or is absent, ``x`` has another type, ``t`` is to be
            kept as JSON text; or ``SUSPECT`` for the whole row.
    """

    signature: pa.Array


class JsonEngine:
    """One DuckDB connection and the queries for one schema. Used by one thread at a time."""

    def __init__(self, schema: pa.Schema, *, threads: int = 1) -> None:
        self._schema = schema
        self._connection = duckdb.connect(config={"threads": threads})
        self._connection.execute("SET TimeZone = 'UTC'")
        self._has_shape = all(field.type in _ENGINE_TYPES for field in schema)
        self._misses = 0
        self._pause = 0

    def by_shape(self, texts: pa.Array) -> tuple[pa.Array, list[pa.Array]] | None:
        """Decode the rows that have the first row's shape, text for text.

        The proof that nothing is lost: the decoded row, written as JSON, is the record again. A value of another type, a
        further, missing or repeated key, or a number that DuckDB would shorten all make another text.

        Returns:
            (mask of decoded rows, their columns and rescued text), or None if this way does not pay.
        """
        if not self._has_shape or self._is_paused():
            return None
        shape = _shape_of(texts)
        if shape is None:
            return None
        try:
            found = self._run(self._shape_query(shape), texts)
            mask = found.column("__ok").combine_chunks()
            share = (pc.sum(mask).as_py() or 0) / len(mask)
            self._misses = 0 if share >= _MIN_SHAPE_SHARE else self._misses + 1
            if share == 0:
                return None
            kept = found if share == 1 else found.filter(mask)
            return mask, self._columns(kept, shape)
        except (duckdb.Error, pa.ArrowInvalid):  # a key that SQL does not take, a timestamp that is none
            self._misses += 1
            return None

    def _is_paused(self) -> bool:
        if self._misses >= _SHAPE_MISSES:
            self._misses, self._pause = 0, _SHAPE_PAUSE_BATCHES
        self._pause -= 1
        return self._pause >= 0

    def _shape_query(self, shape: Shape) -> str:
        kinds = {field.name: _ENGINE_TYPES[field.type] for field in self._schema}
        extras = [key for key in shape.keys if key not in kinds]
        structure = json.dumps({key: kinds.get(key, "JSON") for key in shape.keys}, ensure_ascii=False)
        checks = [f"to_json(s) = {'json(v)' if shape.is_spaced else 'v'}"]
        checks += [f"coalesce(isfinite(s.{_name(k)}), true)" for k in shape.keys if kinds.get(k) == "DOUBLE"]
        checks += [f"NOT regexp_matches(coalesce(s.{_name(k)}::VARCHAR, ''), {_text(_NOT_FINITE)})" for k in extras]
        rescued = ", ".join(f"{_name(key)} := s.{_name(key)}" for key in extras)
        columns = [f"s.{_name(f.name)} AS c{i}" for i, f in enumerate(self._schema) if f.name in shape.keys]
        return f"""
            SELECT {"".join(column + ", " for column in columns)} coalesce({" AND ".join(checks)}, false) AS __ok,
                   {f"to_json(struct_pack({rescued}))::VARCHAR" if extras else "NULL::VARCHAR"} AS __rescued
            FROM (SELECT v, from_json(try_cast(v AS JSON), {_text(structure)}) AS s FROM records)"""

    def _columns(self, found: pa.Table, shape: Shape) -> list[pa.Array]:
        columns = []
        for index, field in enumerate(self._schema):
            if field.name in shape.keys:
                columns.append(_from_text(found.column(f"c{index}").combine_chunks(), field.type))
            else:
                columns.append(pa.nulls(len(found), field.type))
        return [*columns, found.column("__rescued").combine_chunks().cast(pa.string())]

    def sort(self, texts: pa.Array) -> Sorted:
        """Tell for each row which columns fit; see ``Sorted``."""
        paths = ", ".join(_text(_pointer(field.name)) for field in self._schema)
        signs = " || ".join(_sign(field.type, f"k[{i + 1}]") for i, field in enumerate(self._schema)) or "''"
        query = f"""
            SELECT CASE WHEN s IS NULL THEN {_text(SUSPECT)}
                        WHEN regexp_matches(s, '[xt]') AND len(json_keys(j)) > len(list_distinct(json_keys(j)))
                        THEN {_text(SUSPECT)} ELSE s END AS signature
            FROM (SELECT j, CASE WHEN k IS NOT NULL THEN {signs} END AS s
                  FROM (SELECT j, CASE WHEN json_type(j) = 'OBJECT' THEN json_type(j, [{paths}]::VARCHAR[]) END AS k
                        FROM (SELECT try_cast(v AS JSON) AS j FROM records)))"""
        return Sorted(self._run(query, texts).column("signature").combine_chunks())

    def rest(
        self, texts: pa.Array, *, kept: Iterable[str], as_text: list[str]
    ) -> tuple[pa.Array, pa.Array, list[pa.Array]]:
        """Return what is left of each record without the columns ``kept``.

        Returns:
            (mask of rows whose digits DuckDB cannot vouch for, the rest as JSON or NULL if nothing is left, the JSON text
            of each column in ``as_text``).
        """
        patch = json.dumps(dict.fromkeys(kept), ensure_ascii=False)
        parts = "".join(
            f", json_extract(v, {_text(_pointer(name))})::VARCHAR AS t{i}" for i, name in enumerate(as_text)
        )
        both = " || ".join(["r", *(f"coalesce(t{i}, '')" for i in range(len(as_text)))])
        query = f"""
            SELECT nullif(r, '{{}}') AS r {"".join(f", t{i}" for i in range(len(as_text)))},
                   CASE WHEN regexp_matches({both}, {_text(_FRACTION)})
                        THEN regexp_matches(v, {_text(_EXOTIC_NUMBER)}) ELSE false END
                   OR regexp_matches({both}, {_text(_NOT_FINITE)}) AS is_exotic
            FROM (SELECT v, json_merge_patch(v, {_text(patch)})::VARCHAR AS r {parts} FROM records)"""
        found = self._run(query, texts)
        text_columns = [found.column(f"t{i}").combine_chunks().cast(pa.string()) for i in range(len(as_text))]
        return (
            found.column("is_exotic").combine_chunks(),
            found.column("r").combine_chunks().cast(pa.string()),
            text_columns,
        )

    def _run(self, query: str, texts: pa.Array) -> pa.Table:
        self._connection.register("records", pa.table({"v": texts}))
        try:
            return self._connection.sql(query).to_arrow_table()
        finally:
            self._connection.unregister("records")


def _shape_of(texts: pa.Array) -> Shape | None:
    for value in texts[:20]:
        text = value.as_py()
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record and len({key.casefold() for key in record}) == len(record):
            return Shape(tuple(record), '": ' in text)
    return None


def _from_text(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            return values.cast(kind)
        except pa.ArrowInvalid:  # without a zone it is UTC
            return values.cast(pa.timestamp("us")).cast(kind)
    return values.cast(kind)


def _sign(kind: pa.DataType, found: str) -> str:
    """Return SQL for one column's sign, from what ``json_type`` says of its value."""
    types = pa.types
    fits, suspect, text = ["NULL"], [""], [""]
    if types.is_string(kind):
        fits, text, suspect = ["NULL", "VARCHAR"], ["BIGINT", "UBIGINT", "BOOLEAN", "OBJECT", "ARRAY"], ["DOUBLE"]
    elif types.is_integer(kind):
        fits, suspect = ["NULL", "BIGINT", "UBIGINT"], ["DOUBLE"]
    elif types.is_floating(kind):
        fits = ["NULL", "BIGINT", "UBIGINT", "DOUBLE"]
    elif types.is_decimal(kind):
        fits = ["NULL", "BIGINT", "UBIGINT", "DOUBLE", "VARCHAR"]
    elif types.is_boolean(kind):
        fits = ["NULL", "BOOLEAN"]
    elif types.is_list(kind):
        fits = ["NULL", "ARRAY"]
    elif types.is_struct(kind) or types.is_map(kind):
        fits = ["NULL", "OBJECT"]
    else:
        fits = ["NULL", "VARCHAR"]
    return f"""CASE WHEN {found} IS NULL OR {found} IN ({_texts(fits)}) THEN '.' WHEN {found} IN ({_texts(text)}) THEN 't'
               WHEN {found} IN ({_texts(suspect)}) THEN {_text(SUSPECT)} ELSE 'x' END"""


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _texts(texts: list[str]) -> str:
    return ", ".join(map(_text, texts))
