"""Avro and Protobuf from a real broker: exact types, evolved schemas, and records that are none."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2

from connectors.kafka import KafkaConnector, KafkaSettings
from connectors.kafka.formats import columns_of_values
from connectors.protobuf_records import message_class
from tests.integration.kafka_lab import create, plan_of, produce, read_to_mark
from tests.services.kafka import KafkaCluster
from waxlake.stream.errors import TerminalError, TransientError, UsageError

ORDER: dict[str, Any] = {
    "type": "record",
    "name": "shop.Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    ],
}
AT = datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)
ROW = {"id": 1, "price": Decimal("12.50"), "day": date(2026, 5, 1), "at": AT, "note": "é", "tags": ["a", "b"]}


def avro(schema: Any, row: dict[str, Any], number: int | None = None) -> bytes:
    """Return a record, with the head that names schema ``number`` if there is one."""
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), row)
    return (b"" if number is None else b"\0" + number.to_bytes(4, "big")) + body.getvalue()


def base64_of(record: bytes) -> str:
    return json.dumps({"_raw_base64": base64.b64encode(record).decode()}, separators=(",", ":"))


def read(cluster: KafkaCluster, topic: str, **options: Any) -> list[dict[str, Any]]:
    settings = KafkaSettings.build("test", {"bootstrap_servers": cluster.bootstrap_servers, "topic": topic, **options})
    columns = frozenset({*columns_of_values(settings).names, "_rescued_data", "_offset"})
    connector = KafkaConnector(settings)
    rows = read_to_mark(connector, plan_of(connector), columns).rows()
    return [{name: value for name, value in row.items() if name != "_offset"} for row in rows]


class FakeRegistry:
    """Answers what Confluent's client asks of a schema registry."""

    def __init__(self) -> None:
        self.schemas: dict[int, Any] = {}
        self.subjects: dict[str, int] = {}
        self.user: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, answer = outer.answer(self.path.partition("?")[0], self.headers.get("Authorization"))
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, authorization: str | None) -> tuple[int, Any]:
        if self.user is not None and authorization != f"Basic {base64.b64encode(self.user.encode()).decode()}":
            return 401, {"error_code": 401, "message": "Unauthorized"}
        parts = path.strip("/").split("/")
        if parts[:2] == ["schemas", "ids"] and int(parts[2]) in self.schemas:
            return 200, {"schema": json.dumps(self.schemas[int(parts[2])]), "schemaType": "AVRO"}
        if parts[0] == "subjects" and parts[1] in self.subjects:
            number = self.subjects[parts[1]]
            schema = json.dumps(self.schemas[number])
            return 200, {"subject": parts[1], "version": 1, "id": number, "schema": schema, "schemaType": "AVRO"}
        return 404, {"error_code": 40403, "message": "not found"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    yield fake
    fake.close()


def test_bare_avro_is_exact_and_what_is_none_is_rescued(kafka_cluster: KafkaCluster, topic: str) -> None:
    good = avro(ORDER, ROW)
    broken = [good[:-3], good + b"\0", b"", b"\xff" * 40]
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, [good, *broken, None, good])
    rows = read(kafka_cluster, topic, format="avro", schema=json.dumps(ORDER))
    nothing = dict.fromkeys(ROW)
    assert rows[0] == rows[-1] == {**ROW, "_rescued_data": None}
    assert rows[1:-2] == [{**nothing, "_rescued_data": base64_of(record)} for record in broken]
    assert rows[-2] == {**nothing, "_rescued_data": None}


def test_avro_of_a_registry_is_resolved_into_the_readers_schema(
    kafka_cluster: KafkaCluster, topic: str, registry: FakeRegistry
) -> None:
    older = {**ORDER, "fields": [{"name": "id", "type": "int"}, *ORDER["fields"][1:4]]}
    newer = {**ORDER, "fields": [*ORDER["fields"], {"name": "country", "type": "string"}]}
    other = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "string"}]}
    registry.schemas = {7: older, 8: ORDER, 9: newer, 10: other}
    registry.subjects = {f"{topic}-value": 8}
    create(kafka_cluster, topic)
    wrong = avro(other, {"x": "?"}, 10)
    unknown, headless = avro(ORDER, ROW, 99), avro(ORDER, ROW)
    records = [
        avro(older, ROW, 7),
        avro(ORDER, ROW, 8),
        avro(newer, {**ROW, "country": "de"}, 9),
        wrong,
        unknown,
        headless,
    ]
    produce(kafka_cluster, topic, records)
    rows = read(kafka_cluster, topic, format="avro", schema_registry_url=registry.url)
    assert rows[0] == {**ROW, "note": None, "tags": [], "_rescued_data": None}
    assert rows[1] == {**ROW, "_rescued_data": None}
    assert rows[2] == {**ROW, "_rescued_data": '{"country":"de"}'}
    assert [row["_rescued_data"] for row in rows[3:]] == [base64_of(record) for record in (wrong, unknown, headless)]
    assert [row["id"] for row in rows[3:]] == [None] * 3


def test_a_registry_that_refuses_or_is_away(topic: str, registry: FakeRegistry) -> None:
    registry.user = "reader:s3cret"
    registry.schemas, registry.subjects = {1: ORDER}, {f"{topic}-value": 1}
    given = {"bootstrap_servers": "127.0.0.1:1", "topic": topic, "format": "avro", "schema_registry_url": registry.url}
    with pytest.raises(TerminalError, match="REGISTRY_REFUSED"):
        columns_of_values(KafkaSettings.build("test", given))
    user = {"schema_registry_options": {"basic.auth.user.info": "reader:s3cret"}}
    settings = KafkaSettings.build("test", {**given, **user})
    assert columns_of_values(settings).names == list(ROW)
    assert "s3cret" not in repr(settings)
    with pytest.raises(TerminalError, match="REGISTRY_SUBJECT"):
        columns_of_values(KafkaSettings.build("test", {**given, **user, "topic": "none"}))
    with pytest.raises(TransientError, match="REGISTRY_UNREACHABLE"):
        columns_of_values(KafkaSettings.build("test", {**given, "schema_registry_url": "http://127.0.0.1:9"}))


def descriptors(folder: Path) -> str:
    """Write the descriptors of messages as protoc would, and return the file."""
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.message_type.add(name="First").field.add(name="x", number=1, type=9, label=1)
    item = file.message_type.add(name="Item")
    item.field.add(name="sku", number=1, type=9, label=1)
    item.field.add(name="count", number=2, type=13, label=1)
    colour = file.enum_type.add(name="Colour")
    colour.value.add(name="RED", number=0)
    colour.value.add(name="BLUE", number=1)
    order = file.message_type.add(name="Order")
    order.field.add(name="id", number=1, type=3, label=1)
    order.field.add(name="big", number=2, type=4, label=1)
    order.field.add(name="raw", number=3, type=12, label=1)
    order.field.add(name="at", number=4, type=11, label=1, type_name=".google.protobuf.Timestamp")
    order.field.add(name="items", number=5, type=11, label=3, type_name=".shop.Item")
    order.field.add(name="colour", number=6, type=14, label=1, type_name=".shop.Colour")
    order.field.add(name="note", number=7, type=9, label=1, proto3_optional=True, oneof_index=0)
    order.oneof_decl.add(name="_note")
    entry = order.nested_type.add(name="StockEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=5, label=1)
    order.field.add(name="stock", number=8, type=11, label=3, type_name=".shop.Order.StockEntry")
    times = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(times)
    path = folder / "shop.desc"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[times, file]).SerializeToString())
    return str(path)


def test_protobuf_is_exact_and_what_is_none_is_rescued(kafka_cluster: KafkaCluster, topic: str, tmp_path: Path) -> None:
    path = descriptors(tmp_path)
    kind = message_class(path, "shop.Order")
    full = kind(id=-5, big=2**64 - 1, raw=b"\xff", colour=1, note="", stock={"b": 2, "a": 1})
    full.at.FromJsonString("2026-05-01T12:30:15.123456Z")
    full.items.add(sku="x", count=2**32 - 1)
    nanos, strange = kind(id=1), kind(colour=9)
    nanos.at.nanos = 1
    unknown = full.SerializeToString() + b"\xf8\x01\x01"  # field 31, which no descriptor knows
    records = [
        full.SerializeToString(),
        b"",
        strange.SerializeToString(),
        nanos.SerializeToString(),
        unknown,
        b"\x0a",
        None,
    ]
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, records)
    rows = read(kafka_cluster, topic, format="protobuf", descriptor_file=path, message="shop.Order")
    expected = {
        "id": -5,
        "big": Decimal(2**64 - 1),
        "raw": b"\xff",
        "at": AT,
        "items": [{"sku": "x", "count": 2**32 - 1}],
        "colour": "BLUE",
        "note": "",
        "stock": [("a", 1), ("b", 2)],
        "_rescued_data": None,
    }
    assert rows[0] == expected
    assert rows[1] == {
        **dict.fromkeys(expected),
        "id": 0,
        "big": 0,
        "raw": b"",
        "items": [],
        "colour": "RED",
        "stock": [],
    }
    assert rows[2]["colour"] == "9"
    assert (rows[3]["id"], rows[3]["_rescued_data"]) == (None, base64_of(records[3] or b""))
    assert rows[4] == {**expected, "_rescued_data": base64_of(unknown)}
    assert (rows[5]["id"], rows[5]["_rescued_data"]) == (None, base64_of(b"\x0a"))
    assert rows[6] == dict.fromkeys(expected)


def test_framed_protobuf_names_its_message(
    kafka_cluster: KafkaCluster, topic: str, tmp_path: Path, registry: FakeRegistry
) -> None:
    path = descriptors(tmp_path)
    order, first = message_class(path, "shop.Order"), message_class(path, "shop.First")
    head = b"\0\0\0\0\x07"
    good = head + b"\x02\x04" + order(id=3).SerializeToString()  # one number: 2, the third message of the file
    another = head + b"\x00" + first(x="y").SerializeToString()  # none: the first
    create(kafka_cluster, topic)
    produce(kafka_cluster, topic, [good, another, b"\0\0", head + b"\x02"])
    options = {"format": "protobuf", "descriptor_file": path, "schema_registry_url": registry.url}
    rows = read(kafka_cluster, topic, message="shop.Order", **options)
    assert [row["id"] for row in rows] == [3, None, None, None]
    assert rows[1]["_rescued_data"] == base64_of(another)
    assert [row["x"] for row in read(kafka_cluster, topic, message="shop.First", **options)][1] == "y"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "avro"}, "schema_registry_url="),
        ({"format": "avro", "schema": "id BIGINT"}, "no Avro schema of a record"),
        ({"format": "avro", "schema": pa.schema([("id", pa.int64())])}, "expected JSON text"),
        ({"format": "avro", "schema": '"long"'}, "no Avro schema of a record"),
        ({"format": "avro", "topic": "a,b", "schema_registry_url": "http://x"}, "several topics"),
        ({"format": "avro", "schema_registry_url": "http://u:p@x"}, "basic.auth.user.info"),
        ({"format": "json", "schema": "id INT", "schema_registry_url": "http://x"}, "format avro or protobuf"),
        ({"format": "protobuf"}, "descriptor_file="),
        ({"format": "protobuf", "schema": "id INT", "descriptor_file": "x", "message": "m"}, "those of the message"),
        ({"format": "avor"}, "'avro', 'protobuf'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        KafkaSettings.build("test", {"bootstrap_servers": "127.0.0.1:1", "topic": "t", **options})


def test_descriptors_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one of google.protobuf.Timestamp, shop.First, shop.Item, shop.Order"):
        message_class(descriptors(tmp_path), "shop.Oder")
    (tmp_path / "text.desc").write_text("syntax = proto3;")
    for path in (tmp_path / "text.desc", tmp_path / "none.desc"):
        with pytest.raises(UsageError, match="include_imports"):
            message_class(str(path), "shop.Order")
