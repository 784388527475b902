"""Records of Debezium to change rows: envelopes taken apart, images decoded by their schema, nothing lost.

Called for every micro-batch, as a step behind the source that carries the events. Positions are the source's own; what is
no change (a tombstone, a heartbeat, the border of a transaction) gives no row, what is no envelope gives a row that holds
nothing but ``_rescued_data``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.debezium.envelopes import EnvelopeReader, Envelopes
from connectors.debezium.settings import DebeziumSettings
from connectors.debezium.types import Semantic, Wire, semantic_of, wire_of
from connectors.json_records import RESCUED, JsonDecoder
from waxlake.stream.changes import CHANGE_COLUMNS, CHANGE_TYPE, DELETE, INSERT, READ, TRUNCATE, UPDATE
from waxlake.stream.errors import UsageError

__all__ = ["DebeziumDecoder"]

_CHANGES = {"c": INSERT, "u": UPDATE, "d": DELETE, "r": READ, "t": TRUNCATE}
_POSITION_COLUMN = "_offset"
_MOST_DECODERS = 64
_ENVELOPE = ("before", "after", "source", "op", "transaction")


@dataclass(slots=True)
class _Images:
    """How the images of one schema are decoded."""

    decoder: JsonDecoder
    wires: list[Wire]


class DebeziumDecoder:
    """Turn records into change rows. Used by one thread at a time.

    Args:
        settings: The table's columns, and how Debezium was told to write.

    Guarantee: every change gives one row, in the order of the records; what cannot be read is in ``_rescued_data``.
    """

    metadata_columns = tuple(CHANGE_COLUMNS.names)
    needs = (_POSITION_COLUMN,)

    def __init__(self, settings: DebeziumSettings) -> None:
        self._settings = settings
        self._schema = settings.schema_of_rows
        self._images: dict[str, _Images] = {}
        self._connection = duckdb.connect(config={"threads": 1})  # one thread: rows come back in their order
        self._connection.execute("SET TimeZone = 'UTC'")
        self._reader = EnvelopeReader(self._connection)

    def decode(self, table: pa.Table) -> pa.Table:
        """Return the change rows of a batch of records.

        Args:
            table: A column ``value`` of text or bytes; or ``payload`` (and ``schema``), or the fields of an envelope, as JSON
                texts. Other columns are kept.

        Raises:
            UsageError: ``DEBEZIUM_INPUT``: there is no such column. Not retryable.
        """
        values, outer, used = _records(table)
        texts, rows, odd = _texts(values)
        schemas = None if outer is None else outer.take(pa.array(rows)).fill_null("")
        found = self._reader.read(texts, rows, schemas)
        found = self._wanted(found)
        bad = np.union1d(found.bad, odd)
        if RESCUED in table.column_names:  # the source could not read these
            bad = np.union1d(bad, np.flatnonzero(_bools(pc.is_valid(table.column(RESCUED)))))
        kept = np.concatenate([found.rows, bad])
        order = np.argsort(kept, kind="stable") if len(bad) else None
        result = self._rows(found)
        if len(bad):
            result = pa.concat_tables([result, self._rescued(table, values, bad)]).take(pa.array(order))
            kept = kept[order]
        rest = table.drop_columns([name for name in (*used, RESCUED) if name in table.column_names])
        for name in rest.column_names:
            if name not in result.column_names:
                result = result.append_column(rest.schema.field(name), rest.column(name).take(pa.array(kept)))
        return self._with_positions(result)

    def _wanted(self, found: Envelopes) -> Envelopes:
        pattern = self._settings.table_pattern
        if pattern is None or not len(found.rows):
            return found
        mask = pc.match_substring_regex(found.columns.column("source_table"), f"^(?:{pattern})$").combine_chunks()
        keep = _bools(mask.fill_null(False))
        return Envelopes(
            rows=found.rows[keep],
            columns=found.columns.filter(pa.array(keep)),
            schemas=found.schemas[keep],
            schema_texts=found.schema_texts,
            bad=found.bad,
        )

    # -- rows ----------------------------------------------------------------------------------------------------

    def _rows(self, found: Envelopes) -> pa.Table:
        """Return the change rows, one an envelope."""
        columns = found.columns
        images = columns.column("image").combine_chunks().cast(pa.string())
        images, unchanged = self._without_placeholders(images)
        parts, places = [], []
        for code in np.unique(found.schemas):
            at = np.flatnonzero(found.schemas == code)
            some = images if len(at) == len(images) else images.take(pa.array(at))
            parts.append(self._decoded(some, found.schema_texts[code]))
            places.append(at)
        rows = pa.concat_tables(parts) if parts else pa.schema([*self._schema, (RESCUED, pa.string())]).empty_table()
        if len(parts) > 1:
            rows = rows.take(pa.array(np.argsort(np.concatenate(places), kind="stable")))
        kinds = columns.column("kind").combine_chunks().dictionary_encode()
        names = pa.array([_CHANGES[kind] for kind in kinds.dictionary.to_pylist()], pa.string())
        values = {
            "_change_type": names.take(kinds.indices),
            "_commit_position": columns.column("position"),
            "_change_index": columns.column("change_index"),
            "_commit_timestamp": columns.column("committed_at"),
            "_table": columns.column("source_table"),
            "_unchanged": unchanged,
        }
        for field in CHANGE_COLUMNS:
            rows = rows.append_column(field, values[field.name].cast(field.type))
        return rows

    def _decoded(self, images: pa.Array, schema: str) -> pa.Table:
        how = self._images.get(schema)
        if how is None:
            if len(self._images) >= _MOST_DECODERS:
                self._images.clear()
            how = self._images[schema] = self._how(schema)
        raw = how.decoder.decode(images)
        rescued = raw.column(RESCUED).combine_chunks() if len(raw) else pa.array([], pa.string())
        columns = []
        for field, wire in zip(self._schema, how.wires, strict=True):
            column = raw.column(field.name).combine_chunks()
            if wire.convert is not None:
                made = wire.convert(column)
                rescued = _rescue_lost(rescued, field.name, column, made)
                column = made
            columns.append(column)
        return pa.Table.from_arrays([*columns, rescued], schema=pa.schema([*self._schema, (RESCUED, pa.string())]))

    def _how(self, schema: str) -> _Images:
        said = _semantics(schema)
        if said is None:
            said = {name: Semantic(kind) for name, kind in self._settings.types}
            if self._settings.decimal_handling_mode == "precise":
                decimals = {f.name: Semantic("Decimal") for f in self._schema if pa.types.is_decimal(f.type)}
                said = {**decimals, **said}
        wires = [wire_of(field.type, said.get(field.name), self._connection) for field in self._schema]
        wired = pa.schema([pa.field(f.name, wire.type) for f, wire in zip(self._schema, wires, strict=True)])
        return _Images(JsonDecoder(wired), wires)

    # -- values that did not change ----------------------------------------------------------------------------

    def _without_placeholders(self, images: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Take placeholders out of images; return the images, and the names of the columns that did not change."""
        kind = CHANGE_COLUMNS.field("_unchanged").type
        word = self._settings.unavailable_value_placeholder
        coded = base64.b64encode(word.encode()).decode()
        mask = pc.or_(pc.match_substring(images, word), pc.match_substring(images, coded)).fill_null(False)
        if not pc.any(mask).as_py():
            return images, pa.nulls(len(images), kind)
        forms = [json.dumps(form, separators=(",", ":")) for form in (word, coded, [word], [coded], {word: word})]
        names = self._schema.names
        paths = ", ".join(_quoted("/" + name.replace("~", "~0").replace("/", "~1")) for name in names)
        listed, wanted = ", ".join(map(_quoted, names)), ", ".join(map(_quoted, forms))
        query = f"""
            SELECT list_filter([{listed}], lambda name, i: values[i] IN ({wanted})) AS names, v
            FROM (SELECT v, json_extract(v, [{paths}])::VARCHAR[] AS values FROM images)"""
        self._connection.register("images", pa.table({"v": images.filter(mask)}))
        try:
            found = self._connection.sql(
                f"""SELECT CASE WHEN len(names) > 0 THEN names END AS names,
                           json_merge_patch(v, map_from_entries(list_transform(names, lambda n: (n, NULL::VARCHAR)))::JSON
                           )::VARCHAR AS image FROM ({query})"""
            ).to_arrow_table()
        finally:
            self._connection.unregister("images")
        lists = found.column("names").combine_chunks().cast(kind)
        indices = pc.if_else(mask, pc.subtract(pc.cumulative_sum(mask.cast(pa.int64())), 1), None)
        return pc.replace_with_mask(images, mask, found.column("image").combine_chunks().cast(pa.string())), lists.take(
            indices
        )

    # -- what is no envelope ------------------------------------------------------------------------------------

    def _rescued(self, table: pa.Table, values: pa.Array, rows: np.ndarray) -> pa.Table:
        """Return rows that hold nothing but the record, as JSON text."""
        taken = values.take(pa.array(rows)).cast(pa.binary()).to_pylist()
        own = [None] * len(rows)
        if RESCUED in table.column_names:
            own = table.column(RESCUED).take(pa.array(rows)).to_pylist()
        texts = [text or _as_json(value) for text, value in zip(own, taken, strict=True)]
        schema = pa.schema([*self._schema, (RESCUED, pa.string()), *CHANGE_COLUMNS])
        columns = [
            pa.array(texts, pa.string()) if field.name == RESCUED else pa.nulls(len(rows), field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def _with_positions(self, rows: pa.Table) -> pa.Table:
        """Fill in positions of databases whose own do not fit a number: the order of the records."""
        if _POSITION_COLUMN not in rows.column_names:
            return rows
        is_change = pc.is_valid(rows.column(CHANGE_TYPE))
        for name, default in (("_commit_position", rows.column(_POSITION_COLUMN)), ("_change_index", 0)):
            filled = pc.if_else(is_change, pc.coalesce(rows.column(name), default), None)
            rows = rows.set_column(rows.schema.get_field_index(name), CHANGE_COLUMNS.field(name), filled)
        return rows


def _records(table: pa.Table) -> tuple[pa.Array, pa.Array | None, tuple[str, ...]]:
    """Return the records, their schemas where those are a column of their own, and the columns they came in."""
    names = table.column_names
    if "value" in names and _is_text(table.schema.field("value").type):
        return table.column("value").combine_chunks(), None, ("value",)
    if "payload" in names and _is_text(table.schema.field("payload").type):
        outer = table.column("schema").combine_chunks() if "schema" in names else pa.nulls(len(table), pa.string())
        return table.column("payload").combine_chunks(), outer.fill_null(""), ("payload", "schema")
    if "op" in names and "after" in names:
        used = [name for name in (*_ENVELOPE, "ts_ms", "ts_us", "ts_ns") if name in names]
        return _assembled(table.select([name for name in used if name in _ENVELOPE])), None, tuple(used)
    raise UsageError(
        "cannot read Debezium events from this stream",
        code="DEBEZIUM_INPUT",
        found=f"columns {', '.join(names)}",
        expected="a column `value` of text or bytes",
        remedy="Read the topic with format='binary' (or 'string'), without a schema; Avro is not available yet",
    )


def _assembled(table: pa.Table) -> pa.Array:
    """Return envelopes as one text each, from a column a field."""
    parts = []
    for name in table.column_names:
        texts = table.column(name).cast(pa.string()).combine_chunks()
        if name == "op":
            texts = pc.binary_join_element_wise('"', texts, '"', "")
        parts.append(pc.binary_join_element_wise(f'"{name}":', texts.fill_null("null"), ""))
    joined = pc.binary_join_element_wise("{", pc.binary_join_element_wise(*parts, ","), "}", "")
    is_empty = pc.is_null(table.column(0))
    for name in table.column_names[1:]:
        is_empty = pc.and_(is_empty, pc.is_null(table.column(name)))
    made: pa.Array = pc.if_else(is_empty.combine_chunks(), pa.scalar(None, pa.string()), joined)
    return made


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _texts(values: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return the records that are text, their row numbers, and those of records that are none. NULL is no record."""
    is_there = _bools(pc.is_valid(values))
    rows = np.flatnonzero(is_there)
    some = values if is_there.all() else values.drop_null()
    try:
        return some.cast(pa.string()), rows, rows[:0]
    except pa.ArrowInvalid:
        is_odd = np.array([not _is_utf8(value) for value in some.to_pylist()], dtype=bool)
        return some.filter(pa.array(~is_odd)).cast(pa.string()), rows[~is_odd], rows[is_odd]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bools(values: Any) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy())


def _as_json(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return json.dumps({"_raw_base64": base64.b64encode(value).decode()})
    try:
        return text if isinstance(json.loads(text), dict) else json.dumps({"_raw": text}, ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps({"_raw": text}, ensure_ascii=False)


def _semantics(schema: str) -> dict[str, Semantic] | None:
    """Return what the schema of an envelope says of the columns of its table; None if there is none."""
    try:
        fields = json.loads(schema)["fields"] if schema else []
        by_name: Mapping[str, Any] = {field["field"]: field for field in fields}
        image = by_name.get("after") or by_name.get("before")
        if image is None:
            return None
        said = {field["field"]: semantic_of(field) for field in image["fields"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {name: semantic for name, semantic in said.items() if semantic is not None}


def _rescue_lost(rescued: pa.Array, name: str, before: pa.Array, after: pa.Array) -> pa.Array:
    """Add the values that no conversion could keep to the rescued ones."""
    lost = pc.and_(pc.is_valid(before), pc.is_null(after))
    if not pc.any(lost).as_py():
        return rescued
    texts = []
    for value, text in zip(before.filter(lost).to_pylist(), rescued.filter(lost).to_pylist(), strict=True):
        texts.append(json.dumps({**json.loads(text or "{}"), name: value}, ensure_ascii=False, separators=(",", ":")))
    return pc.replace_with_mask(rescued, lost, pa.array(texts, pa.string()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
