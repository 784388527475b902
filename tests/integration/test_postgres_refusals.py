"""What is wrong with a PostgreSQL server, a user or a slot is named, with what to do; what passes is waited out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from connectors.postgres.slots import slot_statuses
from tests.integration.postgres_lab import PostgresLab
from tests.services.postgres import PASSWORD, PostgresServer
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, UsageError
from waxlake.stream.source import plan_partitions


@pytest.fixture
def lab(debian_postgres: PostgresServer, database: str, tmp_path: Path) -> PostgresLab:
    lab = PostgresLab(debian_postgres, database, tmp_path)
    lab.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    return lab


def refusal(lab: PostgresLab, **options: object) -> TerminalError:
    with pytest.raises(TerminalError) as refused:
        lab.connector("t", **options).inspect()
    assert PASSWORD not in str(refused.value)
    return refused.value


def test_credentials_and_addresses(lab: PostgresLab) -> None:
    server = lab.server
    wrong = refusal(lab, dsn=server.dsn(lab.database, password="falsch-Geheim9"))
    assert wrong.code == "POSTGRES_AUTHENTICATION"
    assert "falsch-Geheim9" not in f"{wrong} {wrong!r} {wrong.__cause__!r}"
    assert refusal(lab, dsn=server.dsn("no_such_database")).code == "POSTGRES_DATABASE_MISSING"
    with pytest.raises(TransientError) as away:
        lab.connector("t", dsn="postgresql://postgres:x@127.0.0.1:1/postgres").inspect()
    assert away.value.code == "POSTGRES_UNREACHABLE"
    with pytest.raises(UsageError) as unreadable:
        lab.connector("t", dsn="host=127.0.0.1 geheim").inspect()
    assert unreadable.value.code == "POSTGRES_DSN"
    assert "geheim" not in str(unreadable.value)
    connector = lab.connector("t")
    assert PASSWORD not in f"{connector!r} {connector.settings!r} {connector.name}"


def test_every_missing_right_is_named_at_once(lab: PostgresLab) -> None:
    user = f"u_{lab.database}"
    lab.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'; CREATE TABLE s (id int)")
    try:
        dsn = lab.server.dsn(lab.database, user=user)
        with pytest.raises(TerminalError) as refused:
            lab.connector("t", "s", dsn=dsn).inspect()
        text = str(refused.value)
        assert refused.value.code == "POSTGRES_NOT_READY"
        for part in ("without the REPLICATION right", "no SELECT right on public.t", "public.s has no primary key"):
            assert part in text
        assert f"ALTER ROLE {user} REPLICATION" in text
        lab.execute(f"ALTER ROLE {user} REPLICATION; GRANT SELECT ON t TO {user}")
        error = refusal(lab, dsn=dsn)
        assert "no right to create it" in str(error)
        assert 'CREATE PUBLICATION "' in str(error)
        lab.execute(f"CREATE PUBLICATION {lab.database}")
        assert "without public.t" in str(refusal(lab, dsn=dsn))
        lab.execute(f"ALTER PUBLICATION {lab.database} ADD TABLE t")
        lab.read("t", dsn=dsn)
        assert lab.kinds("public.t") == ["read"]
    finally:
        lab.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")


def test_what_may_not_be_created_is_asked_for(lab: PostgresLab) -> None:
    text = str(refusal(lab, create=False))
    assert f"pg_create_logical_replication_slot('{lab.database}', 'pgoutput')" in text
    assert lab.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    lab.execute(f"CREATE PUBLICATION {lab.database} FOR TABLE t WITH (publish = 'insert')")
    assert "leaves out some changes" in str(refusal(lab))
    lab.execute(f"DROP PUBLICATION {lab.database}")
    lab.execute(f"SELECT pg_create_logical_replication_slot('{lab.database}', 'test_decoding')")
    assert "plugin 'test_decoding'" in str(refusal(lab))
    with pytest.raises(TerminalError) as missing:
        lab.connector("nowhere").inspect()
    assert missing.value.code == "POSTGRES_TABLE_MISSING"


def test_a_slot_has_one_reader(lab: PostgresLab) -> None:
    lab.read("t")
    first = lab.connector("t")
    plan = plan_partitions(first.inspect(), [lab.stored], is_bounded=False)
    reader = first.reader(plan, tuple(plan.partitions), frozenset())
    reader.read()
    second = lab.connector("t")
    other = second.reader(plan, tuple(plan.partitions), frozenset())
    with pytest.raises(TransientError) as busy:
        other.read()
    assert busy.value.code == "POSTGRES_SLOT_IN_USE"
    reader.close()
    for _ in range(50):
        with contextlib.suppress(TransientError):
            other.read()
            break
    other.close()


def test_c20_a_slot_that_somebody_moved_or_dropped(lab: PostgresLab) -> None:
    lab.read("t")
    lab.execute("INSERT INTO t VALUES (2)")
    lab.execute(f"SELECT pg_replication_slot_advance('{lab.database}', pg_current_wal_lsn())")
    with pytest.raises(SourceMoved) as moved:
        lab.read("t")
    assert moved.value.code == "SOURCE_EXPIRED"
    lab.execute(f"SELECT pg_drop_replication_slot('{lab.database}')")
    with pytest.raises(SourceMoved) as lost:
        lab.read("t")
    assert lost.value.code == "POSTGRES_SLOT_LOST"
    lab.read("t", on_slot_lost="resnapshot")
    assert [(row["_change_type"], row["id"]) for row in lab.log("public.t")] == [
        ("read", 1),
        ("truncate", None),
        ("read", 1),
        ("read", 2),
    ]


def test_c20_a_server_that_goes_away_its_settings_and_a_slot_that_it_gives_up(
    make_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    server = make_postgres(wal_level="replica", max_replication_slots=1)
    lab = PostgresLab(server, server.create_database(), tmp_path)
    lab.execute("CREATE TABLE t (id int PRIMARY KEY, s text); INSERT INTO t VALUES (1, 'a')")
    assert "wal_level replica" in str(refusal(lab))
    server.restart(wal_level="logical")
    lab.execute("SELECT pg_create_physical_replication_slot('taken')")
    assert "max_replication_slots 1, all in use" in str(refusal(lab))
    server.restart(max_replication_slots=5)

    lab.read("t")
    lab.transact("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(2, 60000) i")
    restarts, lab.pieces = iter([True]), 0

    def restart_in_the_middle() -> None:
        if lab.pieces > 3 and next(restarts, False):
            server.restart()

    lab.read("t", during=restart_in_the_middle, max_bytes_per_batch=100_000)
    assert lab.retries
    assert [row["id"] for row in lab.log("public.t")] == list(range(1, 60_001))

    server.restart(max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB")
    for _ in range(4):
        lab.execute("CREATE TABLE junk AS SELECT repeat('x', 100) FROM generate_series(1, 50000); DROP TABLE junk")
        lab.execute("SELECT pg_switch_wal()")
        lab.execute("CHECKPOINT")
    status = lab.execute(f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{lab.database}'")
    assert status == [("lost",)]
    (shown,) = slot_statuses(lab.connector("t").settings, only_used=True)
    assert (shown.wal_status, shown.warnings[0].split(":")[0]) == ("lost", "It is lost")
    with pytest.raises(SourceMoved) as lost:
        lab.read("t")
    assert lost.value.code == "POSTGRES_SLOT_LOST"
    assert "max_slot_wal_keep_size" in str(lost.value)
    with contextlib.suppress(psycopg2.Error):
        lab.execute("SELECT pg_drop_replication_slot('taken')")
    lab.read("t", on_slot_lost="resnapshot")
    assert lab.kinds("public.t").count("read") == 1 + 60_000
    lab.transact("INSERT INTO t VALUES (0, 'after')")
    lab.read("t", on_slot_lost="resnapshot")
    assert [row["s"] for row in lab.log("public.t")][-1] == "after"
