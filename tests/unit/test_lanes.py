"""Lanes: one thing at a time and in order, nothing lost at an end, defects raised where somebody hears of them."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from waxlake.pipeline.lanes import Lanes, Pending
from waxlake.stream.batch import MicroBatch
from waxlake.stream.budget import ByteBudget


def batch(start: int, end: int, budget: str = "") -> MicroBatch:
    table = pa.table({"n": list(range(start, end))})
    return MicroBatch(table=table, source="s", partition="0", start=start, end=end, cost_bytes=1, budget=budget)


def test_what_is_put_in_comes_out_in_order_and_a_full_lane_says_so() -> None:
    lanes, gate, last, done = Lanes(), threading.Event(), threading.Event(), []

    def work(item: MicroBatch) -> None:
        gate.wait()
        done.append(item.start)
        if item.start == 11:
            last.set()

    slow, quick = lanes.lane("slow", work), threading.Event()
    for number in range(12):
        slow.put_batch(batch(number, number + 1))
    assert lanes.are_full({"slow", "quick"})
    lanes.lane("quick", lambda item: quick.set()).put_batch(batch(0, 1))
    assert quick.wait(30)
    assert not lanes.are_full({"quick"})
    gate.set()
    assert last.wait(30)
    lanes.close()
    assert done == list(range(12))
    assert not lanes.are_full({"slow"})


def test_heartbeats_do_not_pile_up_and_are_given_back() -> None:
    lanes, gate, begun = Lanes(), threading.Event(), threading.Event()
    budget = ByteBudget("heartbeats", 100)
    lane = lanes.lane("slow", lambda item: (begun.set(), gate.wait()))
    lane.put_batch(batch(0, 1))
    assert begun.wait(30)
    for _ in range(50):
        budget.take(1)
        lane.put_batch(batch(1, 1, "heartbeats"))
    assert not lanes.are_full({"slow"})
    budget.take(-1)  # the one that waits
    assert budget.is_untouched
    gate.set()
    lanes.close()


def test_a_batch_that_is_still_being_made_goes_on_when_it_is() -> None:
    taken: list[int] = []
    early, late, never = Pending(), Pending(), Pending()
    early.made(batch(1, 2))
    never.made(None)
    for pending in (early, late, never):
        pending.then(lambda made: taken.append(made.start))
    late.made(batch(2, 3))
    assert taken == [1, 2]


def test_a_defect_is_raised_by_whoever_calls_next_and_ends_the_work() -> None:
    lanes, taken, begun = Lanes(), [], threading.Event()

    def work(item: MicroBatch) -> None:
        taken.append(item.start)
        begun.set()
        raise RuntimeError("a defect")

    lane = lanes.lane("one", work)
    lane.put_batch(batch(0, 1))
    assert begun.wait(30)
    with pytest.raises(RuntimeError, match="a defect"):
        lanes.close()
    assert taken == [0]
    with pytest.raises(RuntimeError, match="a defect"):
        lanes.are_full({"one"})
