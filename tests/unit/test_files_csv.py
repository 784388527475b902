"""CSV: records, widths, names, types and what is rescued."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files.formats.columns import unique_names
from connectors.files.formats.csv_records import CsvRecords
from connectors.files.options import CsvOptions
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import SchemaError


def _csv(schema: str = "id BIGINT, name STRING", block_bytes: int = 1 << 20, **options: Any) -> CsvRecords:
    return CsvRecords(CsvOptions(**options), parse_ddl(schema), block_bytes=block_bytes)


def _rows(records: CsvRecords, *contents: bytes) -> list[tuple[Any, ...]]:
    table = records.decode(records.split(contents))
    table.validate(full=True)
    return [
        tuple(json.loads(v) if k == "_rescued_data" and v else v for k, v in row.items()) for row in table.to_pylist()
    ]


def test_quotes_line_breaks_and_order() -> None:
    assert _rows(_csv(), b'id,name\r\n1,"a ""b"", c"\r\n2,"x\ny"\r\n3,plain') == [
        (1, 'a "b", c', None),
        (2, "x\ny", None),
        (3, "plain", None),
    ]


def test_unquoted_empty_is_null_and_quoted_empty_is_text() -> None:
    assert _rows(_csv(), b'id,name\n1,\n,""\n"",x\n') == [(1, None, None), (None, "", None), (None, "x", None)]


def test_null_value() -> None:
    assert _rows(_csv(null_value="NA"), b'id,name\nNA,NA\n1,"NA"\n2,\n') == [
        (None, None, None),
        (1, "NA", None),
        (2, "", None),
    ]


def test_values_that_do_not_fit_are_rescued_never_rounded() -> None:
    rows = _rows(_csv(), b"id,name\n1.5,a\n9223372036854775808,b\n0x10,c\n 7 ,d\n+8,e\n")
    assert [row[0] for row in rows] == [None, None, None, 7, 8]
    assert [row[2] for row in rows] == [{"id": "1.5"}, {"id": "9223372036854775808"}, {"id": "0x10"}, None, None]


def test_header_decides_names_whatever_their_order() -> None:
    assert _rows(_csv(), b"name,id\na,1\n", b"id\n2\n", b"id,name,more\n3,c,9\n", b"ID,name\n4,d\n") == [
        (1, "a", None),
        (2, None, None),
        (3, "c", {"more": "9"}),
        (None, "d", {"ID": "4"}),
    ]


def test_records_of_the_wrong_width_keep_place_and_text() -> None:
    rows = _rows(_csv(), b'id,name\n1,a\n2\n3,c,d\n"4\n4",x,y\n5,e\n')
    assert rows == [
        (1, "a", None),
        (2, None, {"_raw": "2"}),
        (3, "c", {"_raw": "3,c,d"}),
        (None, "x", {"id": "4\n4", "_raw": '"4\n4",x,y'}),
        (5, "e", None),
    ]


def test_names_that_repeat_or_lack() -> None:
    assert unique_names(["a", "b", "b", "", "b"]) == ["a", "b", "b#2", "_c3", "b#3"]
    assert _rows(_csv(), b"id,name,name,\n1,a,b,c\n") == [(1, "a", {"name#2": "b", "_c3": "c"})]


def test_without_header_names_go_by_place() -> None:
    assert _rows(_csv(header=False), b"1,a\n2,b,c\n", b"3,c,d\n", b"4\n") == [
        (1, "a", None),
        (2, "b", {"_raw": "2,b,c"}),
        (3, "c", {"_c2": "d"}),
        (4, None, None),
    ]


@pytest.mark.parametrize("content", [b"id,name\n", b"id,name", b"", b"\n\n", b"\xef\xbb\xbf"])
def test_no_record_no_row(content: bytes) -> None:
    assert _rows(_csv(), content) == []
    assert list(_csv().blocks(io.BytesIO(content), 0)) == []


def test_mark_blank_lines_and_dialect() -> None:
    assert _rows(_csv(), b"\xef\xbb\xbfid,name\n\n1,a\n\n\n2,b\n") == [(1, "a", None), (2, "b", None)]
    assert _rows(_csv(sep=";", quote="'"), b"id;name\n1;'a;b'\n") == [(1, "a;b", None)]
    assert _rows(_csv(escape="\\"), b'id,name\n1,"a\\"b"\n') == [(1, 'a"b', None)]
    assert _rows(_csv(quote=""), b'id,name\n1,"a\n') == [(1, '"a', None)]


def test_an_unclosed_quote_loses_no_byte() -> None:
    assert _rows(_csv(), b'id,name\n1,"a\n2,b\n3,c\n') == [(1, "a\n2,b\n3,c\n", None)]


def test_bytes_that_are_no_text_are_rescued() -> None:
    assert _rows(_csv(), b"id,name\n1,\xff\n\xfe,b\n2,c\n") == [
        (1, None, {"name": "\\xff"}),
        (None, "b", {"id": "\\xfe"}),
        (2, "c", None),
    ]


def test_nested_columns_are_refused() -> None:
    with pytest.raises(SchemaError, match="column 'tags'"):
        _csv("tags ARRAY<STRING>")


_field = st.sampled_from(["", "a", "1", "2.5", 'say "x"', "l1\nl2", "ä,b", " ", "NULL"])


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if any(c in field for c in '",\n') else field


@given(
    st.lists(st.lists(_field, min_size=1, max_size=4), max_size=30),
    st.integers(0, 31),
    st.sampled_from([64, 100, 1 << 20]),
)
def test_blocks_hold_the_same_rows_from_any_row(rows: list[list[str]], skip_rows: int, block_bytes: int) -> None:
    text = "\n".join(["a,b", *(",".join(map(_quoted, row)) for row in rows)]) + "\n"
    schema = "a STRING, b STRING"
    whole = _csv(schema)
    full = whole.decode(whole.split([text.encode()])).to_pylist()
    blank = sum(row == [""] for row in rows)
    assert len(full) == len(rows) - blank
    records = _csv(schema, block_bytes=block_bytes)
    if skip_rows > len(full):
        with pytest.raises(EOFError):
            list(records.blocks(io.BytesIO(text.encode()), skip_rows))
        return
    blocks = list(records.blocks(io.BytesIO(text.encode()), skip_rows))
    assert (records.decode(blocks).to_pylist() if blocks else []) == full[skip_rows:]


def test_columns_only_when_rescued_is_not_wanted() -> None:
    records = CsvRecords(CsvOptions(), pa.schema([("id", pa.int64())]), False)
    assert records.decode(records.split([b"id,name\n1,a\nx,b\n"])).to_pylist() == [{"id": 1}, {"id": None}]
