"""The files source on object stores and other fsspec file systems."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.files.remote_listing import S3Pages
from connectors.files.remote_store import RemoteStore
from connectors.files.store import PathFilter
from connectors.files.store_options import client_options, s3fs_options
from tests.integration.files_lab import PARTITION, FilesLab, Flow, ids, run, unbounded
from tests.services.s3 import ObjectStore
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SourceMoved, TerminalError, TransientError, UsageError
from waxlake.stream.settings import StorageOptions


class _Bucket:
    """A source in a bucket, with the ledger in the same bucket."""

    def __init__(self, root: Path, store: ObjectStore, bucket: str, format: str = "json") -> None:
        self.options = store.storage_options
        self.filesystem = fsspec.filesystem("s3", **s3fs_options(self.options), skip_instance_cache=True)
        self.uri = f"s3://{bucket}/in"
        ledger = TableLocation(f"s3://{bucket}/lake/ledger", StorageOptions(self.options))
        self.lab = FilesLab(
            root, format=format, path=self.uri, ledger=ledger, options={"storage_options": self.options}
        )

    def put(self, name: str, content: bytes) -> str:
        self.filesystem.pipe_file(f"{self.uri}/{name}", content)
        return f"{self.uri}/{name}"


@pytest.fixture
def s3(tmp_path: Path, s3_store: ObjectStore, bucket: str) -> _Bucket:
    return _Bucket(tmp_path, s3_store, bucket)


def _lines(first: int, count: int) -> bytes:
    return b"".join(json.dumps({"id": i}).encode() + b"\n" for i in range(first, first + count))


def _parquet(count: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(count))}), sink, row_group_size=10)
    return sink.getvalue()


@pytest.mark.services
def test_objects_are_read_once(s3: _Bucket) -> None:
    first = s3.put("a b/100%/é.json", _lines(0, 3))
    s3.put("_hidden/x.json", _lines(90, 1))
    s3.put("empty.json", b"")
    flow = Flow()
    state = run(s3.lab.connector(), flow, columns=["id", "_metadata"])
    assert ids(flow) == [0, 1, 2]
    assert flow.rows[0]["_metadata"]["file_path"] == first
    assert state.identity.startswith(f"files:{s3.uri}:@")
    for i in range(3, 80):
        s3.put(f"{i:03d}.json", _lines(i, 1))
    run(s3.lab.connector(), flow)
    assert sorted(ids(flow)) == list(range(80))
    rows = s3.lab.ledger_rows()
    assert len(rows) == 78
    assert all(row["etag"] for row in rows)


@pytest.mark.services
@pytest.mark.parametrize("format", ["json", "csv", "parquet"])
def test_big_and_compressed_objects(s3: _Bucket, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.files.contents._SMALL_BYTES", 1)
    s3.lab.format = format
    content = {
        "json": _lines(0, 50),
        "csv": b"id\n" + b"".join(b"%d\n" % i for i in range(50)),
        "parquet": _parquet(50),
    }[format]
    s3.put(f"a.{format}" + (".gz" if format == "csv" else ""), gzip.compress(content) if format == "csv" else content)
    flow = Flow()
    run(s3.lab.connector(max_rows_per_batch=7), flow, max_batches=2)
    run(s3.lab.connector(max_rows_per_batch=7), flow)
    assert ids(flow) == list(range(50))


@pytest.mark.services
@pytest.mark.parametrize("is_big", [False, True], ids=["small", "big"])
def test_objects_that_change_or_go(s3: _Bucket, is_big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_big:
        monkeypatch.setattr("connectors.files.contents._SMALL_BYTES", 1)
    s3.put("a.json", _lines(0, 10))
    s3.put("b.json", _lines(10, 2))
    s3.lab.connector().inspect()
    s3.put("a.json", _lines(50, 10))  # nobody has read it: the same size, another tag
    flow = Flow()
    run(s3.lab.connector(max_rows_per_batch=4), flow, max_batches=1)
    assert ids(flow) == [50, 51, 52, 53]
    s3.put("a.json", _lines(70, 10))
    with pytest.raises(SourceMoved, match="FILE_CHANGED"):
        run(s3.lab.connector(), flow)
    s3.filesystem.rm(f"{s3.uri}/a.json")
    with pytest.raises(SourceMoved, match="FILE_GONE"):
        run(s3.lab.connector(), flow)
    run(s3.lab.connector(on_data_loss="skip"), flow)
    assert ids(flow) == [50, 51, 52, 53, 10, 11]


@pytest.mark.services
def test_globs_and_depth(s3: _Bucket) -> None:
    for name in ("a.json", "d/b.json", "d/e/c.json", "d2/b.csv"):
        s3.put(name, b'{"name":"%s"}' % name.encode())
    for path, options, names in (
        ("", {"recursive": False}, ["a.json"]),
        ("/d*", {"path_glob_filter": "*.json"}, ["d/b.json", "d/e/c.json"]),
        ("/*/b.*", {}, ["d/b.json", "d2/b.csv"]),
        ("/d/b.json", {}, ["d/b.json"]),
    ):
        s3.lab.path = s3.uri + path
        s3.lab.ledger = TableLocation(
            f"{s3.uri}/../ledger-{uuid.uuid4().hex}".replace("in/../", ""), StorageOptions(s3.options)
        )
        flow = Flow()
        run(s3.lab.connector(**options), flow)
        assert sorted(row["name"] for row in flow.rows) == names, path


@pytest.mark.services
def test_a_continuous_run_sees_new_objects(s3: _Bucket) -> None:
    s3.put("a.json", _lines(0, 1))
    connector = s3.lab.connector()
    reader = connector.reader(unbounded(connector.inspect()), (PARTITION,), frozenset())
    flow = Flow(position=0)
    for i in range(1, 4):
        while len(flow.rows) < i:
            for batch in reader.read():
                flow.store(batch)
        s3.put(f"b{i}.json", _lines(i, 1))
    reader.close()
    assert ids(flow) == [0, 1, 2]


@pytest.mark.services
def test_what_is_wrong_with_a_store_is_told(s3: _Bucket, bucket: str) -> None:
    s3.put("a.json", _lines(0, 1))
    local = TableLocation(str(s3.lab.root / "ledger"))
    s3.lab.ledger = local
    s3.lab.path = f"s3://{bucket}/in/typo"
    with pytest.raises(TerminalError, match="FILES_PATH_NOT_FOUND") as caught:
        s3.lab.connector().inspect()
    assert f"'s3://{bucket}/in'" in str(caught.value)
    s3.lab.path = f"s3://{bucket}-typo/in"
    with pytest.raises(TerminalError, match=r"FILES_PATH_NOT_FOUND|FILES_ACCESS_DENIED"):
        s3.lab.connector().inspect()
    s3.lab.path = s3.uri
    with pytest.raises(TransientError, match="FILES_UNREACHABLE"):
        s3.lab.connector(storage_options={**s3.options, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).inspect()
    assert not local.exists()


@pytest.mark.services
def test_wrong_credentials(s3: _Bucket, s3_store: ObjectStore) -> None:
    if s3_store.name == "moto":
        pytest.skip("moto takes any credentials")
    s3.put("a.json", _lines(0, 1))
    with pytest.raises(TerminalError, match="FILES_ACCESS_DENIED") as caught:
        s3.lab.connector(storage_options={**s3.options, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}).inspect()
    assert "wrong-secret" not in str(caught.value)


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def test_a_memory_store(tmp_path: Path, memory: Any) -> None:
    memory.pipe_file("/box/in/a.json", _lines(0, 2))
    lab = FilesLab(tmp_path, path="memory://box/in")
    flow = Flow()
    run(lab.connector(), flow, columns=["id", "_metadata"])
    memory.pipe_file("/box/in/b.json", _lines(2, 1))
    run(lab.connector(), flow, columns=["id", "_metadata"])
    assert ids(flow) == [0, 1, 2]
    assert flow.rows[0]["_metadata"]["file_name"] == "a.json"


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("gopher://host/in", "correct the path"),
        ("abfss://c@a.dfs.core.windows.net/in", r"waxlake\[azure\]"),
        ("gs://b/in", r"waxlake\[gcs\]"),
    ],
    ids=["unknown", "azure", "gcs"],
)
def test_a_protocol_that_nobody_speaks_here(
    tmp_path: Path, path: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("adlfs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"FILES_PROTOCOL|{remedy}") as caught:
        FilesLab(tmp_path, path=path).connector().inspect()
    assert re.search(remedy, str(caught.value))


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A web server that lists a folder: the folder, and its address."""
    root = tmp_path / "www"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Server, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_server_that_lists_its_files(tmp_path: Path, web: tuple[Path, str]) -> None:
    root, url = web
    for number, name in enumerate(("in/a.json", "in/d/b c.json", "in/_hidden/x.json", "in/c.csv", "other/x.json")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_lines(number, 1))
    lab, flow = FilesLab(tmp_path, path=f"{url}/in"), Flow()
    for _ in range(2):
        run(lab.connector(path_glob_filter="*.json"), flow, columns=["id", "_metadata"])
    assert sorted(ids(flow)) == [0, 1]
    paths = sorted(row["_metadata"]["file_path"] for row in flow.rows)
    assert paths == [f"{url}/in/a.json", f"{url}/in/d/b%20c.json"]
    (root / "in/d/e.json").write_bytes(_lines(7, 1))
    run(lab.connector(path_glob_filter="*.json"), flow)
    assert ids(flow)[2:] == [7]
    single, flow = FilesLab(tmp_path / "single", path=f"{url}/in/a.json"), Flow()
    run(single.connector(), flow)
    assert ids(flow) == [0]
    with pytest.raises(TerminalError, match="FILES_PATH_NOT_FOUND"):
        FilesLab(tmp_path / "typo", path=f"{url}/typo").connector().inspect()


def test_options_of_azure_and_google_as_their_clients_want_them() -> None:
    azure = {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "azure_storage_account_key": "k", "AZURE_CLIENT_ID": "i"}
    assert client_options("abfss", StorageOptions(azure)) == {
        "account_name": "acc",
        "account_key": "k",
        "client_id": "i",
    }
    google = {"GOOGLE_SERVICE_ACCOUNT": "/key.json", "project": "p"}
    assert client_options("gs", StorageOptions(google)) == {"token": "/key.json", "project": "p"}
    for protocol in ("abfss", "gs"):
        with pytest.raises(UsageError, match="Valid: "):
            client_options(protocol, StorageOptions({"AWS_REGION": "x"}))
    uri = "abfss://box@acc.dfs.core.windows.net/in"  # not user@host, but container@account
    assert RemoteStore(uri, StorageOptions()).root == uri


@pytest.mark.services
def test_listing_in_parallel_finds_each_object_once(s3: _Bucket) -> None:
    names = [f"{a}/{b}/{c:02d}.json" for a in "abc" for b in ("x", "y=1", "z") for c in range(12)] + [
        "0.json",
        "zz.json",
    ]
    for name in names:
        s3.filesystem.pipe_file(f"{s3.uri}/{name}", b"{}")
    pattern_cases = {
        "": set(names),
        "*/y=*/*.json": {name for name in names if "/y=1/" in name},
        "{a,b}/**/0?.json": {n for n in names if n[0] in "ab" and n[-7:-5].startswith("0")},
    }
    for pattern, wanted in pattern_cases.items():
        for page_keys in (1, 3, 50, 1000):
            for parallelism in (1, 4):
                filesystem = _SmallPages(s3.filesystem, page_keys)
                bucket, _, prefix = s3.uri.removeprefix("s3://").partition("/")
                path_filter = PathFilter(pattern, None, True)
                pages = S3Pages(filesystem, bucket, prefix, path_filter, parallelism).pages()
                found = [relative for page in pages for relative, _ in page if path_filter.fits(relative)]
                assert sorted(found) == sorted(wanted), (pattern, page_keys, parallelism)
        if page_keys == 1000:
            assert filesystem.requests <= 10
    after = sorted(names)[40]
    pages = S3Pages(s3.filesystem, bucket, prefix, PathFilter("", None, True), 4).pages(f"{prefix}/{after}")
    assert [relative for page in pages for relative, _ in page] == sorted(names)[41:]


class _SmallPages:
    """An S3 whose pages are small; counts requests."""

    def __init__(self, filesystem: Any, page_keys: int) -> None:
        self._filesystem, self._page_keys, self.requests = filesystem, page_keys, 0

    def call_s3(self, method: str, **given: Any) -> Any:
        self.requests += 1
        return self._filesystem.call_s3(method, MaxKeys=self._page_keys, **given)


def test_credentials_in_a_path_are_not_shown(tmp_path: Path) -> None:
    connector = FilesLab(tmp_path, path="ftp://user:hunter2@host/in").connector()
    assert connector.name == "files:ftp://host/in"
    assert "hunter2" not in connector._source
