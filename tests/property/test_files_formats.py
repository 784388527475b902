"""However a file is cut into blocks, and from whatever row it is read on, its rows are the same; garbage included."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.files.formats import csv_records, encoded, json_documents, text_rows, xml_rows
from connectors.files.formats.choice import make_format
from connectors.files.formats.protocol import Format
from connectors.files.settings import FilesSettings
from tests.integration.auto_loader.test_formats import orc_bytes
from waxlake.stream.ddl import parse_ddl

_MODULES = {
    json_documents: "_BLOCK_BYTES",
    text_rows: "_BLOCK_BYTES",
    xml_rows: "_BLOCK_BYTES",
    encoded: "_CHUNK_BYTES",
}


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    before = {module: getattr(module, name) for module, name in _MODULES.items()}
    for module, name in _MODULES.items():
        setattr(module, name, size)
    try:
        yield
    finally:
        for module, name in _MODULES.items():
            setattr(module, name, before[module])


class Trickle(io.BytesIO):
    """A stream that gives less than it is asked for, as compressed ones do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 or size > 3 else size)


@lru_cache(maxsize=64)
def a_format(kind: str, schema: str, **options: Any) -> Format:
    settings = FilesSettings.of("/data", format=kind, **options)
    return make_format(settings, parse_ddl(schema), has_rescued=True)


def rows_of(format: Format, raws: Any) -> list[dict[str, Any]]:
    table = format.decode(raws) if raws else pa.table({})
    table.validate(full=True)
    return table.to_pylist()


def check(format: Format, content: bytes, skip_rows: int, block_bytes: int, *, trickles: bool = True) -> list[Any]:
    """Read a file whole and in blocks, and compare; return its rows."""
    whole = rows_of(format, format.split([content]))
    with blocks_of(block_bytes):
        stream = Trickle(content) if trickles else io.BytesIO(content)
        if skip_rows > len(whole):
            with pytest.raises(EOFError) as caught:
                list(format.blocks(stream, skip_rows))
            assert caught.value.args == (len(whole),)
        else:
            assert rows_of(format, list(format.blocks(stream, skip_rows))) == whole[skip_rows:]
    return whole


_skip = st.integers(0, 12)
_block = st.sampled_from([1, 2, 7, 64, 1 << 20])
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab\"\\{}[],\n/'", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "x", "]"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)  # each may start an engine
@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "x"]), _json, max_size=2), max_size=8), st.booleans(), _skip, _block
)
def test_documents_of_json(records: list[Any], is_array: bool, skip_rows: int, block_bytes: int) -> None:
    content = json.dumps(records, indent=1) if is_array else "\n".join(json.dumps(r, indent=1) for r in records)
    format = a_format("json", "id BIGINT, x STRING", multi_line=True)
    rows = check(format, content.encode(), skip_rows, block_bytes)
    assert len(rows) == len(records)
    assert not [row for row in rows if row["_rescued_data"] and row["_rescued_data"].startswith('{"_raw')]


@given(st.text("{}[],\":\\ \n1a/*'", max_size=40), st.booleans(), _skip, _block)
@example('{"a":"\\\\"}{}', False, 1, 1)
@example("]]}[{", False, 0, 2)
@example("1']\\\\1", True, 0, 1)
def test_garbage_of_json(text: str, is_lenient: bool, skip_rows: int, block_bytes: int) -> None:
    options = {"allow_comments": True, "allow_single_quotes": True} if is_lenient else {}
    rows = check(a_format("json", "a STRING", multi_line=True, **options), text.encode(), skip_rows, block_bytes)
    ink = [sign for sign in text if sign not in " \n,[]{}"]
    assert rows or not ink or is_lenient


_element = st.sampled_from(
    [
        "<row/>",
        "<row id='1'>x</row>",
        '<row id="a>b"><v>1</v><v>2</v></row>',
        "<!-- <row> -->",
        "<![CDATA[<row>]]>",
        "<row><row/><![CDATA[</row>]]></row>",
        "<rows/>",
        "<row>",
        "</row>",
        "<?pi <row?>",
        " text ",
        "<row><!-- </row>",
        "<ro",
        "<!--",
    ]
)


@given(st.lists(_element, max_size=10), _skip, _block)
def test_elements_of_xml(parts: list[str], skip_rows: int, block_bytes: int) -> None:
    format = a_format("xml", "_id BIGINT, v ARRAY<STRING>", row_tag="row")
    check(format, "".join(parts).encode(), skip_rows, block_bytes)


@given(st.text("ab\r\n|ä", max_size=30), st.sampled_from([None, "|", "||"]), st.booleans(), _skip, _block)
def test_lines_of_text(text: str, line_sep: str | None, is_utf16: bool, skip_rows: int, block_bytes: int) -> None:
    options = {"line_sep": line_sep, "encoding": "utf-16-le" if is_utf16 else "utf-8"}
    content = text.encode(options["encoding"] or "utf-8")
    rows = check(a_format("text", "value STRING", **options), content, skip_rows, block_bytes)
    if line_sep is None:
        assert [row["value"] for row in rows] == [line.decode() for line in text.encode().splitlines()]
    else:
        assert line_sep.join(row["value"] for row in rows) in (text, text.removesuffix(line_sep))


@given(st.text('ab#",\n\r;', max_size=40), st.integers(0, 2), st.sampled_from(["", "#"]), _skip, _block)
def test_lines_of_csv_that_are_left_out(text: str, skip: int, comment: str, skip_rows: int, block_bytes: int) -> None:
    options = {"skip_rows": skip, "comment": comment, "header": False}
    format = a_format("csv", "a STRING, b STRING", **options)
    assert isinstance(format, csv_records.CsvRecords)
    check(format, text.encode(), skip_rows, block_bytes)


@given(st.integers(0, 40), _skip, st.sampled_from([1, 40, 16_000]), st.sampled_from(["null", "deflate", "bzip2"]))
def test_blocks_of_avro(count: int, skip_rows: int, sync_interval: int, codec: str) -> None:
    sink = io.BytesIO()
    schema = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]}
    fastavro.writer(sink, schema, [{"id": i} for i in range(count)], codec=codec, sync_interval=sync_interval)
    rows = check(a_format("avro", "id BIGINT"), sink.getvalue(), skip_rows, 1)
    assert [row["id"] for row in rows] == list(range(count))


@given(st.integers(1, 3000), st.integers(0, 3001))
def test_stripes_of_orc(count: int, skip_rows: int) -> None:
    content = orc_bytes(pa.table({"id": list(range(count))}), stripe_size=1024)
    check(a_format("orc", "id BIGINT"), content, skip_rows, 1, trickles=False)
