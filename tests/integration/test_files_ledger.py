"""The ledger of a files source: one number per file, whatever runs beside or dies in between."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from connectors.files.ledger import LEDGER_SCHEMA, Ledger, NumberedFile
from connectors.files.store import FoundFile
from tests.integration.files_lab import PARTITION, FilesLab, Flow, ids, read, run
from waxlake.stream.delta_table import TableLocation, arrow_schema
from waxlake.stream.errors import TerminalError
from waxlake.stream.position import RowPosition
from waxlake.stream.source import plan_partitions

_SOURCE = "/data:"


def _files(first: int, count: int) -> list[FoundFile]:
    return [FoundFile(i * 1000, f"/data/{i:05d}.json", 10 + i) for i in range(first, first + count)]


def _ledger(root: Path) -> Ledger:
    ledger = Ledger(TableLocation(str(root / "ledger")), _SOURCE)
    ledger.create(None)
    return ledger


def _numbers(lab: FilesLab) -> dict[str, int]:
    """Return path to number; both exactly once."""
    rows = lab.ledger_rows()
    numbers = {row["path"]: row["number"] for row in rows}
    assert len(numbers) == len(rows)
    assert sorted(numbers.values()) == list(range(len(rows)))
    return numbers


def test_a_ledger_is_a_plain_delta_table(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    assert ledger.record(_files(0, 3)) == 3
    table = TableLocation(str(tmp_path / "ledger")).open()
    assert arrow_schema(table).names == LEDGER_SCHEMA.names
    assert table.to_pyarrow_table().num_rows == 3
    assert table.transaction_version("waxlake/ledger") == 3
    assert ledger.files(1, 3) == [NumberedFile(i, _files(i, 1)[0]) for i in (1, 2)]
    assert ledger.totals(1, 3) == (2, 11 + 12)


def test_a_stale_handle_looks_again(tmp_path: Path) -> None:
    one, other = _ledger(tmp_path), _ledger(tmp_path)
    assert len(one.known()) == len(other.known()) == 0
    assert one.record(_files(0, 3)) == 3
    assert other.record(_files(0, 5)) == 2
    assert one.record(_files(0, 6)) == 1
    one.refresh()
    assert [file.found.path for file in one.files(0, 6)] == [file.path for file in _files(0, 6)]


def test_an_edition_replaces_what_a_number_stands_for(tmp_path: Path) -> None:
    one, other = _ledger(tmp_path), _ledger(tmp_path)
    one.record(_files(0, 2))
    other.refresh()
    file, now = one.files(1, 2)[0], FoundFile(9_000_000, "/data/00001.json", 99)
    replaced = one.replace_edition(file, now)
    assert replaced == NumberedFile(1, now, 1)
    assert other.replace_edition(file, now) == replaced
    assert one.files(0, 2) == [NumberedFile(0, _files(0, 1)[0]), replaced]
    assert one.next_number == 2


def test_positions_tell_editions_apart() -> None:
    old, new = NumberedFile(3, _files(3, 1)[0]), NumberedFile(3, _files(3, 1)[0], 2)
    assert old.begin == new.begin == old.position(0) == new.position(0) == RowPosition(3).pack()
    assert old.begin < old.position(1) < new.position(1) < new.position(2) < old.end == new.end
    assert (old.row(old.position(7)), new.row(new.position(7))) == (7, 7)
    assert (old.row(new.position(7)), new.row(old.position(7)), new.row(new.begin)) == (-1, -1, 0)


def test_many_changes_of_one_file_come_to_an_end(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    ledger.record(_files(0, 1))
    file = ledger.files(0, 1)[0]
    with pytest.raises(TerminalError, match="FILE_CHANGED"):  # noqa: PT012 - one of many
        for i in range(20):
            file = ledger.replace_edition(file, FoundFile(i, file.found.path, 1000 + i))
    assert file.edition == 15


def test_a_ledger_with_many_commits_is_compacted(lab: FilesLab) -> None:
    lab.connector().inspect()
    source = lab.location.open().metadata().configuration["waxlake.source"]
    ledger = Ledger(lab.location, source)
    for i in range(70):
        ledger.record([FoundFile(i, str(lab.write(f"{i}.json", [{"id": i}], age_s=500 - i)), 10)])
    assert len(lab.location.open().file_uris()) == 70
    connector = lab.connector()
    state = connector.inspect()
    assert state.partitions[PARTITION].high == RowPosition(70).pack()
    assert len(lab.location.open().file_uris()) < 5
    assert len(_numbers(lab)) == 70
    assert connector.inspect() == state


@pytest.mark.parametrize("other_does", ["compact", "record"])
def test_a_compaction_beside_another_run_is_given_up(
    tmp_path: Path, other_does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.files.ledger_compaction._COMPACT_ABOVE_FILES", 1)
    one, other = _ledger(tmp_path), _ledger(tmp_path)
    for i in range(5):
        one.record(_files(i, 1))
    other.refresh()
    if other_does == "compact":
        other.compact()
    else:
        other.record(_files(5, 1))
    one.compact()
    one.compact()
    table = TableLocation(str(tmp_path / "ledger")).open()
    count = 5 if other_does == "compact" else 6
    assert sorted(table.to_pyarrow_table().column("number").to_pylist()) == list(range(count))
    assert len(table.file_uris()) == 1
    assert (one.next_number, one.begin, len(one.known())) == (count, 0, count)


def test_a_ledger_serves_one_source(lab: FilesLab) -> None:
    lab.connector().inspect()
    with pytest.raises(TerminalError) as caught:
        lab.connector(path_glob_filter="*.json").inspect()
    assert caught.value.code == "LEDGER_OF_ANOTHER_SOURCE"


def test_a_ledger_made_anew_is_another_source(lab: FilesLab) -> None:
    lab.write("a.json", [{"id": 1}])
    before = lab.connector().inspect()
    shutil.rmtree(lab.root / "ledger")
    after = lab.connector().inspect()
    assert (after.name, after.partitions) == (before.name, before.partitions)
    assert after.identity != before.identity


def test_rows_deleted_from_a_ledger_are_noticed(lab: FilesLab) -> None:
    for i in range(3):
        lab.write(f"{i}.json", [{"id": i}], age_s=50 - i)
    lab.connector().inspect()
    lab.location.open().delete("number = 1")
    with pytest.raises(TerminalError, match="LEDGER_DAMAGED"):
        run(lab.connector(), Flow())


def test_threads_that_find_the_same_files_number_each_once(lab: FilesLab) -> None:
    connectors = [lab.connector() for _ in range(4)]
    barrier = threading.Barrier(len(connectors))
    failures: list[BaseException] = []

    def discover(index: int) -> None:
        try:
            for step in range(5):
                barrier.wait(timeout=30)
                lab.write(f"{index}-{step}.json", [{"id": index * 10 + step}], age_s=step)
                connectors[index].inspect()
        except BaseException as failure:  # noqa: BLE001 - whatever it is, the test fails with it
            failures.append(failure)
            barrier.abort()

    threads = [threading.Thread(target=discover, args=(index,)) for index in range(len(connectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    flow = Flow()
    run(lab.connector(), flow)
    assert sorted(ids(flow)) == sorted(index * 10 + step for index in range(4) for step in range(5))
    assert len(_numbers(lab)) == 20


def _discover_for(root: str, seconds: float) -> None:
    connector, end_s = FilesLab(Path(root)).connector(), time.monotonic() + seconds
    while time.monotonic() < end_s:
        connector.inspect()


def test_processes_that_find_the_same_files_number_each_once(lab: FilesLab) -> None:
    lab.inbox.mkdir()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_discover_for, args=(str(lab.root), 4.0)) for _ in range(2)]
    for process in processes:
        process.start()
    count = 0
    while any(process.is_alive() for process in processes):
        lab.write(f"{count:05d}.json", [{"id": count}], age_s=1)
        count += 1
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0, 0]
    flow = Flow()
    run(lab.connector(), flow)
    assert sorted(ids(flow)) == list(range(count))
    assert len(_numbers(lab)) == count


_CHILD = """
import sys
from pathlib import Path
from tests.integration.files_lab import FilesLab, Flow, run
run(FilesLab(Path(sys.argv[1])).connector(), Flow())
"""


@pytest.mark.kills
@pytest.mark.parametrize("failpoint", ["ledger-write:1", "ledger-written:1"])
@pytest.mark.parametrize("has_ledger", [False, True], ids=["first run", "later run"])
def test_a_process_killed_at_the_ledger_loses_and_doubles_nothing(
    lab: FilesLab, failpoint: str, has_ledger: bool
) -> None:
    flow, count = Flow(), 0
    if has_ledger:
        lab.write("first.json", [{"id": 0}], age_s=90)
        run(lab.connector(), flow)
        count = 1
    for i in range(count, 5):
        lab.write(f"{i}.json", [{"id": i}], age_s=60 - i)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(lab.root)],
        env={**os.environ, "WAXLAKE_FAILPOINT": failpoint},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    recorded = len(lab.ledger_rows())
    assert recorded == (count if failpoint.startswith("ledger-write:") else 5)
    run(lab.connector(), flow)
    assert ids(flow) == list(range(5))
    run(lab.connector(), flow)
    assert ids(flow) == list(range(5))
    assert len(_numbers(lab)) == 5


def test_a_run_killed_before_the_first_record_still_excludes_existing_files(lab: FilesLab) -> None:
    lab.write("old.json", [{"id": 0}])
    connector = lab.connector(include_existing_files=False)
    connector._ledger.create(None)  # the run died between making the ledger and recording
    flow = Flow()
    run(lab.connector(include_existing_files=False), flow)
    lab.write("new.json", [{"id": 1}])
    run(lab.connector(include_existing_files=False), flow)
    assert ids(flow) == [1]


def test_two_readers_read_what_the_other_recorded(lab: FilesLab) -> None:
    for i in range(3):
        lab.write(f"{i}.json", [{"id": i}], age_s=50 - i)
    one, other = lab.connector(), lab.connector()
    state = one.inspect()
    lab.write("3.json", [{"id": 3}], age_s=1)
    assert other.inspect().partitions[PARTITION].high == RowPosition(4).pack()
    for connector in (one, other):
        flow = Flow(position=0)
        read(connector, plan_partitions(state, [flow.stored], is_bounded=True), [flow])
        assert ids(flow) == [0, 1, 2]
