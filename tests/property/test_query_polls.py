"""Polls of a changing table, crashed anywhere: what is committed adds up to the table, and nothing is committed twice."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from connectors.query import QueryConnector, QuerySettings
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import plan_partitions

COLUMNS = frozenset({"_change_type", "_commit_position", "_change_index"})
LOOK_BACK = 5


class Application:
    """Changes rows; now and then it commits a change late, with a cursor that others have passed."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.database = sqlite3.connect(folder / "app.db")
        self.database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, changed INTEGER, gone INTEGER)")
        self.chance, self.clock, self.value = chance, 100, 0

    def change(self, count: int) -> None:
        for _ in range(count):
            self.value += 1
            self.clock += self.chance.choice((0, 0, 1, 1, 2))
            at = self.chance.choice((self.clock, self.clock, self.clock - self.chance.randrange(LOOK_BACK), None))
            key = self.chance.randrange(40)
            kind = self.chance.random()
            if kind < 0.12:
                self.database.execute("DELETE FROM t WHERE id = ?", (key,))
            else:
                row = (key, self.value, at, int(kind < 0.2))
                self.database.execute("INSERT OR REPLACE INTO t VALUES (?, ?, ?, ?)", row)
        self.database.commit()

    def rows(self) -> dict[int, int]:
        return dict(self.database.execute("SELECT id, v FROM t WHERE gone = 0").fetchall())


class Target:
    """What a table holds: change rows, and the position behind them."""

    def __init__(self) -> None:
        self.position: dict[str, int] = {}
        self.log: list[dict[str, Any]] = []

    def current(self) -> dict[int, int]:
        rows: dict[int, int] = {}
        for row in sorted(self.log, key=lambda row: (row["_commit_position"], row["_change_index"])):
            if row["_change_type"] == "delete":
                rows.pop(row["id"], None)
            else:
                rows[row["id"]] = row["v"]
        return rows


def run(folder: Path, targets: list[Target], *, most_batches: int | None = None) -> None:
    """Read for all targets at once; with ``most_batches`` the run crashes after so many."""
    values = {
        "url": f"sqlite:///{folder / 'app.db'}",
        "table": "t",
        "cursor": "changed",
        "look_back": LOOK_BACK,
        "deletion_condition": "gone = 1",
        "detect_deletes_every": 0,
        "max_rows_per_batch": 4,
    }
    connector = QueryConnector(QuerySettings.build("test", values), TableLocation(str(folder / "ledger")))
    plan = plan_partitions(connector.inspect(), [target.position for target in targets], is_bounded=True)
    reader = connector.reader(plan, ("query",), COLUMNS)
    count = 0
    while not reader.is_done and (most_batches is None or count < most_batches):
        for batch in reader.read():
            count += 1
            for target in targets[: None if count % 2 else 1]:  # one falls behind
                stored = target.position.get("query", 0)
                if batch.start == stored:
                    target.log += batch.table.to_pylist()
                    target.position["query"] = batch.end
    reader.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_crashes_each_version_is_stored_once_and_in_the_end_the_tables_agree(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        application, targets = Application(folder, chance), [Target(), Target()]
        application.change(30)
        for _ in range(5):
            run(folder, targets, most_batches=chance.choice((0, 1, 2, 4, None)))
            application.change(chance.randrange(12))
        for _ in range(3):  # the last changes, and what a target that fell behind has yet to read
            run(folder, targets[:1])
            run(folder, targets[1:])
        for target in targets:
            assert target.current() == application.rows()
            versions = Counter(row["v"] for row in target.log if row["v"] is not None)
            assert max(versions.values()) == 1, "a version was stored twice"
        application.database.close()
