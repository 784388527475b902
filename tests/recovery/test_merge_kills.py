"""A merge is killed with SIGKILL at every point it passes: the table and its state come out as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.property.cdc_model import LEFT, Change
from tests.property.test_auto_cdc import SOURCE_FLOW, Target, Variant
from tests.recovery import spread_writer
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError
from waxlake.stream.failpoints import MERGE_FAILPOINTS

pytestmark = [pytest.mark.kills, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]


def changes(random_: random.Random, count: int) -> list[Change]:
    """Return changes of few keys: each batch deletes some and has some that are late."""
    made = []
    for _ in range(count):
        key, at = (random_.randrange(6), "m"), random_.randrange(40)
        if random_.random() < 0.3:
            made.append(Change(key, at, "delete"))
        else:
            values = (random_.choice([LEFT, 1, 2, 3]), random_.choice([LEFT, "p", "q"]))
            made.append(Change(key, at, "upsert", values))
    return made


@pytest.mark.parametrize("scd_type", [1, 2])
def test_every_failpoint_of_a_merge(tmp_path: Path, scd_type: int) -> None:
    variant = Variant(scd_type=scd_type, partial="null", tracked=("a",), is_struct=False)
    target = Target(tmp_path, variant)
    random_ = random.Random(scd_type)
    batches = [changes(random_, 12) for _ in range(9)]
    plan = json.dumps(
        {"variant": asdict(variant), "batches": [[[c.key, c.at, c.kind, c.values] for c in b] for b in batches]}
    )
    points = [f"{name}:{scd_type}" for name in (*MERGE_FAILPOINTS, "files-written", "committed")]
    for point in [*points, ""]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "WAXLAKE_FAILPOINT": point}
        done = subprocess.run(
            [sys.executable, "-m", "tests.recovery.cdc_writer", target.location.uri, plan],
            env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if point else 0), (point, done.stderr[-2000:])
        handle = target.location.open()
        merged = handle.transaction_version(SOURCE_FLOW) or 0
        target.check([change for batch in batches[:merged] for change in batch])
    assert merged == len(batches)
    commits = [entry["waxlake"]["flows"]["flow"]["sources"] for entry in handle.history() if "waxlake" in entry]
    assert sorted(source["start"] for sources in commits for source in sources) == list(range(len(batches)))


def test_files_that_two_threads_rewrite(tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "t"), name="t")
    filling = spread_writer.writer(table.uri)
    for number in range(spread_writer.FILES):
        spread_writer.send(filling, number)
    filling.close()

    def rows() -> dict[int, str]:
        return {row["id"]: row["text"] for row in table.open().to_pyarrow_table().to_pylist()}

    files = sorted((tmp_path / "t").glob("*.parquet"))
    assert len(files) == spread_writer.FILES
    for point in ("file-rewritten:1", f"file-rewritten:{spread_writer.FILES}"):
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "WAXLAKE_FAILPOINT": point}
        done = subprocess.run(
            [sys.executable, "-m", "tests.recovery.spread_writer", table.uri],
            env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert rows() == spread_writer.expected(spread_writer.FILES)
    for file in (files[0], files[-1]):  # what one thread meets stops both
        file.rename(tmp_path / "away")
        merging = spread_writer.writer(table.uri)
        with pytest.raises(TerminalError) as refused:
            spread_writer.send(merging, spread_writer.FILES)
        assert refused.value.code == "TABLE_NOT_FOUND"
        merging.close()
        (tmp_path / "away").rename(file)
        assert rows() == spread_writer.expected(spread_writer.FILES)
    merging = spread_writer.writer(table.uri)
    spread_writer.send(merging, spread_writer.FILES)
    merging.close()
    assert rows() == spread_writer.expected(spread_writer.FILES + 1)
    assert len(table.open().file_uris()) == 2  # one of each thread, new rows with the first
