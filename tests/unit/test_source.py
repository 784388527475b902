"""The generic source partition: planning, budget, gates, retries, draining and last batches, with a reader that is a list."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pytest

from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget
from waxlake.stream.errors import SourceMoved, TransientError, WaxlakeError
from waxlake.stream.partitioned_source import PartitionedSource, ReadControl
from waxlake.stream.source import PartitionPlan, SourcePlan, SourceRange, SourceState, plan_partitions, spread

ROW_BYTES = 8


@dataclass
class ListReader:
    """Hands out rows 0, 1, 2 … of one partition, ``step`` at a time; raises what ``errors`` holds first."""

    position: int = 0
    mark: int | None = 10
    step: int = 3
    errors: list[WaxlakeError] = field(default_factory=list)
    is_closed: bool = False

    def read(self) -> Sequence[MicroBatch]:
        if self.errors:
            raise self.errors.pop(0)
        start = self.position
        self.position = start + self.step if self.mark is None else min(start + self.step, self.mark)
        rows = pa.table({"n": pa.array(range(start, self.position), pa.int64())})
        return [MicroBatch(table=rows, source="s", partition="0", start=start, end=self.position, read=rows.num_rows)]

    @property
    def is_done(self) -> bool:
        return self.mark is not None and self.position >= self.mark

    def positions(self) -> Mapping[str, int]:
        return {"0": self.position}

    def close(self) -> None:
        self.is_closed = True


@dataclass
class ListConnector:
    """A connector around one ``ListReader``."""

    list_reader: ListReader
    name: str = "list"
    metadata_columns: tuple[str, ...] = ()
    on_data_loss: str = "fail"

    def empty(self) -> pa.Table:
        return pa.Table.from_batches([], pa.schema([("n", pa.int64())]))

    def inspect(self) -> SourceState:
        return SourceState(identity="s", name="list", partitions={"0": SourceRange(low=0, high=10)}, begin={})

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        return spread(list(plan.partitions), count)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> ListReader:
        return self.list_reader


@dataclass
class ConfirmingConnector(ListConnector):
    """Remembers what it was told."""

    told: list[Mapping[str, int]] = field(default_factory=list)
    is_away: bool = False

    def confirm(self, plan: SourcePlan, durable: Mapping[str, int]) -> None:
        self.told.append(durable)
        if self.is_away:
            raise TransientError("away", code="AWAY")


def partition(source: ListReader | ListConnector, control: ReadControl, **plan: object):
    connector = ListConnector(source) if isinstance(source, ListReader) else source
    reader = connector.list_reader
    part = PartitionPlan(start=reader.position, mark=reader.mark, **plan)
    source = PartitionedSource(
        connector=connector,
        plan=SourcePlan(identity="s", name="list", partitions={"0": part}),
        control=control,
    )
    return source.build_part("read", source.list_parts()[0], None)


def drain(reading) -> list[MicroBatch]:
    """Read to the end; an epoch ends when there is nothing more to give in it."""
    batches: list[MicroBatch] = []
    while True:
        try:
            emitted = reading.next_batch()
        except StopIteration:
            return batches
        batches += emitted
        if not emitted:
            reading.snapshot()


def test_a_bounded_read_emits_every_row_once_and_ends_with_a_last_batch() -> None:
    batches = drain(partition(ListReader(), ReadControl()))
    assert [n for b in batches for n in b.table.column("n").to_pylist()] == list(range(10))
    assert [b.is_last for b in batches] == [False] * (len(batches) - 1) + [True]
    assert (batches[0].start, batches[0].end) == (0, 0)
    assert (batches[-1].start, batches[-1].end, batches[-1].partition_count) == (10, 10, 1)
    assert all(before.end == after.start for before, after in itertools.pairwise(batches))


def test_a_sink_that_gives_nothing_back_stops_the_source() -> None:
    reading = partition(ListReader(mark=None), ReadControl(budget_bytes=5 * ROW_BYTES))
    emitted = [b for _ in range(20) for b in reading.next_batch() if b.table.num_rows]
    assert len(emitted) == 2
    assert reading.next_awake() is not None
    ByteBudget.give_back(emitted[0].budget, emitted[0].cost_bytes)
    assert [b.table.num_rows for b in reading.next_batch()] == [3]


def test_each_of_several_flows_must_give_back_its_share() -> None:
    reading = partition(ListReader(mark=None), ReadControl(budget_bytes=2 * 3 * ROW_BYTES, fan_out=2))
    first = [b for _ in range(5) for b in reading.next_batch() if b.table.num_rows]
    assert len(first) == 1
    ByteBudget.give_back(first[0].budget, first[0].cost_bytes)
    assert [b.table.num_rows for b in reading.next_batch()] == [3]


def test_the_end_of_an_epoch_gives_everything_back() -> None:
    reading = partition(ListReader(mark=None), ReadControl(budget_bytes=1))
    emitted = [b for _ in range(5) for b in reading.next_batch() if b.table.num_rows]
    assert len(emitted) == 1
    reading.snapshot()
    assert [b.table.num_rows for b in reading.next_batch()] == [3]


def test_with_lanes_a_source_ends_when_all_it_emitted_was_taken_whatever_an_epoch_says() -> None:
    defects: list[Exception] = []

    def is_held() -> bool:
        if defects:
            raise defects[0]
        return False

    reading = partition(ListReader(), ReadControl(has_lanes=True, is_held=is_held))
    emitted = [b for _ in range(20) for b in reading.next_batch()]
    assert emitted[-1].is_last
    reading.snapshot()
    assert reading.next_batch() == []
    for batch in emitted[:-1]:
        ByteBudget.give_back(batch.budget, batch.cost_bytes)
    assert reading.next_batch() == []
    defects.append(RuntimeError("a lane broke"))
    with pytest.raises(RuntimeError, match="a lane broke"):
        reading.next_batch()
    ByteBudget.give_back(emitted[-1].budget, emitted[-1].cost_bytes)
    with pytest.raises(StopIteration):
        reading.next_batch()


def test_a_closed_gate_reads_nothing_and_opens_nothing() -> None:
    answers = ["wait", "wait", "go"]
    control = ReadControl(gate=lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    reading = partition(ListReader(), control)
    assert reading.next_batch() == []
    assert reading.next_batch() == []
    assert reading.next_awake() is not None
    assert [b.start for b in reading.next_batch()] == [0]


def test_a_gate_that_says_skip_ends_the_source_without_a_last_batch() -> None:
    assert drain(partition(ListReader(), ReadControl(gate=lambda: "skip"))) == []


def test_draining_emits_a_last_batch_at_the_position_reached() -> None:
    stop: list[bool] = []
    reading = partition(ListReader(mark=None), ReadControl(is_draining=lambda: bool(stop)))
    reading.next_batch()
    rows = reading.next_batch()
    stop.append(True)
    last = drain(reading)
    assert [(b.start, b.end, b.is_last) for b in last] == [(rows[-1].end, rows[-1].end, True)]


def test_a_transient_error_is_retried_and_reported() -> None:
    waits: list[float] = []
    reader = ListReader(errors=[TransientError("away", code="AWAY"), TransientError("away", code="AWAY")])
    reading = partition(reader, ReadControl(on_retry=lambda error, wait_s: waits.append(wait_s)))
    batches = drain(reading)
    assert [n for b in batches for n in b.table.column("n").to_pylist()] == list(range(10))
    assert len(waits) == 2
    assert waits[0] < waits[1]


def test_a_source_that_waits_for_its_next_attempt_holds_up_no_epoch() -> None:
    """Epochs of a run end only when every source was asked: one that is away is asked again at once, and tells how far it is."""
    reader = ListReader(errors=[TransientError("away", code="AWAY")] * 3)
    reading = partition(reader, ReadControl(heartbeat_s=0.0))
    (opening,) = reading.next_batch()
    beats: list[MicroBatch] = []
    while reader.errors:
        beats += reading.next_batch()
        awake_at = reading.next_awake()
        assert awake_at is not None
        assert awake_at - datetime.now(timezone.utc) < timedelta(milliseconds=100)
    assert {(b.start, b.end, b.table.num_rows) for b in beats} == {(opening.start, opening.start, 0)}


def test_a_transient_error_that_stays_ends_a_bounded_read() -> None:
    reader = ListReader(errors=[TransientError("away", code="AWAY")] * 3)
    reading = partition(reader, ReadControl(give_up_after_s=-1.0))
    with pytest.raises(TransientError):
        drain(reading)


def test_an_error_that_was_taken_care_of_ends_the_source_quietly() -> None:
    seen: list[WaxlakeError] = []

    def take(error: WaxlakeError) -> bool:
        seen.append(error)
        return True

    reader = ListReader(errors=[SourceMoved("gone", code="GONE")])
    drain(partition(reader, ReadControl(on_error=take)))
    assert [error.code for error in seen] == ["GONE"]


def test_what_was_read_before_an_error_is_committed_before_the_error_is_told() -> None:
    seen: list[WaxlakeError] = []
    reader = ListReader()
    reading = partition(reader, ReadControl(on_error=lambda error: seen.append(error) is None))
    batches = [*reading.next_batch(), *reading.next_batch()]
    reader.errors = [SourceMoved("gone", code="GONE")]
    batches += reading.next_batch()
    assert [(b.start, b.end, b.is_last) for b in batches] == [(0, 0, False), (0, 3, False), (3, 3, True)]
    assert reading.next_batch() == []
    assert seen == []
    reading.snapshot()  # every sink has committed the last batch
    with pytest.raises(StopIteration):
        reading.next_batch()
    assert ([error.code for error in seen], reader.is_closed) == (["GONE"], True)


def test_skipped_positions_are_told_before_any_row_and_cut_at_fences() -> None:
    reader = ListReader(position=0, mark=10)
    batches = drain(partition(reader, ReadControl(), skipped=(0, 6), fences=(4,)))
    told = [(b.start, b.end, b.skipped) for b in batches if b.skipped]
    assert told == [(0, 4, (0, 4)), (4, 6, (4, 6))]


@pytest.mark.parametrize(
    ("stored", "start", "fences"),
    [
        ([{}], 2, ()),
        ([{"0": 5}], 5, ()),
        ([{"0": 5}, {"0": 8}], 5, (8,)),
        ([{"0": 5}, {}], 2, (5,)),
        ([{"0": 10}, {"0": 10}], 10, ()),
    ],
)
def test_a_plan_starts_at_the_smallest_position_and_fences_the_others(
    stored: list[dict[str, int]], start: int, fences: tuple[int, ...]
) -> None:
    state = SourceState(identity="s", name="list", partitions={"0": SourceRange(low=2, high=10)}, begin={"0": 2})
    plan = plan_partitions(state, stored, is_bounded=True).partitions["0"]
    assert (plan.start, plan.fences, plan.mark) == (start, fences, 10)


@pytest.mark.parametrize(
    ("stored", "code"),
    [({"0": 1}, "SOURCE_EXPIRED"), ({"0": 11}, "SOURCE_SHRUNK"), ({"1": 5}, "SOURCE_PARTITION_GONE")],
)
def test_a_source_that_moved_stops_the_plan(stored: dict[str, int], code: str) -> None:
    state = SourceState(identity="s", name="list", partitions={"0": SourceRange(low=2, high=10)}, begin={})
    with pytest.raises(SourceMoved) as refused:
        plan_partitions(state, [stored], is_bounded=True)
    assert refused.value.code == code


def test_skipping_is_recorded_with_the_lost_positions() -> None:
    state = SourceState(identity="s", name="list", partitions={"0": SourceRange(low=7, high=10)}, begin={})
    plan = plan_partitions(state, [{"0": 3}], on_data_loss="skip", is_bounded=True).partitions["0"]
    assert (plan.start, plan.skipped, plan.read_from) == (3, (3, 7), 7)


def test_a_partition_that_is_new_to_a_known_source_is_read_from_its_beginning() -> None:
    state = SourceState(
        identity="s",
        name="list",
        partitions={"0": SourceRange(low=0, high=10), "1": SourceRange(low=0, high=4)},
        begin={"0": 10, "1": 4},
    )
    plan = plan_partitions(state, [{"0": 6}], is_bounded=True)
    assert plan.partitions["1"].start == 0


@pytest.mark.parametrize("is_away", [False, True])
def test_a_source_is_told_what_is_durable_while_it_is_read(monkeypatch: pytest.MonkeyPatch, is_away: bool) -> None:
    monkeypatch.setattr("waxlake.stream.partitioned_source._CONFIRM_S", 0.0)
    connector = ConfirmingConnector(ListReader(), is_away=is_away)

    batches = drain(partition(connector, ReadControl(durable=lambda: {"0": 4})))

    assert connector.told[0] == {"0": 4}
    assert [b.end for b in batches][-1] == 10


def test_a_partition_that_no_flow_takes_is_not_read() -> None:
    state = SourceState(
        identity="i", name="s", partitions={"a": SourceRange(low=0, high=5), "b": SourceRange(low=0, high=9)}, begin={}
    )

    plan = plan_partitions(state, [{"a": 2}, {}], takes=[lambda p: p == "a", lambda p: p == "a"], is_bounded=True)

    assert list(plan.partitions) == ["a"]
    assert (plan.partitions["a"].start, plan.partitions["a"].fences) == (0, (2,))
