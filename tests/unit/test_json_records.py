from __future__ import annotations

import json
import threading
from datetime import date, datetime, timezone
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import json as arrow_json

from connectors import json_records, json_verify
from connectors.json_exact import MAX_DEPTH, ExactDecoder
from connectors.json_records import RESCUED, JsonDecoder
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import SchemaError

WAYS = ("exact", "alone", "crowd")


def decode(ddl: str, *values: bytes | str | None, way: str = "alone") -> list[dict[str, object]]:
    """Decode by the reference, by the decoder, or by the decoder among enough of the same for its engines to start."""
    records = [value.encode() if isinstance(value, str) else value for value in values]
    schema = parse_ddl(ddl)
    if way == "exact":
        columns = ExactDecoder(JsonDecoder(schema, with_rescued=False).schema).decode(records)
        return pa.Table.from_arrays(columns, names=[*schema.names, RESCUED]).to_pylist()
    times = 1 if way == "alone" else 2 * json_records._FEW_ROWS
    table = JsonDecoder(schema).decode(pa.array(records * times, pa.binary()))
    assert table.num_rows == len(records) * times
    rows = table.to_pylist()
    assert rows == rows[: len(records)] * times
    return rows[: len(records)]


def value_of(kind: str, text: str, way: str) -> tuple[object, object]:
    (row,) = decode(f"a {kind}", '{"a":%s}' % text, way=way)
    return row["a"], row[RESCUED]


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]


FITS = [
    ("BIGINT", "12", 12),
    ("BIGINT", "12.0", 12),
    ("BIGINT", "1.2e1", 12),
    ("BIGINT", "-0", 0),
    ("BIGINT", "-9223372036854775808", -(2**63)),
    ("TINYINT", "-128", -128),
    ("BIGINT", "null", None),
    ("DOUBLE", "1", 1.0),
    ("DOUBLE", "1e5", 100000.0),
    ("DOUBLE", "12345678901234567890", 12345678901234567890.0),
    ("DOUBLE", "1e-400", 0.0),
    ("FLOAT", "0.5", 0.5),
    ("BOOLEAN", "true", True),
    ("STRING", '"x\\u0000\\u00e9\\/"', "x\0é/"),
    ("STRING", "12", "12"),
    ("STRING", "12.50", "12.5"),
    ("STRING", "0.12345678901234567890", "0.12345678901234567890"),
    ("STRING", "true", "true"),
    ("STRING", '{"b": [1, "x", null]}', '{"b":[1,"x",null]}'),
    ("DECIMAL(10,2)", "1.5", Decimal("1.50")),
    ("DECIMAL(10,2)", '"1.500"', Decimal("1.50")),
    ("DECIMAL(10,2)", "15e-1", Decimal("1.50")),
    ("DECIMAL(38,20)", "0.12345678901234567891", Decimal("0.12345678901234567891")),
    ("DATE", '"2024-02-29"', date(2024, 2, 29)),
    ("TIMESTAMP", '"2024-01-01T10:00:00Z"', at(2024, 1, 1, 10)),
    ("TIMESTAMP", '"2024-01-01T10:00:00"', at(2024, 1, 1, 10)),
    ("TIMESTAMP", '"2024-01-01 10:00:00.123456+02:00"', at(2024, 1, 1, 8, 0, 0, 123456)),
    ("TIMESTAMP", '"2024-01-01T10:00:00.123456000Z"', at(2024, 1, 1, 10, 0, 0, 123456)),
    ("TIMESTAMP", '"2024-01-01T10:00-0130"', at(2024, 1, 1, 11, 30)),
    ("TIMESTAMP", '"2024-01-01"', at(2024, 1, 1)),
    ("TIMESTAMP_NTZ", '"2024-01-01T10:00:00.5"', datetime(2024, 1, 1, 10, 0, 0, 500000)),
    ("BINARY", '"aGk="', b"hi"),
    ("ARRAY<INT>", "[1, null, 2.0]", [1, None, 2]),
    ("ARRAY<STRING>", "[]", []),
    ("MAP<STRING, INT>", '{"k": 1}', [("k", 1)]),
    ("STRUCT<b: INT, c: DATE>", '{"c": "2024-01-01"}', {"b": None, "c": date(2024, 1, 1)}),
    ("STRUCT<b: ARRAY<TIMESTAMP_NTZ>>", '{"b": ["2024-01-01", null]}', {"b": [datetime(2024, 1, 1), None]}),
]

MISFITS = [
    ("BIGINT", '"12"'),
    ("BIGINT", "1.7"),
    ("BIGINT", "9223372036854775808"),
    ("BIGINT", "true"),
    ("BIGINT", "[1]"),
    ("BIGINT", "1e999999999"),
    ("INT", "2147483648"),
    ("DOUBLE", '"1.5"'),
    ("DOUBLE", "1e400"),
    ("FLOAT", "1e39"),
    ("BOOLEAN", "1"),
    ("BOOLEAN", '"true"'),
    ("DECIMAL(10,2)", "1.555"),
    ("DECIMAL(10,2)", "123456789.5"),
    ("DECIMAL(10,2)", '"a"'),
    ("DECIMAL(10,2)", "false"),
    ("DATE", '"2023-02-29"'),
    ("DATE", '"2024-01-01T00:00:00"'),
    ("DATE", "5"),
    ("TIMESTAMP", '"2024-01-01T10:00:00.1234567Z"'),
    ("TIMESTAMP", '"2024-01-01T10:00:00 Europe/Paris"'),
    ("TIMESTAMP", '"yesterday"'),
    ("TIMESTAMP", "1704067200"),
    ("TIMESTAMP_NTZ", '"2024-01-01T10:00:00Z"'),
    ("BINARY", '"%%%"'),
    ("ARRAY<INT>", '[1,"x"]'),
    ("ARRAY<INT>", '{"b":1}'),
    ("ARRAY<STRUCT<b: INT>>", '[{"b":1,"z":2}]'),
    ("MAP<STRING, INT>", '{"k":"x"}'),
    ("STRUCT<b: INT>", "[1]"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "text", "expected"), FITS)
def test_a_value_that_fits(kind, text, expected, way):
    assert value_of(kind, text, way) == (expected, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "text"), MISFITS)
def test_a_value_of_another_type_is_rescued_as_it_was(kind, text, way):
    assert value_of(kind, text, way) == (None, '{"a":%s}' % text)


MALFORMED = ["", "  ", "x", "{", '{"a":1', '{"a":1}{"a":2}', '{"a":1}\n{"a":2}', '{"a":1} x', "1", '"a"', "[1]", "null"]
MALFORMED += ['{"a":1,}', "{'a':1}", '{"a":NaN}', '{"a":-Infinity}', '{"z":NaN}', '{"a":01}', '{"a":"\t"}', '{"a":1}\0']
MALFORMED += ['{"b":"\\ud83d"}', "{}{}", '{"a":1},', "\ufeff{}", '{"a":1}\x0b', '{"a":', "}", "{]}"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_object_is_kept_as_text(text, way):
    (row,) = decode("a BIGINT, b STRING", text, way=way)
    assert (row["a"], row["b"]) == (None, None)
    assert json.loads(row[RESCUED]) == {"_raw": text}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_text_is_kept_as_base64(way):
    (row,) = decode("a BIGINT", b'{"a":1,"b":"\xff"}', way=way)
    assert row == {"a": None, RESCUED: '{"_raw_base64":"eyJhIjoxLCJiIjoi/yJ9"}'}


def test_one_value_is_one_row_even_where_the_sum_would_be_right():
    rows = decode("a BIGINT", '{"a":', "1}", '{"a":2}{"a":3}', None, '{"a":4}')
    assert [row["a"] for row in rows] == [None, None, None, None, 4]
    rows = decode("a BIGINT", '{"a":{}', '"b":{}}', '{"a":1}{"a":2}')
    assert [row["a"] for row in rows] == [None, None, None]


@pytest.mark.parametrize("way", ["alone", "crowd"])
def test_null_is_a_row_of_nulls(way):
    rows = decode("a BIGINT, s STRUCT<b: INT>", None, '{"a":1}', None, way=way)
    empty = {"a": None, "s": None, RESCUED: None}
    assert rows == [empty, {"a": 1, "s": None, RESCUED: None}, empty]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("text", "rescued"),
    [
        ('{"a":1,"z":"x"}', '{"z":"x"}'),
        ('{"a": 1, "z": {"y": null}}', '{"z":{"y":null}}'),
        ('{"a":1,"z":null}', '{"z":null}'),
        ('{"a":1,"A":2}', '{"A":2}'),
        ('{"a":1,"z":1,"z":2}', '{"z":1,"z":2}'),
        ('{"z":123456789012345678901234567890,"a":1}', '{"z":123456789012345678901234567890}'),
        ('{"a":1,"z":0.12345678901234567890}', '{"z":0.12345678901234567890}'),
        ('{"a":1,"z":100000000000000000000.5}', '{"z":100000000000000000000.5}'),
        ('{"a":1,"z":1.10}', '{"z":1.1}'),
        ('{"a":1,"z":1e2}', '{"z":1e2}'),
        ('{"a":1,"z":0.00000001}', '{"z":0.00000001}'),
        ('{"a":1,"z":"\\u001f\\u2028\\/\\u0000é"}', '{"z":"\\u001F\u2028/\\u0000é"}'),
        ('{"a":1,"":5,"x/y~":6,"q\'":7,"d\\"":8}', '{"":5,"x/y~":6,"q\'":7,"d\\"":8}'),
    ],
)
def test_an_undeclared_field_is_rescued(text, rescued, way):
    (row,) = decode("a BIGINT", text, way=way)
    assert row == {"a": 1, RESCUED: rescued}


@pytest.mark.parametrize("way", WAYS)
def test_undeclared_and_misfit_are_rescued_together_in_order(way):
    (row,) = decode("a BIGINT, b STRING", '{"z":1,"a":"x","b":"y","q":[2]}', way=way)
    assert row == {"a": None, "b": "y", RESCUED: '{"z":1,"a":"x","q":[2]}'}


@pytest.mark.parametrize("way", WAYS)
def test_a_nested_field_is_rescued_under_its_path(way):
    (row,) = decode("s STRUCT<b: INT, t: STRUCT<c: DATE>>", '{"s":{"b":"x","t":{"c":"2024-01-01","z":1}}}', way=way)
    assert row == {"s": {"b": None, "t": {"c": date(2024, 1, 1)}}, RESCUED: '{"s":{"b":"x","t":{"z":1}}}'}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ['{"a":1,"a":2}', '{"a":"x","a":2}', '{"a":"x","z":1,"a":2}'])
def test_of_a_declared_field_given_twice_the_last_wins_and_the_text_is_kept(text, way):
    (row,) = decode("a BIGINT", text, way=way)
    assert row["a"] == 2
    assert json.loads(row[RESCUED]) == {"_raw": text}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["{}", '{"a":null}', ' \r\n{"a":null}\t', '{\n"a":\nnull\n}'])
def test_missing_and_null_are_null(text, way):
    assert decode("a BIGINT NOT NULL", text, way=way) == [{"a": None, RESCUED: None}]


def test_without_rescued_the_rest_is_dropped():
    table = JsonDecoder(parse_ddl("a BIGINT"), with_rescued=False).decode(pa.array([b'{"a":1,"z":1}', b"x"]))
    assert table.to_pylist() == [{"a": 1}, {"a": None}]


def test_a_schema_without_columns_rescues_all():
    table = JsonDecoder(pa.schema([])).decode(pa.array([b'{"a":1}', None, b"{}", b"x"]))
    assert table.column(RESCUED).to_pylist() == ['{"a":1}', None, None, '{"_raw":"x"}']
    assert (
        JsonDecoder(pa.schema([])).decode(pa.array([b'{"a":1}'] * 200)).column(RESCUED).to_pylist() == ['{"a":1}'] * 200
    )


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_binary(), pa.large_string()])
def test_any_text_type_slices_and_chunks(kind):
    texts = ['{"a":%d}' % i for i in range(10)]
    chunked = pa.chunked_array(
        [pa.array(texts[:4], kind), pa.array([], kind), pa.array(["junk", *texts[4:]], kind)[1:]]
    )
    table = JsonDecoder(parse_ddl("a INT")).decode(chunked)
    assert table.column("a").to_pylist() == list(range(10))


def test_no_values_give_no_rows():
    decoder = JsonDecoder(parse_ddl("a INT, s STRUCT<b: INT NOT NULL>"))
    assert decoder.decode(pa.array([], pa.binary())).schema == decoder.schema
    assert decoder.decode(pa.chunked_array([], pa.binary())).num_rows == 0
    assert decoder.schema.names == ["a", "s", RESCUED]


def test_names_of_every_kind():
    name = "we \"ird' $.x/~1"
    schema = pa.schema([(name, pa.int64()), ("", pa.string())])
    values = [json.dumps({name: i, "": "x", "z": 1}).encode() for i in range(200)]
    table = JsonDecoder(schema).decode(pa.array(values))
    assert table.column(name).to_pylist() == list(range(200))
    assert table.column(RESCUED).to_pylist() == ['{"z":1}'] * 200


def test_the_rescued_column_cannot_be_declared():
    with pytest.raises(SchemaError, match="SCHEMA_DUPLICATE"):
        JsonDecoder(parse_ddl("_rescued_data STRING"))
    assert JsonDecoder(parse_ddl("_rescued_data STRING"), with_rescued=False).schema.names == [RESCUED]


def test_bad_rows_stay_among_good_ones_in_order():
    values = [b'{"a":%d}' % i for i in range(1000)]
    values[7], values[500], values[999] = b"{broken}", b'{"a":"x"}', None
    rows = JsonDecoder(parse_ddl("a BIGINT")).decode(pa.array(values)).to_pylist()
    assert [row["a"] for row in rows] == [None if i in (7, 500, 999) else i for i in range(1000)]
    assert {i: row[RESCUED] for i, row in enumerate(rows) if row[RESCUED]} == {
        7: '{"_raw":"{broken}"}',
        500: '{"a":"x"}',
    }


def test_a_stream_that_changes_its_mind():
    texts = ['{"a":"12","b":{"c":1}}'] * 200 + [
        '{"a":5,"b":"x"}',
        '{"a":null,"b":null}',
        '{"a":true,"b":2}',
        '{"b":"y"}',
    ]
    decoder = JsonDecoder(parse_ddl("a BIGINT, b STRING"))
    for values in (texts, texts[::-1], texts):
        rows = decoder.decode(pa.array([text.encode() for text in values])).to_pylist()
        found = {text: tuple(row.values()) for text, row in zip(values, rows, strict=True)}
        assert found == {
            texts[0]: (None, '{"c":1}', '{"a":"12"}'),
            '{"a":5,"b":"x"}': (5, "x", None),
            '{"a":null,"b":null}': (None, None, None),
            '{"a":true,"b":2}': (None, "2", '{"a":true}'),
            '{"b":"y"}': (None, "y", None),
        }


def test_a_shape_learned_from_one_record_is_not_taken_for_granted():
    texts = ['{"a":1,"x":"s","y":1}'] * 200 + [
        '{"a":1,"x":"s","y":NaN}',
        '{"a":1,"y":1,"x":"s"}',
        '{"a":1,"x":null,"y":1.50}',
    ]
    rows = JsonDecoder(parse_ddl("a BIGINT")).decode(pa.array([text.encode() for text in texts])).to_pylist()
    assert [row[RESCUED] for row in rows[199:]] == [
        '{"x":"s","y":1}',
        '{"_raw":"{\\"a\\":1,\\"x\\":\\"s\\",\\"y\\":NaN}"}',
        '{"y":1,"x":"s"}',
        '{"x":null,"y":1.5}',
    ]


@pytest.mark.parametrize("levels", [MAX_DEPTH - 1, MAX_DEPTH, 10_000, 200_000])
@pytest.mark.parametrize(("opening", "inner", "closing"), [("[", "", "]"), ('{"x":', "1", "}")])
def test_deep_nesting_is_kept_whole_on_a_small_stack(levels, opening, inner, closing):
    text = '{"a":1,"z":%s}' % (opening * levels + inner + closing * levels)
    found = []

    def work() -> None:
        for times in (1, 70 if levels < 10_000 else 2):
            values = pa.array([text.encode(), b'{"a":2}'] * times)
            found.append(JsonDecoder(parse_ddl("a BIGINT")).decode(values).slice(0, 2))

    before = threading.stack_size(1 << 20)
    try:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    finally:
        threading.stack_size(before)
    rows = found[0].to_pylist()
    assert found[0] == found[1]
    assert rows[1] == {"a": 2, RESCUED: None}
    if levels < MAX_DEPTH:
        assert rows[0] == {"a": 1, RESCUED: text.replace('"a":1,', "")}
    else:
        assert rows[0] == {"a": None, RESCUED: '{"_raw":' + json.dumps(text, separators=(",", ":")) + "}"}


def test_brackets_within_texts_are_no_depth():
    (row,) = decode("a STRING", json.dumps({"a": "[{\\" * 1000}))
    assert row["a"] == "[{\\" * 1000


def test_large_records():
    big = "x" * 5_000_000
    records = [{"a": 1, "b": big}, {"a": 2}, {"a": 3, "z": big}, {"b": [1] * 100_000}]
    values = [json.dumps(record).encode() for record in records] + [b"{" + big.encode()]
    table = JsonDecoder(parse_ddl("a BIGINT, b STRING")).decode(pa.array(values))
    assert table.column("a").to_pylist() == [1, 2, 3, None, None]
    assert len(table.column("b")[0].as_py()) == 5_000_000
    assert json.loads(table.column(RESCUED)[2].as_py()) == {"z": big}


def test_a_fast_parser_with_threads_gives_the_same():
    values = pa.array([b'{"a":%d,"s":"%s"}' % (i, b"x" * 100) for i in range(100_000)])
    one, many = (JsonDecoder(parse_ddl("a BIGINT, s STRING"), threads=n).decode(values) for n in (1, 2))
    assert one == many


# What pyarrow's reader does, where the decoder relies on it or guards against it.
def read(text: str, kind: pa.DataType) -> list[object]:
    options = arrow_json.ParseOptions(explicit_schema=pa.schema([("a", kind)]), unexpected_field_behavior="error")
    return arrow_json.read_json(pa.BufferReader(text.encode()), parse_options=options).column("a").to_pylist()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"a":1.0}', pa.int64()),
        ('{"a":1.5}', pa.int64()),
        ('{"a":9223372036854775808}', pa.int64()),
        ('{"a":"1"}', pa.int64()),
        ('{"a":1}', pa.string()),
        ('{"a":true}', pa.string()),
        ('{"a":1}', pa.bool_()),
        ('{"a":1e400}', pa.float64()),
        ('{"a":1,"a":1}', pa.int64()),
        ('{"a":1,"A":1}', pa.int64()),
        ('{"a":1,}', pa.int64()),
        ('{"a":"x\ny"}', pa.string()),
        ('{"a":"\\ud83d"}', pa.string()),
        ('{"a":1}\0', pa.int64()),
        ('{"a":"2024-01-01T00:00:00.1234567"}', pa.timestamp("us", tz="UTC")),
        ('{"a":1.555}', pa.decimal128(10, 2)),
        ('{"a":{"b":1,"c":1}}', pa.struct([("b", pa.int64())])),
    ],
)
def test_the_reader_refuses(text, kind):
    with pytest.raises(pa.ArrowInvalid):
        read(text, kind)


def test_the_reader_takes_what_we_must_check():
    assert read('{"a":Infinity}', pa.float64()) == [float("inf")]
    assert read('{"a":1e39}', pa.float32()) == [float("inf")]
    assert read('{"a":1}{"a":2}', pa.int64()) == [1, 2]
    assert read('{"a":1}\n\n{"a":2}', pa.int64()) == [1, 2]
    assert read('{"a":"2024-01-01T00:00:00+01:00"}', pa.timestamp("us")) == [datetime(2023, 12, 31, 23)]
    assert read('{"a":5}', pa.date32()) == [date(1970, 1, 6)]


def test_clean_records_open_no_database(monkeypatch):
    decoder = JsonDecoder(parse_ddl("a BIGINT"))
    with monkeypatch.context() as patch:
        patch.setattr(json_verify.duckdb, "connect", None)
        assert decoder.decode(pa.array([b'{"a":1}'] * 100)).column("a").to_pylist() == [1] * 100
    mixed = pa.array([b'{"a":1}', b'{"a":"x"}'] * 100)
    assert decoder.decode(mixed).column("a").to_pylist() == [1, None] * 100
