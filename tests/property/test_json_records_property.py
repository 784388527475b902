"""Whatever arrives: one row per value, the same by every way and in every batch, and nothing lost."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from connectors import json_records
from connectors.json_exact import ExactDecoder
from connectors.json_records import RESCUED, JsonDecoder
from waxlake.stream.ddl import parse_ddl

FLAT = parse_ddl(
    "a BIGINT, b DOUBLE, c STRING, d BOOLEAN, e TIMESTAMP, f DECIMAL(10,2), g DATE, h TINYINT, i TIMESTAMP_NTZ, j BINARY"
)
PLAIN = parse_ddl("a BIGINT, b DOUBLE, c STRING, d BOOLEAN, e TIMESTAMP")
NESTED = parse_ddl(
    "a BIGINT, b STRUCT<a: INT, c: STRUCT<e: DATE>>, c ARRAY<TIMESTAMP_NTZ>, d ARRAY<STRUCT<a: DOUBLE>>, e STRING"
)
MAPPED = parse_ddl("a MAP<STRING, BIGINT>, b FLOAT")
SCHEMAS = [FLAT, PLAIN, NESTED, MAPPED]


@pytest.fixture(autouse=True, scope="module")
def engines_start_early() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_FEW_ROWS", 2)
        yield


numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-200, 200).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
clock = st.from_regex(
    r"[01][0-9]:[0-5][0-9](:[0-6][0-9](\.[0-9]{1,7}0{0,3})?)?(Z|[+-][0-2][0-9]:?[0-6][0-9])?", fullmatch=True
)
days = st.dates().map(str) | st.from_regex(r"[0-2][0-9]{3}-[01][0-9]-[0-3][0-9]", fullmatch=True)
strings = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    days,
    st.builds("{}{}{}".format, days, st.sampled_from("T t"), clock),
    numbers,
    st.binary(max_size=5).map(lambda b: base64.b64encode(b).decode()),
    st.sampled_from(["info", "NaN", ":nan", "a:1e5", "1.5,2.5", "{", "true"]),
)
leaves = st.one_of(
    st.sampled_from(["null", "true", "false"]),
    numbers,
    strings.map(json.dumps),
    strings.map(lambda s: json.dumps(s, ensure_ascii=False)),
)
keys = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "A", "z", "", "k v"])


@st.composite
def objects(draw: Any, inner: st.SearchStrategy[str]) -> str:
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:")]))
    pairs = draw(st.lists(st.tuples(keys, inner), max_size=6))
    return "{" + comma.join(f"{json.dumps(key)}{colon}{value}" for key, value in pairs) + "}"


values_of = st.recursive(
    leaves,
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
    max_leaves=6,
)
records = objects(leaves) | objects(values_of)
fitting = st.fixed_dictionaries(
    {},
    optional={
        "a": st.integers(-(2**63), 2**63 - 1),
        "b": st.floats(allow_nan=False, allow_infinity=False),
        "c": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "d": st.booleans(),
        "e": st.datetimes(timezones=st.just(timezone.utc)).map(lambda t: t.isoformat()),
        "z": st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    },
).map(lambda record: json.dumps(record, separators=(",", ":")))
broken = st.builds(
    lambda text, at, sign: text[:at] + sign + text[at:],
    records,
    st.integers(0, 30),
    st.sampled_from(list('{}[],:"\\ \n\0x1')),
)
anything = st.one_of(
    records.map(str.encode),
    fitting.map(str.encode),
    broken.map(str.encode),
    st.tuples(st.sampled_from(["", " ", "\n"]), records).map(lambda pair: (pair[0] + pair[1] + pair[0]).encode()),
    st.binary(max_size=12),
    st.none(),
)
batches = st.builds(lambda values, times: values * times, st.lists(anything, max_size=6), st.sampled_from([1, 1, 3]))
relaxed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def decoder_of(schema: pa.Schema) -> JsonDecoder:
    return JsonDecoder(schema)  # one for all examples, as a stream has one: what it learned must not change a row


def reference(schema: pa.Schema, values: list[bytes | None]) -> list[dict[str, Any]]:
    names = [*schema.names, RESCUED]
    decoder = ExactDecoder(decoder_of(schema).schema.remove(len(schema)))
    rows = []
    for value in values:
        columns = decoder.decode([] if value is None else [value])
        rows.append(
            dict.fromkeys(names) if value is None else {n: c[0].as_py() for n, c in zip(names, columns, strict=True)}
        )
    return rows


@relaxed
@given(st.sampled_from(SCHEMAS), batches)
@example(PLAIN, [b'{"a":1,"z":NaN}'] * 3)
@example(PLAIN, [b'{"a":{}', b'{"z":{}}}', b'{"a":1}{"a":2}'])
@example(PLAIN, [b'{"b":1e400}'] * 3)
@example(FLAT, [b'{"a":"x","a":1}'] * 3)
@example(NESTED, [b'{"f":null}', b'{"b":0.0,"e":"x"}', b"{}"])
def test_every_way_gives_what_the_reference_gives(schema: pa.Schema, values: list[bytes | None]) -> None:
    table = decoder_of(schema).decode(pa.array(values, pa.binary()))
    table.validate(full=True)
    assert table.num_rows == len(values)
    assert table.to_pylist() == reference(schema, values)


@relaxed
@given(st.sampled_from(SCHEMAS), batches, st.data())
def test_any_split_into_batches_gives_the_same_rows(
    schema: pa.Schema, values: list[bytes | None], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    decoder = decoder_of(schema)
    edges = [0, *cuts, len(values)]
    parts = [decoder.decode(pa.array(values[lo:hi], pa.binary())) for lo, hi in pairwise(edges)]
    assert pa.concat_tables(parts).to_pylist() == decoder.decode(pa.array(values, pa.binary())).to_pylist()


def same(found: Any, given_value: Any) -> bool:
    if isinstance(found, dict) and isinstance(given_value, dict):
        present = {k for k, v in found.items() if v is not None} | {k for k, v in given_value.items() if v is not None}
        return all(same(found.get(k), given_value.get(k)) for k in present)
    if isinstance(found, list) and isinstance(given_value, list):
        return len(found) == len(given_value) and all(map(same, found, given_value))
    if isinstance(found, datetime):
        text = given_value.replace(" ", "T")
        return text.startswith(("0000", "9999-12-31")) or text[:10] in {str(found.date()), *neighbours(found.date())}
    if isinstance(found, date):
        return bool(given_value == found.isoformat())
    if isinstance(found, bytes):
        return base64.b64decode(given_value) == found
    if isinstance(found, bool) or isinstance(given_value, bool):
        return found is given_value or (isinstance(found, str) and json.loads(found) is given_value)
    if isinstance(found, float):
        return math.isclose(found, float(given_value), rel_tol=1e-15, abs_tol=5e-324)
    if isinstance(found, str) and not isinstance(given_value, str):
        return same(json.loads(found, parse_float=Decimal), given_value)
    if isinstance(found, Decimal) or isinstance(given_value, Decimal):
        return Decimal(found) == Decimal(given_value)
    return bool(found == given_value)


def neighbours(day: date) -> set[str]:
    return {str(date.fromordinal(day.toordinal() + step)) for step in (-1, 1) if 1 < day.toordinal() < 3_652_059}


@relaxed
@given(st.sampled_from([FLAT, PLAIN, NESTED]), st.lists(records | fitting, max_size=4))
def test_columns_and_rescued_together_are_the_record(schema: pa.Schema, texts: list[str]) -> None:
    rows = decoder_of(schema).decode(pa.array([text.encode() for text in texts], pa.binary())).to_pylist()
    for text, row in zip(texts, rows, strict=True):
        rescued = json.loads(row.pop(RESCUED) or "{}", parse_float=Decimal)
        if "_raw" in rescued:
            assert rescued == {"_raw": text}
            continue
        record = json.loads(text, parse_float=Decimal)
        for key, value in record.items():
            kept = row.get(key)
            if isinstance(kept, dict) and isinstance(rescued.get(key), dict):
                merged = merge(kept, rescued[key])
            else:
                merged = rescued.get(key, kept)
            assert same(merged, value), (key, merged, value)


def merge(kept: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    both = dict(kept)
    for key, value in rest.items():
        both[key] = merge(both[key], value) if isinstance(both.get(key), dict) and isinstance(value, dict) else value
    return both
