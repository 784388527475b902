"""A soak: thousands of small commits to one table, one after the other, with maintenance on. Do they stay cheap and small?

Reports milliseconds a commit (of wall and of CPU time), resident memory, files that the table names and files on disk, for each
tenth of the run, and the ratio of the last tenth to the first. ``--commits`` and ``--rows`` make it smaller or longer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from sinks.delta import DeltaSink, DeltaTarget, FlushPolicy
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation

_PROPERTIES = {
    "waxlake.vacuum.interval": "interval 30 seconds",
    "delta.deletedFileRetentionDuration": "interval 20 seconds",
    "delta.logRetentionDuration": "interval 20 seconds",
}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def run(folder: Path, commits: int, rows: int) -> None:
    schema = pa.schema([("id", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
    location = TableLocation(str(folder / "t"), name="t")
    location.create(schema, properties=_PROPERTIES)
    sink = DeltaSink(target=DeltaTarget(location=location), flush=FlushPolicy(max_rows=1))
    writer = sink.build_part("write", "table", None)
    tenths: list[float] = []
    cpus: list[float] = []
    print(
        f"{'commits':>8} {'ms a commit':>12} {'median ms':>10} {'CPU ms':>7} "
        f"{'MB':>6} {'files':>6} {'on disk':>8} {'log entries':>12}"
    )
    for tenth in range(10):
        took: list[float] = []
        cpu_s = time.process_time()
        for number in range(tenth * commits // 10, (tenth + 1) * commits // 10):
            ids = pa.array(range(number * rows, (number + 1) * rows), pa.int64())
            table = pa.table([ids, pa.repeat("x" * 20, rows), ids.cast(pa.float64())], schema=schema)
            started_s = time.perf_counter()
            batch = MicroBatch(table=table, source="s", partition="p", start=number, end=number + 1)
            writer.write_batch([batch])
            took.append((time.perf_counter() - started_s) * 1000)
        tenths.append(sum(took) / len(took))
        cpus.append((time.process_time() - cpu_s) * 1000 / len(took))
        on_disk = sum(1 for _ in (folder / "t").glob("*.parquet"))
        entries = sum(1 for _ in (folder / "t" / "_delta_log").glob("*.json"))
        print(
            f"{(tenth + 1) * commits // 10:8,} {tenths[-1]:12.1f} {statistics.median(took):10.1f} {cpus[-1]:7.1f} "
            f"{resident_mb():6.0f} "
            f"{len(location.open().file_uris()):6,} {on_disk:8,} {entries:12,}",
            flush=True,
        )
    writer.close()
    assert location.open().to_pyarrow_table().num_rows == commits * rows
    print(
        f"last tenth / first tenth: {tenths[-1] / tenths[0]:.2f}, of CPU {cpus[-1] / cpus[0]:.2f} (maintenance included)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commits", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=100)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), asked.commits, asked.rows)


if __name__ == "__main__":
    main()
