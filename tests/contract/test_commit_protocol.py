"""Two writers of one table: every combination of app id, position and snapshot, and what must come of it.

The rules are Delta's and ours: a stale snapshot conflicts, a fresh one never sees a lower position as new, a fence stops a
zombie, and our own commit whose reply was lost is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from sinks.delta.parquet import DataFileWriter
from sinks.delta.protocol import FENCE_APP_ID, Committer, Move, Quarantine, finish_quarantine
from tests.conftest import LakeStorage
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import CommitConflict, PositionMoved, TerminalError, WaxlakeError
from waxlake.stream.settings import StorageOptions

ROWS = pa.table({"a": [1, 2, 3]})


@pytest.fixture
def make_table(lake_storage: LakeStorage) -> Callable[[str], TableLocation]:
    def make(name: str) -> TableLocation:
        location = TableLocation(f"{lake_storage.uri}/{name}", StorageOptions(lake_storage.storage_options), name)
        location.create(ROWS.schema)
        return location

    return make


@pytest.fixture
def table(make_table: Callable[[str], TableLocation]) -> TableLocation:
    return make_table("orders")


def commit(committer: Committer, app: str, start: int | None, end: int) -> int:
    writer = DataFileWriter(committer.location)
    writer.append(ROWS)
    return committer.commit(writer.finish(), {app: Move(start=start, end=end)}, rows=ROWS.num_rows).version


def rows_of(table: TableLocation) -> int:
    return table.open().to_pyarrow_table().num_rows


@pytest.mark.parametrize(
    ("app", "start", "end", "is_stale", "is_newer", "error"),
    [
        ("p", None, 10, True, True, PositionMoved),  # the same batch, decided before the first commit: plan again
        ("p", None, 10, True, False, CommitConflict),  # the same from an older run: it has to stop
        ("p", None, 10, False, True, PositionMoved),  # a fresh snapshot that ignores the stored position
        ("p", 5, 20, False, True, PositionMoved),  # a fresh snapshot with another idea of the position
        ("p", 10, 20, False, True, None),  # a fresh snapshot that goes on
        ("p", 10, 20, False, False, None),  # the same where the clock of its machine is slow
        ("q", None, 10, True, True, None),  # another source, stale: nothing of it moved, the newer run goes on
        ("q", None, 10, True, False, CommitConflict),  # another source, stale and older: the fence stops it
        ("q", None, 10, False, True, None),  # another source, fresh
    ],
)
def test_two_writers(
    table: TableLocation,
    app: str,
    start: int | None,
    end: int,
    is_stale: bool,
    is_newer: bool,
    error: type[CommitConflict] | None,
) -> None:
    first = Committer(table, "first", run_number=100)
    second = Committer(table, "second", run_number=101 if is_newer else 99)
    if is_stale:
        assert second.handle.version() == 0
    commit(first, "p", None, 10)
    if error is None:
        assert commit(second, app, start, end) == 2
        assert rows_of(table) == 6
        return
    with pytest.raises(CommitConflict) as refused:
        commit(second, app, start, end)
    assert type(refused.value) is error
    assert refused.value.code == "COMMIT_CONFLICT"
    assert rows_of(table) == 3
    assert table.open().version() == 1


def test_a_claim_stops_an_older_run_before_it_moves_anything(table: TableLocation) -> None:
    older, newer = Committer(table, "older", run_number=1), Committer(table, "newer", run_number=2)
    commit(older, "p", None, 10)
    newer.claim()
    with pytest.raises(CommitConflict, match="fence 2 of a newer run"):
        commit(older, "p", 10, 20)
    commit(newer, "p", 10, 20)
    with pytest.raises(CommitConflict):
        older.claim()
    assert rows_of(table) == 6


def test_a_newer_run_fences_the_older_one(table: TableLocation) -> None:
    zombie = Committer(table, "zombie")
    commit(zombie, "p", None, 10)
    successor = Committer(table, "successor")
    commit(successor, "p", 10, 20)
    with pytest.raises(CommitConflict, match="fence"):
        commit(zombie, "p", 10, 20)
    assert table.open().transaction_version(FENCE_APP_ID) == successor.run_number
    commit(successor, "p", 20, 30)
    assert rows_of(table) == 9


def test_a_lost_reply_is_recognised(table: TableLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    send = Committer._append

    def send_and_lose_the_reply(self: Committer, *arguments: object) -> None:
        monkeypatch.setattr(Committer, "_append", send)
        send(self, *arguments)
        raise OSError("error sending request: the reply was lost")

    monkeypatch.setattr(Committer, "_append", send_and_lose_the_reply)
    assert commit(committer, "p", 10, 20) == 2
    assert rows_of(table) == 6
    assert commit(committer, "p", 20, 30) == 3


def test_a_failure_before_the_log_is_retried_once_more(table: TableLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(table, "run")
    send = Committer._append

    def fail_first(self: Committer, *arguments: object) -> None:
        monkeypatch.setattr(Committer, "_append", send)
        raise OSError("error sending request")

    monkeypatch.setattr(Committer, "_append", fail_first)
    assert commit(committer, "p", None, 10) == 1
    assert rows_of(table) == 3


def test_another_commit_between_ours_changes_nothing(table: TableLocation) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    write_deltalake(table.uri, ROWS, mode="append", storage_options=dict(table.options))
    assert commit(committer, "p", 10, 20) == 3
    assert rows_of(table) == 9


def test_a_table_that_was_dropped_is_not_made_anew(tmp_path: Path) -> None:
    import shutil

    location = TableLocation(str(tmp_path / "t"), name="t")
    location.create(ROWS.schema)
    committer = Committer(location, "run")
    commit(committer, "p", None, 10)
    shutil.rmtree(tmp_path / "t")
    with pytest.raises(WaxlakeError) as refused:
        commit(committer, "p", 10, 20)
    assert refused.value.code in ("TABLE_NOT_FOUND", "STORAGE_ERROR")
    assert not location.exists()


def test_a_table_that_was_replaced_is_not_written(tmp_path: Path) -> None:
    import shutil

    location = TableLocation(str(tmp_path / "t"), name="t")
    location.create(ROWS.schema)
    committer = Committer(location, "run")
    commit(committer, "p", None, 10)
    shutil.rmtree(tmp_path / "t")
    location.create(ROWS.schema)
    for _ in range(3):
        write_deltalake(location.uri, ROWS, mode="append")
    with pytest.raises(TerminalError) as refused:
        commit(committer, "p", 10, 20)
    assert refused.value.code == "TABLE_REPLACED"


def test_quarantine_is_finished_from_the_primary_commit(make_table: Callable[[str], TableLocation]) -> None:
    primary, rejects = make_table("orders"), make_table("orders_quarantine")
    writer = DataFileWriter(rejects)
    writer.append(ROWS)
    committer = Committer(primary, "run")
    committer.commit(
        [], {"p": Move(start=None, end=10)}, quarantine=Quarantine(location=rejects, adds=writer.finish(), rows=3)
    )
    assert rows_of(rejects) == 3
    assert finish_quarantine(primary, rejects) is False
    manifest = primary.open().history(1)[0]["waxlake"]["quarantine"]
    assert manifest["number"] == 1
    assert json.dumps(manifest["files"])
    # the same manifest again, as after a crash between the two commits: nothing is added twice
    assert finish_quarantine(primary, rejects) is False
    assert rows_of(rejects) == 3


def test_what_delta_itself_does_that_we_build_on(table: TableLocation) -> None:
    """Pins the engine: a stale handle conflicts on an app id, a fresh one accepts a lower version of it."""

    def append(handle: DeltaTable, version: int) -> None:
        properties = CommitProperties(app_transactions=[Transaction("app", version)])
        handle.create_write_transaction([], mode="append", schema=handle.schema(), commit_properties=properties)

    stale = table.open()
    append(table.open(), 5)
    with pytest.raises(CommitFailedError):
        append(stale, 6)
    append(table.open(), 3)
    assert table.open().transaction_version("app") == 3
