"""Names that break naive readers: each is one file, read once, under exactly its name; on disk and on S3."""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.files_lab import FilesLab, Flow, ids, run
from tests.services.s3 import MotoServer, ObjectStore
from waxlake.stream.delta_table import TableLocation

_NAMES = [
    "with space.json",
    " leading and trailing .json ",
    "tab\tand\nnewline\r.json",
    "100%.json",
    "a%2Fb%20c%.json",
    "plus+and=&;:,@$!.json",
    "quote'double\"back`.json",
    "back\\slash.json",
    "star*question?[class]{a,b}.json",
    "#hash?query=1.json",
    unicodedata.normalize("NFC", "Zürich-é.json"),
    unicodedata.normalize("NFD", "Zürich-é.json"),
    "日本語/مرحبا/🦆.json",
    "k=v/year=2026/x.json",
    "...json/x.json".replace("...", "x.."),
    "-rf.json",
    "~.json",
]
_LEFT = [
    "_hidden.json",
    ".hidden.json",
    "_delta_log/0.json",
    ".tmp/x.json",
    "half.json.tmp",
    "x.json.part",
    "x.crdownload",
]
_DEEP = "/".join(["d" * 99] * 9) + "/" + "n" * 100  # 1,000 signs below the root


def _row(number: int, name: str) -> bytes:
    return json.dumps({"id": number, "name": name}).encode()


def _read(lab: FilesLab) -> dict[str, list[Any]]:
    """Read twice; return each file's name below the root with the ids read of it."""
    flow = Flow()
    for _ in range(2):
        run(lab.connector(), flow, columns=["id", "name", "_metadata"])
    found: dict[str, list[Any]] = {}
    root = (lab.path or str(lab.inbox)) + "/"
    for row in flow.rows:
        path = row["_metadata"]["file_path"]
        assert path == root + row["name"], path
        assert row["_metadata"]["file_name"] == path.rpartition("/")[2]
        found.setdefault(row["name"], []).append(row["id"])
    return found


def test_local_names(tmp_path: Path) -> None:
    lab = FilesLab(tmp_path)
    wanted = [*_NAMES, _DEEP]
    for number, name in enumerate([*wanted, *_LEFT]):
        lab.write(name, _row(number, name))
    assert _read(lab) == {name: [number] for number, name in enumerate(wanted)}


def test_a_local_name_that_is_no_text(tmp_path: Path) -> None:
    lab, flow = FilesLab(tmp_path), Flow()
    lab.inbox.mkdir()
    raw = os.fsencode(str(lab.inbox)) + b"/\xff\xfe.json"
    Path(os.fsdecode(raw)).write_bytes(_row(1, "x"))
    for _ in range(2):
        run(lab.connector(), flow, columns=["id", "_metadata"])
    assert ids(flow) == [1]
    assert flow.rows[0]["_metadata"]["file_path"].endswith("/%FF%FE.json")


def test_links_that_go_round_or_nowhere(tmp_path: Path) -> None:
    lab, flow = FilesLab(tmp_path), Flow()
    lab.write("a/x.json", [{"id": 1}])
    (lab.inbox / "a" / "loop").symlink_to(lab.inbox)
    (lab.inbox / "self").symlink_to(lab.inbox / "self")
    (lab.inbox / "nowhere.json").symlink_to(lab.root / "gone")
    (lab.inbox / "again").symlink_to(lab.inbox / "a")
    outside = lab.root / "outside"
    outside.mkdir()
    (outside / "y.json").write_text('{"id": 2}')
    (lab.inbox / "linked").symlink_to(outside)
    (lab.inbox / "file.json").symlink_to(lab.root / "z.json")
    (lab.root / "z.json").write_text('{"id": 3}')
    os.mkfifo(lab.inbox / "pipe.json")
    for _ in range(2):
        run(lab.connector(), flow)
    assert sorted(ids(flow)) == [1, 2, 3]


def _put(store: ObjectStore, bucket: str, key: str, content: bytes) -> None:
    with contextlib.closing(store.client("s3")) as client:
        client.put_object(Bucket=bucket, Key=key, Body=content)


def _bucket_lab(root: Path, store: ObjectStore, bucket: str) -> FilesLab:
    options = {"storage_options": store.storage_options}
    return FilesLab(root, path=f"s3://{bucket}/in", ledger=TableLocation(str(root / "ledger")), options=options)


@pytest.mark.services
def test_keys_of_minio_or_s3(tmp_path: Path, s3_store: ObjectStore, bucket: str) -> None:
    wanted = [name for name in _NAMES if "\\" not in name]  # MinIO takes it for a slash
    for number, name in enumerate([*wanted, *_LEFT]):
        _put(s3_store, bucket, f"in/{name}", _row(number, name))
    assert _read(_bucket_lab(tmp_path, s3_store, bucket)) == {name: [number] for number, name in enumerate(wanted)}


@pytest.mark.services
def test_keys_that_are_no_paths(tmp_path: Path, moto: MotoServer) -> None:
    """S3 takes any key: `..` and empty parts too. The first are left alone like every name that begins with a dot."""
    bucket = "wax-keys-that-are-no-paths"
    moto.create_bucket(bucket)
    wanted = ["back\\slash.json", "/two//slashes.json", "k" * 1018 + ".jn"]
    assert len(f"in/{wanted[-1]}") == 1024
    left = ["../in/x.json", "a/../../x.json", "./x.json", "folder/"]
    for number, name in enumerate([*wanted, *left]):
        _put(moto, bucket, f"in/{name}", _row(number, name) if name != "folder/" else b"")
    assert _read(_bucket_lab(tmp_path, moto, bucket)) == {name: [number] for number, name in enumerate(wanted)}


@pytest.mark.services
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_path_with_a_strange_name_is_itself(tmp_path: Path, place: str, s3_store: ObjectStore, bucket: str) -> None:
    name = "a b+100%é"
    put: Callable[[str, bytes], None]
    if place == "local":
        lab = FilesLab(tmp_path, path=str(tmp_path / "in" / name))
        put = lab.write  # type: ignore[assignment]
    else:
        lab = _bucket_lab(tmp_path, s3_store, bucket)
        lab.path = f"s3://{bucket}/in/{name}"
        put = lambda key, content: _put(s3_store, bucket, f"in/{key}", content)  # noqa: E731
    put(f"{name}/x.json", b'{"id": 1}')
    put(f"{name}x/x.json", b'{"id": 2}')  # a longer name is another folder
    flow = Flow()
    run(lab.connector(), flow)
    assert ids(flow) == [1]
