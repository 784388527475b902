"""What is wrong with a server, a user or a binlog is said before anything is read, with the setting or privilege by name."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.mysql import MySQLSettings
from connectors.mysql.client import Client
from tests.integration.mysql_lab import Lab
from tests.services.mariadb import MariaDB
from waxlake.stream.errors import SchemaError, SourceMoved, TerminalError, TransientError, UsageError, WaxlakeError
from waxlake.stream.source import plan_partitions


@pytest.fixture
def lab(mariadb: MariaDB, tmp_path: Path) -> Lab:
    lab = Lab(mariadb, tmp_path)
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    return lab


def user_url(lab: Lab, *grants: str) -> str:
    """Make a user of some privileges, and return its URL."""
    name = f"u{lab.database[4:]}"
    lab.server.execute(f"CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'pass-word'", *(g.format(name) for g in grants))
    return f"mysql://{name}:pass-word@{lab.server.host}:{lab.server.port}"


def test_a_wrong_password(lab: Lab) -> None:
    url = f"mysql://root:not-this-one@127.0.0.1:{lab.server.port}"
    with pytest.raises(TerminalError) as refused:
        lab.connector(url=url).inspect()
    assert refused.value.code == "MYSQL_ACCESS_DENIED"
    assert "not-this-one" not in str(refused.value) + repr(refused.value) + repr(lab.connector(url=url).settings)


def test_a_server_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(TransientError) as refused:
        lab.connector(url="mysql://root@127.0.0.1:1").inspect()
    assert refused.value.code == "MYSQL_UNREACHABLE"


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        (["GRANT SELECT ON *.* TO {}@'127.0.0.1'"], "REPLICATION SLAVE and no REPLICATION CLIENT"),
        (["GRANT SELECT, REPLICATION CLIENT ON *.* TO {}@'127.0.0.1'"], "no REPLICATION SLAVE"),
        (["GRANT SELECT, REPLICATION SLAVE ON *.* TO {}@'127.0.0.1'"], "no REPLICATION CLIENT"),
        (["GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {}@'127.0.0.1'"], "no SELECT privilege"),
    ],
)
def test_a_missing_privilege(lab: Lab, grants: list[str], missing: str) -> None:
    with pytest.raises(TerminalError, match=missing) as refused:
        lab.connector("t", url=user_url(lab, *grants)).inspect()
    assert refused.value.code in ("MYSQL_PRIVILEGE_MISSING", "MYSQL_NOT_FOUND")
    assert "GRANT" in refused.value.remedy


def test_no_more_privileges_are_needed_than_documented(lab: Lab) -> None:
    url = user_url(
        lab,
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {}@'127.0.0.1'",
        f"GRANT SELECT ON {lab.database}.* TO {{}}@'127.0.0.1'",
    )
    lab.read(lab.connector(url=url))
    lab.execute("INSERT INTO t VALUES (2)")
    lab.read(lab.connector(url=url))
    assert [r["id"] for r in lab.changes(lab.batches, "t")] == [1, 2]


@pytest.mark.parametrize(
    ("setting", "value", "back", "code"),
    [
        ("binlog_format", "'MIXED'", "'ROW'", "MYSQL_BINLOG_FORMAT"),
        ("binlog_row_image", "'MINIMAL'", "'FULL'", "MYSQL_ROW_IMAGE"),
        ("binlog_row_metadata", "'NO_LOG'", "'FULL'", "MYSQL_METADATA_MISSING"),
        ("log_bin_compress", "1", "0", "MYSQL_BINLOG_COMPRESSED"),
    ],
)
def test_a_server_setting_that_is_not_as_needed(lab: Lab, setting: str, value: str, back: str, code: str) -> None:
    lab.execute(f"SET GLOBAL {setting} = {value}")
    try:
        with pytest.raises(TerminalError, match=setting) as refused:
            lab.connector().inspect()
    finally:
        lab.execute(f"SET GLOBAL {setting} = {back}")
    assert refused.value.code == code
    assert setting in refused.value.remedy


def test_a_server_without_a_binlog(make_mariadb: Any, tmp_path: Path) -> None:
    lab = Lab(make_mariadb(options={"log-bin": None}), tmp_path)
    with pytest.raises(TerminalError) as refused:
        lab.connector().inspect()
    assert refused.value.code == "MYSQL_LOG_BIN_OFF"


@pytest.mark.parametrize(
    ("session", "statement", "code"),
    [
        ("SET binlog_format = 'STATEMENT'", "INSERT INTO t VALUES (7, NULL)", "MYSQL_BINLOG_FORMAT"),
        ("SET binlog_row_image = 'MINIMAL'", "UPDATE t SET s = 'y'", "MYSQL_ROW_IMAGE"),
        ("DO 1", "ALTER TABLE p TRUNCATE PARTITION p0", "MYSQL_PARTITION_CHANGED"),
    ],
)
def test_a_session_that_wrote_what_cannot_be_read(
    mariadb: MariaDB, tmp_path: Path, session: str, statement: str, code: str
) -> None:
    lab = Lab(mariadb, tmp_path)
    lab.execute(
        "CREATE TABLE t (id INT PRIMARY KEY, s TEXT)",
        "INSERT INTO t VALUES (1, 'x')",
        "CREATE TABLE p (id INT PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (9))",
    )
    lab.read(lab.connector())
    lab.execute(session, statement)
    with pytest.raises(TerminalError) as refused:
        lab.read(lab.connector())
    assert refused.value.code == code


def test_c20_a_binlog_that_was_purged_stops_or_loads_again(make_mariadb: Any, tmp_path: Path) -> None:
    lab = Lab(make_mariadb(), tmp_path)
    lab.execute("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    lab.read(lab.connector())
    running = lab.connector()
    plan = plan_partitions(running.inspect(), [lab.positions], is_bounded=False)
    lab.execute(
        "INSERT INTO t VALUES (2)",
        "FLUSH BINARY LOGS",
        "INSERT INTO t VALUES (3)",
    )
    while lab.server.execute("PURGE BINARY LOGS TO 'binlog.000002'", "SHOW BINARY LOGS")[0][0] != "binlog.000002":
        time.sleep(0.1)  # the connection of the reader before still holds it
    reader = running.reader(plan, tuple(plan.partitions), frozenset({"id"}))
    with pytest.raises(SourceMoved) as gone:
        lab.follow(reader)
    reader.close()
    assert gone.value.code == "MYSQL_BINLOG_PURGED"
    with pytest.raises(SourceMoved) as expired:
        lab.read(lab.connector())
    assert expired.value.code == "SOURCE_EXPIRED"
    assert not lab.connector().start_over(expired.value)
    before = lab.connector().inspect()
    again = lab.connector(on_binlog_lost="resnapshot")
    assert again.start_over(expired.value)
    state = again.inspect()
    assert before.identity in state.former
    assert state.identity != before.identity
    lab.positions = {}
    rows = lab.changes(lab.read(again), "t")
    assert [(r["_change_type"], r["id"]) for r in rows] == [("read", 1), ("read", 2), ("read", 3)]


def test_types_and_tables_that_cannot_be_read(lab: Lab) -> None:
    lab.execute("CREATE TABLE odd (id INT PRIMARY KEY, s VARCHAR(9) CHARACTER SET swe7)")
    with pytest.raises(SchemaError, match="column 's' of table") as refused:
        lab.connector("odd").inspect()
    assert refused.value.code == "MYSQL_TYPE_UNSUPPORTED"
    lab.read(lab.connector("odd", exclude_columns=["odd.s"]))
    with pytest.raises(TerminalError) as missing:
        lab.connector("nowhere").inspect()
    assert missing.value.code == "MYSQL_NOT_FOUND"


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("postgres://x/y", {}, "expected mysql://"),
        ("mysql://h/y?sslmode=1", {}, "unknown option 'sslmode'"),
        ("mysql://h", {}, "a table without its database"),
        ("mysql://h/d", {"chunk_rows": 5}, "Did you mean 'load_chunk_rows'"),
    ],
)
def test_options_that_are_wrong(url: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        MySQLSettings.of(url, ["t"], **options)


def test_reads_of_one_server_must_agree(lab: Lab) -> None:
    one, other = lab.connector("t"), lab.connector("t", load_chunk_rows=5)
    assert one.source_key() == other.source_key()
    with pytest.raises(WaxlakeError, match="load_chunk_rows"):
        one.together([other])


def test_another_server_at_the_address_is_another_source(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lab.connector().inspect()
    survey = Client.survey
    monkeypatch.setattr(Client, "survey", lambda self, c: replace(survey(self, c), identity="another", has_gtids=False))
    after = lab.connector().inspect()
    assert (after.name, after.former) == (
        before.name,
        (),
    )  # without transaction ids the planner stops: SOURCE_RECREATED
    assert after.identity != before.identity
    moved = SourceMoved("gone", code="SOURCE_RECREATED")
    assert lab.connector(on_binlog_lost="resnapshot").start_over(moved)
    anew = lab.connector().inspect()
    assert {before.identity, after.identity} == set(anew.former)
    assert anew.identity not in anew.former
