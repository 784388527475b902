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

from connectors.delta import DeltaConnector
from sinks.delta.change import Change
from sinks.delta.files import stored_files
from sinks.delta.parquet import DataFileWriter
from sinks.delta.protocol import FENCE_APP_ID, Committer, Move
from sinks.delta.quarantine import Quarantine, finish_quarantine
from tests.conftest import LakeStorage
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import CommitConflict, FilesMoved, PositionMoved, SourceMoved, TerminalError, WaxlakeError
from waxlake.stream.settings import StorageOptions
from waxlake.stream.source import plan_partitions

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
    send = Change.write

    def send_and_lose_the_reply(self: Change, *arguments: object) -> None:
        monkeypatch.setattr(Change, "write", send)
        send(self, *arguments)
        raise OSError("error sending request: the reply was lost")

    monkeypatch.setattr(Change, "write", send_and_lose_the_reply)
    assert commit(committer, "p", 10, 20) == 2
    assert rows_of(table) == 6
    assert commit(committer, "p", 20, 30) == 3


def test_a_failure_before_the_log_is_retried_once_more(table: TableLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = Committer(table, "run")
    send = Change.write

    def fail_first(self: Change, *arguments: object) -> None:
        monkeypatch.setattr(Change, "write", send)
        raise OSError("error sending request")

    monkeypatch.setattr(Change, "write", fail_first)
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


def replace_rows(committer: Committer, start: int | None, end: int) -> int:
    """Replace every file of the held snapshot by one that holds 4, 5."""
    writer = DataFileWriter(committer.location)
    writer.append(pa.table({"a": [4, 5]}))
    files = stored_files(committer.handle)
    return committer.commit(writer.finish(), {"p": Move(start=start, end=end)}, rows=2, removes=files).version


def test_files_are_replaced_in_one_commit(table: TableLocation) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    assert replace_rows(committer, 10, 20) == 2
    assert sorted(table.open().to_pyarrow_table().column("a").to_pylist()) == [4, 5]
    assert table.open().transaction_version("p") == 20
    actions = [next(iter(action)) for action in table.read_log(2) or []]
    assert sorted(actions) == ["add", "commitInfo", "remove", "txn", "txn"]
    assert table.open().version() == 2


@pytest.mark.parametrize("is_landed", [True, False])
def test_a_replacement_without_a_reply_is_neither_lost_nor_done_twice(
    table: TableLocation, monkeypatch: pytest.MonkeyPatch, is_landed: bool
) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    send = Change.write

    def lose_the_reply(self: Change, *arguments: object) -> None:
        monkeypatch.setattr(Change, "write", send)
        if is_landed:
            send(self, *arguments)
        raise OSError("error sending request: the reply was lost")

    monkeypatch.setattr(Change, "write", lose_the_reply)
    assert replace_rows(committer, 10, 20) == 2
    assert rows_of(table) == 2


def test_a_replacement_goes_on_beside_a_foreign_append(table: TableLocation) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    stored_files(committer.handle)
    write_deltalake(table.uri, ROWS, mode="append", storage_options=dict(table.options))
    assert replace_rows(committer, 10, 20) == 3
    assert sorted(table.open().to_pyarrow_table().column("a").to_pylist()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("is_stale", [True, False])
def test_a_replacement_of_files_that_are_gone_stops(table: TableLocation, is_stale: bool) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    files = stored_files(committer.handle)
    table.open().delete("a = 1")
    if not is_stale:
        committer.handle.update_incremental()
    writer = DataFileWriter(table)
    writer.append(ROWS)
    with pytest.raises(FilesMoved, match="1 of the 1 data files") as refused:
        committer.commit(writer.finish(), {"p": Move(start=10, end=20)}, removes=files)
    assert refused.value.code == "COMMIT_CONFLICT"
    assert rows_of(table) == 2
    assert table.open().transaction_version("p") == 10


def test_files_in_folders_with_odd_names_are_replaced(lake_storage: LakeStorage) -> None:
    """The log escapes partition values, and what it says has to be unescaped once before it is removed."""
    uri = f"{lake_storage.uri}/odd"
    location = TableLocation(uri, StorageOptions(lake_storage.storage_options), "odd")
    rows = pa.table({"a": [1, 2, 3, 4], "p": ["x", "y z", "é%", None]})
    write_deltalake(uri, rows, partition_by=["p"], storage_options=dict(lake_storage.storage_options))
    committer = Committer(location, "run")
    committer.commit([], {"p": Move(start=None, end=1)}, removes=stored_files(committer.handle))
    assert rows_of(location) == 0


def test_a_stream_of_a_table_whose_files_were_replaced_stops(table: TableLocation) -> None:
    committer = Committer(table, "run")
    commit(committer, "p", None, 10)
    replace_rows(committer, 10, 20)
    connector = DeltaConnector(table)
    plan = plan_partitions(connector.inspect(), [{}], is_bounded=True)
    reader = connector.reader(plan, ("log",), frozenset())
    with pytest.raises(SourceMoved) as refused:
        list(iter(reader.read, None))
    assert refused.value.code == "SOURCE_NOT_APPEND_ONLY"


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
