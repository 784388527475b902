"""The text of ``_rescued_data``: JSON objects built column by column, never row by row; called by the formats."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["CORRUPT_KEY", "FILE_PATH_KEY", "json_quote", "json_texts", "merged", "objects", "with_file_path"]

CORRUPT_KEY = "_raw"
FILE_PATH_KEY = "_file_path"


def json_quote(values: pa.Array) -> pa.Array:
    """Return each string as a JSON string; NULL stays NULL."""
    special = pc.match_substring_regex(values, r'["\\\x00-\x1f]')
    if pc.any(special).as_py():
        quoted = [
            None if text is None else json.dumps(text, ensure_ascii=False)
            for text in values.filter(special).to_pylist()
        ]
        plain = pc.binary_join_element_wise('"', values, '"', "")
        return pc.replace_with_mask(plain, pc.fill_null(special, False), pa.array(quoted, pa.string()))
    return pc.binary_join_element_wise('"', values, '"', "")


def json_texts(values: pa.Array) -> pa.Array:
    """Return each value of any type as JSON text, by DuckDB's writer; NULL stays NULL."""
    if pa.types.is_string(values.type):
        return json_quote(values)
    import duckdb

    query = "SELECT CASE WHEN v IS NULL THEN NULL ELSE to_json(v)::VARCHAR END AS t FROM input"
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("input", pa.table({"v": values}))
        texts = connection.sql(query).to_arrow_table().column(0).cast(pa.string())
    return pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.nulls(0, pa.string())


def objects(members: Mapping[str, pa.Array], count: int) -> pa.Array:
    """Return one JSON object per row of the members that are not NULL there; NULL where all are.

    Args:
        members: Key to JSON texts, shape (count,).
        count: Number of rows.
    """
    if not members:
        return pa.nulls(count, pa.string())
    pairs = []
    for key, texts in members.items():
        pair = pc.binary_join_element_wise(json.dumps(key, ensure_ascii=False) + ":", texts, ",", "")
        pairs.append(pc.fill_null(pair, ""))  # joining with nulls skipped loses the rows where all are NULL
    joined = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*pairs, ""), 0, -1)
    whole = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(pc.equal(joined, ""), pa.scalar(None, pa.string()), whole)


def merged(first: pa.Array, second: pa.Array) -> pa.Array:
    """Return for each row one JSON object with the members of both; NULL where both are."""
    if second.null_count == len(second):
        return first
    both = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(first, 0, -1), ",", pc.utf8_slice_codeunits(second, 1), ""
    )
    return pc.coalesce(both, first, second)


def with_file_path(rescued: pa.Array, paths: pa.Array) -> pa.Array:
    """Return ``rescued`` with the path of the file added to each object.

    Args:
        rescued: JSON objects or NULL, shape (n_rows,).
        paths: Path of each row's file, shape (n_rows,).
    """
    if rescued.null_count == len(rescued):
        return rescued
    there = rescued.is_valid()
    texts, names = rescued.filter(there), json_quote(paths.filter(there))
    head = pc.utf8_slice_codeunits(texts, 0, -1)
    comma = pc.if_else(pc.equal(head, "{"), "", ",")
    full = pc.binary_join_element_wise(head, comma, f'"{FILE_PATH_KEY}":', names, "}", "")
    return pc.replace_with_mask(rescued, there, full)
