"""SCD type 1: 10,000 changes into tables of 1 and 10 million rows, MergeSink beside DeltaTable.merge on a copy of the table.

Three sets of keys: next to each other (few files), spread over all files, and new ones. Each side runs in a process of its
own, which reports its peak memory; both get the same changes. ``--rows`` and ``--repeat`` make it smaller or longer.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

CHANGES = 10_000


def rows(ids: pa.Array, sequence: int) -> pa.Table:
    texts = ids.cast(pa.string())
    return pa.table(
        {
            "id": ids,
            "name": pc.binary_join_element_wise("customer", texts, " "),
            "city": pc.binary_join_element_wise("city", pc.utf8_slice_codeunits(texts, 0, 3), " "),
            "amount": pc.multiply(ids.cast(pa.float64()), 1.25),
            "updated_at": pa.repeat(pa.scalar(sequence, pa.int64()), len(ids)),
        }
    )


def changed(kind: str, count: int, seed: int) -> pa.Table:
    random_ = random.Random(seed)
    if kind == "clustered":
        start = random_.randrange(0, count - CHANGES)
        ids = range(start, start + CHANGES)
    elif kind == "new":
        ids = range(count + seed * CHANGES, count + (seed + 1) * CHANGES)
    else:
        ids = sorted(random_.sample(range(count), CHANGES))
    return rows(pa.array(ids, pa.int64()), 1000 + seed)


def fill(path: str, count: int) -> None:
    """Fill the table through the sink itself: an initial load in the order of the keys."""
    writer = sink(path, max_rows=1_000_000)
    for number, start in enumerate(range(0, count, 250_000)):
        ids = pa.array(range(start, min(count, start + 250_000)), pa.int64())
        send(writer, rows(ids, 0), number)
    send(writer, rows(pa.array([], pa.int64()), 0), number + 1, is_last=True)


def sink(path: str, *, max_rows: int):
    from sinks.cdc import ChangeRules, MergeSink
    from sinks.delta import DeltaTarget, FlushPolicy
    from waxlake.stream.delta_table import TableLocation

    rules = ChangeRules(keys=("id",), sequence_by="updated_at")
    target = DeltaTarget(location=TableLocation(path, name="customers"))
    return MergeSink(target=target, flush=FlushPolicy(max_rows=max_rows), rules=rules).build_part("w", "table", None)


def send(writer, table: pa.Table, number: int, *, is_last: bool = False) -> None:
    from waxlake.stream.batch import MicroBatch

    end = number if is_last else number + 1
    batch = MicroBatch(
        table=table, source="s", partition="p", start=number, end=end, is_last=is_last, partition_count=1
    )
    writer.write_batch([batch])


def side_waxlake(path: str, count: int, kind: str, repeat: int) -> list[tuple[float, float]]:
    from waxlake.stream.delta_table import TableLocation
    from waxlake.stream.position import app_id

    writer = sink(path, max_rows=1)
    start = TableLocation(path).open().transaction_version(app_id("flow", "s", "p")) or 0
    return timed(repeat, lambda turn: changed(kind, count, turn), lambda t, changes: send(writer, changes, start + t))


def side_delta(path: str, count: int, kind: str, repeat: int) -> list[tuple[float, float]]:
    from deltalake import DeltaTable

    table = DeltaTable(path)

    def merge(_turn: int, changes: pa.Table) -> None:
        merging = table.merge(changes, "t.id = s.id", source_alias="s", target_alias="t")
        merging.when_matched_update_all("s.updated_at > t.updated_at").when_not_matched_insert_all().execute()

    return timed(repeat, lambda turn: changed(kind, count, turn), merge)


def timed(
    repeat: int, make: Callable[[int], pa.Table], apply: Callable[[int, pa.Table], None]
) -> list[tuple[float, float]]:
    """Return (seconds, processor seconds) of each turn: on a busy machine the second is what can be compared."""
    seconds = []
    for turn in range(repeat):
        changes = make(turn)
        begun_s, worked_s = time.perf_counter(), time.process_time()
        apply(turn, changes)
        seconds.append((time.perf_counter() - begun_s, time.process_time() - worked_s))
    return seconds


def one_side(name: str, path: str, count: int, kind: str, repeat: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", name, path, str(count), kind, str(repeat)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", nargs=5)
    said = parser.parse_args()
    if said.side:
        name, path, count, kind, repeat = said.side
        run = side_waxlake if name == "waxlake" else side_delta
        seconds = run(path, int(count), kind, int(repeat))
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
        wall, work = (min(part) for part in zip(*seconds, strict=True))
        print(json.dumps({"seconds": wall, "work": work, "peak_mib": peak}))
        return
    folder = Path(tempfile.mkdtemp(prefix="auto-cdc-"))
    try:
        for count in said.rows:
            fill(str(folder / "filled"), count)
            files = len(list((folder / "filled").glob("*.parquet")))
            print(f"{count:,} rows in {files} files, {CHANGES:,} changes")
            for kind in ("clustered", "spread", "new"):
                found = {}
                for name in ("delta", "waxlake"):
                    shutil.copytree(folder / "filled", folder / name)
                    found[name] = one_side(name, str(folder / name), count, kind, said.repeat)
                    shutil.rmtree(folder / name)
                ours, theirs = found["waxlake"], found["delta"]
                print(
                    f"  {kind:<10} MergeSink {ours['seconds']:.3f} s ({ours['work']:.3f} of CPU), {ours['peak_mib']:.0f} MiB"
                    f"   DeltaTable.merge {theirs['seconds']:.3f} s ({theirs['work']:.3f}), {theirs['peak_mib']:.0f} MiB"
                    f"   {theirs['seconds'] / ours['seconds']:.1f} x, of CPU {theirs['work'] / ours['work']:.1f} x"
                )
            shutil.rmtree(folder / "filled")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
