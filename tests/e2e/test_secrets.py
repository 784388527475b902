"""Secrets appear nowhere: not on the screen, not in the event log, not in a table's log or rows, not in a ledger."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pytest

from tests.e2e.project import Project
from tests.e2e.test_bad_brokers import publish
from tests.services.kafka import ApacheKafka, create_topic
from tests.services.s3 import ObjectStore

pytestmark = pytest.mark.services

SASL_PASSWORD = "sasl-Secret-4711"
TOKEN = "token-Secret-0815"
DEFINITIONS = """
OPTIONS = {{
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "wax",
    "sasl.password": wl.conf("password"),
}}

@wl.table
@wl.expect("small", "id < 3")
@wl.expect_or_quarantine("whole", "_rescued_data IS NULL")
def orders():
    return wl.read_kafka({topic!r}, {servers!r}, schema="id BIGINT", options=OPTIONS)

@wl.table
def landed():
    return wl.read_files("{inbox}", format="json", schema="id BIGINT")

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n FROM orders")
"""
COMMANDS = [
    ["dry-run"],
    ["run"],
    ["run", "--json"],
    ["run", "--processes", "2"],
    ["graph", "--format", "json"],
    ["tables", "--json"],
    ["status", "--json"],
    ["events", "--json", "-n", "1000"],
    ["show", "events", "--json", "-n", "1000"],
    ["show", "orders"],
    ["sql", "SELECT * FROM orders_quarantine"],
]


@pytest.fixture
def secured(
    project: Project, make_apache_kafka: Callable[..., ApacheKafka], s3_store: ObjectStore, bucket: str, topic: str
) -> Project:
    """A pipeline that needs three secrets: for Kafka, for the store, and one that its configuration holds."""
    broker = make_apache_kafka(sasl_user="wax", sasl_password=SASL_PASSWORD)
    create_topic(broker, topic)
    publish(broker.bootstrap_servers, topic, range(5))
    project.storage = f"s3://{bucket}/lake"
    project.storage_options = dict(s3_store.storage_options)
    project.environ = {
        "KAFKA_PASSWORD": SASL_PASSWORD,
        "STORE_SECRET": s3_store.storage_options["AWS_SECRET_ACCESS_KEY"],
        "API_TOKEN": TOKEN,
    }
    project.spec(
        storage_options={**project.storage_options, "AWS_SECRET_ACCESS_KEY": "${env:STORE_SECRET}"},
        configuration={"password": "${env:KAFKA_PASSWORD}", "token": "${env:API_TOKEN}"},
    )
    project.define(DEFINITIONS.format(topic=topic, servers=broker.sasl_bootstrap_servers, inbox=f"s3://{bucket}/inbox"))
    with _files(project, bucket).open_output_stream("inbox/1.json") as stream:
        stream.write(b'{"id": 1}\n')
    return project


def test_secrets_appear_nowhere(secured: Project, bucket: str) -> None:
    shown = []
    for words in COMMANDS:
        done = secured.waxlake(*words)
        assert done.code == 0, (words, done)
        shown += [done.out, done.err]
    assert secured.rows("orders", "id") == [0, 1, 2, 3, 4]
    assert secured.rows("landed", "id") == [1]

    written = _everything_in(_files(secured, bucket))

    assert b"waxlake/fence" in written
    assert b"create_update" in written
    for name, secret in secured.environ.items():
        assert all(secret not in text for text in shown), name
        assert secret.encode() not in written, name


@pytest.mark.parametrize("mistake", ["password", "store", "definition", "debug"])
def test_secrets_appear_in_no_error(secured: Project, mistake: str, bucket: str) -> None:
    wrong = "wrong-Secret-1234"
    environ = {
        "password": {"KAFKA_PASSWORD": wrong},
        "store": {"STORE_SECRET": wrong},
        "definition": {},
        "debug": {"KAFKA_PASSWORD": wrong, "WAXLAKE_DEBUG": "1"},
    }[mistake]
    if mistake == "definition":
        file = secured.folder / "flows/definitions.py"
        file.write_text(file.read_text().replace('"sasl.mechanism"', '"sasl.mechanisn"'))

    for words in (["run"], ["run", "--json"]):
        done = secured.waxlake(*words, **environ)

        assert done.code == 1, done
        assert ("Traceback" in done.err) == (mistake == "debug")
        for secret in (wrong, *secured.environ.values()):
            assert secret not in done.out + done.err
    written = _everything_in(_files(secured, bucket))
    assert wrong.encode() not in written


def _files(project: Project, bucket: str) -> pa_fs.FileSystem:
    options = project.storage_options
    store = pa_fs.S3FileSystem(
        access_key=options["AWS_ACCESS_KEY_ID"],
        secret_key=options["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=options["AWS_ENDPOINT_URL"].removeprefix("http://"),
        scheme="http",
        region=options["AWS_REGION"],
    )
    return pa_fs.SubTreeFileSystem(bucket, store)


def _everything_in(files: pa_fs.FileSystem) -> bytes:
    """Return the bytes of every object, and the rows of every Parquet file."""
    found = files.get_file_info(pa_fs.FileSelector("", recursive=True))
    parts = []
    for info in found:
        if info.type != pa_fs.FileType.File:
            continue
        with files.open_input_file(info.path) as stream:
            content = stream.read()
        parts.append(content)
        if info.path.endswith(".parquet"):
            parts.append(json.dumps(pq.read_table(io.BytesIO(content)).to_pylist(), default=str).encode())
    return b"\n".join(parts)
