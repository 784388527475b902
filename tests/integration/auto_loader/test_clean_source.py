"""Clean source: files are deleted or moved once every table of the pipeline holds them (AL-14, AL-15, AL-16)."""

from __future__ import annotations

import os
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from connectors.files import FilesSettings
from tests.integration.auto_loader.pipelines import FilesPipeline, lines
from tests.services.s3 import ObjectStore
from waxlake.stream.errors import DefinitionError, UsageError

_DELETE: dict[str, Any] = {
    "clean_source": "DELETE",
    "clean_source_retention": "0s",
    "clean_source_allow_short_retention": True,
}
_MOVE: dict[str, Any] = {
    "clean_source": "MOVE",
    "clean_source_retention": 0,
    "clean_source_move_destination": "archive",
}


@pytest.fixture
def pipeline(tmp_path: Path) -> FilesPipeline:
    return FilesPipeline(tmp_path / "p")


def _cleaned(pipeline: FilesPipeline, table: str = "t") -> dict[str, str | None]:
    return {Path(row["path"]).name: row["cleaned"] for row in pipeline.states(table)}


def test_al_14_off_touches_nothing(pipeline: FilesPipeline) -> None:
    pipeline.define("t")
    pipeline.land("a.json", 1)
    pipeline.run()
    assert pipeline.names() == ["a.json"]
    assert _cleaned(pipeline) == {"a.json": None}


def test_al_14_delete_and_what_comes_after(pipeline: FilesPipeline) -> None:
    pipeline.define("t", **_DELETE)
    pipeline.land("a.json", 1, age_s=90)
    pipeline.land("sub/b c%20ü.json", 2, age_s=80)
    pipeline.run()
    assert pipeline.names() == []
    assert _cleaned(pipeline) == {"a.json": "deleted", "b c%20ü.json": "deleted"}
    assert all(row["state"] == "committed" and row["cleaned_at"] >= row["commit_time"] for row in pipeline.states())
    pipeline.land("c.json", 3)
    pipeline.run()
    pipeline.run()
    assert (pipeline.names(), pipeline.ids()) == ([], [1, 2, 3])
    pipeline.define("t", "late", **_DELETE)  # a table that comes later gets what is still there
    pipeline.land("d.json", 4)
    pipeline.run()
    assert (pipeline.ids("late"), pipeline.ids()) == ([4], [1, 2, 3, 4])
    assert [row["state"] for row in pipeline.states("late")] == ["missing"] * 3 + ["committed"]


def test_al_14_runs_when_nothing_is_new_and_with_the_setting_of_now(pipeline: FilesPipeline) -> None:
    pipeline.define("t")
    pipeline.land("a.json", 1)
    pipeline.run()
    pipeline.define("t", **_DELETE)
    pipeline.run()
    assert pipeline.names() == []
    pipeline.land("b.json", 2)
    pipeline.define("t")
    pipeline.run()
    assert pipeline.names() == ["b.json"]


def test_al_14_a_file_is_touched_only_when_every_flow_has_it(pipeline: FilesPipeline) -> None:
    """Two tables of one source, and a third that reads the same path in another way, which fails at first."""
    pipeline.write_definitions(
        f"t = wl.read_files('inbox', format='json', schema='id BIGINT', **{_DELETE})",
        "u = wl.read_files('inbox/*.json', format='json', schema='id BIGINT').map_batches(later)",
    )
    definitions = pipeline.folder / "flows" / "definitions.py"
    later = (
        "import os\ndef later(rows):\n    if len(rows) and not os.path.exists('{}'):\n"
        "        raise ValueError('not yet')\n    return rows\n"
    )
    definitions.write_text(later.format(pipeline.folder / "ready") + definitions.read_text())
    for name in ("a.json", "b.json"):
        pipeline.land(name, 1)
    pipeline.land("sub.csv", 1)  # nobody but the first reads it
    with pytest.raises(Exception, match="not yet"):
        pipeline.run()
    assert pipeline.ids() == [1, 1, 1]
    assert {"a.json", "b.json"} <= set(pipeline.names())
    (pipeline.folder / "ready").touch()
    pipeline.run()
    pipeline.run()
    assert (pipeline.names(), pipeline.ids("u")) == ([], [1, 1])


def test_al_14_content_that_changed_and_files_left_out_stay(pipeline: FilesPipeline) -> None:
    pipeline.define("t", ignore_corrupt_files=True)
    changed = pipeline.land("a.json", 1, age_s=90)
    pipeline.land("b.json.gz", content=b"no gzip", age_s=80)
    pipeline.land("c.json", 3, age_s=70)
    pipeline.run()
    changed.write_bytes(lines(7, 8, 9))
    pipeline.define("t", ignore_corrupt_files=True, **_DELETE)
    pipeline.run()
    assert pipeline.names() == ["a.json", "b.json.gz"]
    assert _cleaned(pipeline) == {"a.json": "changed", "b.json.gz": None, "c.json": "deleted"}
    assert changed.read_bytes() == lines(7, 8, 9)


def test_al_14_what_cannot_be_removed_is_noted_and_tried_again(
    pipeline: FilesPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.define("t", **_DELETE)
    pipeline.land("a.json", 1, age_s=90)
    pipeline.land("b.json", 2, age_s=80)

    def refuse(path: str, real: Any = os.unlink) -> None:
        if str(path).endswith("a.json"):
            raise PermissionError(13, "Permission denied", path)
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr("connectors.files.removal.os.unlink", refuse)
        assert pipeline.run().state == "COMPLETED"
    assert pipeline.names() == ["a.json"]
    assert _cleaned(pipeline) == {"a.json": "clean_failed", "b.json": "deleted"}
    assert "Permission denied" in pipeline.states()[0]["error"]
    assert ["Permission denied" in text for text in pipeline.warnings()] == [True]
    pipeline.run()
    assert _cleaned(pipeline) == {"a.json": "deleted", "b.json": "deleted"}
    assert pipeline.names() == []


def test_al_15_retention_counts_from_the_commit(pipeline: FilesPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.define("t", clean_source="DELETE", clean_source_retention="8 days")
    pipeline.land("a.json", 1, age_s=90 * 86400)
    pipeline.run()
    pipeline.run()
    assert pipeline.names() == ["a.json"]
    from waxlake.stream import clock

    now = clock.utc_now
    for days, names in ((7.99, ["a.json"]), (8.01, [])):
        monkeypatch.setattr("connectors.files.cleaning.utc_now", lambda days=days: now() + timedelta(days=days))
        pipeline.run()
        assert pipeline.names() == names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clean_source": "DELETE", "clean_source_retention": "7 days"}, "more than 7 days"),
        ({"clean_source": "DELETE", "clean_source_retention": "soon"}, "not a duration"),
        ({"clean_source": "MOVE"}, "needs clean_source_move_destination"),
        ({"clean_source_move_destination": "/x"}, "needs clean_source='MOVE'"),
        ({"clean_sorce": "OFF"}, "Did you mean 'clean_source'"),
    ],
)
def test_al_15_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FilesSettings.of("/in", format="json", **options)


@pytest.mark.parametrize(
    ("options", "retention_s"),
    [
        ({}, 30 * 86400),
        ({"clean_source": "delete", "clean_source_retention": "interval 8 days"}, 8 * 86400),
        (_MOVE, 0),
        (_DELETE, 0),
    ],
)
def test_al_15_options_that_can_be(options: dict[str, Any], retention_s: float) -> None:
    assert FilesSettings.of("/in", format="json", **options).clean_source_retention == retention_s


def test_al_16_move_keeps_the_path_below(pipeline: FilesPipeline) -> None:
    pipeline.define("t", **_MOVE)
    pipeline.land("a.json", 1, age_s=90)
    pipeline.land("x/y/b.json", 2, age_s=80)
    pipeline.run()
    assert pipeline.names() == []
    assert pipeline.names("archive") == ["a.json", "x/y/b.json"]
    assert (pipeline.folder / "archive" / "a.json").read_bytes() == lines(1)
    assert pipeline.states()[1]["moved_to"] == str(pipeline.folder / "archive" / "x" / "y" / "b.json")
    assert set(_cleaned(pipeline).values()) == {"moved"}


def test_al_16_move_overwrites_nothing(pipeline: FilesPipeline) -> None:
    pipeline.define("t", **_MOVE)
    archive = pipeline.folder / "archive"
    archive.mkdir()
    (archive / "a.json").write_bytes(b"precious")
    (archive / "b.json").write_bytes(lines(2))  # the copy that a crash left behind
    pipeline.land("a.json", 1, age_s=90)
    pipeline.land("b.json", 2, age_s=80)
    pipeline.run()
    assert pipeline.names() == []
    assert pipeline.names("archive") == ["a.json", "a.json~0", "b.json"]
    assert (archive / "a.json").read_bytes() == b"precious"
    assert (archive / "a.json~0").read_bytes() == lines(1)


def test_al_16_move_where_a_file_cannot_have_two_names(
    pipeline: FilesPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("connectors.files.removal.os.link", refuse)
    test_al_16_move_keeps_the_path_below(pipeline)


@pytest.mark.parametrize("destination", ["inbox", "inbox/done", "./inbox/../inbox/x", "link/done"])
def test_al_16_a_destination_inside_the_source_is_refused(pipeline: FilesPipeline, destination: str) -> None:
    pipeline.define("t", **{**_MOVE, "clean_source_move_destination": destination})
    (pipeline.folder / "link").symlink_to(pipeline.folder / "inbox")
    with pytest.raises(UsageError, match="inside the path that is read"):
        pipeline.run()


@pytest.mark.parametrize("path", ["inbox", "inbox/2026-*/*.json", "./inbox/sub"])
def test_al_14_files_that_a_view_reads_stay(pipeline: FilesPipeline, path: str) -> None:
    pipeline.define("t", **_DELETE)
    definitions = pipeline.folder / "flows" / "definitions.py"
    view = f"\n@wl.materialized_view\ndef v():\n    return wl.read_files({path!r}, format='json', schema='id BIGINT')\n"
    definitions.write_text(definitions.read_text() + view)
    pipeline.land("a.json", 1)
    with pytest.raises(DefinitionError, match="CLEAN_SOURCE_READ_BY_VIEW"):
        pipeline.run()
    assert pipeline.names() == ["a.json"]


def test_al_14_a_plain_dataflow_cannot_know_what_tables_hold(tmp_path: Path) -> None:
    from connectors.files import FilesSource

    with pytest.raises(UsageError, match="clean_source"):
        FilesSource(str(tmp_path), format="json", ledger=str(tmp_path / "ledger"), **_DELETE)


@pytest.mark.parametrize("target", ["same bucket", "other bucket", "local"])
def test_al_16_move_on_s3(pipeline: FilesPipeline, s3_store: ObjectStore, bucket: str, target: str) -> None:
    other = f"wax-{uuid.uuid4().hex[:12]}"
    s3_store.create_bucket(other)
    destination = {
        "same bucket": f"s3://{bucket}/archive",
        "other bucket": f"s3://{other}/archive",
        "local": str(pipeline.folder / "archive"),
    }[target]
    pipeline.storage_options = s3_store.storage_options
    pipeline.storage = f"s3://{bucket}/lake"
    pipeline.define("t", source=f"s3://{bucket}/in", **{**_MOVE, "clean_source_move_destination": destination})
    from connectors.files.remote_store import RemoteStore
    from waxlake.stream.settings import StorageOptions

    files = RemoteStore(f"s3://{bucket}/in", StorageOptions(s3_store.storage_options)).filesystem
    names = ["a.json", "x/b ü%20.json"]
    for number, name in enumerate(names):
        files.pipe_file(f"s3://{bucket}/in/{name}", lines(number))
    pipeline.run()
    assert files.find(f"s3://{bucket}/in") == []
    found = fsspec.filesystem("file") if target == "local" else files
    assert [found.cat_file(f"{destination}/{name}") for name in names] == [lines(0), lines(1)]
    assert [row["moved_to"] for row in pipeline.states()] == [f"{destination}/{name}" for name in names]
    files.pipe_file(f"s3://{bucket}/in/c.json", lines(2))
    pipeline.define("t", source=f"s3://{bucket}/in", **_DELETE)
    pipeline.run()
    assert (files.find(f"s3://{bucket}/in"), pipeline.ids()) == ([], [0, 1, 2])
