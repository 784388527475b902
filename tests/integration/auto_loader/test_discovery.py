"""Which files are found, when, and in which order: Auto Loader's options AL-07 to AL-12, AL-17 and AL-19."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from connectors.files.discovery.discover import LISTED
from connectors.files.ledger import Ledger
from tests.integration.files_lab import FilesLab, Flow, ids, run
from waxlake.stream.errors import TerminalError, UsageError, UserError


@pytest.fixture
def lab(tmp_path: Path) -> FilesLab:
    return FilesLab(tmp_path)


def _one(lab: FilesLab, name: str, number: int, age_s: float = 60) -> Path:
    return lab.write(name, [{"id": number}], age_s=age_s)


def _stored(lab: FilesLab, app: str) -> int | None:
    return lab.location.open().transaction_version(app)


def test_al_07_a_batch_holds_at_most_so_many_files(lab: FilesLab) -> None:
    for i in range(7):
        _one(lab, f"{i}.json", i, age_s=60 - i)
    flow = Flow()
    run(lab.connector(max_files_per_trigger=3), flow)
    assert [len(batch.table) for batch in flow.batches] == [3, 3, 1]
    assert ids(flow) == list(range(7))


def test_al_08_a_batch_holds_at_most_so_many_bytes_and_the_lower_limit_wins(lab: FilesLab) -> None:
    rows = [{"id": i, "name": "x" * 80} for i in range(100)]
    lab.write("big.json", rows)
    for limits, most in (({"max_bytes_per_trigger": "1k"}, 12), ({"max_bytes_per_trigger": "1m"}, 100)):
        flow = Flow()
        connector = lab.connector(**limits)
        run(connector, flow)
        assert ids(flow) == list(range(100))
        assert max(len(batch.table) for batch in flow.batches) <= most
    flow = Flow()
    run(lab.connector(max_bytes_per_trigger="1g", max_files_per_trigger=1), flow)
    assert ids(flow) == list(range(100))
    with pytest.raises(UsageError, match="expected a number of bytes"):
        lab.connector(max_bytes_per_trigger="ten")


def test_al_09_existing_files_are_left_out_once(lab: FilesLab) -> None:
    _one(lab, "old.json", 0)
    flow = Flow()
    run(lab.connector(include_existing_files=False), flow)
    _one(lab, "new.json", 1)
    run(lab.connector(include_existing_files=True), flow)  # looked at in the first run only
    assert ids(flow) == [1]


def test_al_10_a_changed_file_is_left_alone_or_read_as_a_new_one(lab: FilesLab, tmp_path: Path) -> None:
    other = FilesLab(tmp_path / "other", path=str(lab.inbox))
    off, append = Flow(), Flow()
    _one(lab, "a.json", 1)
    for _ in range(2):
        run(lab.connector(), off)
        run(other.connector(allow_overwrites=True), append)
    _one(lab, "a.json", 2, age_s=30)
    for _ in range(2):
        run(lab.connector(), off)
        run(other.connector(allow_overwrites="append"), append)
    assert (ids(off), ids(append)) == ([1], [1, 2])


def test_al_10_versions_that_nobody_read_are_left_out(lab: FilesLab) -> None:
    flow = Flow()
    connector = lab.connector(allow_overwrites="append")
    for i in range(4):  # four versions are numbered, one is left to be read
        _one(lab, "a.json", i, age_s=60 - i)
        connector.inspect()
    run(connector, flow)
    run(connector, flow)
    assert ids(flow) == [3]
    assert len({row["number"] for row in lab.ledger_rows()}) == 4


def test_al_10_a_version_that_nobody_listed_is_read_in_place_of_the_one_before(lab: FilesLab) -> None:
    flow = Flow()
    _one(lab, "a.json", 0)
    lab.connector(allow_overwrites="append").inspect()
    connector = lab.connector(allow_overwrites="append")
    state = connector.inspect()
    _one(lab, "a.json", 1, age_s=30)
    from tests.integration.files_lab import read
    from waxlake.stream.source import plan_partitions

    flow.position = 0
    read(connector, plan_partitions(state, [flow.stored], is_bounded=True), [flow])
    run(lab.connector(allow_overwrites="append"), flow)
    assert ids(flow) == [1]


def test_al_11_al_19_incremental_listing_goes_on_after_the_last_path(
    lab: FilesLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.files.ledger._RESUME_OVERLAP", 2)
    options: dict[str, Any] = {"use_incremental_listing": True, "backfill_interval": "1 hour"}
    for i in range(3):
        _one(lab, f"2026/{i}.json", i, age_s=60 - i)
    flow = Flow()
    run(lab.connector(**options), flow)
    listed_ms = _stored(lab, LISTED)
    assert listed_ms is not None
    _one(lab, "2025/late.json", 90)  # sorts before the two that are listed again
    _one(lab, "2026/1a.json", 91)  # sorts among them
    _one(lab, "2026/7.json", 3)
    run(lab.connector(**options), flow)
    assert ids(flow) == [0, 1, 2, 91, 3]
    assert _stored(lab, LISTED) == listed_ms
    connector = lab.connector(**options)
    connector._discovery._clock_s = lambda: time.time() + 3601
    run(connector, flow)
    assert ids(flow) == [0, 1, 2, 91, 3, 90]  # the full listing finds what came out of order
    assert (_stored(lab, LISTED) or 0) > listed_ms
    with pytest.raises(UsageError, match="backfill_interval needs"):
        lab.connector(backfill_interval="1 hour")


def test_al_12_old_files_are_neither_read_nor_remembered(lab: FilesLab) -> None:
    day_s = 86_400
    options = {"max_file_age": "10 days"}
    _one(lab, "ancient.json", 0, age_s=11 * day_s)
    for i in (1, 2):
        _one(lab, f"{i}.json", i, age_s=(10 - i) * day_s)
    flow = Flow()
    connector = lab.connector(**options)
    run(connector, flow)
    assert ids(flow) == [1, 2]
    ledger = Ledger(lab.location, connector._source)
    # two days later one is too old, but a table has not read it yet; then it has
    now_s = time.time() + 1.5 * day_s
    assert ledger.forget(10 * day_s, now_s, below=0) == 0
    assert ledger.forget(10 * day_s, now_s, below=2) == 1
    assert [row["path"].rpartition("/")[2] for row in lab.ledger_rows()] == ["2.json"]
    run(lab.connector(), flow)  # without the option: what was forgotten stays out
    _one(lab, "3.json", 3)
    run(lab.connector(**options), flow)
    assert ids(flow) == [1, 2, 3]
    state = lab.connector(**options).inspect()
    new = Flow()
    run(lab.connector(**options), new)
    assert ids(new) == [2, 3]
    assert state.begin == {"files": state.partitions["files"].low}
    with pytest.raises(UsageError, match="max_file_age"):
        lab.connector(max_file_age="1 hour")


def test_al_17_one_dialect_of_globs_and_it_is_strict(lab: FilesLab) -> None:
    for i, name in enumerate(
        ("a/x.json", "a/b/x.json", "c/x.json", "c/y.json", "[a]/x.json", "a*/x.json", "a/z-1.json")
    ):
        lab.write(name, [{"id": i, "name": name}])
    for glob, fitting in (
        ("*/x.json", {"a/x.json", "c/x.json", "[a]/x.json", "a*/x.json"}),
        ("**/x.json", {"a/x.json", "a/b/x.json", "c/x.json", "[a]/x.json", "a*/x.json"}),
        ("{a,c}/[xy].json", {"a/x.json", "c/x.json", "c/y.json"}),
        ("a[*]/*.json", {"a*/x.json"}),
        ("[[]a]/*", {"[a]/x.json"}),
        ("a/?-[!2].json", {"a/z-1.json"}),
        ("[a-b]", {"a/x.json", "a/b/x.json", "a/z-1.json"}),
    ):
        each = FilesLab(lab.root / str(abs(hash(glob))), path=f"{lab.inbox}/{glob}")
        flow = Flow()
        run(each.connector(use_strict_globber=True), flow)
        assert {row["name"] for row in flow.rows} == fitting, glob
    with pytest.raises(UsageError, match="GLOB_INVALID"):
        lab.connector(path_glob_filter="[z-a].json")
    with pytest.raises(UsageError, match="use_strict_globber"):
        lab.connector(use_strict_globber=False)


def test_files_modified_outside_of_the_bounds_are_left_out(lab: FilesLab) -> None:
    for i, modified_s in enumerate((1_700_000_000, 1_700_000_100, 1_700_000_200)):
        os.utime(_one(lab, f"{i}.json", i), (modified_s, modified_s))
    flow = Flow()
    run(lab.connector(modified_after="2023-11-14T22:13:20Z", modified_before="2023-11-14T22:16:40"), flow)
    assert ids(flow) == [1]
    for options in ({"modified_after": "soon"}, {"modified_after": "2026-01-02", "modified_before": "2026-01-01"}):
        with pytest.raises(UsageError):
            lab.connector(**options)


@pytest.mark.parametrize(
    ("ordering", "expected"), [("modification_time", [2, 1, 0, 3]), ("path", [0, 1, 2, 3])], ids=["time", "path"]
)
def test_files_found_together_are_read_in_a_defined_order(lab: FilesLab, ordering: str, expected: list[int]) -> None:
    for i in range(3):
        _one(lab, f"{'abc'[i]}.json", i, age_s=60 + i)
    flow = Flow()
    run(lab.connector(ordering=ordering), flow)
    _one(lab, "0.json", 3, age_s=600)  # found later, read later
    run(lab.connector(ordering=ordering), flow)
    assert ids(flow) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.txt", "in/b/1.json\r\n{root}/in/0.json\n\nin/gone.json\n"),
        ("m.csv", "size,path\n1,in/b/1.json\n2,{root}/in/0.json\n3,in/gone.json\n"),
        ("m.json", '{"files": ["in/b/1.json", {"path": "{root}/in/0.json"}, "in/gone.json"]}'),
        ("m.jsonl", '{"url": "in/b/1.json"}\n"{root}/in/0.json"\n"in/gone.json"\n'),
    ],
)
def test_a_manifest_names_the_files(lab: FilesLab, name: str, content: str, caplog: pytest.LogCaptureFixture) -> None:
    for i, path in enumerate(("0.json", "b/1.json", "2.json")):
        _one(lab, path, i, age_s=60 - i)
    manifest = lab.root / "manifests" / name
    manifest.parent.mkdir()
    manifest.write_text(content.replace("{root}", str(lab.root)))
    lab.path = str(lab.root)
    options = {"manifest": str(manifest.parent / "*")}
    flow = Flow()
    with caplog.at_level(logging.WARNING, "waxlake.files"):
        run(lab.connector(**options), flow)
    assert ids(flow) == [0, 1]
    assert "1 files of the manifest" in caplog.text
    assert "gone.json" in caplog.text
    _one(lab, "gone.json", 3)  # it comes after all, and a second manifest too
    (manifest.parent / "n.txt").write_text("in/2.json")
    run(lab.connector(**options), flow)
    run(lab.connector(**options), flow)
    assert sorted(ids(flow)) == [0, 1, 2, 3]


def test_a_manifest_that_cannot_be_right_is_refused(lab: FilesLab) -> None:
    _one(lab, "0.json", 0)
    manifest = lab.root / "m.json"
    for content, code in (
        ('{"no": 1}', "MANIFEST_UNREADABLE"),
        ("[1]", "MANIFEST_UNREADABLE"),
        ('["/etc/passwd"]', "MANIFEST_PATH_OUTSIDE"),
        ('["../x.json"]', "MANIFEST_PATH_OUTSIDE"),
    ):
        manifest.write_text(content)
        with pytest.raises(UserError, match=code):
            lab.connector(manifest=str(manifest)).inspect()


def test_ways_of_discovery_exclude_each_other(lab: FilesLab) -> None:
    for options in (
        {"use_notifications": True},
        {"queue_url": "http://x/q"},
        {"use_notifications": True, "notification_topic": "t"},
        {"use_notifications": True, "queue_url": "http://x/q", "manifest": "m"},
        {"use_incremental_listing": True, "manifest": "m"},
    ):
        with pytest.raises(UsageError, match="OPTION_CONFLICT"):
            lab.connector(**options)


def test_w_21_what_a_ledger_forgot_too_early_is_told(lab: FilesLab) -> None:
    """A table that has to go on below what the ledger remembers stops, and says what to do."""
    for i in (0, 1):
        _one(lab, f"{i}.json", i, age_s=86_400 * (5 - i))
    flow = Flow()
    connector = lab.connector()
    run(connector, flow, max_batches=0)
    Ledger(lab.location, connector._source).forget(86_400 * 4.5, time.time(), below=1)
    with pytest.raises(TerminalError, match="SOURCE_EXPIRED"):
        run(lab.connector(), flow)
