"""Count 1 M events in tumbling windows by 100k keys, beside a plain Bytewax flow with ``count_window``, in one run.

    python benchmarks/windows.py [--events 1000000] [--keys 100000]

Ours goes through Bytewax, the operator, its state and the commits of the table (batches of 50,000 rows, a commit every 200,000).
The plain flow only counts: it writes nothing and forgets all when it stops. Each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
BATCH = 50_000


def ours(events: int, keys: int) -> float:
    import numpy as np
    import pyarrow as pa
    from bytewax import operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSource, run_main

    from sinks.delta import DeltaTarget, FlushPolicy
    from sinks.state import Aggregate, EventTime, Input, StatefulFlow, StatefulSink, Window
    from waxlake.pipeline.transform import Outcome
    from waxlake.stream.batch import MicroBatch
    from waxlake.stream.delta_table import TableLocation

    schema = pa.schema([("k", pa.int64()), ("ts", pa.timestamp("us", "UTC"))])
    minute = 60_000_000
    operator = Aggregate(
        keys=("k",),
        window=Window(kind="tumbling", column="ts", size_us=minute, every_us=minute),
        aggregates=(("n", "count(*)"),),
    ).bind((Input(schema=schema, time=EventTime(column="ts", delay_us=10_000_000)),))
    flow = StatefulFlow(
        operator=operator,
        times={0: EventTime(column="ts", delay_us=10_000_000)},
        sources=1,
        finish=Outcome,
        output=operator.output,
    )
    random = np.random.default_rng(1)
    begin = int(START.timestamp() * 1_000_000)
    batches = []
    for first in range(0, events, BATCH):
        count = min(BATCH, events - first)
        times = begin + (np.arange(first, first + count) * 600).astype("int64")  # ten minutes of event time a million
        columns = [pa.array(random.integers(0, keys, count)), pa.array(times).cast(schema.field("ts").type)]
        batch = MicroBatch(
            table=pa.table(columns, schema=schema), source="s", partition="p", start=first, end=first + count,
            partition_count=1, is_last=first + count == events,
        )  # fmt: skip
        batches.append(("t", batch))
    sink = StatefulSink(
        target=DeltaTarget(location=TableLocation(tempfile.mkdtemp() + "/t", name="t")),
        flow="f",
        flush=FlushPolicy(max_rows=200_000, max_age_s=3600),
        flows={"f": flow},
    )
    dataflow = Dataflow("ours")
    op.output("out", op.input("in", dataflow, TestingSource(batches)), sink)
    started_s = time.perf_counter()
    run_main(dataflow)
    return time.perf_counter() - started_s


def plain(events: int, keys: int) -> float:
    import random

    import bytewax.operators.windowing as win
    from bytewax import operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    random_ = random.Random(1)
    items = [(str(random_.randrange(keys)), START + timedelta(microseconds=600 * n)) for n in range(events)]
    dataflow = Dataflow("plain")
    stream = op.input("in", dataflow, TestingSource(items, batch_size=1000))
    counted = win.count_window(
        "count",
        stream,
        win.EventClock(ts_getter=lambda item: item[1], wait_for_system_duration=timedelta(seconds=10)),
        win.TumblingWindower(length=timedelta(minutes=1), align_to=START),
        key=lambda item: item[0],
    )
    out: list[object] = []
    op.output("out", counted.down, TestingSink(out))
    started_s = time.perf_counter()
    run_main(dataflow)
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--side", choices=("ours", "plain"))
    options = parser.parse_args()
    if options.side:
        print({"ours": ours, "plain": plain}[options.side](options.events, options.keys))
        return
    rates = {}
    for side in ("ours", "plain"):
        command = [
            sys.executable,
            __file__,
            "--side",
            side,
            "--events",
            str(options.events),
            "--keys",
            str(options.keys),
        ]
        seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rates[side] = options.events / seconds
        print(f"{side:<6} {rates[side]:>12,.0f} events/s  ({seconds:.2f} s)")
    print(f"ours is {rates['ours'] / rates['plain']:.1f} times as fast")


if __name__ == "__main__":
    main()
