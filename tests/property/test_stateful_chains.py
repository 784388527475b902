"""The law of operators one after the other: what comes out is what one query over all rows says, however they are cut."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.state import Aggregate, BoundOperator, Chain, Dedupe, EventTime, Input, Join, Operator, Stage, Window
from sinks.state.chain import next_input
from tests.property.state_bench import Bench
from tests.property.test_stateful_joins import DELAY, FAR, LEFT, RIGHT, SECOND, cuts, rows, streams

EARLIER, LATER = 2, 7


class Chained:
    """Operators one after the other."""

    columns, time_column, replaces_rows = (), None, False

    def __init__(self, *operators: Operator) -> None:
        self.operators = operators

    def bind(self, inputs: Sequence[Input]) -> BoundOperator:
        """Bind each to the rows of the one before."""
        stages = [Stage(operator=self.operators[0].bind(inputs))]
        for operator in self.operators[1:]:
            before = stages[-1]
            source, lag = next_input(before.operator, before.operator.output, operator)
            stages.append(Stage(operator=operator.bind((source,)), lag_us=before.lag_us + lag))
        return Chain(stages, inputs=len(inputs))


def tumbling(column: str, size: int) -> Window:
    return Window(kind="tumbling", column=column, size_us=size * SECOND, every_us=size * SECOND)


COUNT = (("n", "count(*)"),)
PER_WINDOW = Aggregate(keys=("k",), window=tumbling("ts", 4), aggregates=COUNT)
JOIN = Join(on=("k",), within_us=(EARLIER * SECOND, LATER * SECOND), how="left")
CHAINS = {
    "dedupe, window": (Dedupe(keys=("k", "ts")), PER_WINDOW),
    "dedupe for ever, window": (Dedupe(keys=("k",)), PER_WINDOW),
    "window, window": (PER_WINDOW, Aggregate(keys=(), window=tumbling("window_end", 8), aggregates=(("n", "max(n)"),))),
    "window, window by its beginning, running": (
        PER_WINDOW,
        Aggregate(keys=("k",), window=tumbling("window_start", 8), aggregates=(("n", "sum(n)"),)),
        Dedupe(keys=("k", "n", "window_start")),
    ),
    "join, window of the left": (JOIN, PER_WINDOW),
    "join, window of the right": (JOIN, Aggregate(keys=("k",), window=tumbling("rts", 4), aggregates=COUNT)),
}
FLOOR = "epoch_us({0}) // {1} - epoch_us({0}) // {1} % {2}"
LEFT_START, RIGHT_START = (FLOOR.format(column, SECOND, 4) for column in ("ts", "rts"))
ON = f"l.k = r.k AND epoch_us(rts) BETWEEN epoch_us(ts) - {EARLIER * SECOND} AND epoch_us(ts) + {LATER * SECOND}"
WINDOWS = f"(SELECT k, {LEFT_START} AS s, count(*) AS n FROM l GROUP BY k, s)"
QUERIES = {
    "dedupe, window": f"SELECT {LEFT_START} AS s, count(*) FROM (SELECT DISTINCT k, ts FROM l) GROUP BY k, s",
    "dedupe for ever, window": f"SELECT {LEFT_START} AS s, 1 FROM (SELECT k, arg_min(ts, a) AS ts FROM l GROUP BY k)",
    "window, window": f"SELECT (s + 4) - (s + 4) % 8 AS w, max(n) FROM {WINDOWS} GROUP BY w",
    "window, window by its beginning, running": f"SELECT s - s % 8 AS w, sum(n) FROM {WINDOWS} GROUP BY k, w",
    "join, window of the left": f"SELECT {LEFT_START} AS s, count(*) FROM l LEFT JOIN r ON {ON} GROUP BY l.k, s",
    "join, window of the right": f"SELECT {RIGHT_START} AS s, count(*) FROM l JOIN r ON {ON} GROUP BY l.k, s",
}


@pytest.mark.parametrize("chain", CHAINS)
@settings(max_examples=5, deadline=None)
@given(data=st.data(), sides=streams(2))
def test_p81_p82_p84_a_chain_equals_a_batch_query(data: st.DataObject, sides: list, chain: str) -> None:
    left = Input(schema=LEFT, time=EventTime(column="ts", delay_us=DELAY * SECOND))
    right = Input(schema=RIGHT, time=EventTime(column="rts", delay_us=DELAY * SECOND))
    inputs = (left, right) if chain.startswith("join") else (left,)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), Chained(*CHAINS[chain]), inputs)
        again = data.draw(st.integers(0, 3))
        for part, (ls, rs) in enumerate(zip(*(cuts(data, items) for items in sides), strict=True)):
            bench.send((0, 0, rows(LEFT, ls)), *([(1, 0, rows(RIGHT, rs))] if len(inputs) > 1 else []))
            if part == again:
                bench.restart()
        bench.send(
            (0, 0, rows(LEFT, [("end", FAR, -1)])),
            *([(1, 0, rows(RIGHT, [("end", 2 * FAR, -2)]))] if len(inputs) > 1 else []),
        )
        session = duckdb.connect()
        session.register("l", rows(LEFT, sides[0]))
        session.register("r", rows(RIGHT, sides[1]))
        expected = session.sql(QUERIES[chain]).fetchall()
        found = bench.rows().to_pylist() if bench.location.exists() else []
        made = [(round(row["window_start"].timestamp()), row["n"]) for row in found]
        assert sorted(made) == sorted((s, int(n)) for s, n in expected)
