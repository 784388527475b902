"""A database of a MariaDB server, and a source that follows its tables step by step, in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from connectors.mysql import MySQLConnector, MySQLSettings
from tests.services.mariadb import MySQLServer
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import Reader, plan_partitions

ALL = frozenset({"_change_type", "_commit_position", "_change_index", "_commit_timestamp", "_table", "_unchanged"})


@dataclass(slots=True)
class Lab:
    """What a table would hold: batches are kept, and positions with them."""

    server: MySQLServer
    folder: Path
    database: str = ""
    positions: dict[str, int] = field(default_factory=dict)
    batches: list[MicroBatch] = field(default_factory=list)
    notes: dict[int, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.database = self.database or self.server.create_database()

    def execute(self, *statements: str) -> None:
        """Run statements, each a transaction."""
        self.server.execute(*statements, database=self.database)

    def transact(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.server.connect(self.database, autocommit=False) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def connector(self, *tables: str, url: str | None = None, **options: Any) -> MySQLConnector:
        """Return a connector of some tables; all of the database if none is named."""
        names = [f"{self.database}.{name}" for name in tables or ("*",)]
        settings = MySQLSettings.of(url or self.server.url, names, **options)
        return MySQLConnector(settings, TableLocation(str(self.folder / "ledger")))

    def read(
        self, connector: MySQLConnector, timeout_s: float = 30, others: Sequence[Mapping[str, int]] = ()
    ) -> list[MicroBatch]:
        """Read what is new, and keep it; ``others`` are positions of flows that share the read and are further."""
        plan = plan_partitions(connector.inspect(), [self.positions, *others], is_bounded=True)
        noted = {key: replace(part, notes=self.notes) for key, part in plan.partitions.items()}
        plan = replace(plan, partitions=noted)
        connector.settle(plan)
        for partition, part in plan.partitions.items():
            self.positions.setdefault(partition, part.start)
        names = frozenset(connector.empty().column_names) | ALL
        reader = connector.reader(plan, tuple(sorted(plan.partitions)), names)
        found: list[MicroBatch] = []
        deadline_s = time.monotonic() + timeout_s
        try:
            while not reader.is_done:
                assert time.monotonic() < deadline_s, "the reader does not reach its mark"
                found += reader.read()
        finally:
            self.keep(found)
            reader.close()
        return found

    def keep(self, batches: list[MicroBatch]) -> None:
        """Keep batches as a table would: each goes on where the one before ended."""
        for batch in batches:
            assert batch.start == self.positions.setdefault(batch.partition, batch.start)
            self.positions[batch.partition] = batch.end
            if batch.notes:
                self.notes[batch.end] = batch.notes
        self.batches += batches

    def follow(self, reader: Reader, timeout_s: float = 30) -> None:
        """Read on for ever, and keep it; ends with the reader's error."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self.keep(list(reader.read()))

    def changes(self, batches: list[MicroBatch], table: str) -> list[dict[str, Any]]:
        """Return the change rows of one table."""
        name = f"{self.database}.{table}"
        return [row for b in batches if b.partition.removesuffix(":load") == name for row in b.table.to_pylist()]
