"""Files to Delta: a Waxlake pipeline against DuckDB and delta-rs in a script that promises nothing; many small files; memory.

    python benchmarks/files_to_delta.py rows [--rows N] [--files N] [--rounds N]
    python benchmarks/files_to_delta.py small [--files N] [--rounds N]
    python benchmarks/files_to_delta.py memory [--gigabytes N]
    python benchmarks/files_to_delta.py idle [--counts N ...] [--rounds N]

``rows``: JSON rows in files. The script reads them with ``read_json`` and appends them with ``write_deltalake``, without a
ledger, positions, rescued data or counts. Both are whole processes, from start to exit, with the same columns declared; they
alternate, and medians are compared, of wall time and of CPU time (on a machine that does other things too, the latter tells
more). Each runs once before it counts, so that bytecode is there, as in an installed package. pyarrow imports pandas, where it
is installed (the extra ``demo`` brings it), as soon as Python values become Arrow's, in the pipeline and not in the script;
whether it is there is told. Goal: at most 1.5 times the script's wall time.

``small``: local files of 1 KB in one triggered run, listing and ledger included, in turns with a script that only reads and
parses them, which does about 70,000 files a second on a free machine. Goal: at least 20,000 files a second between the start
of the update and its end, so at most 3.5 times the script's time, whatever else the machine does; whole processes are told too.

``memory``: files are made while a continuous run reads and deletes them (``clean_source``), so that few are there at a time. Told
are the resident memory of the run as bytes pass, and its peak. Goal: flat.

``idle``: a triggered run with nothing new, for growing numbers of files that are listed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DDL = "id BIGINT, user STRING, amount DOUBLE, currency STRING, country STRING, ts TIMESTAMP, ok BOOLEAN"
DEFINITIONS = """
import waxlake as wl

@wl.table
def payments():
    return wl.read_files({inbox!r}, format="json", schema={ddl!r}{options})
"""
SCRIPT = """
import sys
import duckdb
from deltalake import write_deltalake

columns = {{"id": "BIGINT", "user": "VARCHAR", "amount": "DOUBLE", "currency": "VARCHAR", "country": "VARCHAR",
           "ts": "TIMESTAMPTZ", "ok": "BOOLEAN"}}
rows = duckdb.connect().sql(f"SELECT * FROM read_json('{inbox}/*.json', format='newline_delimited', columns={{columns}})")
write_deltalake(sys.argv[1], rows.to_arrow_reader(100_000), mode="append")
"""
READ_AND_PARSE = """
import os, sys, time
import pyarrow as pa, pyarrow.json

took = time.perf_counter(), time.process_time()
paths = [entry.path for folder in os.scandir({inbox!r}) for entry in os.scandir(folder.path)]
rows = 0
for first in range(0, len(paths), 4096):
    texts = []
    for path in paths[first : first + 4096]:
        handle = os.open(path, os.O_RDONLY)
        texts.append(os.read(handle, 1 << 16))
        os.close(handle)
    rows += len(pyarrow.json.read_json(pa.BufferReader(b"".join(texts))))
print(rows, time.perf_counter() - took[0], time.process_time() - took[1])
"""


def line(i: int) -> str:
    """Return one event of about 130 bytes."""
    return (
        f'{{"id":{i},"user":"user-{i % 9973:05d}","amount":{(i * 37 % 100_000) / 100},"currency":"EUR",'
        f'"country":"{["DE", "FR", "IT", "ES"][i % 4]}","ts":"2026-05-{1 + i % 28:02d}T12:{i % 60:02d}:56.789Z","ok":true}}\n'
    )


def project(folder: Path, inbox: Path, **options: object) -> None:
    """Write a pipeline of one table."""
    (folder / "flows").mkdir(parents=True)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    (folder / "flows" / "payments.py").write_text(DEFINITIONS.format(inbox=str(inbox), ddl=DDL, options=given))
    (folder / "waxlake.yml").write_text("name: bench\nstorage: ./lake\n")


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Run a process to its end; return its wall time, its CPU time and its output."""
    started_s, cpu_s = time.perf_counter(), children_cpu_s()
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started_s, children_cpu_s() - cpu_s, done.stdout


def children_cpu_s() -> float:
    """Return the CPU time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stored_rows(path: Path) -> int:
    """Return the rows of a Delta table."""
    from deltalake import DeltaTable

    return DeltaTable(str(path)).to_pyarrow_dataset().count_rows()


def spread(seconds: list[float]) -> str:
    """Return the median and the range, for people."""
    return f"median {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def rows(arguments: argparse.Namespace, root: Path) -> None:
    """Compare with the script."""
    inbox = root / "inbox"
    inbox.mkdir()
    each = arguments.rows // arguments.files
    for number in range(arguments.files):
        text = "".join(line(number * each + i) for i in range(each))
        (inbox / f"{number:05d}.json").write_text(text)
    age(inbox)
    has_pandas = importlib.util.find_spec("pandas") is not None
    size = f"{each * arguments.files:,} rows in {arguments.files:,} files of {len(text) / 1e6:.2f} MB"
    print(f"{size}, {'with' if has_pandas else 'without'} pandas installed")
    seconds: dict[str, list[float]] = {"script": [], "waxlake": []}
    cpu: dict[str, list[float]] = {"script": [], "waxlake": []}
    for round_number in range(arguments.rounds + 1):
        folder = root / f"round{round_number}"
        project(folder, inbox)
        (folder / "script.py").write_text(SCRIPT.format(inbox=inbox))
        commands = {
            "script": [sys.executable, "script.py", "script_table"],
            "waxlake": [sys.executable, "-m", "waxlake", "run"],
        }
        for which, command in commands.items():
            taken_s, cpu_s, _ = timed(command, folder)
            if round_number:
                seconds[which].append(taken_s)
                cpu[which].append(cpu_s)
        counts = {stored_rows(folder / "script_table"), stored_rows(folder / "lake/tables/default/payments")}
        assert counts == {each * arguments.files}, counts
    for which, taken in seconds.items():
        speed = each * arguments.files / statistics.median(taken)
        print(f"{which:8} {spread(taken)}, {speed:,.0f} rows/s, CPU {spread(cpu[which])}")
    ratios = [statistics.median(of["waxlake"]) / statistics.median(of["script"]) for of in (seconds, cpu)]
    print(f"ratio    {ratios[0]:.2f} x the script's wall time, {ratios[1]:.2f} x its CPU time")


def small(arguments: argparse.Namespace, root: Path) -> None:
    """Read many small files in one run."""
    inbox = root / "inbox"
    text = "".join(line(i) for i in range(8))[:1100]
    text = text[: text.rfind("\n") + 1]
    for number in range(arguments.files):
        if number % 1000 == 0:
            (inbox / f"{number // 1000:04d}").mkdir(parents=True)
        (inbox / f"{number // 1000:04d}" / f"{number:07d}.json").write_text(text)
    time.sleep(1.5)  # they have settled
    print(f"{arguments.files:,} files of {len(text)} bytes")
    whole, updates, cpu, alone, alone_cpu = [], [], [], [], []
    (root / "script.py").write_text(READ_AND_PARSE.format(inbox=str(inbox)))
    for round_number in range(arguments.rounds + 1):
        folder = root / f"round{round_number}"
        project(folder, inbox)
        seconds, cpu_s, out = timed([sys.executable, "-m", "waxlake", "run", "--json"], folder)
        events = [json.loads(event) for event in out.splitlines() if event.startswith("{")]
        ends = [e["details"]["update_progress"] for e in events if e["event_type"] == "update_progress"]
        _, alone_s, alone_cpu_s = timed([sys.executable, "script.py"], root)[2].split()
        if round_number:
            alone.append(float(alone_s))
            alone_cpu.append(float(alone_cpu_s))
            whole.append(seconds)
            cpu.append(cpu_s)
            updates.append(ends[-1]["duration_s"])
        assert stored_rows(folder / "lake/tables/default/payments") == arguments.files * text.count("\n")
    print(f"process  {spread(whole)}, {arguments.files / statistics.median(whole):,.0f} files/s")
    print(f"update   {spread(updates)}, {arguments.files / statistics.median(updates):,.0f} files/s")
    print(
        f"script   {spread(alone)}, {arguments.files / statistics.median(alone):,.0f} files/s, CPU {spread(alone_cpu)}"
    )
    print(
        f"ratio    {statistics.median(updates) / statistics.median(alone):.2f} x the script's wall time for the update"
    )
    print(
        f"CPU      {spread(cpu)}, {1e6 * statistics.median(cpu) / arguments.files:.0f} us a file, start of the process included"
    )


def idle(arguments: argparse.Namespace, root: Path) -> None:
    """Run with nothing new, over more and more files."""
    inbox, folder, there = root / "inbox", root / "project", 0
    project(folder, inbox)
    for count in arguments.counts:
        for number in range(there, count):
            if number % 1000 == 0:
                (inbox / f"{number // 1000:04d}").mkdir(parents=True)
            (inbox / f"{number // 1000:04d}" / f"{number:07d}.json").write_text('{"id":1}\n')
        there = count
        time.sleep(1.5)
        command = [sys.executable, "-m", "waxlake", "run"]
        timed(command, folder)
        print(f"{count:10,} files, nothing new: {spread([timed(command, folder)[0] for _ in range(arguments.rounds)])}")


def memory(arguments: argparse.Namespace, root: Path) -> None:
    """Let bytes pass through a folder that holds little at a time, and watch the resident memory."""
    inbox, folder = root / "inbox", root / "project"
    inbox.mkdir()
    project(
        folder,
        inbox,
        settle_s=0,
        poll_interval_s=0.2,
        clean_source="DELETE",
        clean_source_retention="0s",
        clean_source_allow_short_retention=True,
    )
    text = "".join(line(i) for i in range(120_000))
    total, landed, number = int(arguments.gigabytes * 1e9), 0, 0
    run = subprocess.Popen(
        [sys.executable, "-m", "waxlake", "run", "--continuous"], cwd=folder, stdout=subprocess.DEVNULL
    )
    samples: list[int] = []
    started_s = told_s = time.monotonic()
    try:
        while landed < total or any(inbox.iterdir()):
            if run.poll() is not None:
                raise SystemExit(f"the run ended with {run.returncode}")
            while landed < total and sum(1 for _ in os.scandir(inbox)) < 32:
                hidden = inbox / f".{number}"
                hidden.write_text(text)
                hidden.rename(inbox / f"{number:06d}.json")
                landed, number = landed + len(text), number + 1
            samples.append(resident_bytes(run.pid))
            if time.monotonic() - told_s > 15:
                told_s = time.monotonic()
                print(f"{landed / 1e9:6.2f} GB landed, {samples[-1] / 1e6:,.0f} MB resident", flush=True)
            time.sleep(0.2)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait()
    took_s = time.monotonic() - started_s
    third = len(samples) // 3 or 1
    parts = [max(samples[i : i + third]) / 1e6 for i in (0, third, 2 * third) if samples[i : i + third]]
    print(f"{landed / 1e9:.2f} GB in {number} files, {took_s:.0f} s, {landed / took_s / 1e6:.0f} MB/s")
    print(f"peak resident memory by thirds of the time: {', '.join(f'{peak:,.0f}' for peak in parts)} MB")
    print(f"peak of any process started: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:,.0f} MB")
    assert stored_rows(folder / "lake/tables/default/payments") == number * 120_000


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as status:
        return int(status.read().split()[1]) * resource.getpagesize()


def age(folder: Path) -> None:
    """Make files look as if they had been there for a while."""
    settled_s = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (settled_s, settled_s))


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rows", "small", "memory", "idle"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=10)
    arguments = parser.parse_args()
    arguments.files = arguments.files or {"rows": 100, "small": 100_000}.get(arguments.what, 0)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as root:
        {"rows": rows, "small": small, "memory": memory, "idle": idle}[arguments.what](arguments, Path(root))


if __name__ == "__main__":
    main()
