"""What of a JSON record the declared columns do not hold, worked out by DuckDB over a column of texts.

``JsonDecoder`` comes here with batches that its strict parser refuses. Two questions are answered without a Python loop:
``by_shape`` decodes the rows that all look like the first one and proves it by writing them out again; ``sort`` tells
for each other row which columns fit and what is left over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.stream.engine import quote_name, quote_text

__all__ = ["EXOTIC_NUMBER", "SUSPECT", "JsonEngine", "Shape", "Sorted"]

SUSPECT = "?"  # signature of a row that only the exact decoder may judge

_MIN_SHAPE_SHARE = 0.25
_SHAPE_MISSES = 3
_SHAPE_PAUSE_BATCHES = 50

_EXACT_EXTRAS = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
_JSON_TYPES = (("boolean", bool), ("number", (int, float)), ("text", str), ("array", list), ("object", dict))
_FIRST_SIGNS = {"boolean": "tf", "number": "-0123456789", "text": '"', "array": "[", "object": "{"}

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
EXOTIC_NUMBER = rf"[:,\[]\s*-?(?:{_LONG}|[0-9]{{15,}}[.]|[0-9]+[.]000000|[0-9]+(?:[.][0-9]+)?[eE])"
_FRACTION = r"[0-9][.eE]"
_NOT_FINITE = r"(?:^|[:,\[])-?(?i:nan|inf)"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the records of a stream look like, taken from one of them.

    Attributes:
        kinds: (key, DuckDB type to read it as), in the record's order.
        rescued: Keys of what the columns do not hold: undeclared, or of another JSON type.
        first_signs: For a declared key whose JSON type is not the column's own: the signs with which such a value begins.
        is_spaced: Whether the producer writes spaces between keys and values.
    """

    kinds: tuple[tuple[str, str], ...]
    rescued: tuple[str, ...]
    first_signs: Mapping[str, str]
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

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._opened: duckdb.DuckDBPyConnection | None = None
        self._has_shape = all(field.type in _ENGINE_TYPES for field in schema)
        self._misses = 0
        self._pause = 0

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Opened by the first batch that needs it: a source of clean records never does, and a database takes a while."""
        if self._opened is None:
            self._opened = duckdb.connect(config={"threads": 1})  # one thread: rows come back in their order
            self._opened.execute("SET TimeZone = 'UTC'")
        return self._opened

    def valid(self, texts: pa.Array) -> pa.Array:
        """Return a mask of texts that DuckDB takes for JSON; it also takes NaN and a trailing comma."""
        return self._run("SELECT json_valid(v) AS ok FROM records", texts).column("ok").combine_chunks()

    def single_extra(self, texts: pa.Array) -> pa.Field | None:
        """Return the one undeclared field of the first record, if its type keeps each value exactly; else None."""
        record = _first_record(texts)
        if record is None:
            return None
        names = [key for key in record if self._schema.get_field_index(key) < 0]
        kind = _EXACT_EXTRAS.get(type(record[names[0]])) if len(names) == 1 else None
        return None if kind is None else pa.field(names[0], kind)

    def as_object(self, name: str, values: pa.Array) -> pa.Array:
        """Return ``{"name": value}`` for each value."""
        key = f"to_json({quote_text(name)}::VARCHAR)::VARCHAR"
        found = self._run(f"SELECT '{{' || {key} || ':' || to_json(v)::VARCHAR || '}}' AS r FROM records", values)
        return found.column("r").combine_chunks().cast(pa.string())

    def by_shape(self, texts: pa.Array) -> tuple[pa.Array, list[pa.Array]] | None:
        """Decode the rows that have the first row's shape, text for text.

        The proof that nothing is lost: the decoded row, written as JSON, is the record again. A value of another type, a
        further, missing or repeated key, or a number that DuckDB would shorten all make another text.

        Returns:
            (mask of decoded rows, their columns and rescued text), or None if this way does not pay.
        """
        if not self._has_shape or self._is_paused():
            return None
        record = _first_record(texts)
        if record is None:
            return None
        spaced = pc.sum(pc.match_substring(texts[:20], '": ')).as_py()
        shape = _shape(record, {field.name: field.type for field in self._schema}, is_spaced=bool(spaced))
        try:
            found = self._run(self._shape_query(shape), texts)
            mask = found.column("__ok").combine_chunks()
            share = (pc.sum(mask).as_py() or 0) / len(mask)
            self._misses = 0 if share >= _MIN_SHAPE_SHARE else self._misses + 1
            if share == 0:
                return None
            return mask, self._columns(found if share == 1 else found.filter(mask))
        except (duckdb.Error, pa.ArrowInvalid):  # a key that SQL does not take, a timestamp that is none
            self._misses += 1
            return None

    def _is_paused(self) -> bool:
        if self._misses >= _SHAPE_MISSES:
            self._misses, self._pause = 0, _SHAPE_PAUSE_BATCHES
        self._pause = max(0, self._pause - 1)
        return self._pause > 0

    def _shape_query(self, shape: Shape) -> str:
        structure = json.dumps(dict(shape.kinds), ensure_ascii=False)
        checks = [f"to_json(s) = {'json(v)' if shape.is_spaced else 'v'}"]
        for key, kind in shape.kinds:
            checks += _checks(f"s.{quote_name(key)}", kind, shape.first_signs.get(key))
        left_over = ", ".join(f"{quote_name(key)} := s.{quote_name(key)}" for key in shape.rescued)
        present = dict(shape.kinds).keys() - set(shape.rescued)
        columns = [self._shape_column(name, shape) if name in present else "NULL" for name in self._schema.names]
        return f"""
            SELECT {"".join(f"{column} AS c{i}, " for i, column in enumerate(columns))}
                   coalesce({" AND ".join(checks)}, false) AS __ok,
                   {f"to_json(struct_pack({left_over}))::VARCHAR" if left_over else "NULL::VARCHAR"} AS __rescued
            FROM (SELECT v, from_json(try_cast(v AS JSON), {quote_text(structure)}) AS s FROM records)"""

    def _shape_column(self, name: str, shape: Shape) -> str:
        return f"s.{quote_name(name)}" + ("::VARCHAR" if name in shape.first_signs else "")

    def _columns(self, found: pa.Table) -> list[pa.Array]:
        columns = [_converted(found.column(f"c{i}").combine_chunks(), f.type) for i, f in enumerate(self._schema)]
        return [*columns, found.column("__rescued").combine_chunks().cast(pa.string())]

    def sort(self, texts: pa.Array) -> Sorted:
        """Tell for each row which columns fit; see ``Sorted``."""
        paths = ", ".join(quote_text(_pointer(field.name)) for field in self._schema)
        signs = " || ".join(_sign(field.type, f"k[{i + 1}]") for i, field in enumerate(self._schema)) or "''"
        query = f"""
            SELECT CASE WHEN s IS NULL THEN {quote_text(SUSPECT)}
                        WHEN regexp_matches(s, '[xt]') AND len(json_keys(j)) > len(list_distinct(json_keys(j)))
                        THEN {quote_text(SUSPECT)} ELSE s END AS signature
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
            f", json_extract(v, {quote_text(_pointer(name))})::VARCHAR AS t{i}" for i, name in enumerate(as_text)
        )
        both = " || ".join(["r", *(f"coalesce(t{i}, '')" for i in range(len(as_text)))])
        query = f"""
            SELECT nullif(r, '{{}}') AS r {"".join(f", t{i}" for i in range(len(as_text)))},
                   CASE WHEN regexp_matches({both}, {quote_text(_FRACTION)})
                        THEN regexp_matches(v, {quote_text(EXOTIC_NUMBER)}) ELSE false END
                   OR regexp_matches({both}, {quote_text(_NOT_FINITE)}) AS is_exotic
            FROM (SELECT v, json_merge_patch(v, {quote_text(patch)})::VARCHAR AS r {parts} FROM records)"""
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


def _checks(value: str, kind: str, first_signs: str | None) -> list[str]:
    """Return SQL conditions beside the round trip, for what JSON does not allow but DuckDB reads and writes."""
    checks = []
    if kind == "DOUBLE":
        checks.append(f"coalesce(isfinite({value}), true)")
    if kind == "JSON":
        checks.append(f"NOT regexp_matches(coalesce({value}::VARCHAR, ''), {quote_text(_NOT_FINITE)})")
    if first_signs is not None:  # still the JSON type that is not the column's
        checks.append(f"contains({quote_text(first_signs)}, left({value}::VARCHAR, 1))")
    return checks


def _first_record(texts: pa.Array) -> dict[str, object] | None:
    """Return the first record of the batch that is one, without a key twice."""
    for value in texts[:20]:
        try:
            record = json.loads(value.as_py())
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record and len({key.casefold() for key in record}) == len(record):
            return record
    return None


def _shape(record: dict[str, object], types: dict[str, pa.DataType], *, is_spaced: bool) -> Shape:
    kinds, rescued, first_signs = [], [], {}
    for key, value in record.items():
        kind = types.get(key)
        signs = None if kind is None else _foreign_signs(value, kind)
        if signs is not None:
            first_signs[key] = signs
        if kind is None or (signs is not None and not pa.types.is_string(kind)):
            rescued.append(key)
        kinds.append((key, "JSON" if kind is None or signs is not None else _ENGINE_TYPES[kind]))
    return Shape(tuple(kinds), tuple(rescued), first_signs, is_spaced)


def _foreign_signs(value: object, kind: pa.DataType) -> str | None:
    """Return the first signs of the value's JSON type if no value of that type is of the column's own, else None."""
    if value is None:
        return None
    found = next(name for name, python in _JSON_TYPES if isinstance(value, python))
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    own = "boolean" if pa.types.is_boolean(kind) else "number" if is_number else "text"
    return None if found == own else _FIRST_SIGNS[found]


def _converted(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.null_count == len(values):  # a literal NULL has whatever type the engine likes, INTEGER in older ones
        return pa.nulls(len(values), kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None and pa.types.is_string(values.type):
        try:
            return values.cast(kind)
        except pa.ArrowInvalid:  # without a zone it is UTC
            return values.cast(pa.timestamp("us")).cast(kind)
    return values if values.type == kind else values.cast(kind)


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
               WHEN {found} IN ({_texts(suspect)}) THEN {quote_text(SUSPECT)} ELSE 'x' END"""


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _texts(texts: list[str]) -> str:
    return ", ".join(map(quote_text, texts))
