"""A process that sends prepared batches through a stateful operator, to be killed. Run by ``test_state_kills``."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sinks.state import Aggregate, Dedupe, EventTime, Input, Join, MapWithState, Window
from tests.property.state_bench import Bench
from waxlake.stream.position import app_id

SECOND = 1_000_000
SCHEMA = pa.schema([("k", pa.int64()), ("ts", pa.timestamp("us", "UTC")), ("v", pa.int64())])
TIME = EventTime(column="ts", delay_us=5 * SECOND)
HELD = pa.schema([("k", pa.int64()), ("n", pa.int64())])
BATCHES = 12


def bench(scenario: str, folder: Path) -> Bench:
    one = Input(schema=SCHEMA, time=TIME)
    if scenario == "dedupe":
        return Bench(folder, Dedupe(keys=("k",), within_us=20 * SECOND), (one,), partitions=2)
    if scenario == "join":
        other = Input(schema=SCHEMA.set(2, pa.field("w", pa.int64())).set(1, pa.field("at", SCHEMA.field("ts").type)),
                      time=EventTime(column="at", delay_us=5 * SECOND))  # fmt: skip
        return Bench(folder, Join(on=("k",), within_us=3 * SECOND, how="full"), (one, other))
    if scenario == "keyed":
        operator = MapWithState(
            function=counted, keys=("k",), schema=HELD, state_schema=pa.schema([HELD.field("n")]), timeout_us=9 * SECOND
        )
        return Bench(folder, operator, (one,), partitions=2)
    kind, mode = scenario.split("-")
    window = Window(kind=kind, column="ts", size_us=4 * SECOND, every_us=2 * SECOND)
    aggregates = (("n", "count(*)"), ("total", "sum(v)"))
    return Bench(folder, Aggregate(keys=("k",), window=window, aggregates=aggregates, mode=mode), (one,), partitions=2)


def counted(rows: pa.Table, state: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Count the rows of each key; put every count out."""
    counts = rows.group_by("k").aggregate([([], "count_all")]).rename_columns(HELD.names)
    live = state.filter(pc.invert(state.column("timed_out"))).select(HELD.names)
    both = pa.concat_tables([counts.cast(HELD), live.cast(HELD)])
    new = both.group_by("k").aggregate([("n", "sum")]).rename_columns(HELD.names).cast(HELD)
    return new, new


def batches(made: Bench) -> list[list[tuple[int, int, pa.Table]]]:
    """Return batches of a few seconds each: for every input and partition one, some of them empty."""
    random_ = random.Random(5)
    found = []
    for number in range(BATCHES):
        parts = []
        for side, source in enumerate(made.inputs):
            for partition in range(made.partitions):
                count = random_.randrange(0, 9)
                times = [(1000 + number * 6 + random_.randrange(6)) * SECOND for _ in range(count)]
                columns = [
                    pa.array([random_.randrange(5) for _ in range(count)], pa.int64()),
                    pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC")),
                    pa.array([random_.randrange(100) for _ in range(count)], pa.int64()),
                ]
                parts.append((side, partition, pa.table(columns, schema=source.schema)))
        found.append(parts)
    return found


def progress(made: Bench) -> int:
    """Return how many groups of batches the table holds, and let the bench go on from there."""
    groups = batches(made)
    if not made.location.exists():
        return 0
    handle = made.location.open()
    made.positions = {
        (side, partition): handle.transaction_version(app_id("f", f"s{side}", f"p{partition}")) or 0
        for side in range(len(made.inputs))
        for partition in range(made.partitions)
    }
    ends = dict.fromkeys(made.positions, 0)
    for number, group in enumerate(groups):
        if ends == made.positions and any(rows.num_rows for _, _, rows in group):
            return number
        for side, partition, rows in group:
            ends[side, partition] += rows.num_rows
    assert ends == made.positions
    return len(groups)


def main(folder: str, scenario: str) -> None:
    made = bench(scenario, Path(folder))
    done = progress(made)
    made.restart()
    for group in batches(made)[done:]:
        made.send(*group)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
