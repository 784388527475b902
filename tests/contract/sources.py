"""One rig a connector: how a test adds records to a source and recognises them in batches."""

from __future__ import annotations

import io
import json
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import fastavro
import pyarrow as pa
from confluent_kafka import Producer
from deltalake import write_deltalake

from connectors.delta import DeltaConnector
from connectors.files import FilesConnector, FilesSettings
from connectors.kafka import KafkaConnector, KafkaSettings
from connectors.mysql import MySQLConnector, MySQLSettings
from connectors.postgres import PostgresConnector, PostgresSettings
from connectors.query import QueryConnector, QuerySettings
from tests.services.kafka import KafkaCluster, create_topic
from tests.services.mariadb import MySQLServer
from tests.services.postgres import PostgresServer
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import Connector


class SourceRig(Protocol):
    """A source under test; every record is one number."""

    def add(self, numbers: Sequence[int]) -> None:
        """Add one record a number."""
        ...

    def connector(self) -> Connector:
        """Return a new connector onto the source."""
        ...


@dataclass(slots=True)
class KafkaRig:
    """A topic of three partitions."""

    cluster: KafkaCluster
    topic: str = field(default_factory=lambda: f"laws-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        create_topic(self.cluster, self.topic, partitions=3)

    def add(self, numbers: Sequence[int]) -> None:
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers})
        for number in numbers:
            producer.produce(self.topic, value=json.dumps({"n": number}).encode(), partition=number % 3)
        assert producer.flush(30) == 0

    def connector(self) -> Connector:
        values = {
            "bootstrap_servers": self.cluster.bootstrap_servers,
            "topic": self.topic,
            "schema": "n BIGINT",
            "max_rows_per_batch": 7,
        }
        return KafkaConnector(KafkaSettings.build("laws", values))


@dataclass(slots=True)
class FilesRig:
    """A folder into which files of a few rows land."""

    folder: Path
    format: str = "json"

    def __post_init__(self) -> None:
        (self.folder / "inbox").mkdir()

    def add(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 5):
            hidden = self.folder / "landing"
            hidden.write_bytes(_file_of(self.format, numbers[start : start + 5]))
            hidden.rename(self.folder / "inbox" / f"{uuid.uuid4().hex}.data")

    def connector(self) -> Connector:
        options = {"json array": {"multi_line": True}, "xml": {"row_tag": "row"}}
        settings = FilesSettings.of(
            str(self.folder / "inbox"),
            format=self.format.partition(" ")[0],
            schema="n BIGINT",
            max_rows_per_batch=7,
            poll_interval_s=0.05,
            settle_s=0,
            **options.get(self.format, {}),
        )
        return FilesConnector(settings, ledger=TableLocation(str(self.folder / "ledger")))


def _file_of(format: str, numbers: Sequence[int]) -> bytes:
    """Return a file with one row a number."""
    rows = [{"n": n} for n in numbers]
    if format == "avro":
        sink = io.BytesIO()
        schema = {"type": "record", "name": "row", "fields": [{"name": "n", "type": "long"}]}
        fastavro.writer(sink, schema, rows, sync_interval=4)
        return sink.getvalue()
    if format == "xml":
        return ("<all>" + "".join(f"<row><n>{n}</n></row>" for n in numbers) + "</all>").encode()
    if format == "json array":
        return json.dumps(rows, indent=1).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass(slots=True)
class DeltaRig:
    """A Delta table that grows by small commits."""

    folder: Path

    def add(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 5):
            rows = pa.table({"n": pa.array(numbers[start : start + 5], pa.int64())})
            write_deltalake(str(self.folder / "table"), rows, mode="append")

    def connector(self) -> Connector:
        return DeltaConnector(TableLocation(str(self.folder / "table")))


@dataclass(slots=True)
class MySQLRig:
    """Two tables of a database, one of them with rows before anyone looked; transactions of a few rows."""

    server: MySQLServer
    folder: Path
    database: str = ""

    def __post_init__(self) -> None:
        self.database = self.server.create_database()
        for table in ("odd", "even"):
            self.server.execute(f"CREATE TABLE {table} (n BIGINT PRIMARY KEY, s TEXT)", database=self.database)

    def add(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 5):
            part = numbers[start : start + 5]
            for table, rows in (("odd", [n for n in part if n % 2]), ("even", [n for n in part if not n % 2])):
                if rows:
                    values = ", ".join(f"({n}, 'row {n}')" for n in rows)
                    self.server.execute(f"INSERT INTO {table} VALUES {values}", database=self.database)

    def connector(self) -> Connector:
        settings = MySQLSettings.of(self.server.url, [f"{self.database}.*"], load_chunk_rows=7, max_rows_per_batch=7)
        return MySQLConnector(settings, TableLocation(str(self.folder / "ledger")))


@dataclass(slots=True)
class PostgresRig:
    """Two tables over one slot: the first rows come by first load, later ones as changes, some in large transactions."""

    server: PostgresServer
    folder: Path
    database: str = ""

    def __post_init__(self) -> None:
        self.database = self.server.create_database()
        self.server.execute(
            "CREATE TABLE a (n int8 PRIMARY KEY); CREATE TABLE b (n int8 PRIMARY KEY)", database=self.database
        )

    def add(self, numbers: Sequence[int]) -> None:
        with self.server.connection(self.database) as connection, connection.cursor() as cursor:
            connection.autocommit = False
            for start in range(0, len(numbers), 20):
                for number in numbers[start : start + 20]:
                    cursor.execute(f"INSERT INTO {'ab'[number % 2]} VALUES (%s)", (number,))
                connection.commit()

    def connector(self) -> Connector:
        values = {
            "dsn": self.server.dsn(self.database),
            "tables": ["a", "b"],
            "slot": self.database,
            "load_chunk_rows": 7,
            "max_rows_per_batch": 7,
        }
        settings = PostgresSettings.build("laws", values)
        return PostgresConnector(settings, TableLocation(str(self.folder / "ledger")))

    def close(self) -> None:
        self.server.drop_database(self.database)


@dataclass(slots=True)
class QueryRig:
    """A table of SQLite with a cursor that several rows share."""

    folder: Path

    def __post_init__(self) -> None:
        with sqlite3.connect(self.folder / "app.db") as database:
            database.execute("CREATE TABLE numbers (n BIGINT PRIMARY KEY, changed INTEGER NOT NULL)")
        database.close()

    def add(self, numbers: Sequence[int]) -> None:
        with sqlite3.connect(self.folder / "app.db") as database:
            database.executemany("INSERT INTO numbers VALUES (?, ?)", [(n, n // 4) for n in numbers])
        database.close()

    def connector(self) -> Connector:
        values = {
            "url": f"sqlite:///{self.folder / 'app.db'}",
            "table": "numbers",
            "cursor": "changed",
            "look_back": 3,
            "max_rows_per_batch": 7,
            "poll_interval": 0.05,
        }
        return QueryConnector(QuerySettings.build("laws", values), ledger=TableLocation(str(self.folder / "ledger")))
