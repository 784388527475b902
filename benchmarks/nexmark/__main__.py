"""Run the queries of Nexmark, compare each with DuckDB, and print a table.

    python -m benchmarks.nexmark [--events 1000000] [--queries q1,q5] [--kills 10] [--format parquet|json] [--folder F]

Each query is a pipeline of its own, a real process that reads all events, ends, and is timed from its start to its end. The rate
per CPU second leaves out what an update takes that has nothing to read; it says something on a busy machine too. With
``--kills N`` the pipeline is run once more from the beginning: events land piece by piece, the update that reads one is killed
with SIGKILL at a random moment, N times, and the tables are compared again.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb

from benchmarks.nexmark.generator import Generator, land
from benchmarks.nexmark.project import Project, UpdateFailed, kill_at_random
from benchmarks.nexmark.queries import QUERIES, difference, open_events

HEAD = (
    *("query", "form", "events", "seconds", "events/s", "CPU seconds", "events per CPU second"),
    *("rows", "equal", "after kills"),
)


def main() -> int:
    """Return 0 if every query equals its reference."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="nexmark-") as name:
        folder = Path(options.folder or name)
        part = max(1_000, min(50_000, options.events // (3 * options.kills + 2)))
        made = Generator(events=options.events, rate=options.rate, part=part, seed=options.seed)
        parts = made.write(folder / "events", options.format)
        reference = open_events(folder / "events", options.format)
        print(f"{options.events:,} events, {os.cpu_count()} processors, Python {platform.python_version()}, "
              f"load {os.getloadavg()[0]:.1f} of others when it began")  # fmt: skip
        start_cpu_s = _started(folder, options.format)
        print(f"an update of query 0 that has nothing to read: {start_cpu_s:.1f} CPU seconds\n")
        print(_line(HEAD), _line(["---"] * len(HEAD)), sep="\n", flush=True)
        is_equal = True
        for query in options.queries:
            cells, is_right = _measured(query, folder, parts, reference, options, start_cpu_s=start_cpu_s)
            is_equal &= is_right
            print(_line(cells), flush=True)
    return 0 if is_equal else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--rate", type=int, default=10_000, help="events a second of event time; windows take ten seconds"
    )
    parser.add_argument("--queries", type=lambda text: text.split(","), default=list(QUERIES))
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--format", choices=("parquet", "json"), default="parquet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="keep events and lakes here")
    options = parser.parse_args()
    unknown = [name for name in options.queries if name not in QUERIES]
    if unknown:
        parser.error(f"no query {', '.join(unknown)}: there are {', '.join(QUERIES)}")
    return options


def _measured(
    query: str,
    folder: Path,
    parts: Sequence[Sequence[Path]],
    reference: duckdb.DuckDBPyConnection,
    options: argparse.Namespace,
    *,
    start_cpu_s: float,
) -> tuple[list[str], bool]:
    """Run a query; return its line of the table, and whether it was equal each time."""
    rule = QUERIES[query]
    events = sum(reference.table(kind).shape[0] for kind in rule.reads)
    try:
        project = Project(folder / query, folder / "events", [query], options.format).write()
        seconds, cpu_s = _timed(project)
        rows, *wrong = difference(reference, query, project.lake)
        rates = [f"{events / seconds:,.0f}", f"{cpu_s:.1f}", f"{events / max(cpu_s - start_cpu_s, 0.1):,.0f}"]
        told = [f"{seconds:.1f}", *rates, f"{rows:,}", _verdict(wrong)]
        killed: list[int] = []
        if options.kills:
            project = Project(folder / f"{query}-killed", folder / f"{query}-events", [query], options.format).write()
            left = iter(parts)

            def further() -> bool:
                files = next(left, None)
                if files is not None:
                    land(files, folder / "events", project.data)
                return files is not None

            land([folder / "events" / "side_input" / f"00000.{options.format}"], folder / "events", project.data)
            kill_at_random(project, further, options.kills, options.seed)
            _, *killed = difference(reference, query, project.lake)
        told.append(f"{_verdict(killed)} ({options.kills})" if killed else "")
        return [query, rule.form, f"{events:,}", *told], not any(wrong) and not any(killed)
    except UpdateFailed as error:
        print(f"{query}: {error}", file=sys.stderr)
        return [query, rule.form, f"{events:,}", "failed"], False


def _started(folder: Path, form: str) -> float:
    """Return the CPU seconds of an update that has nothing to read."""
    (folder / "nothing" / "bid").mkdir(parents=True)
    project = Project(folder / "start", folder / "nothing", ["q0"], form).write()
    project.run()
    return _timed(project)[1]


def _timed(project: Project) -> tuple[float, float]:
    """Run an update; return its seconds, and those of its processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = project.run() or 0.0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _verdict(wrong: Sequence[int]) -> str:
    missing, extra = wrong
    return "yes" if not any(wrong) else f"NO: {missing:,} missing, {extra:,} too many"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
