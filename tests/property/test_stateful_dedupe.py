"""De-duplication's law: what comes out is what a model says of the rows in their order, however they are cut and restarted."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.state import Dedupe, EventTime, Input
from tests.property.state_bench import Bench

SCHEMA = pa.schema([("k", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("n", pa.int64())])
SECOND = 1_000_000
DELAY, WITHIN = 5, 3


def rows(items: list[tuple[str | None, int, int]]) -> pa.Table:
    columns = [
        pa.array([i[j] for i in items], kind) for j, kind in ((0, pa.string()), (1, pa.int64()), (2, pa.int64()))
    ]
    times = pa.array([t * SECOND for t in columns[1].to_pylist()], pa.int64()).cast(SCHEMA.field("ts").type)
    return pa.table([columns[0], times, columns[2]], schema=SCHEMA)


def expected(items: list[tuple[str | None, int, int]], within: int | None) -> list[int]:
    kept: list[tuple[str | None, int, int]] = []
    for key, at, n in items:
        if not any(k == key and (within is None or abs(at - t) <= within) for k, t, _ in kept):
            kept.append((key, at, n))
    return sorted(n for _, _, n in kept)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), within=st.sampled_from([None, WITHIN]))
def test_p84_first_rows_stay_however_the_stream_is_cut(data: st.DataObject, within: int | None) -> None:
    steps = data.draw(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(-DELAY, 4)), max_size=30))
    items, high = [], 100
    for n, (key, step) in enumerate(steps):  # never further behind the latest than the delay
        at = high + step
        high = max(high, at)
        items.append((key, at, n))
    folder = Path(tempfile.mkdtemp())
    try:
        time = EventTime(column="ts", delay_us=DELAY * SECOND)
        bench = Bench(
            folder,
            Dedupe(keys=("k",), within_us=None if within is None else within * SECOND),
            (Input(schema=SCHEMA, time=time if within is not None else None),),
        )
        left = items
        while left:
            size = data.draw(st.integers(min(6, len(left)), len(left)))
            bench.send((0, 0, rows(left[:size])))
            left = left[size:]
            if data.draw(st.integers(0, 4)) == 0:
                bench.restart()
        found = sorted(bench.rows().column("n").to_pylist()) if items else []
        assert found == expected(items, within)
        if within is not None and items:
            held = bench.manifest()["tables"]["keys"]["rows"]
            assert held <= sum(1 for _ in {(k, t) for k, t, _ in items if t >= high - DELAY - WITHIN})
    finally:
        shutil.rmtree(folder)
