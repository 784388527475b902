"""Options of parquet, avro and orc, and values of files that bring their own types."""

from __future__ import annotations

import io
import json
import sys
import zlib
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from tests.integration.auto_loader.test_formats import avro, orc_bytes, parquet
from tests.integration.files_lab import FilesLab, Flow, ids, run
from waxlake.stream.errors import TerminalError, UsageError

_PAST = datetime(1203, 1, 2, 3, 4, 5, 678_901, tzinfo=timezone.utc)
_EVERY_TYPE = {
    "type": "record",
    "name": "every",
    "namespace": "test",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "dec", "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 3}},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
        {"name": "ms", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "us", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
        {"name": "kind", "type": {"type": "enum", "name": "kind", "symbols": ["A", "B"]}},
        {"name": "fix", "type": {"type": "fixed", "name": "four", "size": 4}},
        {"name": "tags", "type": {"type": "array", "items": ["null", "string"]}},
        {"name": "sizes", "type": {"type": "map", "values": "float"}},
        {
            "name": "place",
            "type": {"type": "record", "name": "place", "fields": [{"name": "lat", "type": "double"}]},
        },
        {"name": "home", "type": ["null", "place"]},
        {"name": "wide", "type": ["int", "long"]},
        {"name": "any", "type": ["null", "string", "long", "place"]},
        {"name": "next", "type": ["null", "every"]},
    ],
}


def _every(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "dec": Decimal("-12345678901234567.125"),
        "day": date(1203, 1, 2),
        "ms": _PAST.replace(microsecond=678_000),
        "us": _PAST,
        "local": _PAST.replace(tzinfo=None),
        "kind": "B",
        "fix": b"\0\1\2\3",
        "tags": ["a", None],
        "sizes": {"s": 0.5},
        "place": {"lat": 1.5},
        "home": None,
        "wide": 1 << 40,
        "any": "x",
        "next": None,
        **more,
    }


def _rescued(row: dict[str, Any]) -> Any:
    return None if row["_rescued_data"] is None else json.loads(row["_rescued_data"])


# -- avro --------------------------------------------------------------------------------------------------------------


def test_al_27_avro_types_are_exact(lab: FilesLab) -> None:
    lab.format, lab.schema = "avro", None
    lab.write(
        "a.avro", avro([_every(1), _every(2, any=7, home={"lat": 2.5}, next=_every(3, dec=Decimal(0)))], _EVERY_TYPE)
    )
    flow = Flow()
    run(lab.connector(), flow)
    first, second = flow.rows
    expected = {**_every(1), "sizes": [("s", 0.5)], "any": '"x"', "_rescued_data": None}
    assert first == expected
    assert (second["any"], second["home"]) == ("7", {"lat": 2.5})
    assert json.loads(second["next"])["id"] == 3
    kinds = flow.batches[0].table.schema
    assert kinds.field("dec").type == pa.decimal128(20, 3)
    assert kinds.field("us").type == pa.timestamp("us", tz="UTC")
    assert kinds.field("local").type == pa.timestamp("us")


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard", "bzip2", "xz"])
def test_al_27_avro_codecs(lab: FilesLab, codec: str) -> None:
    lab.format, lab.schema = "avro", "id BIGINT"
    schema = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]}
    plain = avro([{"id": i} for i in range(100)], schema, codec="null", sync_interval=50)
    lab.write("a.avro", plain if codec == "null" else _recoded(plain, codec))
    flow = Flow()
    run(lab.connector(max_rows_per_batch=30), flow)
    assert ids(flow) == list(range(100))


def _recoded(content: bytes, codec: str) -> bytes:
    """Return a container file with its blocks in a codec that fastavro needs further packages for."""
    import bz2
    import lzma

    from connectors.files.formats.avro_container import AvroContainer

    def packed(data: bytes) -> bytes:
        if codec == "snappy":
            return pa.compress(data, "snappy", asbytes=True) + zlib.crc32(data).to_bytes(4, "big")
        if codec == "zstandard":
            return bytes(pa.compress(data, "zstd", asbytes=True))
        if codec == "deflate":
            return zlib.compress(data, wbits=-15)
        return bz2.compress(data) if codec == "bzip2" else lzma.compress(data)

    def number(value: int) -> bytes:
        sink = io.BytesIO()
        fastavro.schemaless_writer(sink, "long", value)
        return sink.getvalue()

    head = content[: content.index(b"avro.schema")].removeprefix(b"Obj\x01")
    assert head
    container = AvroContainer(io.BytesIO(content))
    schema = json.dumps(container.schema).encode()
    sync = b"s" * 16
    parts = [b"Obj\x01", number(2)]
    for text in (b"avro.schema", schema, b"avro.codec", codec.encode()):
        parts += [number(len(text)), text]
    parts += [number(0), sync]
    for _, block in container.blocks(0):
        if block is not None:
            data = packed(block.data)
            parts += [number(block.count), number(len(data)), data, sync]
    return b"".join(parts)


def test_al_27_avro_reader_schema(lab: FilesLab) -> None:
    old = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "int"}, {"name": "gone", "type": "string"}]}
    new = {
        "type": "record",
        "name": "r",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "more", "type": ["null", "string"], "default": None},
            {"name": "left", "type": "string", "aliases": ["gone"]},
        ],
    }
    lab.format, lab.schema = "avro", None
    lab.write("a.avro", avro([{"id": 1, "gone": "x"}], old))
    flow = Flow()
    run(lab.connector(avro_schema=json.dumps(new)), flow)
    assert flow.rows == [{"id": 1, "more": None, "left": "x", "_rescued_data": None}]
    with pytest.raises(UsageError, match="avro_schema"):
        lab.connector(avro_schema="{")
    with pytest.raises(UsageError, match="no Avro schema of a record"):
        run(lab.connector(avro_schema='"string"'), Flow())
    other = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "boolean"}]}
    with pytest.raises(TerminalError, match=r"a\.avro.*does not resolve into the reader schema"):
        run(lab.connector(avro_schema=json.dumps(other)), Flow())


@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: d[:-40] + b"x" * 40, lambda d: b"PAR1" + d])
def test_al_27_an_avro_file_that_is_damaged_is_told(lab: FilesLab, damage: Any) -> None:
    lab.format, lab.schema = "avro", "id BIGINT"
    lab.write("a.avro", damage(avro([{"id": 1, "name": "a"}] * 50)))
    with pytest.raises(TerminalError, match=r"FILE_UNREADABLE"):
        run(lab.connector(), Flow())


def test_al_27_avro_schemas_of_several_files_are_merged(lab: FilesLab) -> None:
    lab.format, lab.schema = "avro", None
    fields = [{"name": "id", "type": "int"}]
    lab.write("a.avro", avro([{"id": 1}], {"type": "record", "name": "r", "fields": fields}), age_s=60)
    more = [{"name": "id", "type": "long"}, {"name": "new", "type": "string"}]
    lab.write("b.avro", avro([{"id": 1 << 40, "new": "x"}], {"type": "record", "name": "r", "fields": more}))
    assert lab.connector(merge_schema=False).resolve_schema() == pa.schema([("id", pa.int32())])
    flow = Flow()
    run(lab.connector(), flow)
    assert [(row["id"], row["new"]) for row in flow.rows] == [(1, None), (1 << 40, "x")]


# -- parquet and orc ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["parquet", "orc"])
def test_al_26_al_29_case_types_and_columns_that_are_not_declared(lab: FilesLab, format: str) -> None:
    write = parquet if format == "parquet" else orc_bytes
    lab.format, lab.schema = format, "id INT, Name STRING"
    lab.write("a.data", write(pa.table({"ID": [1, 2], "name": ["a", "b"], "more": [1.5, None]})), age_s=60)
    lab.write("b.data", write(pa.table({"id": [3, 1 << 40], "Name": ["c", "d"]})))
    strict = Flow()
    run(lab.connector(), strict)
    assert ids(strict) == [None, None, 3, None]
    assert {k: _rescued(strict.rows[0])[k] for k in ("ID", "name", "more")} == {"ID": 1, "name": "a", "more": 1.5}
    loose = Flow()
    run(lab.connector(reader_case_sensitive=False), loose)
    assert [(row["id"], row["Name"]) for row in loose.rows] == [(1, "a"), (2, "b"), (3, "c"), (None, "d")]
    path = str(lab.inbox / "a.data")
    assert _rescued(loose.rows[0]) == {"more": 1.5, "_file_path": path}
    assert _rescued(loose.rows[3])["id"] == 1 << 40


@pytest.mark.parametrize("format", ["parquet", "orc"])
def test_al_26_al_29_merge_schema(lab: FilesLab, format: str) -> None:
    write = parquet if format == "parquet" else orc_bytes
    lab.format, lab.schema = format, None
    lab.write("a.data", write(pa.table({"id": [1]})), age_s=60)
    lab.write("b.data", write(pa.table({"id": [2], "more": ["x"]})))
    assert lab.connector(merge_schema=False).resolve_schema().names == ["id"]
    assert lab.connector().resolve_schema().names == ["id", "more"]


def test_al_26_parquet_int96_is_an_instant_in_any_year(lab: FilesLab) -> None:
    lab.format, lab.schema = "parquet", None
    stamps = pa.array([_PAST, datetime(2500, 1, 1, tzinfo=timezone.utc)], pa.timestamp("us", "UTC"))
    lab.write("a.parquet", parquet(pa.table({"t": stamps}), use_deprecated_int96_timestamps=True))
    flow = Flow()
    run(lab.connector(), flow)
    assert flow.batches[0].table.schema.field("t").type == pa.timestamp("us", tz="UTC")
    assert [row["t"] for row in flow.rows] == stamps.to_pylist()


@pytest.mark.parametrize("option", ["datetime_rebase_mode", "int96_rebase_mode"])
def test_al_26_parquet_has_one_calendar(lab: FilesLab, option: str) -> None:
    lab.format = "parquet"
    lab.connector(**{option: "CORRECTED"})
    with pytest.raises(UsageError, match=f"{option}.*CORRECTED"):
        lab.connector(**{option: "LEGACY"})


def test_al_29_orc_stripes_and_nested_columns(lab: FilesLab) -> None:
    lab.format, lab.schema = "orc", "id BIGINT, place STRUCT<lat: DOUBLE>, tags ARRAY<STRING>"
    count = 30_000
    places = [{"lat": i / 2} for i in range(count)]
    table = pa.table({"id": list(range(count)), "place": places, "tags": [["x"]] * count})
    lab.write("a.orc", orc_bytes(table, stripe_size=64 << 10))
    flow = Flow()
    run(lab.connector(max_rows_per_batch=9_000), flow)
    assert ids(flow) == list(range(count))
    assert flow.rows[-1]["place"] == {"lat": (count - 1) / 2}
    part = Flow()
    run(lab.connector(max_rows_per_batch=9_000), part, max_batches=2)
    run(lab.connector(), part)
    assert part.rows == flow.rows


def test_al_27_without_its_extra_avro_says_what_to_install(lab: FilesLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.format, lab.schema = "avro", "id BIGINT"
    lab.write("a.avro", avro([{"id": 1, "name": "a"}]))
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(UsageError, match=r"pip install 'waxlake\[avro\]'"):
        run(lab.connector(), Flow())
