"""Several operators one after the other, as one: the rows of each go into the next within the same flush.

Their states are tables of one state, written together and named by one commit, so that they cannot disagree. What one operator
puts out may lie below the watermark (a pair of a join has waited for its second row): the next one works by a watermark that is
that far behind, its *lag*, and no row is late that was not so before.

Failure points are those of one operator (docs/decisions/0012-where-state-lives.md): between two operators of a chain nothing is
written, so a crash there is one before the state is written, and both go on from the last commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from sinks.state.operator import Applied, BoundOperator, Finished, Input, Operator, OperatorState
from sinks.state.store import StateTable
from sinks.state.watermark import EventTime
from waxlake.stream.batch import RuleCount
from waxlake.stream.errors import UserError

__all__ = ["Chain", "Stage", "next_input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One operator of a chain.

    Attributes:
        operator: It.
        prepare: What is done with the rows of the operator before it.
        lag_us: Microseconds by which its watermark is behind that of the flow.
    """

    operator: BoundOperator
    prepare: Callable[[pa.Table], Finished] | None = None
    lag_us: int = 0

    def watermark(self, value: int | None) -> int | None:
        """Return its watermark when that of the flow is at a value."""
        return None if value is None else value - self.lag_us


def next_input(
    before: BoundOperator,
    schema: pa.Schema,
    operator: Operator,
    named: EventTime | None = None,
    *,
    keeps_late: bool = False,
) -> tuple[Input, int]:
    """Return the input of an operator that follows another, and how much further its watermark is behind.

    Args:
        before: The operator before it.
        schema: Columns of the rows that come from there.
        operator: It.
        named: Event time that was named between the two; its delay is waited for once more.
        keeps_late: Whether its late rows go to the quarantine table, if nothing was named.

    Raises:
        UserError: ``STATEFUL_CHAIN``: there may be any time in the column that was named. Not retryable.
    """
    times = {name: lag for name, lag in before.event_times.items() if name in schema.names}
    if named is not None:
        if named.column not in times:
            raise UserError(
                f"'{named.column}' is no event time of the rows of the stateful operator before",
                code="STATEFUL_CHAIN",
                found="rows that may have any time there",
                expected=", ".join(times) or "no watermark",
                remedy="Let a table of its own hold the rows of the operator before, and read that with wl.read_stream",
            )
        return Input(schema=schema, time=named), times[named.column] + named.delay_us
    wanted = operator.time_column
    column = wanted if wanted in times else next(iter(times), None)
    if column is None:
        return Input(schema=schema), 0
    return Input(schema=schema, time=EventTime(column=column, delay_us=0, keeps_late=keeps_late)), times[column]


@dataclass(frozen=True, slots=True)
class _Part:
    """The state of one operator of a chain."""

    session: duckdb.DuckDBPyConnection
    tables: Mapping[str, StateTable]


class Chain:
    """Operators one after the other.

    Args:
        stages: They, in order; the rows of only the last may replace earlier ones.
        inputs: Number of inputs of the first. Late rows of a later one are told under the numbers that follow.
    """

    def __init__(self, stages: Sequence[Stage], inputs: int) -> None:
        self._stages, self._inputs = tuple(stages), inputs
        last = self._stages[-1].operator
        self.output = last.output
        self.upsert_keys = last.upsert_keys
        self.event_times = {name: lag + self._stages[-1].lag_us for name, lag in last.event_times.items()}
        self.tables: Mapping[str, pa.Schema] = {
            _table(number, name): schema
            for number, stage in enumerate(self._stages)
            for name, schema in stage.operator.tables.items()
        }
        self.lags: Mapping[str, int] = {
            _table(number, name): stage.lag_us
            for number, stage in enumerate(self._stages)
            for name in stage.operator.tables
        }
        shapes = [dict(stage.operator.shape) for stage in self._stages]
        self.shape: Mapping[str, Any] = {
            "operator": " > ".join(str(shape["operator"]) for shape in shapes),
            **{f"step {number}": shape for number, shape in enumerate(shapes, 1)},
            "lags_us": [stage.lag_us for stage in self._stages],
        }

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        """Apply the rows of a flush to each operator in turn."""
        late: dict[int, pa.Table] = {}
        untimed: dict[int, pa.Table] = {}
        rules: list[RuleCount] = []
        dropped = 0
        applied = Applied(rows=self.output.empty_table())
        for number, stage in enumerate(self._stages):
            given = rows
            if number:
                made = applied.rows
                if stage.prepare is not None:
                    done = stage.prepare(made)
                    made, dropped = done.table, dropped + done.dropped
                    rules += done.rules
                given = {0: made}
            part = _Part(state.session, {n: state.tables[_table(number, n)] for n in stage.operator.tables})
            applied = stage.operator.apply(part, given, stage.watermark(before), stage.watermark(after))
            first = self._inputs + number - 1 if number else 0
            late |= {first + side: table for side, table in applied.late.items()}
            untimed |= {first + side: table for side, table in applied.untimed.items()}
        return replace(applied, late=late, untimed=untimed, rules=tuple(rules), dropped=dropped)


def _table(number: int, name: str) -> str:
    return f"{number + 1}_{name}"
