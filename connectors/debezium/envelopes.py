"""Debezium's envelopes taken apart: which change a record is, of which table, at which position, and its row as JSON text.

An envelope comes bare or beside its schema (``{"schema": ..., "payload": ...}``). The schema is the same text in record after
record, so it is read once and cut off; what is left is read by one query in DuckDB. Row images are passed on as the text they
came in; where DuckDB would spell a number otherwise they are cut out in Python.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.json_exact import ExactDecoder
from connectors.json_verify import EXOTIC_NUMBER

__all__ = ["Envelopes", "EnvelopeReader"]

_START = b'{"schema":{'
_MIDDLE = ',"payload":'
_MOST_PREFIXES = 64
_PREFIXES_PER_BATCH = 16
_IMAGES = ExactDecoder(pa.schema([("before", pa.string()), ("after", pa.string())]))

_STRUCTURE = {
    "op": "VARCHAR",
    "before": "JSON",
    "after": "JSON",
    "payload": "JSON",
    "schema": "JSON",
    "source": {
        **dict.fromkeys(("connector", "db", "schema", "table", "collection", "file", "sequence"), "VARCHAR"),
        **dict.fromkeys(("lsn", "pos", "row", "scn", "commit_scn", "ts_ms", "ts_us"), "BIGINT"),
    },
    "transaction": {"total_order": "BIGINT"},
}
# As RowPosition packs it: number of the file, position in it.
_BINLOG = "(try_cast(regexp_extract(s.source.file, '([0-9]+)$', 1) AS BIGINT) << 36) + s.source.pos"
# What shares topics with changes and is none: heartbeats, borders of transactions, schema changes, logical messages.
_QUERY = f"""
SELECT CASE WHEN s.op IN ('c', 'u', 'r') AND starts_with(s.after::VARCHAR, '{{') THEN s.op
            WHEN s.op = 'd' AND starts_with(s.before::VARCHAR, '{{') THEN 'd'
            WHEN s.op = 't' THEN 't'
            WHEN s.op = 'm' AND json_exists(j, '$.message') THEN 'skip'
            WHEN json_type(j) = 'NULL' THEN 'skip'
            WHEN s.op IS NOT NULL OR j IS NULL OR json_type(j) <> 'OBJECT' THEN 'bad'
            WHEN json_exists(j, '$.payload') THEN 'nested'
            WHEN json_extract_string(j, '$.status') IN ('BEGIN', 'END') AND json_exists(j, '$.id') THEN 'skip'
            WHEN json_exists(j, '$.ddl') AND json_exists(j, '$.source') THEN 'skip'
            WHEN json_keys(j) = ['ts_ms'] THEN 'skip'
            ELSE 'bad' END AS kind,
       CASE s.op WHEN 'd' THEN s.before WHEN 't' THEN '{{}}' ELSE s.after END::VARCHAR AS image,
       CASE WHEN contains(v, image) OR s.op = 't' THEN false ELSE regexp_matches(v, '{EXOTIC_NUMBER}') END AS is_exotic,
       coalesce(s.payload::VARCHAR, 'null') AS payload,
       CASE WHEN kind = 'nested' THEN s.schema::VARCHAR END AS schema,
       concat_ws('.', CASE WHEN c IN ('mysql', 'mariadb', 'mongodb', 'vitess') THEN s.source.db
                           ELSE coalesce(s.source.schema, s.source.db) END,
                      coalesce(s.source.table, s.source.collection)) AS source_table,
       CASE c WHEN 'postgresql' THEN coalesce(try_cast(split_part(s.source.sequence, '"', 2) AS BIGINT), s.source.lsn)
              WHEN 'oracle' THEN coalesce(s.source.commit_scn, s.source.scn)
              WHEN 'mysql' THEN {_BINLOG} WHEN 'mariadb' THEN {_BINLOG} END AS position,
       CASE c WHEN 'postgresql' THEN coalesce(s.transaction.total_order - 1, s.source.lsn)
              WHEN 'mysql' THEN s.source.row WHEN 'mariadb' THEN s.source.row END AS change_index,
       make_timestamptz(coalesce(s.source.ts_us, s.source.ts_ms * 1000)) AS committed_at
FROM (SELECT v, j, s, s.source.connector AS c
      FROM (SELECT v, j, json_transform(j, '{json.dumps(_STRUCTURE)}') AS s
            FROM (SELECT v, try_cast(v AS JSON) AS j FROM records)))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelopes:
    """Records taken apart.

    Attributes:
        rows: Number of the record in the batch, of each change, shape (n_rows,).
        columns: kind (c, u, r, d, t), image, source_table, position, change_index, committed_at; n_rows rows.
        schemas: Text of the schema of each change, empty for none, as codes into ``schema_texts``, shape (n_rows,).
        schema_texts: What the codes stand for.
        bad: Numbers of the records that are no envelopes, shape (n_bad,).
    """

    rows: np.ndarray
    columns: pa.Table
    schemas: np.ndarray
    schema_texts: tuple[str, ...]
    bad: np.ndarray


class EnvelopeReader:
    """Takes records apart; remembers the schemas it saw. Used by one thread at a time.

    Args:
        connection: The decoder's own, of one thread, in UTC.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._prefixes: dict[bytes, str] = {}
        self._codes: dict[str, int] = {"": 0}

    def read(self, texts: pa.Array, rows: np.ndarray, outer: pa.Array | None = None) -> Envelopes:
        """Take records apart.

        Args:
            texts: Records as text, none NULL, shape (n,).
            rows: Their numbers in the batch, ascending, shape (n,).
            outer: Schema of each as text, where the source has taken that apart already; None looks for it inside.
        """
        if len(self._codes) > _MOST_PREFIXES:
            self._prefixes, self._codes = {}, {"": 0}
        payloads, codes, is_cut = (texts, self._coded(outer), None) if outer is not None else self._cut_schemas(texts)
        found = self._query(payloads)
        kinds = _texts(found, "kind")
        parts = [self._part(found, payloads, rows, codes, np.isin(kinds, ("c", "u", "r", "d", "t")))]
        bad = kinds == "bad"
        again = kinds == "nested"
        if is_cut is not None and (bad & is_cut).any():  # something follows the payload
            parts.append(self._second(texts.filter(pa.array(bad & is_cut)), rows[bad & is_cut]))
            bad &= ~is_cut
        if again.any():
            mask = pa.array(again)
            inner = found.filter(mask)
            schemas = inner.column("schema").combine_chunks().fill_null("")
            parts.append(self.read(inner.column("payload").combine_chunks(), rows[again], schemas))
        return _joined(parts, rows[bad], tuple(self._codes))

    def _second(self, texts: pa.Array, rows: np.ndarray) -> Envelopes:
        """Take records apart whose schema could not be cut off."""
        found = self._query(texts)
        nested = _texts(found, "kind") == "nested"
        inner = found.filter(pa.array(nested))
        schemas = inner.column("schema").combine_chunks().fill_null("")
        part = self.read(inner.column("payload").combine_chunks(), rows[nested], schemas)
        return _joined([part], rows[~nested], tuple(self._codes))

    def _cut_schemas(self, texts: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        """Return the payloads, the code of the schema of each, and which were cut."""
        codes, is_cut = np.zeros(len(texts), np.int64), np.zeros(len(texts), dtype=bool)
        open_rows = _mask(pc.and_(pc.starts_with(texts, _START.decode()), pc.ends_with(texts, "}")))
        if not open_rows.any():
            return texts, codes, is_cut
        lengths = np.zeros(len(texts), np.int64)
        for _ in range(_PREFIXES_PER_BATCH):
            if not open_rows.any():
                break
            first = int(np.argmax(open_rows))
            prefix = self._prefix(texts[first].as_py())
            if prefix is None:
                open_rows[first] = False
                continue
            mine = open_rows & _mask(pc.starts_with(texts, prefix))
            codes[mine], lengths[mine] = self._codes[self._prefixes[prefix.encode()]], len(prefix.encode())
            is_cut |= mine
            open_rows &= ~mine
        raw = texts.cast(pa.binary())
        payloads = raw
        for length in np.unique(lengths[lengths > 0]):
            sliced = pc.binary_slice(raw, int(length), -1)
            payloads = pc.if_else(pa.array(lengths == length), sliced, payloads)
        return payloads.cast(pa.string()), codes, is_cut

    def _prefix(self, text: str) -> str | None:
        """Return what stands before the payload of a record, and remember the schema in it."""
        try:
            _, end = json.JSONDecoder().raw_decode(text, len(_START) - 1)
        except (ValueError, RecursionError):
            return None
        if not text.startswith(_MIDDLE, end):
            return None
        prefix = text[: end + len(_MIDDLE)]
        schema = text[len(_START) - 1 : end]
        self._prefixes[prefix.encode()] = schema
        self._codes.setdefault(schema, len(self._codes))
        return prefix

    def _coded(self, schemas: pa.Array) -> np.ndarray:
        encoded = schemas.dictionary_encode()
        table = [self._codes.setdefault(text, len(self._codes)) for text in encoded.dictionary.to_pylist()]
        return np.array(table, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)] if table else np.zeros(0, int)

    def _query(self, texts: pa.Array) -> pa.Table:
        self._connection.register("records", pa.table({"v": texts}))
        try:
            return self._connection.sql(_QUERY).to_arrow_table()
        finally:
            self._connection.unregister("records")

    def _part(
        self, found: pa.Table, texts: pa.Array, rows: np.ndarray, codes: np.ndarray, is_change: np.ndarray
    ) -> Envelopes:
        mask = pa.array(is_change)
        columns = found if is_change.all() else found.filter(mask)
        columns = columns.drop_columns(["payload", "schema"])
        is_exotic = columns.column("is_exotic").combine_chunks().fill_null(False)
        if pc.any(is_exotic).as_py():
            columns = _with_exact_images(columns, texts.filter(mask), is_exotic)
        return Envelopes(
            rows=rows[is_change],
            columns=columns.drop_columns(["is_exotic"]),
            schemas=codes[is_change],
            schema_texts=tuple(self._codes),
            bad=rows[:0],
        )


def _with_exact_images(columns: pa.Table, texts: pa.Array, is_exotic: pa.Array) -> pa.Table:
    """Cut the images of a few records out with all their digits."""
    records = texts.filter(is_exotic).cast(pa.binary()).to_pylist()
    before, after = _IMAGES.decode(records)[:2]
    is_delete = pc.equal(columns.column("kind").combine_chunks().filter(is_exotic), "d")
    exact = pc.if_else(is_delete, before, after)
    images = pc.replace_with_mask(columns.column("image").combine_chunks().cast(pa.string()), is_exotic, exact)
    return columns.set_column(columns.schema.get_field_index("image"), "image", images)


def _joined(parts: list[Envelopes], bad: np.ndarray, schema_texts: tuple[str, ...]) -> Envelopes:
    """Put parts together in the order of their records."""
    parts = [part for part in parts if len(part.rows) or len(part.bad)] or parts[:1]
    rows = np.concatenate([part.rows for part in parts])
    columns = pa.concat_tables([part.columns for part in parts])
    schemas = np.concatenate([part.schemas for part in parts])
    if len(parts) > 1:
        order = np.argsort(rows, kind="stable")
        rows, columns, schemas = rows[order], columns.take(pa.array(order)), schemas[order]
    bad = np.sort(np.concatenate([bad, *(part.bad for part in parts)]))
    return Envelopes(rows=rows, columns=columns, schemas=schemas, schema_texts=schema_texts, bad=bad)


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False))


def _mask(values: pa.Array) -> np.ndarray:
    return np.asarray(values.fill_null(False).to_numpy(zero_copy_only=False))
