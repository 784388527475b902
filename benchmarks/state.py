"""State of 10 M keys: memory, and what a commit costs that touches 1 % of them, beside one that touches 10 %.

    python benchmarks/state.py [--keys 10000000]

De-duplication by key: each commit looks its keys up, keeps those that are new and writes what changed. Prints the peak memory of
the process, the seconds of each commit and the bytes that it wrote of the state.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path


def main() -> None:
    import numpy as np
    import pyarrow as pa

    from sinks.delta import DeltaTarget, FlushPolicy
    from sinks.state import Dedupe, Input, StatefulFlow, StatefulSink
    from waxlake.pipeline.transform import Outcome
    from waxlake.stream.batch import MicroBatch
    from waxlake.stream.delta_table import TableLocation

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000_000)
    keys = parser.parse_args().keys
    schema = pa.schema([("k", pa.int64())])
    operator = Dedupe(keys=("k",)).bind((Input(schema=schema),))
    flow = StatefulFlow(operator=operator, times={}, sources=1, finish=Outcome, output=schema)
    folder = Path(tempfile.mkdtemp()) / "t"
    target = DeltaTarget(location=TableLocation(str(folder), name="t"))
    writer = StatefulSink(target=target, flow="f", flush=FlushPolicy(max_rows=1), flows={"f": flow}).build_part(
        "w", "t", None
    )
    position = 0

    def commit(values: object) -> tuple[float, int]:
        nonlocal position
        table = pa.table([pa.array(values)], schema=schema)
        before = {p.name for p in (folder / "_waxlake").iterdir()} if (folder / "_waxlake").is_dir() else set()
        started_s = time.perf_counter()
        batch = MicroBatch(table=table, source="s", partition="p", start=position, end=position + 1, partition_count=1)
        writer.write_batch([batch])
        position += 1
        seconds = time.perf_counter() - started_s
        written = sum(p.stat().st_size for p in (folder / "_waxlake").iterdir() if p.name not in before)
        return seconds, written

    step = max(1, keys // 20)
    started_s = time.perf_counter()
    for first in range(0, keys, step):
        commit(np.arange(first, min(keys, first + step), dtype="int64"))
    print(f"{keys:,} keys filled in {time.perf_counter() - started_s:.1f} s, 20 commits")
    random, fresh = np.random.default_rng(1), keys
    for share in (0.001, 0.01, 0.1):
        found = []
        for _ in range(3):
            count = max(1, int(keys * share) // 2)
            new = np.arange(fresh, fresh + count, dtype="int64")  # half of what it touches is new, half is held
            fresh += count
            found.append(commit(np.concatenate([random.integers(0, keys, count), new])))
        seconds, written = sorted(found)[1]
        print(f"a commit that touches {share:>6.1%}: {seconds:6.2f} s, {written / 1e6:8.1f} MB of state written")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    print(f"peak memory {peak / 1e9:.2f} GB")
    writer.close()


if __name__ == "__main__":
    main()
