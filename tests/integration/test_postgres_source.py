"""PostgreSQL tables through the connector: types, identities, keys, changes of columns, large transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg2
import pyarrow as pa
import pytest

from connectors.postgres.slots import slot_statuses
from tests.integration.postgres_lab import PostgresLab
from tests.services.postgres import PostgresServer
from waxlake.stream.clock import holding_time
from waxlake.stream.errors import SourceChanged, TerminalError, UsageError
from waxlake.stream.source import plan_partitions

TYPES = {
    "bool": ("true", pa.bool_()),
    "int2": ("-32768", pa.int16()),
    "int4": ("2147483647", pa.int32()),
    "int8": ("-9223372036854775808", pa.int64()),
    "oid": ("4294967295", pa.int64()),
    "float4": ("1.1", pa.float32()),
    "float8": ("'-Infinity'", pa.float64()),
    "numeric": ("123456789012345678901234567890123456789012345.6789", pa.string()),
    "numeric(10,2)": ("-12345678.90", pa.decimal128(10, 2)),
    "numeric(5,-2)": ("123400", pa.decimal128(7, 0)),
    "numeric(40,0)": ("7", pa.string()),
    "money": ("12.34", pa.string()),
    "text": ("E'a,\"b\"\\n\\\\c'", pa.string()),
    "varchar(5)": ("''", pa.string()),
    "char(4)": ("'ab'", pa.string()),
    "name": ("'n'", pa.string()),
    "bytea": ("'\\x00ff10'", pa.binary()),
    "date": ("'infinity'", pa.date32()),
    "time": ("'12:34:56.000001'", pa.string()),
    "timetz": ("'12:34:56+02'", pa.string()),
    "timestamp": ("'2024-02-29 12:34:56.123456'", pa.timestamp("us")),
    "timestamptz": ("'2024-02-29 12:34:56.1+02'", pa.timestamp("us", "UTC")),
    "interval": ("'1 year 2 days 03:00:00.5'", pa.string()),
    "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", pa.string()),
    "json": ("'{\"a\": [1, null]}'", pa.string()),
    "jsonb": ('\'{"b": "ü"}\'', pa.string()),
    "xml": ("'<a>b</a>'", pa.string()),
    "inet": ("'10.0.0.1/8'", pa.string()),
    "macaddr": ("'08:00:2b:01:02:03'", pa.string()),
    "bit(3)": ("B'101'", pa.string()),
    "point": ("'(1,2)'", pa.string()),
    "int4range": ("'[1,10)'", pa.string()),
    "tsvector": ("'a b'", pa.string()),
    "mood": ("'glad'", pa.string()),
    "euros": ("9.99", pa.decimal128(8, 2)),
    "pair": ("ROW(1, 'x')", pa.string()),
    "int4[]": ("'{1,NULL,3}'", pa.list_(pa.int32())),
    "text[]": ('\'{"a,b",NULL,"NULL",""}\'', pa.list_(pa.string())),
    "numeric(6,2)[]": ("'{1.50,2}'", pa.list_(pa.decimal128(6, 2))),
    "timestamptz[]": ("'{2024-01-01 00:00:00+00}'", pa.list_(pa.timestamp("us", "UTC"))),
    "bytea[]": ("ARRAY['\\x01'::bytea]", pa.list_(pa.binary())),
}


@pytest.fixture
def lab(debian_postgres: PostgresServer, database: str, tmp_path: Path) -> PostgresLab:
    return PostgresLab(debian_postgres, database, tmp_path)


@pytest.fixture
def each_lab(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[PostgresLab]:
    database = postgres_server.create_database()
    yield PostgresLab(postgres_server, database, tmp_path)
    postgres_server.drop_database(database)


def test_a_value_of_any_type_is_the_same_by_first_load_and_by_change(each_lab: PostgresLab) -> None:
    lab = each_lab
    lab.execute(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN euros AS numeric(8,2); CREATE TYPE pair AS (a int, b text)"
    )
    names = {f"c{i}": kind for i, kind in enumerate(TYPES)}
    if lab.server.version.split()[2] < "15":
        names = {name: kind for name, kind in names.items() if kind != "numeric(5,-2)"}
    try:
        lab.execute("SELECT xml '<a/>'")
    except psycopg2.errors.FeatureNotSupported:
        names = {name: kind for name, kind in names.items() if kind != "xml"}
    columns = ", ".join(f"{name} {kind}" for name, kind in names.items())
    lab.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    values = ", ".join(TYPES[kind][0] for kind in names.values())
    odd = "INSERT INTO t (id, c6, c17, c20, c21, c8) VALUES ({}, 'NaN', '0044-03-15 BC', '-infinity', '20000-01-01', 'NaN')"
    lab.execute(f"INSERT INTO t VALUES (1, {values}); INSERT INTO t (id) VALUES (2); {odd.format(3)}")
    lab.read("t")
    lab.execute(f"INSERT INTO t VALUES (11, {values}); INSERT INTO t (id) VALUES (12); {odd.format(13)}")
    lab.read("t")
    rows = pa.concat_tables(lab.tables).sort_by("id").drop_columns(["id"])
    assert rows.column("_change_type").to_pylist() == ["read"] * 3 + ["insert"] * 3
    for name, kind in names.items():
        column = rows.column(name).combine_chunks()
        assert column.type == TYPES[kind][1], kind
        assert column[:3].equals(column[3:]) or str(column[:3]) == str(column[3:]), kind
        assert column[0].is_valid, kind
        assert not column[1].is_valid, kind


def test_keys_identities_and_values_that_were_not_sent(lab: PostgresLab) -> None:
    wide = "repeat(md5(random()::text), 400)"
    for table in ("t", "f"):
        lab.execute(f"CREATE TABLE {table} (a int, b text, v int, doc text, PRIMARY KEY (a, b))")
        lab.execute(f"ALTER TABLE {table} ALTER COLUMN doc SET STORAGE EXTERNAL")
        lab.execute(f"INSERT INTO {table} SELECT i, 'x', 0, {wide} FROM generate_series(1, 5) i")
    lab.execute("ALTER TABLE f REPLICA IDENTITY FULL")
    lab.read("t", "f", load_chunk_rows=2)
    for table in ("t", "f"):
        lab.transact(
            f"UPDATE {table} SET v = 1 WHERE a = 1",
            f"UPDATE {table} SET a = 100 WHERE a = 2",
            f"DELETE FROM {table} WHERE a = 3",
            f"UPDATE {table} SET doc = NULL WHERE a = 4",
        )
    lab.read("t", "f")
    lab.execute("TRUNCATE t")
    lab.read("t", "f")
    for table in ("t", "f"):
        log = lab.log(f"public.{table}")
        assert [row["_change_type"] for row in log][:10] == ["read"] * 5 + [
            "update",
            "delete",
            "insert",
            "delete",
            "update",
        ]
        updated, old, new, deleted, emptied = log[5:10]
        is_full = table == "f"
        assert updated["_unchanged"] == (None if is_full else ["doc"])
        assert (len(updated["doc"]) == 12800) if is_full else updated["doc"] is None
        assert (old["a"], new["a"], new["b"], deleted["a"]) == (2, 100, "x", 3)
        assert old["_change_index"] + 1 == new["_change_index"]
        assert new["_unchanged"] is None
        assert len(new["doc"]) == 12800
        assert deleted["v"] == (0 if is_full else None)
        assert (emptied["doc"], emptied["_unchanged"]) == (None, None)
        assert len({row["_commit_position"] for row in log[5:10]}) == 1
        assert all(row["_commit_timestamp"] is not None for row in log[5:])
    assert lab.kinds("public.t")[10:] == ["truncate"]


def test_a_column_list_of_the_publication_holds_for_the_first_load_too(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, open text, secret text); INSERT INTO t VALUES (1, 'a', 'x')")
    if lab.server.execute("SHOW server_version_num")[0][0] < "150000":
        pytest.skip("column lists came with PostgreSQL 15")
    lab.execute(f"CREATE PUBLICATION {lab.database} FOR TABLE t (id, open)")
    lab.read("t")
    lab.execute("UPDATE t SET open = 'b'; UPDATE t SET secret = 'y'")
    lab.read("t")
    rows = [{name: row[name] for name in row if not name.startswith("_")} for row in lab.log("public.t")]
    assert rows == [{"id": 1, "open": "a"}, {"id": 1, "open": "b"}, {"id": 1, "open": "b"}]
    assert "secret" not in lab.connector("t").empty().column_names


def test_a_table_without_a_key_is_refused_or_read_as_inserts(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
    with pytest.raises(TerminalError, match="no primary key") as refused:
        lab.read("t")
    assert refused.value.code == "POSTGRES_NOT_READY"
    lab.read("t", on_missing_key="append")
    lab.execute("INSERT INTO t VALUES (1001); UPDATE t SET n = 0 WHERE n = 1; DELETE FROM t WHERE n = 2")
    lab.read("t", on_missing_key="append")
    assert sorted(row["n"] for row in lab.log("public.t")) == list(range(1, 1002))


def test_a_quiet_table_holds_back_no_log_while_others_are_written(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE quiet (id int PRIMARY KEY); CREATE TABLE busy (id int, text text)")
    lab.read("quiet")
    connector = lab.connector("quiet")
    plan = plan_partitions(connector.inspect(), [lab.stored], is_bounded=False)
    reader = connector.reader(plan, tuple(plan.partitions), frozenset())
    held = f"""SELECT (restart_lsn - '0/0')::int8, (confirmed_flush_lsn - '0/0')::int8
        FROM pg_replication_slots WHERE slot_name = '{lab.database}'"""
    before = lab.execute(held)[0]
    try:
        reader.read()
        lab.execute("INSERT INTO busy SELECT n, repeat('x', 500) FROM generate_series(1, 4000) n; CHECKPOINT")
        wanted = lab.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")[0][0]
        deadline = time.monotonic() + 60
        while lab.execute(held)[0][1] < wanted - 10_000 or lab.execute(held)[0][0] == before[0]:
            assert time.monotonic() < deadline, (before, lab.execute(held), wanted)
            for batch in reader.read():
                assert batch.table.num_rows == 0
                lab.stored[batch.partition] = batch.end
            connector.confirm(plan, lab.stored)  # what every table holds, and nothing else
            assert lab.execute(held)[0][1] <= lab.stored[next(p for p in plan.partitions if ":" not in p)]
    finally:
        reader.close()


def test_columns_that_come_go_and_change(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1, 1, 1)")
    lab.read("t")
    lab.execute("INSERT INTO t VALUES (2, 2, 2); ALTER TABLE t ADD c text; INSERT INTO t VALUES (3, 3, 3, 'c')")
    lab.execute("ALTER TABLE t DROP b; INSERT INTO t VALUES (4, 4, 'd')")
    lab.read("t")
    assert [(row["id"], row["b"], row["c"]) for row in lab.log("public.t")[1:]] == [
        (2, 2, None),
        (3, 3, "c"),
        (4, None, "d"),
    ]
    lab.execute("ALTER TABLE t ADD gone int; INSERT INTO t VALUES (5, 5, 'e', 5); ALTER TABLE t DROP gone")
    with pytest.raises(SourceChanged):
        lab.read("t")
    lab.execute("ALTER TABLE t ALTER a TYPE int8; INSERT INTO t VALUES (6, 6, 'f')")
    lab.read("t")
    assert [(row["id"], row["gone"], row["a"]) for row in lab.log("public.t")[4:]] == [(5, 5, 5), (6, None, 6)]
    lab.execute(f"INSERT INTO t VALUES (7, {2**40}, 'g')")
    with pytest.raises(TerminalError) as refused:
        lab.read("t")
    assert refused.value.code == "POSTGRES_TYPE_CHANGED"


def test_a_renamed_table_goes_on_under_its_new_name(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    lab.read("t")
    lab.execute("INSERT INTO t VALUES (2); ALTER TABLE t RENAME TO s; INSERT INTO s VALUES (3)")
    with pytest.raises(TerminalError) as refused:
        lab.read("t")
    assert refused.value.code == "POSTGRES_TABLE_MISSING"
    lab.read("s")
    assert [row["id"] for row in lab.log("public.t")] == [1, 2]
    assert [row["id"] for row in lab.log("public.s")] == [3]


def test_a_table_that_is_added_later_gets_its_history(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE s (id int PRIMARY KEY)")
    lab.execute("INSERT INTO t VALUES (1); INSERT INTO s SELECT generate_series(1, 10)")
    lab.read("t")
    lab.execute("INSERT INTO t VALUES (2); DELETE FROM s WHERE id > 5")
    lab.read("t", "s")
    lab.execute("INSERT INTO s VALUES (6)")
    lab.read("t", "s")
    assert [row["id"] for row in lab.log("public.t")] == [1, 2]
    assert [(row["id"], row["_change_type"]) for row in lab.log("public.s")] == [
        *((n, "read") for n in range(1, 6)),
        (6, "insert"),
    ]


def test_a_large_transaction_comes_in_pieces_that_are_one(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, s text); CREATE TABLE other (id int PRIMARY KEY)")
    lab.read("t", "other")
    lab.transact(
        "INSERT INTO other VALUES (1)", "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i"
    )
    lab.read("t", "other", max_bytes_per_batch=1 << 20)
    log = lab.log("public.t")
    assert [row["id"] for row in log] == list(range(1, 60001))
    assert len({row["_commit_position"] for row in log}) == 1
    assert len(lab.tables) > 20
    assert lab.largest_bytes < 8 << 20
    assert lab.kinds("public.other") == ["insert"]


def test_a_clock_that_differs_from_the_servers_orders_and_delays_nothing(
    lab: PostgresLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (0)")
    shown = []
    for days in (0, 400, -400):
        ours = datetime.now(timezone.utc) + timedelta(days=days)
        monkeypatch.setattr("connectors.postgres.replication.time.time", ours.timestamp)
        with holding_time(ours):
            lab.execute(f"INSERT INTO t VALUES ({days})" if days else "INSERT INTO t VALUES (1)")
            lab.read("t")
            (slot,) = slot_statuses(lab.connector("t").settings, only_used=True)
            shown.append((slot.lag_bytes < 100_000, slot.warnings))
    assert [(row["_change_type"], row["id"]) for row in lab.log("public.t")] == [
        *(("read", number) for number in (0, 1)),
        *(("insert", number) for number in (400, -400)),
    ]
    ((server,),) = lab.execute("SELECT clock_timestamp()")
    told = [row["_commit_timestamp"] for row in lab.log("public.t")[2:]]
    assert all(abs(server - at) < timedelta(hours=1) for at in told)  # the server's own, whatever ours says
    assert shown == [(True, ())] * 3


def test_partitioned_tables_are_one_table(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)")
    lab.execute("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)")
    lab.execute("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20); INSERT INTO t VALUES (1, 1), (11, 1)")
    lab.read("t")
    lab.execute("UPDATE t SET v = 2; DELETE FROM t WHERE id = 1")
    lab.read("t")
    assert lab.kinds("public.t") == ["read", "read", "update", "update", "delete"]


def test_tables_of_other_columns_cannot_share_a_flow(lab: PostgresLab) -> None:
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE s (id text PRIMARY KEY)")
    with pytest.raises(UsageError) as refused:
        lab.connector("t", "s").empty()
    assert refused.value.code == "POSTGRES_COLUMNS_DIFFER"
