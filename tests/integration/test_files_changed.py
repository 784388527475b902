"""Files that are not what they were, or cannot be read: gone, changed, growing, empty, corrupt."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from tests.integration.files_lab import PARTITION, FilesLab, Flow, ids, numbered_rows, parquet, run, write
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError
from waxlake.stream.position import RowPosition
from waxlake.stream.source import plan_partitions


def test_a_file_that_is_gone_stops_or_is_skipped(lab: FilesLab) -> None:
    for i in range(3):
        lab.write(f"{i}.json", numbered_rows(i, 1), age_s=50 - i)
    lab.connector().inspect()
    (lab.inbox / "1.json").unlink()
    flow = Flow()
    with pytest.raises(SourceMoved) as caught:
        run(lab.connector(), flow)
    assert caught.value.code == "FILE_GONE"
    assert str(lab.inbox / "1.json") in str(caught.value)
    assert ids(flow) == [0]
    run(lab.connector(on_data_loss="skip"), flow)
    assert ids(flow) == [0, 2]
    assert [batch.skipped for batch in flow.batches if batch.skipped] == [
        (RowPosition(1).pack(), RowPosition(2).pack())
    ]


def test_content_that_changes_after_it_was_read_is_not_read_again(lab: FilesLab) -> None:
    path = lab.write("a.json", numbered_rows(0, 1))
    flow = Flow()
    run(lab.connector(), flow)
    write(path, numbered_rows(5, 3))
    run(lab.connector(), flow)
    assert ids(flow) == [0]


def test_a_file_that_changes_before_anyone_read_it_is_read_as_it_is(lab: FilesLab) -> None:
    path = lab.write("a.json", numbered_rows(0, 2), age_s=60)
    lab.connector().inspect()
    write(path, numbered_rows(10, 25), age_s=50)
    flow = Flow()
    run(lab.connector(max_rows_per_batch=4), flow, max_batches=2)
    run(lab.connector(max_rows_per_batch=4), flow)  # resumed inside the new edition
    assert ids(flow) == list(range(10, 35))
    assert [(row["number"], row["edition"]) for row in lab.ledger_rows()] == [(0, 0), (0, 1)]
    assert lab.location.open().transaction_version("waxlake/ledger") == 1


@pytest.mark.parametrize("change", ["longer", "shorter", "touched", "gone"])
def test_a_file_that_changes_half_read_stops_or_is_skipped(lab: FilesLab, change: str) -> None:
    path = lab.write("a.json", numbered_rows(0, 20), age_s=60)
    lab.write("b.json", numbered_rows(20, 1), age_s=50)
    flow = Flow()
    run(lab.connector(max_rows_per_batch=5), flow, max_batches=1)
    if change == "gone":
        path.unlink()
    else:
        write(path, numbered_rows(0, {"longer": 30, "shorter": 3, "touched": 20}[change]), age_s=40)
    with pytest.raises(SourceMoved, match="FILE_GONE" if change == "gone" else "FILE_CHANGED"):
        run(lab.connector(), flow)
    assert ids(flow) == list(range(5))
    stored = flow.position
    run(lab.connector(on_data_loss="skip"), flow)
    assert ids(flow) == [*range(5), 20]
    assert [batch.skipped for batch in flow.batches if batch.skipped] == [(stored, RowPosition(1).pack())]


def test_a_flow_inside_an_older_edition_is_stopped(lab: FilesLab) -> None:
    path = lab.write("a.json", numbered_rows(0, 20), age_s=60)
    half = Flow()
    run(lab.connector(max_rows_per_batch=5), half, max_batches=1)
    write(path, numbered_rows(100, 20), age_s=50)
    fresh = Flow()
    run(lab.connector(), fresh)  # a run without the flow that is half through
    assert ids(fresh) == list(range(100, 120))
    with pytest.raises(SourceMoved, match="FILE_CHANGED"):
        run(lab.connector(), half)


def test_a_fresh_file_is_read_when_it_has_settled(lab: FilesLab) -> None:
    path = lab.write("a.json", b'{"id":0}\n{"id":', age_s=0)
    connector = lab.connector(settle_s=0.4)
    state = connector.inspect()  # waits for it
    path.write_bytes(b'{"id":0}\n{"id":1}\n')
    plan = plan_partitions(state, [{}], is_bounded=True)
    reader = connector.reader(plan, (PARTITION,), frozenset())
    flow, deadline_s = Flow(), time.monotonic() + 10
    while not reader.is_done and time.monotonic() < deadline_s:
        for batch in reader.read():
            flow.store(batch)
        time.sleep(0.01)
    reader.close()
    assert ids(flow) == [0, 1]


def test_a_growing_file_holds_up_nothing(lab: FilesLab) -> None:
    growing = lab.write("a.json", numbered_rows(0, 1), age_s=-20)
    lab.write("b.json", numbered_rows(1, 1), age_s=7200)
    flow = Flow()
    run(lab.connector(settle_s=3600), flow)
    assert ids(flow) == [1]
    write(growing, numbered_rows(0, 2), age_s=7200)
    run(lab.connector(settle_s=3600), flow)
    assert ids(flow) == [1, 0, 1]


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_an_empty_file_that_stays_is_one_without_rows(lab: FilesLab, format: str) -> None:
    lab.format = format
    lab.write("old.json", b"", age_s=3700)
    lab.write("young.json", b"", age_s=3500)
    flow = Flow()
    run(lab.connector(), flow)
    assert [Path(row["path"]).name for row in lab.ledger_rows()] == ["old.json"]
    assert (flow.rows, flow.position) == ([], RowPosition(1).pack())


def test_a_changed_file_that_never_settles_is_told(lab: FilesLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.files.reader._GIVE_UP_SETTLING_S", 0.05)
    path = lab.write("a.json", numbered_rows(0, 1), age_s=7200)
    connector = lab.connector(settle_s=3600)
    state = connector.inspect()
    write(path, numbered_rows(0, 2), age_s=-20)
    reader = connector.reader(plan_partitions(state, [{}], is_bounded=True), (PARTITION,), frozenset())
    with pytest.raises(TransientError, match="FILE_CHANGING"):  # noqa: PT012 - it takes a while
        while True:
            assert reader.read() == []
    reader.close()


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
@pytest.mark.parametrize("is_big", [False, True], ids=["small", "big"])
def test_a_file_that_cannot_be_read_stops_after_the_rows_before_it(
    lab: FilesLab, format: str, is_big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_big:
        monkeypatch.setattr("connectors.files.contents._SMALL_BYTES", 1)
    lab.format = format
    text = {
        "json": gzip.compress(json.dumps({"id": 1}).encode() * 500),
        "csv": gzip.compress(b"id,name\n" + b"1,a\n" * 500),
        "parquet": parquet(id=[1], name=["a"]),
    }[format]
    suffix = format if format == "parquet" else f"{format}.gz"
    good = {"json": b'{"id":0}', "csv": b"id\n0\n", "parquet": parquet(id=[0])}[format]
    lab.write(f"a.{format}", good, age_s=60)
    bad = lab.write(f"b.{suffix}", text[: len(text) // 2], age_s=50)
    lab.write(f"c.{format}", good, age_s=40)
    flow = Flow()
    for _ in range(2):
        with pytest.raises(TerminalError) as caught:
            run(lab.connector(), flow)
        assert caught.value.code == "FILE_UNREADABLE"
        assert str(bad) in str(caught.value)
        assert ids(flow) == [0]
    whole = {"json": gzip.compress(b'{"id":7}\n'), "csv": gzip.compress(b"id\n7\n"), "parquet": parquet(id=[7])}[format]
    write(bad, whole, age_s=30)
    run(lab.connector(), flow)
    assert ids(flow) == [0, 7, 0]
