"""What became of each file (the state function after AL-33), and files that cannot be read: recorded, left out, repaired."""

from __future__ import annotations

import gzip
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.integration.auto_loader.pipelines import FilesPipeline, lines
from waxlake.cli import app
from waxlake.pipeline.events import read_events
from waxlake.pipeline.lake import run_sql
from waxlake.pipeline.resolve import load_graph
from waxlake.stream.errors import SourceMoved, TerminalError, UsageError


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilesPipeline:
    monkeypatch.setattr("connectors.files.formats.json_lines._BLOCK_BYTES", 1 << 18)
    made = FilesPipeline(tmp_path / "p")
    made.define("t")
    return made


def _told(pipeline: FilesPipeline, *columns: str, table: str = "t") -> list[tuple[Any, ...]]:
    """Return name, state and other columns of each file."""
    return [(Path(row["path"]).name, row["state"], *(row[name] for name in columns)) for row in pipeline.states(table)]


def _truncated(count: int = 200_000) -> tuple[bytes, bytes]:
    """Return a compressed file of many blocks, and its first part."""
    whole = gzip.compress(lines(*range(1000, 1000 + count)), 1)
    return whole, whole[: len(whole) * 7 // 8]


def test_state_tvf_tells_of_every_file(pipeline: FilesPipeline) -> None:
    started_at = datetime.now(timezone.utc)
    assert pipeline.states() == []
    pipeline.land("a.json", 1, 2, age_s=90)
    pipeline.land("b.json", 3, "x", age_s=80)
    pipeline.run()
    pipeline.land("c.json", age_s=70, content=b"\n\n")
    pipeline.run()
    assert _told(pipeline, "number", "version", "rows", "rescued_rows", "error") == [
        ("a.json", "committed", 0, 1, 2, 0, None),
        ("b.json", "committed", 1, 1, 2, 1, None),
        ("c.json", "committed", 2, 2, 0, 0, None),
    ]
    for row in pipeline.states():
        assert started_at < row["discovered_at"] < row["commit_time"] < datetime.now(timezone.utc)
        assert row["size_bytes"] == Path(row["path"]).stat().st_size
    names = "SELECT number FROM {} WHERE state = 'committed' AND rows > 0 ORDER BY number"
    for call in ("files_state('t')", "cloud_files_state(TABLE(t))", 'files_state("t")', "FILES_STATE ( 't' )"):
        found = run_sql(load_graph(pipeline.spec), names.format(call))
        assert found.column("number").to_pylist() == [0, 1]
    joined = "SELECT count(*) AS n FROM t, files_state('t') f WHERE f.state = 'committed'"
    assert run_sql(load_graph(pipeline.spec), joined).column("n").to_pylist() == [4 * 3]


def test_state_tvf_of_a_table_without_files(pipeline: FilesPipeline) -> None:
    with pytest.raises(UsageError, match=r"no flow takes files into 'tt'. Did you mean 't'\? \[TABLE_WITHOUT_FILES\]"):
        pipeline.states("tt")


def test_state_tvf_on_the_command_line(pipeline: FilesPipeline) -> None:
    pipeline.land("a.json", 1)
    pipeline.run()
    words = ["files-state", "t", "--spec", str(pipeline.folder)]
    shown = CliRunner().invoke(app, words).output
    assert "a.json" in shown
    assert "(1 row)" in shown
    assert '"state": "committed"' in CliRunner().invoke(app, [*words, "--json"]).output
    assert CliRunner().invoke(app, [*words, "--state", "failed", "--json"]).output == ""


def test_state_tvf_is_told_for_each_table_that_reads_the_files(pipeline: FilesPipeline) -> None:
    pipeline.land("a.json", 1, 2)
    pipeline.run()
    pipeline.define("t", "u")
    pipeline.land("b.json", 3, age_s=30)
    assert _told(pipeline) == [("a.json", "committed")]
    assert _told(pipeline, table="u") == [("a.json", "pending")]
    pipeline.run()
    for table in ("t", "u"):
        assert _told(pipeline, "rows", table=table) == [("a.json", "committed", 2), ("b.json", "committed", 1)]


def test_state_tvf_survives_the_clean_up_of_logs(pipeline: FilesPipeline) -> None:
    for i in range(4):
        pipeline.land(f"{i}.json", *range(i + 1), age_s=90 - i)
        pipeline.run()
    before = pipeline.states()
    log = pipeline.folder / "lake" / "tables" / "default" / "t" / "_delta_log"
    table = load_graph(pipeline.spec).datasets["t"].location
    assert table is not None
    table.open().create_checkpoint()
    for entry in log.glob("*.json"):
        entry.unlink()
    assert pipeline.states() == before
    assert [row["rows"] for row in before] == [1, 2, 3, 4]


def test_state_tvf_of_a_table_made_anew_starts_anew(pipeline: FilesPipeline) -> None:
    pipeline.land("a.json", 1)
    pipeline.run()
    shutil.rmtree(pipeline.folder / "lake" / "tables" / "default" / "t")
    assert _told(pipeline, "rows", "commit_time") == [("a.json", "pending", None, None)]
    pipeline.run()
    assert _told(pipeline, "rows") == [("a.json", "committed", 1)]


def test_state_tvf_of_files_that_were_there_before(pipeline: FilesPipeline) -> None:
    pipeline.define("t", include_existing_files=False)
    pipeline.land("old.json", 1)
    pipeline.run()
    pipeline.land("new.json", 2, age_s=30)
    pipeline.run()
    assert _told(pipeline, "rows") == [("old.json", "skipped", None), ("new.json", "committed", 1)]
    assert pipeline.ids() == [2]


def test_many_small_files_in_one_commit_keep_their_counts(pipeline: FilesPipeline) -> None:
    counts = [i * 7 % 5 for i in range(300)]
    for i, count in enumerate(counts):
        pipeline.land(f"{i:04d}.json", *range(count), content=lines(*range(count)) or b"\n", age_s=1000 - i)
    pipeline.run()
    assert [row["rows"] for row in pipeline.states()] == counts
    assert {row["version"] for row in pipeline.states()} == {1}


# -- files that cannot be read -----------------------------------------------------------------------------------------


def test_a_corrupt_file_stops_its_flow_and_nothing_else(pipeline: FilesPipeline) -> None:
    whole, broken = _truncated()
    pipeline.write_definitions(
        "t = wl.read_files('inbox', format='json', schema='id BIGINT', max_rows_per_batch=20000)",
        "o = wl.read_files('other', format='json', schema='id BIGINT')",
    )
    (pipeline.folder / "other").mkdir()
    pipeline.land("../other/o.json", 5)
    pipeline.land("a.json", 1, 2, age_s=90)
    bad = pipeline.land("b.json.gz", content=broken, age_s=80)
    pipeline.land("c.json", 3, age_s=70)
    for _ in range(2):  # a failure that comes again is the same failure
        with pytest.raises(TerminalError, match=r"b\.json\.gz.*\[FILE_UNREADABLE\]"):
            pipeline.run()
    assert pipeline.ids("o") == [5]
    so_far = pipeline.rows().num_rows - 2
    assert 0 < so_far < 200_000
    states = pipeline.states()
    assert _told(pipeline, "rows") == [
        ("a.json", "committed", 2),
        ("b.json.gz", "failed", so_far),
        ("c.json", "pending", None),
    ]
    assert "FILE_UNREADABLE" in states[1]["error"]
    assert states[1]["commit_time"] is None
    errors = [e.error for e in read_events(pipeline.spec.events_location(), event_type="flow_progress") if e.error]
    assert all(error["code"] == "FILE_UNREADABLE" and str(bad) in error["message"] for error in errors)
    assert errors

    pipeline.land("b.json.gz", content=whole, age_s=5)  # repaired: what is stored of it stays, the rest follows
    pipeline.run()
    assert pipeline.ids() == [1, 2, 3, *range(1000, 201_000)]
    assert _told(pipeline, "rows", "error") == [
        ("a.json", "committed", 2, None),
        ("b.json.gz", "committed", 200_000, None),
        ("c.json", "committed", 1, None),
    ]


def test_a_repaired_file_with_other_rows_is_not_read_on(pipeline: FilesPipeline) -> None:
    _, broken = _truncated()
    pipeline.define("t", max_rows_per_batch=20_000)
    pipeline.land("b.json.gz", content=broken, age_s=80)
    with pytest.raises(TerminalError, match="FILE_UNREADABLE"):
        pipeline.run()
    stored = pipeline.ids()
    pipeline.land("b.json.gz", content=gzip.compress(lines(*range(5000, 300_000))), age_s=5)
    with pytest.raises(SourceMoved, match="FILE_CHANGED"):
        pipeline.run()
    assert pipeline.ids() == stored


def test_a_corrupt_file_is_left_out_and_counted_if_asked(pipeline: FilesPipeline) -> None:
    _, broken = _truncated()
    pipeline.define("t", ignore_corrupt_files=True, max_rows_per_batch=20_000)
    pipeline.land("a.json", 1, 2, age_s=90)
    bad = pipeline.land("b.json.gz", content=broken, age_s=80)
    pipeline.land("c.json.gz", content=b"no gzip at all", age_s=70)
    pipeline.land("d.json", 3, age_s=60)
    pipeline.run()
    told = _told(pipeline, "rows")
    assert [(name, state) for name, state, _ in told] == [
        ("a.json", "committed"),
        ("b.json.gz", "skipped"),
        ("c.json.gz", "skipped"),
        ("d.json", "committed"),
    ]
    assert sum(rows for *_, rows in told) == pipeline.rows().num_rows
    assert told[1][2] > 0
    assert all("FILE_UNREADABLE" in row["error"] for row in pipeline.states() if row["state"] == "skipped")
    losses = read_events(pipeline.spec.events_location(), event_type="data_loss")
    assert [e.details["data_loss"]["state"] for e in losses] == ["skipped", "skipped"]
    assert str(bad) in losses[0].message


def test_a_missing_file_stops_the_flow_or_is_left_out(pipeline: FilesPipeline) -> None:
    pipeline.land("a.json", 1, age_s=90)
    gone = pipeline.land("b.json", 2, age_s=80)
    pipeline.land("c.json", 3, age_s=70)
    load_graph(pipeline.spec)
    from waxlake.pipeline.checked import CheckedGraph

    graph = load_graph(pipeline.spec)
    CheckedGraph(graph).connector(graph.datasets["t"].flows[0].branches[0].read).inspect()  # numbered, not read
    gone.unlink()
    with pytest.raises(SourceMoved, match=r"b\.json.*ignore_missing_files.*\[FILE_GONE\]"):
        pipeline.run()
    assert _told(pipeline) == [("a.json", "committed"), ("b.json", "failed"), ("c.json", "pending")]
    pipeline.define("t", ignore_missing_files=True)
    pipeline.run()
    assert pipeline.ids() == [1, 3]
    assert _told(pipeline, "rows") == [("a.json", "committed", 1), ("b.json", "missing", 0), ("c.json", "committed", 1)]
