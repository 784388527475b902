"""The files source on a local file system: discovery, formats, names, running."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main

from connectors.files import FilesSource
from tests.integration.files_lab import (
    PARTITION,
    FilesLab,
    Flow,
    ids,
    numbered_rows,
    parquet,
    read,
    run,
    unbounded,
    write,
)
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.errors import TerminalError
from waxlake.stream.position import RowPosition
from waxlake.stream.source import plan_partitions

# -- each file once ----------------------------------------------------------------------------------------------------


def test_each_file_is_read_once_and_new_ones_later(lab: FilesLab) -> None:
    lab.write("b.json", numbered_rows(0, 3), age_s=30)
    lab.write("sub/a.json", numbered_rows(3, 2), age_s=20)
    flow = Flow()
    state = run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4]
    assert state.name == f"files:{lab.inbox}"
    assert state.identity.startswith(f"files:{lab.inbox}:@")
    run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4]
    lab.write("a-new.json", numbered_rows(5, 1), age_s=90)
    run(lab.connector(), flow)
    assert ids(flow) == [0, 1, 2, 3, 4, 5]
    assert flow.position == RowPosition(3).pack()


def test_files_are_numbered_by_modification_time_then_path(lab: FilesLab) -> None:
    now = time.time()
    for name, age_s in (("z.json", 50), ("b.json", 40), ("a.json", 40), ("y.json", 10)):
        path = lab.write(name, numbered_rows(0, 1))
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
        lab.write(name, numbered_rows(100, 1))
    empty = lab.write("later.json", b"")
    lab.write("x.json", numbered_rows(0, 1), age_s=70)
    flow = Flow()
    run(lab.connector(), flow)
    assert ids(flow) == [0]
    write(empty, numbered_rows(1, 1))
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
    lab.write("old.json", numbered_rows(0, 2))
    flow = Flow()
    state = run(lab.connector(include_existing_files=False), flow)
    assert state.begin == {PARTITION: RowPosition(1).pack()}
    assert flow.rows == []
    lab.write("new.json", numbered_rows(2, 2))
    late = Flow()  # a flow that is added later starts where the source began
    for each in (flow, late):
        run(lab.connector(include_existing_files=False), each)
        assert ids(each) == [2, 3]


def test_an_empty_folder_has_nothing_existing(lab: FilesLab) -> None:
    flow = Flow()
    run(lab.connector(include_existing_files=False), flow)
    lab.write("new.json", numbered_rows(0, 2))
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
    lab.write("a.json", numbered_rows(0, 1))
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
    rows = numbered_rows(0, 50)
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
    lab.write("a.parquet", parquet(id=list(range(10)), name=[str(i) for i in range(10)]))
    for bounds in ({"max_rows_per_batch": 4}, {"max_bytes_per_batch": 1}, {}):
        flow = Flow()
        run(lab.connector(**bounds), flow)
        assert ids(flow) == list(range(10))


def test_the_metadata_column_is_there_when_selected(lab: FilesLab) -> None:
    path = lab.write("d/a.json", numbered_rows(0, 2))
    other = lab.write("b.json", numbered_rows(2, 1), age_s=30)
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
        "parquet": parquet(id=[1], name=["a"], more=[1]),
    }
    lab.write(f"a.{format}", contents[format])
    flow = Flow()
    run(lab.connector(), flow, columns=["name"])
    assert flow.rows == [{"name": "a"}]
    connector = lab.connector()
    batch_schema = flow.batches[0].table.schema
    assert batch_schema.field("name").type == connector.empty().schema.field("name").type


def test_backlog_and_read_counts(lab: FilesLab) -> None:
    sizes = [lab.write(f"{i}.json", numbered_rows(i, 2), age_s=50 - i).stat().st_size for i in range(3)]
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
        lab.write(f"{i}.json", numbered_rows(i, 1), age_s=50 - i)
    flow = Flow()
    run(lab.connector(max_files_per_trigger=2), flow)
    assert [batch.read for batch in flow.batches] == [2, 2, 1]


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
    lab.write("d/a.json", numbered_rows(0, 1))
    write(lab.root / "outside" / "b.json", numbered_rows(1, 1))
    (lab.inbox / "d" / "loop").symlink_to(lab.inbox)
    (lab.inbox / "same").symlink_to(lab.inbox / "d")
    (lab.inbox / "out").symlink_to(lab.root / "outside")
    (lab.inbox / "dead.json").symlink_to(lab.root / "nowhere")
    (lab.inbox / "file.json").symlink_to(write(lab.root / "elsewhere.json", numbered_rows(2, 1)))
    flow = Flow()
    run(lab.connector(), flow)
    assert sorted(ids(flow)) == [0, 1, 2]


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_continuous_run_sees_what_arrives(lab: FilesLab) -> None:
    lab.write("a.json", numbered_rows(0, 2))
    connector = lab.connector()
    reader = connector.reader(unbounded(connector.inspect()), (PARTITION,), frozenset())
    flow = Flow(position=0)
    deadline_s, written = time.monotonic() + 20, 1
    while len(flow.rows) < 8 and time.monotonic() < deadline_s:
        for batch in reader.read():
            flow.store(batch)
            lab.write(f"n{written}.json", numbered_rows(2 * written, 2))
            written += 1
        assert not reader.is_done
        time.sleep(0.005)
    reader.close()
    assert ids(flow)[:8] == list(range(8))


def test_a_plain_dataflow(lab: FilesLab) -> None:
    lab.write("a.json", numbered_rows(0, 3), age_s=50)
    lab.write("b.json", numbered_rows(3, 3), age_s=40)

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
    lab.write("c.json", numbered_rows(6, 1), age_s=30)
    batches = collect(positions={PARTITION: end})
    assert [row["id"] for batch in batches for row in batch.table.to_pylist()] == [6]
    assert all(batch.start >= end for batch in batches)
    batches = collect(positions=lambda state: {PARTITION: state.partitions[PARTITION].high}, columns=("_metadata",))
    assert [batch.table.num_rows for batch in batches] == [0, 0]


def test_a_flow_that_is_behind_gets_what_it_lacks(lab: FilesLab) -> None:
    for i in range(4):
        lab.write(f"{i}.json", numbered_rows(i * 10, 10), age_s=50 - i)
    ahead, behind = Flow(), Flow()
    run(lab.connector(max_rows_per_batch=7), ahead, max_batches=3)
    run(lab.connector(max_rows_per_batch=9), behind, max_batches=1)
    run(lab.connector(), behind, others=[ahead])
    assert ids(ahead) == ids(behind) == list(range(40))


def test_reading_nothing_new_touches_no_file(lab: FilesLab) -> None:
    lab.write("a.json", numbered_rows(0, 1))
    flow = Flow()
    state = run(lab.connector(), flow)
    version = lab.location.open().version()
    connector = lab.connector()
    assert connector.inspect() == state
    assert lab.location.open().version() == version
    read(connector, plan_partitions(state, [flow.stored], is_bounded=True), [flow])
    assert ids(flow) == [0]
