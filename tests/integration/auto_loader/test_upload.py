"""Upload of local files: columns, limits, all or nothing, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.conftest import LakeStorage
from tests.integration.auto_loader.lake import Lake
from waxlake.pipeline.lake import first_rows, run_sql
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.upload import Upload, UploadOptions, UploadReceipt, refuse_owned
from waxlake.stream.errors import UsageError, UserError

SOURCES = Path(__file__).resolve().parents[3]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return a project with one table of a flow."""
    lake = Lake(tmp_path)
    lake.define('@wl.table\ndef owned():\n    return wl.read_files("{inbox}", format="json", schema="id BIGINT")\n')
    return lake


def upload(lake: Lake, *files: Path, table: str = "t", **options: Any) -> UploadReceipt:
    """Upload files."""
    return Upload(lake.spec(), table, files, UploadOptions(**options)).run()


def test_c_01_create_append_and_overwrite(lake: Lake) -> None:
    first = lake.land("1.csv", "id,name,amount\n1,a,1.5\n2,b,\n")
    more = lake.land("2.tsv", "id\tname\tamount\n3\tc\t2\n")
    assert upload(lake, first) == UploadReceipt(version=0, rows=2)
    assert lake.columns("t") == {"id": "int64", "name": "string", "amount": "double"}
    assert upload(lake, more, mode="append") == UploadReceipt(version=1, rows=1)
    assert lake.rows("t", "id", "amount") == [(1, 1.5), (2, None), (3, 2.0)]
    graph = load_graph(lake.spec())
    assert run_sql(graph, "SELECT count(*) AS n FROM t").to_pylist() == [{"n": 3}]
    assert first_rows(graph, "t", 2).num_rows == 2
    with pytest.raises(UserError, match="TABLE_EXISTS"):
        upload(lake, more)
    other = lake.land("3.json", [{"x": {"y": 1}}])
    assert upload(lake, other, mode="overwrite") == UploadReceipt(version=2, rows=1)
    assert lake.rows("t") == [{"x": {"y": 1}}]
    assert "metaData" in lake.log("t")[2]  # columns and rows are replaced in one commit
    with pytest.raises(UserError, match="TABLE_UNKNOWN"):
        upload(lake, other, table="none", mode="append")


def test_c_01_the_same_upload_is_done_once_unless_forced(lake: Lake) -> None:
    file = lake.land("1.csv", "id\n1\n")
    upload(lake, file)
    assert upload(lake, file) == UploadReceipt(version=0, rows=0, was_there=True)
    assert not upload(lake, file, mode="append").was_there
    assert upload(lake, file, mode="append") == UploadReceipt(version=1, rows=0, was_there=True)
    assert upload(lake, file, mode="append", is_forced=True).rows == 1
    assert upload(lake, lake.land("1.csv", "id\n2\n"), mode="append").rows == 1
    assert lake.rows("t", "id") == [1, 1, 1, 2]


def test_c_01_columns_are_edited_before_they_are_made(lake: Lake) -> None:
    file = lake.land("1.csv", "id,zip,junk\n1,07001,x\n2,10115,y\n")
    options = UploadOptions(types={"id": "STRING", "late": "DOUBLE"}, renames={"zip": "postcode"}, excludes=("junk",))
    work = Upload(lake.spec(), "t", [file], options)
    assert work.preview().to_pylist()[0] == {"id": "1", "postcode": "07001", "late": None}
    assert not Path(lake.path("t")).exists()
    work.run()
    assert lake.columns("t") == {"id": "string", "postcode": "string", "late": "double"}
    with pytest.raises(UsageError, match="postcode"):
        upload(lake, file, renames={"postcode": "zip"})


def test_c_01_preview_shows_fifty_rows_and_files_are_merged(lake: Lake) -> None:
    pq.write_table(pa.table({"id": range(60), "a": range(60)}), lake.inbox / "1.parquet")
    pq.write_table(pa.table({"id": [60], "b": ["x"]}), lake.inbox / "2.parquet")
    work = Upload(lake.spec(), "t", [lake.inbox / "1.parquet", lake.inbox / "2.parquet"], UploadOptions())
    assert work.preview().num_rows == 50
    assert work.run().rows == 61
    assert lake.columns("t") == {"id": "int64", "a": "int64", "b": "string"}


def test_c_01_rows_that_do_not_fit_stop_it_or_are_kept(lake: Lake) -> None:
    good = lake.land("1.csv", "id\n1\n")
    bad = lake.land("2.csv", "id\n2\nx\ny\n")
    upload(lake, good)
    with pytest.raises(UserError, match=r'2 of 3 rows.*"id":"x".*UPLOAD_ROWS_REJECTED'):
        upload(lake, bad, mode="append")
    assert lake.rows("t") == [{"id": 1}]
    with pytest.raises(UserError, match=r"UPLOAD_ROWS_REJECTED"):
        upload(lake, bad, table="u", types={"id": "BIGINT"})
    assert not Path(lake.path("u"), "_delta_log").exists()
    upload(lake, bad, table="u", types={"id": "BIGINT"}, keeps_rescued=True)
    assert sorted(filter(None, lake.rows("u", "id"))) == [2]
    assert sum(text is not None for text in lake.rows("u", "_rescued_data")) == 2
    with pytest.raises(UserError, match="SCHEMA_MISMATCH"):
        upload(lake, lake.land("3.csv", "id,more\n1,2\n"), mode="append")


def test_c_01_limits_formats_and_tables_of_flows(lake: Lake) -> None:
    file = lake.land("1.csv", "id\n1\n")
    with pytest.raises(UsageError, match=r"11 files.*1 to 10.*--max-files"):
        upload(lake, *[file] * 11)
    with pytest.raises(UsageError, match=r"5 bytes.*--max-bytes"):
        upload(lake, file, max_bytes=4)
    for name, code in (("a.zip", "UPLOAD_ARCHIVE"), ("a.tar.gz", "UPLOAD_ARCHIVE"), ("a.dat", "UPLOAD_FORMAT_UNKNOWN")):
        with pytest.raises(UsageError, match=code):
            upload(lake, lake.land(name, b"x"))
    with pytest.raises(UsageError, match="UPLOAD_FORMATS"):
        upload(lake, file, lake.land("1.json", [{"id": 1}]))
    with pytest.raises(UserError, match="TABLE_OF_PIPELINE"):
        refuse_owned(lake.spec(), "owned")
    refuse_owned(lake.spec(), "t")


def test_c_01_onto_disks_and_object_stores(tmp_path: Path, lake_storage: LakeStorage) -> None:
    lake = Lake(tmp_path, storage=lake_storage.uri, storage_options=lake_storage.storage_options)
    lake.define("")
    file = lake.land("1.json", [{"id": 1}])
    assert upload(lake, file).rows == 1
    assert upload(lake, file).was_there
    assert lake.rows("t", "id") == [1]


def test_c_01_a_kill_leaves_all_or_nothing(lake: Lake) -> None:
    file = lake.land("1.csv", "id\n1\n")

    def killed(failpoint: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("WAXLAKE_")}
        done = subprocess.run(
            [sys.executable, "-m", "waxlake", "upload", str(file), "--table", "t"],
            cwd=lake.folder,
            env={**environ, "PYTHONPATH": str(SOURCES), "WAXLAKE_FAILPOINT": failpoint},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    killed("upload-written")
    assert not DeltaTable.is_deltatable(lake.path("t"))
    killed("upload-committed")
    assert lake.rows("t", "id") == [1]
    assert upload(lake, file).was_there
    assert lake.rows("t", "id") == [1]
