"""The files source on a local file system: discovery, schema, formats, and what happens to files that change."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main

from connectors.files import FilesSource
from tests.integration.files_lab import PARTITION, FilesLab, Flow, ids, read, run, unbounded, write
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.errors import DefinitionError, SchemaError, SourceMoved, TerminalError, TransientError, UserError
from waxlake.stream.position import RowPosition
from waxlake.stream.source import plan_partitions


@pytest.fixture
def lab(tmp_path: Path) -> FilesLab:
    return FilesLab(tmp_path)


def _parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue()


def _rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"id": i, "name": f"n{i}"} for i in range(first, first + count)]


# -- each file once ----------------------------------------------------------------------------------------------------


def test_each_file_is_read_once_and_new_ones_later(lab: FilesLab) -> None:
    lab.write("b.json", _rows(0, 3), age_s=30)
    lab.write("sub/a.json", _rows(3, 2), age_s=20)
    flow = Flow()
    state = run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4]
    assert state.name == f"files:{lab.inbox}"
    assert state.identity.startswith(f"files:{lab.inbox}:@")
    run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4]
    lab.write("a-new.json", _rows(5, 1), age_s=90)
    run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4, 5]
    assert flow.position == RowPosition(3).pack()


def test_files_are_numbered_by_modification_time_then_path(lab: FilesLab) -> None:
    now = time.time()
    for name, age_s in (("z.json", 50), ("b.json", 40), ("a.json", 40), ("y.json", 10)):
        path = lab.write(name, _rows(0, 1))
        os.utime(path, (int(now) - age_s, int(now) - age_s))
    lab.connector().inspect()
    rows = lab.ledger_rows()
    assert [(row["number"], Path(row["path"]).name) for row in rows] == [
        (0, "z.json"),
        (1, "a.json"),
        (2, "b.json"),
        (3, "y.json"),
    ]
    assert [row["size_bytes"] for row in rows] == [(lab.inbox / Path(row["path"]).name).stat().st_size for row in rows]
    assert lab.location.open().transaction_version("waxlake/ledger") == 4


def test_hidden_unfinished_and_empty_files_are_left_alone(lab: FilesLab) -> None:
    for name in (
        "_x.json",
        ".x.json",
        "x.tmp",
        "x.json.part",
        "x.json~",
        "x._COPYING_",
        "x.filepart",
        "_temporary/x.json",
        ".git/x.json",
        "_delta_log/0.json",
    ):
        lab.write(name, _rows(100, 1))
    empty = lab.write("later.json", b"")
    lab.write("x.json", _rows(0, 1), age_s=70)
    flow = Flow()
    run(lab.connector(), flow)
    assert ids(flow) == [0]
    write(empty, _rows(1, 1))
    run(lab.connector(), flow)
    assert ids(flow) == [0, 1]


@pytest.mark.parametrize(
    ("path", "options", "names"),
    [
        ("in", {}, ["a.json", "d/b.json", "d/e/c.json", "x.csv"]),
        ("in", {"recursive": False}, ["a.json", "x.csv"]),
        ("in", {"path_glob_filter": "[ab].json"}, ["a.json", "d/b.json"]),
        ("in/*.json", {}, ["a.json"]),
        ("in/d", {}, ["d/b.json", "d/e/c.json"]),
        ("in/d*", {}, ["d/b.json", "d/e/c.json"]),
        ("in/d*", {"recursive": False}, ["d/b.json"]),
        ("in/*/*.json", {}, ["d/b.json"]),
        ("in/**/*.json", {}, ["a.json", "d/b.json", "d/e/c.json"]),
        ("in/{a,x}.*", {}, ["a.json", "x.csv"]),
        ("in/d/b.json", {}, ["d/b.json"]),
        ("in/d/../a.json", {}, ["a.json"]),
    ],
)
def test_paths_and_globs(lab: FilesLab, path: str, options: dict[str, Any], names: list[str]) -> None:
    for name in ("a.json", "d/b.json", "d/e/c.json", "x.csv"):
        lab.write(name, [{"id": 1, "name": name}])
    lab.path = str(lab.root / path)
    flow = Flow()
    run(lab.connector(**options), flow)
    assert sorted(row["name"] for row in flow.rows) == names


def test_only_later_files_when_existing_ones_are_not_included(lab: FilesLab) -> None:
    lab.write("old.json", _rows(0, 2))
    flow = Flow()
    state = run(lab.connector(include_existing_files=False), flow)
    assert state.begin == {PARTITION: RowPosition(1).pack()}
    assert flow.rows == []
    lab.write("new.json", _rows(2, 2))
    late = Flow()  # a flow that is added later starts where the source began
    for each in (flow, late):
        run(lab.connector(include_existing_files=False), each)
        assert ids(each) == [2, 3]


def test_an_empty_folder_has_nothing_existing(lab: FilesLab) -> None:
    flow = Flow()
    run(lab.connector(include_existing_files=False), flow)
    lab.write("new.json", _rows(0, 2))
    run(lab.connector(include_existing_files=False), Flow())
    run(lab.connector(include_existing_files=False), flow)
    assert ids(flow) == [0, 1]


# -- paths that are wrong ----------------------------------------------------------------------------------------------


def test_a_path_that_is_not_there_is_an_error(lab: FilesLab) -> None:
    lab.path = str(lab.root / "in" / "no" / "such")
    with pytest.raises(TerminalError) as caught:
        lab.connector().inspect()
    assert caught.value.code == "FILES_PATH_NOT_FOUND"
    assert f"nearest that exists: '{lab.inbox}'" in str(caught.value)
    assert not lab.location.exists()


def test_a_path_that_went_away_is_an_error_though_files_were_read(lab: FilesLab) -> None:
    lab.write("a.json", _rows(0, 1))
    run(lab.connector(), Flow())
    connector = lab.connector()
    shutil.rmtree(lab.inbox)
    with pytest.raises(TerminalError, match="FILES_PATH_NOT_FOUND"):
        connector.inspect()


def test_an_empty_folder_is_fine(lab: FilesLab) -> None:
    flow = Flow()
    run(lab.connector(), flow)
    assert flow.batches == []


def test_a_folder_that_may_not_be_read(lab: FilesLab) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    lab.inbox.mkdir()
    lab.inbox.chmod(0)
    try:
        with pytest.raises(TerminalError, match="FILES_ACCESS_DENIED"):
            lab.connector().inspect()
    finally:
        lab.inbox.chmod(0o700)


# -- schema ------------------------------------------------------------------------------------------------------------


def test_no_schema_and_no_file(lab: FilesLab) -> None:
    lab.schema = None
    with pytest.raises(UserError) as caught:
        lab.connector().inspect()
    assert caught.value.code == "FILES_SCHEMA_UNKNOWN"
    assert "schema='id BIGINT" in caught.value.remedy
    assert not lab.location.exists()


def test_a_typo_in_the_schema_is_an_error(lab: FilesLab) -> None:
    lab.schema = "id BIGNIT"
    with pytest.raises((SchemaError, DefinitionError), match="BIGINT"):
        lab.connector().resolve_schema()


def test_inference_and_empty_write_nothing(lab: FilesLab) -> None:
    lab.schema = None
    lab.write("a.json", [{"id": 1, "tags": ["x"], "at": {"lat": 1.5, "n": 2}, "ok": True}])
    before = sorted(lab.root.rglob("*"))
    connector = lab.connector()
    empty = connector.empty()
    assert sorted(lab.root.rglob("*")) == before
    assert empty.column_names == ["id", "tags", "at", "ok", "_rescued_data", "_metadata"]
    assert empty.num_rows == 0
    assert connector.resolve_schema().field("at").type == pa.struct([("lat", pa.float64()), ("n", pa.int64())])
    assert connector.metadata_columns == ("_metadata",)


def test_an_inferred_schema_is_remembered(lab: FilesLab) -> None:
    lab.schema = None
    first = lab.write("a.json", [{"id": 1}])
    flow = Flow()
    run(lab.connector(schema_evolution_mode="rescue"), flow)
    lab.write("b.json", [{"id": "x", "more": True}, {"id": 2}])
    first.unlink()
    run(lab.connector(schema_evolution_mode="rescue"), flow)
    assert ids(flow) == [1, None, 2]
    assert json.loads(flow.rows[1]["_rescued_data"]) == {
        "id": "x",
        "more": True,
        "_file_path": str(lab.inbox / "b.json"),
    }
    assert lab.location.open().metadata().configuration["waxlake.schema"].upper() == "ID BIGINT"


def test_csv_inference(lab: FilesLab) -> None:
    lab.format, lab.schema = "csv", None
    lab.write("a.csv", "n,code,price,day,at,ok,text\n1,007,1.5,2024-01-02,2024-01-02T03:04:05Z,true,x\n", age_s=90)
    lab.write("b.csv", "n,late\n2,3\n")
    types = {field.name: str(field.type) for field in lab.connector().resolve_schema()}
    assert types == {
        "n": "int64",
        "code": "string",
        "price": "double",
        "day": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "ok": "bool",
        "text": "string",
        "late": "int64",
    }


def test_parquet_inference_from_footers(lab: FilesLab) -> None:
    lab.format, lab.schema = "parquet", None
    lab.write("a.parquet", _parquet(id=pa.array([1], pa.int32()), t=pa.array([1], pa.timestamp("ns"))), age_s=90)
    lab.write("b.parquet", _parquet(id=pa.array([2], pa.int64()), x=pa.array([1], pa.uint16()), ID=pa.array([5])))
    schema = lab.connector().resolve_schema()
    assert schema == pa.schema([("id", pa.int64()), ("t", pa.timestamp("us")), ("x", pa.int32())])
    flow = Flow()
    run(lab.connector(), flow)
    assert ids(flow) == [1, 2]
    assert json.loads(flow.rows[1]["_rescued_data"])["ID"] == 5


def test_inference_looks_at_a_bounded_sample(lab: FilesLab) -> None:
    lab.schema = None
    for i in range(12):
        lab.write(f"{i:02d}.json", [{f"c{i}": 1}], age_s=100 - i)
    assert lab.connector(schema_inference_files=3).resolve_schema().names == ["c0", "c5", "c11"]


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        (".GZ", lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:])),
    ],
)
@pytest.mark.parametrize("format", ["json", "csv"])
def test_compressed_files(lab: FilesLab, format: str, suffix: str, compress: Any) -> None:
    lab.format = format
    rows = _rows(0, 50)
    text = (
        "".join(json.dumps(row) + "\n" for row in rows)
        if format == "json"
        else "id,name\n" + "".join(f"{r['id']},{r['name']}\n" for r in rows)
    )
    lab.write(f"a.{format}{suffix}", compress(text.encode()))
    flow = Flow()
    run(lab.connector(max_rows_per_batch=7), flow)
    assert ids(flow) == list(range(50))


def test_json_records_that_are_none_keep_their_row(lab: FilesLab) -> None:
    lab.write("a.json", b'\xef\xbb\xbf{"id":1}\r\n\r\n{bad\r\n[1]\r\n{"id":2,"x":{"y":1}}')
    flow = Flow()
    run(lab.connector(), flow)
    path = str(lab.inbox / "a.json")
    assert ids(flow) == [1, None, None, 2]
    assert [json.loads(row["_rescued_data"]) if row["_rescued_data"] else None for row in flow.rows] == [
        None,
        {"_raw": "{bad", "_file_path": path},
        {"_raw": "[1]", "_file_path": path},
        {"x": {"y": 1}, "_file_path": path},
    ]


def test_parquet_files_of_several_row_groups(lab: FilesLab) -> None:
    lab.format = "parquet"
    lab.write("a.parquet", _parquet(id=list(range(10)), name=[str(i) for i in range(10)]))
    for bounds in ({"max_rows_per_batch": 4}, {"max_bytes_per_batch": 1}, {}):
        flow = Flow()
        run(lab.connector(**bounds), flow)
        assert ids(flow) == list(range(10))


def test_the_metadata_column_is_there_when_selected(lab: FilesLab) -> None:
    path = lab.write("d/a.json", _rows(0, 2))
    other = lab.write("b.json", _rows(2, 1), age_s=30)
    flow = Flow()
    run(lab.connector(), flow, columns=["id", "_metadata"])
    assert set(flow.rows[0]) == {"id", "_metadata"}
    assert [row["_metadata"]["file_path"] for row in flow.rows] == [str(path), str(path), str(other)]
    first = flow.rows[0]["_metadata"]
    assert (first["file_name"], first["file_size"]) == ("a.json", path.stat().st_size)
    assert first["file_modification_time"].timestamp() == pytest.approx(path.stat().st_mtime, abs=1e-5)
    plain = Flow()
    run(lab.connector(), plain)
    assert set(plain.rows[0]) == {"id", "name", "_rescued_data"}


@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_only_wanted_columns(lab: FilesLab, format: str) -> None:
    lab.format = format
    contents = {
        "json": b'{"id":1,"name":"a","more":1}',
        "csv": b"id,name,more\n1,a,1\n",
        "parquet": _parquet(id=[1], name=["a"], more=[1]),
    }
    lab.write(f"a.{format}", contents[format])
    flow = Flow()
    run(lab.connector(), flow, columns=["name"])
    assert flow.rows == [{"name": "a"}]
    connector = lab.connector()
    batch_schema = flow.batches[0].table.schema
    assert batch_schema.field("name").type == connector.empty().schema.field("name").type


def test_backlog_and_read_counts(lab: FilesLab) -> None:
    sizes = [lab.write(f"{i}.json", _rows(i, 2), age_s=50 - i).stat().st_size for i in range(3)]
    flow = Flow()
    run(lab.connector(max_rows_per_batch=2), flow)
    assert [batch.read for batch in flow.batches] == [2, 2, 2]
    assert [batch.backlog for batch in flow.batches] == [
        Backlog(files=2, size_bytes=sum(sizes[1:])),
        Backlog(files=1, size_bytes=sizes[2]),
        Backlog(files=0, size_bytes=0),
    ]


def test_max_files_per_trigger_bounds_a_batch(lab: FilesLab) -> None:
    for i in range(5):
        lab.write(f"{i}.json", _rows(i, 1), age_s=50 - i)
    flow = Flow()
    run(lab.connector(max_files_per_trigger=2), flow)
    assert [batch.read for batch in flow.batches] == [2, 2, 1]


# -- files that are not what they were ---------------------------------------------------------------------------------


def test_a_file_that_is_gone_stops_or_is_skipped(lab: FilesLab) -> None:
    for i in range(3):
        lab.write(f"{i}.json", _rows(i, 1), age_s=50 - i)
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
    path = lab.write("a.json", _rows(0, 1))
    flow = Flow()
    run(lab.connector(), flow)
    write(path, _rows(5, 3))
    run(lab.connector(), flow)
    assert ids(flow) == [0]


def test_a_file_that_changes_before_anyone_read_it_is_read_as_it_is(lab: FilesLab) -> None:
    path = lab.write("a.json", _rows(0, 2), age_s=60)
    lab.connector().inspect()
    write(path, _rows(10, 25), age_s=50)
    flow = Flow()
    run(lab.connector(max_rows_per_batch=4), flow, max_batches=2)
    run(lab.connector(max_rows_per_batch=4), flow)  # resumed inside the new edition
    assert ids(flow) == list(range(10, 35))
    assert [(row["number"], row["edition"]) for row in lab.ledger_rows()] == [(0, 0), (0, 1)]
    assert lab.location.open().transaction_version("waxlake/ledger") == 1


@pytest.mark.parametrize("change", ["longer", "shorter", "touched", "gone"])
def test_a_file_that_changes_half_read_stops_or_is_skipped(lab: FilesLab, change: str) -> None:
    path = lab.write("a.json", _rows(0, 20), age_s=60)
    lab.write("b.json", _rows(20, 1), age_s=50)
    flow = Flow()
    run(lab.connector(max_rows_per_batch=5), flow, max_batches=1)
    if change == "gone":
        path.unlink()
    else:
        write(path, _rows(0, {"longer": 30, "shorter": 3, "touched": 20}[change]), age_s=40)
    with pytest.raises(SourceMoved, match="FILE_GONE" if change == "gone" else "FILE_CHANGED"):
        run(lab.connector(), flow)
    assert ids(flow) == list(range(5))
    stored = flow.position
    run(lab.connector(on_data_loss="skip"), flow)
    assert ids(flow) == [*range(5), 20]
    assert [batch.skipped for batch in flow.batches if batch.skipped] == [(stored, RowPosition(1).pack())]


def test_a_flow_inside_an_older_edition_is_stopped(lab: FilesLab) -> None:
    path = lab.write("a.json", _rows(0, 20), age_s=60)
    half = Flow()
    run(lab.connector(max_rows_per_batch=5), half, max_batches=1)
    write(path, _rows(100, 20), age_s=50)
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
    growing = lab.write("a.json", _rows(0, 1), age_s=-20)
    lab.write("b.json", _rows(1, 1), age_s=7200)
    flow = Flow()
    run(lab.connector(settle_s=3600), flow)
    assert ids(flow) == [1]
    write(growing, _rows(0, 2), age_s=7200)
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
    path = lab.write("a.json", _rows(0, 1), age_s=7200)
    connector = lab.connector(settle_s=3600)
    state = connector.inspect()
    write(path, _rows(0, 2), age_s=-20)
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
        "parquet": _parquet(id=[1], name=["a"]),
    }[format]
    suffix = format if format == "parquet" else f"{format}.gz"
    good = {"json": b'{"id":0}', "csv": b"id\n0\n", "parquet": _parquet(id=[0])}[format]
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
    whole = {"json": gzip.compress(b'{"id":7}\n'), "csv": gzip.compress(b"id\n7\n"), "parquet": _parquet(id=[7])}[
        format
    ]
    write(bad, whole, age_s=30)
    run(lab.connector(), flow)
    assert ids(flow) == [0, 7, 0]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "with space.json",
        "ünïcødé 文件 🌊.json",
        "100%25.json",
        "new\nline.json",
        "tab\t\"quote'.json",
        "x" * 245 + ".json",
        "-rf.json",
        "[brackets]{a,b}*?.json",
        "back\\slash.json",
        "a/b c/é.json",
    ],
)
def test_hostile_names(lab: FilesLab, name: str) -> None:
    path = lab.write(name, b'{"id":1}\n{bad')
    flow = Flow()
    run(lab.connector(), flow, columns=["id", "_rescued_data", "_metadata"])
    run(lab.connector(), flow)
    assert ids(flow) == [1, None]
    assert flow.rows[0]["_metadata"]["file_path"] == str(path)
    assert json.loads(flow.rows[1]["_rescued_data"])["_file_path"] == str(path)
    lab.path = str(path)
    lab.ledger = type(lab.location)(str(lab.root / "ledger2"))
    alone = Flow()
    run(lab.connector(), alone)
    assert ids(alone) == [1, None]


def test_a_name_that_is_no_text(lab: FilesLab) -> None:
    lab.inbox.mkdir()
    raw = os.fsencode(lab.inbox) + b"/caf\xe9 %41.json"
    try:
        Path(os.fsdecode(raw)).write_bytes(b'{"id":1}')
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    flow = Flow()
    run(lab.connector(), flow, columns=["id", "_metadata"])
    run(lab.connector(), flow)
    assert ids(flow) == [1]
    assert flow.rows[0]["_metadata"]["file_path"].endswith("/caf%E9%20%2541.json")


def test_links(lab: FilesLab) -> None:
    lab.write("d/a.json", _rows(0, 1))
    write(lab.root / "outside" / "b.json", _rows(1, 1))
    (lab.inbox / "d" / "loop").symlink_to(lab.inbox)
    (lab.inbox / "same").symlink_to(lab.inbox / "d")
    (lab.inbox / "out").symlink_to(lab.root / "outside")
    (lab.inbox / "dead.json").symlink_to(lab.root / "nowhere")
    (lab.inbox / "file.json").symlink_to(write(lab.root / "elsewhere.json", _rows(2, 1)))
    flow = Flow()
    run(lab.connector(), flow)
    assert sorted(ids(flow)) == [0, 1, 2]


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_continuous_run_sees_what_arrives(lab: FilesLab) -> None:
    lab.write("a.json", _rows(0, 2))
    connector = lab.connector()
    reader = connector.reader(unbounded(connector.inspect()), (PARTITION,), frozenset())
    flow = Flow(position=0)
    deadline_s, written = time.monotonic() + 20, 1
    while len(flow.rows) < 8 and time.monotonic() < deadline_s:
        for batch in reader.read():
            flow.store(batch)
            lab.write(f"n{written}.json", _rows(2 * written, 2))
            written += 1
        assert not reader.is_done
        time.sleep(0.005)
    reader.close()
    assert ids(flow)[:8] == list(range(8))


def test_a_plain_dataflow(lab: FilesLab) -> None:
    lab.write("a.json", _rows(0, 3), age_s=50)
    lab.write("b.json", _rows(3, 3), age_s=40)

    def collect(**options: Any) -> list[MicroBatch]:
        out: list[MicroBatch] = []
        source = FilesSource(
            str(lab.inbox),
            format="json",
            schema="id BIGINT",
            ledger=str(lab.root / "ledger"),
            is_bounded=True,
            settle_s=0,
            **options,
        )
        flow = Dataflow("files")
        op.output("out", op.input("in", flow, source), TestingSink(out))
        run_main(flow)
        return out

    batches = collect()
    assert [row["id"] for batch in batches for row in batch.table.to_pylist()] == list(range(6))
    assert batches[-1].is_last
    end = batches[-1].end
    lab.write("c.json", _rows(6, 1), age_s=30)
    batches = collect(positions={PARTITION: end})
    assert [row["id"] for batch in batches for row in batch.table.to_pylist()] == [6]
    assert all(batch.start >= end for batch in batches)
    batches = collect(positions=lambda state: {PARTITION: state.partitions[PARTITION].high}, columns=("_metadata",))
    assert [batch.table.num_rows for batch in batches] == [0, 0]


def test_a_flow_that_is_behind_gets_what_it_lacks(lab: FilesLab) -> None:
    for i in range(4):
        lab.write(f"{i}.json", _rows(i * 10, 10), age_s=50 - i)
    ahead, behind = Flow(), Flow()
    run(lab.connector(max_rows_per_batch=7), ahead, max_batches=3)
    run(lab.connector(max_rows_per_batch=9), behind, max_batches=1)
    run(lab.connector(), behind, others=[ahead])
    assert ids(ahead) == ids(behind) == list(range(40))


def test_reading_nothing_new_touches_no_file(lab: FilesLab) -> None:
    lab.write("a.json", _rows(0, 1))
    flow = Flow()
    state = run(lab.connector(), flow)
    version = lab.location.open().version()
    connector = lab.connector()
    assert connector.inspect() == state
    assert lab.location.open().version() == version
    read(connector, plan_partitions(state, [flow.stored], is_bounded=True), [flow])
    assert ids(flow) == [0]
