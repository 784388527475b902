"""Every format, compressed or not, whole or cut anywhere, gives the same rows, with what the file tells."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from tests.integration.files_lab import FilesLab, Flow, run
from waxlake.stream.errors import UsageError

COUNT = 40
_RECORD = {
    "type": "record",
    "name": "row",
    "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"]}],
}


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"id": i, "name": f"näme {i}"} for i in range(first, first + count)]


def avro(records: list[dict[str, Any]], schema: Any = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    fastavro.writer(sink, schema or _RECORD, records, **{"codec": "deflate", "sync_interval": 100, **options})
    return sink.getvalue()


def orc_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    orc.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def xml(records: list[dict[str, Any]]) -> bytes:
    body = "".join(f'<row id="{r["id"]}">\n  <name>{r["name"]}</name>\n</row>\n' for r in records)
    return f"<?xml version='1.0'?>\n<!-- rows -->\n<all>{body}</all>".encode()


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def csv(records: list[dict[str, Any]]) -> bytes:
    return ("id,name\n" + "".join(f'{r["id"]},"{r["name"]}"\n' for r in records)).encode()


# Name to format, what writes it, schema, options.
FORMATS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bytes], str, dict[str, Any]]] = {
    "json": ("json", lines, "id BIGINT, name STRING", {}),
    "json array": (
        "json",
        lambda r: json.dumps(r, indent=1, ensure_ascii=False).encode(),
        "id BIGINT, name STRING",
        {"multi_line": True},
    ),
    "json documents": (
        "json",
        lambda r: "\n".join(json.dumps(x, indent=1) for x in r).encode(),
        "id BIGINT, name STRING",
        {"multi_line": True},
    ),
    "csv": ("csv", csv, "id BIGINT, name STRING", {}),
    "parquet": (
        "parquet",
        lambda r: parquet(pa.Table.from_pylist(r), row_group_size=7),
        "id BIGINT, name STRING",
        {},
    ),
    "orc": ("orc", lambda r: orc_bytes(pa.Table.from_pylist(r)), "id BIGINT, name STRING", {}),
    "avro": ("avro", avro, "id BIGINT, name STRING", {}),
    "text": ("text", lambda r: "".join(f"{x['name']}\n" for x in r).encode(), "value STRING", {}),
    "xml": ("xml", xml, "id BIGINT, name STRING", {"row_tag": "row", "attribute_prefix": ""}),
    "binaryfile": ("binaryFile", lambda r: lines(r), "content BINARY", {}),
}


def expected(kind: str, records: list[dict[str, Any]], content: bytes) -> list[dict[str, Any]]:
    if kind == "text":
        found: list[dict[str, Any]] = [{"value": r["name"]} for r in records]
    elif kind == "binaryfile":
        found = [{"content": content}]
    else:
        found = records
    return [{**row, "_rescued_data": None} for row in found]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("small_bytes", [1 << 20, 1], ids=["whole", "in blocks"])
def test_al_01_every_format_gives_its_rows_cut_anywhere(
    lab: FilesLab, kind: str, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.files.contents._SMALL_BYTES", small_bytes)
    lab.format, write, lab.schema, lab.options = FORMATS[kind]
    contents = [write(rows(0, COUNT)), write(rows(COUNT, 3))]
    for index, content in enumerate(contents):
        lab.write(f"{index}.data", content, age_s=60 - index)
    whole = Flow()
    run(lab.connector(), whole)
    assert whole.rows == expected(kind, rows(0, COUNT), contents[0]) + expected(kind, rows(COUNT, 3), contents[1])
    stepwise = Flow()
    for _ in range(10):
        run(lab.connector(max_rows_per_batch=5), stepwise, max_batches=1)
    assert stepwise.rows == whole.rows
    assert stepwise.position == whole.position


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("binaryfile", "text")])
def test_al_01_the_schema_of_every_format_is_inferred(lab: FilesLab, kind: str) -> None:
    lab.format, write, _, lab.options = FORMATS[kind]
    lab.schema = None
    lab.write("a.data", write(rows(0, COUNT)))
    schema = lab.connector().resolve_schema()
    assert {field.name: str(field.type) for field in schema} == {"id": "int64", "name": "string"}


@pytest.mark.parametrize("kind", ["json", "json array", "csv", "xml", "text"])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        (".lz4", None),
        (".br", lambda data: pa.compress(data, "brotli", asbytes=True)),
    ],
)
def test_al_01_compressed_text(lab: FilesLab, kind: str, suffix: str, compress: Any) -> None:
    lab.format, write, lab.schema, lab.options = FORMATS[kind]
    content = write(rows(0, COUNT))
    if compress is None:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "lz4") as stream:
            stream.write(content)
        lab.write(f"a{suffix}", sink.getvalue().to_pybytes())
    else:
        lab.write(f"a{suffix}", compress(content))
    flow = Flow()
    run(lab.connector(max_rows_per_batch=7), flow)
    assert flow.rows == expected(kind, rows(0, COUNT), content)


@pytest.mark.parametrize("kind", FORMATS)
def test_al_01_metadata_of_every_format(lab: FilesLab, kind: str) -> None:
    lab.format, write, lab.schema, lab.options = FORMATS[kind]
    path = lab.write("a.data", write(rows(0, 2)))
    flow = Flow()
    run(lab.connector(), flow, columns=["_metadata"])
    assert {row["_metadata"]["file_path"] for row in flow.rows} == {str(path)}
    assert {row["_metadata"]["file_size"] for row in flow.rows} == {path.stat().st_size}
    assert {row["_metadata"]["file_name"] for row in flow.rows} == {"a.data"}


def test_al_01_an_unknown_format_names_the_nearest(lab: FilesLab) -> None:
    lab.format = "arvo"
    with pytest.raises(UsageError, match="'avro'"):
        lab.connector()


def test_al_30_binaryfile_has_the_columns_of_spark(lab: FilesLab) -> None:
    lab.format, lab.schema = "binaryFile", None
    path = lab.write("a.gz", b"\x00\xff" * 3)
    flow = Flow()
    run(lab.connector(), flow)
    (row,) = flow.rows
    assert (row["path"], row["length"], row["content"]) == (str(path), 6, b"\x00\xff" * 3)
    assert row["modificationTime"].timestamp() == pytest.approx(path.stat().st_mtime, abs=1e-5)
    only = Flow()
    run(lab.connector(), only, columns=["path", "length"])
    assert only.rows == [{"path": str(path), "length": 6}]
    with pytest.raises(UsageError, match="belongs to format"):
        lab.connector(multi_line=True)
