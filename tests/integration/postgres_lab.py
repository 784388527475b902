"""Reads tables of a PostgreSQL database through the connector, as a run would, and gathers what a sink would commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.postgres import PostgresConnector, PostgresSettings
from tests.services.postgres import PostgresServer
from waxlake.stream.batch import MicroBatch
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SourceMoved, TransientError
from waxlake.stream.source import SourcePlan, plan_partitions


@dataclass(slots=True)
class PostgresLab:
    """One database and what was read of it."""

    server: PostgresServer
    database: str
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)
    retries: list[TransientError] = field(default_factory=list)
    largest_bytes: int = 0
    pieces: int = 0

    def execute(self, statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each committed at once."""
        return self.server.execute(statements, database=self.database)

    def transact(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.server.connection(self.database) as connection, connection.cursor() as cursor:
            connection.autocommit = False
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def connector(self, *tables: str, **options: Any) -> PostgresConnector:
        """Return a new connector."""
        values = {"dsn": self.server.dsn(self.database), "slot": self.database, **self.options, **options}
        settings = PostgresSettings.build("lab", {"tables": tables, **values})
        return PostgresConnector(settings, TableLocation(str(self.folder / "ledger")))

    def read(self, *tables: str, during: Callable[[], None] = lambda: None, **options: Any) -> None:
        """Read up to what the database holds now, from where the last call ended."""
        connector = self.connector(*tables, **options)
        try:
            state = connector.inspect()
            plan = plan_partitions(state, [self.stored], is_bounded=True)
        except SourceMoved as error:
            if not connector.start_over(error):
                raise
            self.stored = {}
            plan = plan_partitions(connector.inspect(), [self.stored], is_bounded=True)
        self._read(connector, plan, during)
        connector.confirm(plan, self.stored)

    def _read(self, connector: PostgresConnector, plan: SourcePlan, during: Callable[[], None]) -> None:
        reader = connector.reader(plan, tuple(plan.partitions), frozenset(CHANGE_COLUMNS.names))
        open_pieces: dict[str, list[MicroBatch]] = {}
        deadline = time.monotonic() + 120
        for partition, part in plan.partitions.items():
            self.stored.setdefault(partition, part.start)
        try:
            while not reader.is_done:
                assert time.monotonic() < deadline, f"stands at {reader.positions()}, wants {plan}"
                try:
                    batches = reader.read()
                except TransientError as error:
                    self.retries.append(error)
                    time.sleep(0.1)
                    continue
                for batch in batches:
                    self._take(batch, open_pieces)
                during()
        finally:
            reader.close()

    def _take(self, batch: MicroBatch, open_pieces: dict[str, list[MicroBatch]]) -> None:
        assert batch.start == self.stored[batch.partition]
        self.pieces += batch.is_partial
        self.largest_bytes = max(self.largest_bytes, batch.table.nbytes)
        open_pieces.setdefault(batch.partition, []).append(batch)
        if not batch.is_partial:
            for piece in open_pieces.pop(batch.partition):
                if piece.table.num_rows:
                    self.tables.append(piece.table)
            self.stored[batch.partition] = batch.end

    def log(self, table: str) -> list[Mapping[str, Any]]:
        """Return the change rows of a table in the order of commits."""
        if not self.tables:
            return []
        merged = pa.concat_tables(self.tables, promote_options="default")
        merged = merged.filter(pc.equal(merged.column("_table"), table))
        order = [("_commit_position", "ascending"), ("_change_index", "ascending")]
        rows: list[Mapping[str, Any]] = merged.sort_by(order).to_pylist()
        return rows

    def kinds(self, table: str) -> list[str]:
        """Return what kinds of change a table's log holds."""
        return [row["_change_type"] for row in self.log(table)]
