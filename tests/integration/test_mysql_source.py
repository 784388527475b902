"""What a follower of MariaDB tables sees: first loads beside the stream, keys, DDL, large transactions, restarts."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from connectors.mysql.client import Client, Server
from connectors.mysql.loads import Loads
from connectors.mysql.position import LOADED
from tests.integration.mysql_lab import ALL, Lab
from tests.services.mariadb import MariaDB
from waxlake.stream.errors import SourceChanged, TerminalError, TransientError
from waxlake.stream.position import RowPosition
from waxlake.stream.source import plan_partitions


@pytest.fixture
def lab(mariadb: MariaDB, tmp_path: Path) -> Lab:
    return Lab(mariadb, tmp_path)


def data(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ALL} for row in rows]


def kinds(rows: list[dict[str, Any]]) -> list[str]:
    return [row["_change_type"] for row in rows]


def replay(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Apply change rows in the order they came."""
    held: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[k] for k in keys)
        if row["_change_type"] == "truncate":
            held.clear()
        elif row["_change_type"] == "delete":
            held.pop(key, None)
        else:
            held[key] = {k: v for k, v in row.items() if k not in ALL}
    return held


@pytest.mark.parametrize(
    ("definition", "values"),
    [
        ("k BIGINT PRIMARY KEY", "CAST(seq AS SIGNED) * 1000000007 - 50000000000"),
        ("k VARCHAR(40) PRIMARY KEY", "concat('it''s \\\\', hex(seq * 7919), ' é')"),
        ("k VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_german2_ci PRIMARY KEY", "concat('ü', md5(seq))"),
        ("k VARBINARY(16) PRIMARY KEY", "unhex(md5(seq))"),
        ("k DECIMAL(20,5) PRIMARY KEY", "seq / 7"),
        ("k DATETIME(6) PRIMARY KEY", "'2020-01-01' + INTERVAL seq * 1000001 MICROSECOND"),
        ("k ENUM('z','y','x') NOT NULL, j INT NOT NULL, PRIMARY KEY (k, j)", "1 + seq % 3, seq"),
        ("k INT NOT NULL, j VARCHAR(9) NOT NULL, PRIMARY KEY (k, j)", "seq % 11, concat('b', seq)"),
        ("k BIGINT UNSIGNED NOT NULL UNIQUE", "18446744073709551615 - seq"),
    ],
)
def test_chunks_cover_any_key(lab: Lab, definition: str, values: str) -> None:
    lab.execute(f"CREATE TABLE t ({definition}, v INT)", f"INSERT INTO t SELECT {values}, seq FROM seq_1_to_500")
    lab.read(lab.connector(load_chunk_rows=37))
    loaded = lab.changes(lab.batches, "t")
    assert sorted(row["v"] for row in loaded) == list(range(1, 501))
    assert len([b for b in lab.batches if b.table.num_rows]) == 14
    lab.positions = {f"{lab.database}.t:load": 3, f"{lab.database}.t": lab.positions[f"{lab.database}.t"]}
    again = lab.changes(lab.read(lab.connector(load_chunk_rows=99)), "t")  # chunks that were decided stay as they are
    assert sorted(row["v"] for row in again) == sorted(row["v"] for row in loaded[3 * 37 :])


@pytest.mark.parametrize("is_exact", [True, False], ids=["mariadb", "as-on-mysql"])
def test_a_load_beside_a_busy_table_is_consistent_in_the_order_of_arrival(
    lab: Lab, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_exact:  # a server that does not tell where a snapshot stands
        survey = Client.survey

        def as_on_mysql(self: Client, connection: Any) -> Server:
            return replace(survey(self, connection), is_mariadb=False)

        def await_visible(self: Loads, connection: Any, transaction: str) -> None:
            """Wait for what is in the binlog to be in the engine, in MariaDB's words instead of MySQL's."""
            status, end = "SHOW STATUS LIKE 'binlog_snapshot_position'", self._client.end(connection, self._server)
            while True:
                self._client.ask(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
                offset = int(self._client.ask(connection, status)[0]["VALUE"])
                self._client.ask(connection, "COMMIT")
                if offset >= RowPosition.unpack(end).minor:
                    return

        monkeypatch.setattr(Client, "survey", as_on_mysql)
        monkeypatch.setattr(Loads, "_await_visible", await_visible)
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t SELECT seq, 0 FROM seq_1_to_2000")
    stopping = threading.Event()

    def write() -> None:
        with lab.server.connect(lab.database) as connection, connection.cursor() as cursor:
            number = 0
            while not stopping.is_set():
                number += 1
                at = number * 7919 % 2000
                with contextlib.suppress(pymysql.MySQLError):  # deadlocks, keys that are there
                    cursor.execute(f"UPDATE t SET v = {number} WHERE id BETWEEN {at} AND {at + 5}")
                    cursor.execute(f"DELETE FROM t WHERE id = {(at * 3) % 2000}")
                    cursor.execute(f"INSERT IGNORE INTO t VALUES ({(at * 3) % 2000}, {number}), ({2000 + number}, 1)")
                    cursor.execute(f"UPDATE t SET id = id + 100000 WHERE id = {at + 50}")

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        lab.read(lab.connector(load_chunk_rows=100), timeout_s=60)
    finally:
        stopping.set()
        for writer in writers:
            writer.join()
    lab.read(lab.connector(load_chunk_rows=100), timeout_s=60)
    changes = lab.changes(lab.batches, "t")
    rows = lab.server.execute("SELECT id, v FROM t", database=lab.database)
    assert {"read", "insert", "update", "delete"} == set(kinds(changes))
    assert replay(changes, "id") == {(i,): {"id": i, "v": v} for i, v in rows}
    by_position = sorted(changes, key=lambda row: (row["_commit_position"], row["_change_index"]))
    assert replay(by_position, "id") == replay(changes, "id")


def test_a_table_added_later_gets_its_history(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE a (id INT PRIMARY KEY)", "CREATE TABLE b (id INT PRIMARY KEY)", "INSERT INTO b VALUES (1), (2)"
    )
    lab.read(lab.connector("a"))
    lab.execute("INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (3)")
    lab.read(lab.connector("a"))
    lab.read(lab.connector("a", "b"))
    lab.execute("INSERT INTO b VALUES (4)")
    lab.read(lab.connector("a", "b"))
    assert [(r["_change_type"], r["id"]) for r in lab.changes(lab.batches, "a")] == [("insert", 1)]
    assert [(r["_change_type"], r["id"]) for r in lab.changes(lab.batches, "b")] == [
        ("read", 1), ("read", 2), ("read", 3), ("insert", 4)
    ]  # fmt: skip


def test_keys_truncation_and_tables_made_anew(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (a INT, b VARCHAR(9), v INT, PRIMARY KEY (a, b))")
    lab.read(lab.connector())
    lab.transact(
        "INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 1)",
        "UPDATE t SET v = 2",
        "UPDATE t SET b = 'X' WHERE a = 1",  # equal to the server, another key to everybody else
        "UPDATE t SET a = a + 10 ORDER BY a DESC",
        "DELETE FROM t WHERE a = 12",
    )
    rows = lab.changes(lab.read(lab.connector()), "t")
    assert [(r["_change_type"], r["a"], r["b"], r["v"]) for r in rows] == [
        ("insert", 1, "x", 1), ("insert", 2, "y", 1), ("update", 1, "x", 2), ("update", 2, "y", 2),
        ("delete", 1, "x", 2), ("insert", 1, "X", 2),
        ("delete", 2, "y", 2), ("insert", 12, "y", 2), ("delete", 1, "X", 2), ("insert", 11, "X", 2),
        ("delete", 12, "y", 2),
    ]  # fmt: skip
    assert len({r["_commit_position"] for r in rows}) == 1
    indexes = [r["_change_index"] for r in rows]
    assert indexes == sorted(set(indexes))
    assert {r["_table"] for r in rows} == {f"{lab.database}.t"}
    lab.execute("TRUNCATE TABLE t", "INSERT INTO t VALUES (5, 'z', 5)", "DROP TABLE t")
    lab.execute("CREATE TABLE t (a INT, b VARCHAR(9), v INT, PRIMARY KEY (a, b))", "INSERT INTO t VALUES (6, 'z', 6)")
    lab.execute(
        "/* moved away */ RENAME TABLE t TO u", "CREATE OR REPLACE TABLE t LIKE u", "INSERT INTO t VALUES (7, 'w', 7)"
    )
    lab.execute("CREATE TABLE IF NOT EXISTS t (a INT)")
    rows = lab.changes(lab.read(lab.connector("t")), "t")
    assert [(r["_change_type"], r["a"]) for r in rows] == [
        ("truncate", None), ("insert", 5), ("truncate", None), ("insert", 6), ("truncate", None), ("insert", 7)
    ]  # fmt: skip


def test_columns_that_come_and_go(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT)", "INSERT INTO t VALUES (1, 1, 1)")
    lab.read(lab.connector())
    old = lab.connector()
    plan = plan_partitions(old.inspect(), [lab.positions], is_bounded=False)
    reader = old.reader(plan, tuple(plan.partitions), ALL | {"id", "a", "b"})
    reader.read()
    lab.execute(
        "INSERT INTO t VALUES (2, 2, 2)",
        "ALTER TABLE t ADD COLUMN c TEXT FIRST, DROP COLUMN b",
        "INSERT INTO t VALUES ('c', 3, 3)",
    )
    with pytest.raises(SourceChanged) as changed:
        lab.follow(reader)
    reader.close()
    assert changed.value.code == "SOURCE_COLUMNS_CHANGED"
    lab.read(lab.connector())
    lab.execute("ALTER TABLE t MODIFY a BIGINT, CHANGE c d TEXT", "INSERT INTO t VALUES ('d', 4, 5000000000)")
    lab.read(lab.connector())
    rows = {row["id"]: row for row in data(lab.changes(lab.batches, "t"))}
    assert rows[1] == {"id": 1, "a": 1, "b": 1}
    assert rows[2]["a"] == 2
    assert rows[3] == {"c": "c", "id": 3, "a": 3, "b": None}
    assert rows[4] == {"d": "d", "id": 4, "a": 5_000_000_000, "b": None, "c": None}


def test_a_table_without_a_key(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (n INT, s TEXT)", "INSERT INTO t VALUES (1, 'a'), (1, 'a')")
    with pytest.raises(TerminalError, match="on_missing_key") as refused:
        lab.read(lab.connector())
    assert refused.value.code == "MYSQL_NO_KEY"
    lab.read(lab.connector(on_missing_key="append"))
    lab.execute("UPDATE t SET n = 2 LIMIT 1", "DELETE FROM t WHERE n = 1")
    lab.read(lab.connector(on_missing_key="append"))
    assert [(r["_change_type"], r["n"]) for r in lab.changes(lab.batches, "t")] == [
        ("read", 1), ("read", 1), ("delete", 1), ("insert", 2), ("delete", 1)
    ]  # fmt: skip


def test_a_large_transaction_comes_in_pieces_that_end_together(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)", "CREATE TABLE other (id INT PRIMARY KEY)")
    lab.read(lab.connector())
    lab.transact(
        "INSERT INTO t SELECT seq, repeat('x', 200) FROM seq_1_to_20000",
        "INSERT INTO other VALUES (1)",
        "DELETE FROM t",
    )
    lab.execute("INSERT INTO other VALUES (2)")
    before = dict(lab.positions)
    batches = lab.read(lab.connector(max_bytes_per_batch=500_000))
    pieces = [b for b in batches if b.partition == f"{lab.database}.t" and b.table.num_rows]
    assert len(pieces) > 10
    assert max(b.table.nbytes for b in pieces) < 6_000_000
    assert [b.is_partial for b in pieces] == [True] * (len(pieces) - 1) + [pieces[-1].is_partial]
    assert {b.end for b in pieces if b.is_partial} == {before[f"{lab.database}.t"]}
    rows = lab.changes(batches, "t")
    assert kinds(rows) == ["insert"] * 20000 + ["delete"] * 20000
    assert [r["_change_index"] for r in rows] == sorted({r["_change_index"] for r in rows})
    assert [r["id"] for r in lab.changes(batches, "other")] == [1, 2]


def test_clocks_that_go_wrong_order_nothing(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT)")
    lab.read(lab.connector())
    times = [2_000_000_000, 1_000_000_000, 1_500_000_000]
    lab.execute(
        *(s for n, at in enumerate(times) for s in (f"SET timestamp = {at}", f"REPLACE INTO t VALUES (1, {n})"))
    )
    rows = lab.changes(lab.read(lab.connector()), "t")
    assert [row["v"] for row in rows if row["_change_type"] != "delete"] == [0, 1, 2]
    positions = [row["_commit_position"] for row in rows]
    assert positions == sorted(positions)
    assert [int(row["_commit_timestamp"].timestamp()) for row in rows if row["_change_type"] != "delete"] == times


def test_a_server_that_restarts_is_read_on(make_mariadb: Any, tmp_path: Path) -> None:
    lab = Lab(make_mariadb(), tmp_path)
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)", "INSERT INTO t SELECT seq, 's' FROM seq_1_to_3000")
    connector = lab.connector(load_chunk_rows=100)
    plan = plan_partitions(connector.inspect(), [{}], is_bounded=False)
    reader = connector.reader(plan, tuple(plan.partitions), ALL | {"id"})
    failures = 0

    def read_until(rows: int) -> None:
        nonlocal failures
        deadline_s = time.monotonic() + 60
        load = f"{lab.database}.t:load"
        while sum(b.table.num_rows for b in lab.batches) < rows or (rows >= 3000 and lab.positions[load] < LOADED):
            assert time.monotonic() < deadline_s
            try:
                lab.keep(list(reader.read()))
            except TransientError:
                failures += 1
                time.sleep(0.05)

    read_until(500)
    lab.server.kill()
    with pytest.raises(TransientError, match="MYSQL_UNREACHABLE"):
        lab.follow(reader)
    lab.server.start()
    read_until(3000)
    for number in range(2):
        lab.execute(f"INSERT INTO t VALUES ({5000 + number}, 'x')")
        read_until(3001 + number)
        lab.server.restart()
    lab.execute("FLUSH BINARY LOGS", "INSERT INTO t VALUES (9999, 'x')")
    read_until(3003)
    reader.close()
    assert failures
    rows = lab.changes(lab.batches, "t")
    assert [r["id"] for r in rows if r["_change_type"] == "insert"] == [5000, 5001, 9999]
    assert sorted(replay(rows, "id")) == [(i,) for i in (*range(1, 3001), 5000, 5001, 9999)]
