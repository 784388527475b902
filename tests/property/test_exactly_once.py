"""Any split, merge, replay or interleaving of batches over any subset of tables ends in the same rows."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.delta import DeltaSink, DeltaTarget, FlushPolicy, SinkControl
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import SourceRange, SourceState, plan_partitions

PARTITIONS = ("0", "1")
LENGTH = 24
TABLES = ("a", "b")


def batch(partition: str, start: int, end: int) -> MicroBatch:
    rows = pa.table({"p": [partition] * (end - start), "o": pa.array(range(start, end), pa.int64())})
    return MicroBatch(table=rows, source="source", partition=partition, start=start, end=end)


class Lake:
    """Tables in a temporary folder, and writers that can be crashed."""

    def __init__(self, folder: Path) -> None:
        self.sinks = {
            name: DeltaSink(
                target=DeltaTarget(location=TableLocation(str(folder / name), name=name)),
                flush=FlushPolicy(max_rows=5, max_age_s=1e9, max_idle_s=0),
                control=SinkControl(run_id="run"),
            )
            for name in TABLES
        }
        self.writers = {}
        for name in TABLES:
            self.sinks[name].target.location.create(pa.schema([("p", pa.string()), ("o", pa.int64())]))
        self.crash()

    def crash(self) -> None:
        """Forget everything that is not in the tables."""
        for writer in self.writers.values():
            writer.close()
        self.writers = {name: sink.build_part("write", "table", None) for name, sink in self.sinks.items()}

    def positions(self, name: str) -> dict[str, int]:
        found = {p: self.sinks[name].stored("source", p) for p in PARTITIONS}
        return {p: position for p, position in found.items() if position is not None}

    def rows(self, name: str) -> Counter[tuple[str, int]]:
        table = self.sinks[name].target.location.open().to_pyarrow_table()
        return Counter(zip(table.column("p").to_pylist(), table.column("o").to_pylist(), strict=True))


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[list[int], list[str], int, tuple[str, ...]]]:
    """Some runs: sizes of batches, order of partitions, after how many batches it crashes, which tables take part."""
    count = draw(st.integers(1, 4))
    return [
        (
            draw(st.lists(st.integers(1, 9), min_size=1, max_size=12)),
            draw(st.lists(st.sampled_from(PARTITIONS), min_size=1, max_size=12)),
            draw(st.integers(0, 12)),
            draw(st.sampled_from([("a",), ("b",), ("a", "b")])),
        )
        for _ in range(count)
    ]


def read_run(lake: Lake, tables: tuple[str, ...], sizes: list[int], order: list[str], crash_after: int | None) -> None:
    """One run of a source over some tables: from the smallest stored position, never across a fence."""
    state = SourceState(
        identity="source", name="source", partitions={p: SourceRange(low=0, high=LENGTH) for p in PARTITIONS}, begin={}
    )
    plan = plan_partitions(state, [lake.positions(name) for name in tables], is_bounded=True)
    position = {p: plan.partitions[p].start for p in PARTITIONS}
    step = 0
    while any(position[p] < LENGTH for p in PARTITIONS):
        partition = order[step % len(order)]
        if position[partition] >= LENGTH:
            partition = next(p for p in PARTITIONS if position[p] < LENGTH)
        start = position[partition]
        end = min(
            start + sizes[step % len(sizes)], LENGTH, *(f for f in plan.partitions[partition].fences if f > start)
        )
        for name in tables:
            lake.writers[name].write_batch([batch(partition, start, end)])
        position[partition] = end
        step += 1
        if crash_after is not None and step >= crash_after:
            lake.crash()
            return
    for name in tables:
        last = [
            MicroBatch(
                table=batch(p, LENGTH, LENGTH).table,
                source="source",
                partition=p,
                start=LENGTH,
                end=LENGTH,
                is_last=True,
                partition_count=len(PARTITIONS),
            )
            for p in PARTITIONS
        ]
        lake.writers[name].write_batch(last)
    lake.crash()


@settings(max_examples=40)
@given(runs=runs())
def test_any_history_of_runs_ends_in_every_row_once(
    runs: list[tuple[list[int], list[str], int, tuple[str, ...]]],
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        lake = Lake(folder)
        for sizes, order, crash_after, tables in runs:
            read_run(lake, tables, sizes, order, crash_after)
        read_run(lake, TABLES, [7], list(PARTITIONS), None)
        everything = Counter((p, o) for p in PARTITIONS for o in range(LENGTH))
        for name in TABLES:
            assert lake.rows(name) == everything
            assert lake.positions(name) == dict.fromkeys(PARTITIONS, LENGTH)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=40)
@given(
    replays=st.lists(
        st.tuples(st.sampled_from(PARTITIONS), st.integers(0, LENGTH - 1), st.integers(1, LENGTH)), max_size=12
    )
)
def test_a_batch_is_taken_whole_dropped_whole_or_refused(replays: list[tuple[str, int, int]]) -> None:
    """Whatever a source sends, in whatever order, the table never holds a row twice and never skips one."""
    from waxlake.stream.errors import CommitConflict

    folder = Path(tempfile.mkdtemp())
    try:
        lake = Lake(folder)
        held = dict.fromkeys(PARTITIONS, 0)
        lake.writers["a"].write_batch([batch(p, 0, 0) for p in PARTITIONS])
        for partition, start, length in replays:
            end = min(start + length, LENGTH)
            try:
                lake.writers["a"].write_batch([batch(partition, start, end)])
            except CommitConflict:
                assert start > held[partition] or start < held[partition] < end
                lake.crash()
                held = {p: lake.positions("a").get(p, 0) for p in PARTITIONS}
                lake.writers["a"].write_batch([batch(p, held[p], held[p]) for p in PARTITIONS])
                continue
            if start == held[partition]:
                held[partition] = end
            else:
                assert end <= held[partition]
        counts = lake.rows("a")
        assert all(n == 1 for n in counts.values())
        for partition in PARTITIONS:
            offsets = sorted(o for p, o in counts if p == partition)
            assert offsets == list(range(len(offsets)))
    finally:
        shutil.rmtree(folder)
