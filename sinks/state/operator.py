"""What a stateful operator is: rows and state in, rows and state out, once a flush. The sink calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from sinks.state.store import StateTable
from sinks.state.watermark import EventTime
from waxlake.stream.batch import RuleCount

__all__ = ["Applied", "BoundOperator", "Finished", "Input", "Operator", "OperatorState"]


class OperatorState(Protocol):
    """What an operator works on: the tables of its state, and the database that holds them."""

    @property
    def session(self) -> duckdb.DuckDBPyConnection:
        """The database."""
        ...

    @property
    def tables(self) -> Mapping[str, StateTable]:
        """The tables by name."""
        ...


class Finished(Protocol):
    """What is done with the rows that an operator puts out: rows that go on, rows for quarantine, and counts."""

    @property
    def table(self) -> pa.Table:
        """Rows that go on."""
        ...

    @property
    def rejected(self) -> pa.Table | None:
        """Rows for the quarantine table."""
        ...

    @property
    def rules(self) -> tuple[RuleCount, ...]:
        """What each rule counted."""
        ...

    @property
    def dropped(self) -> int:
        """Rows that rules removed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of an operator.

    Attributes:
        schema: Columns of its rows.
        time: Its event time, or None if it has no watermark.
        where: ``file:line`` of the operator.
    """

    schema: pa.Schema
    time: EventTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an operator made of one flush.

    Attributes:
        rows: Rows for the table.
        late: For each input: rows that came too late.
        untimed: For each input: rows that have no event time and were left out.
        replaced: Keys of rows of the table that ``rows`` take the place of, or None for a table that only grows.
        rules: What the rules between two operators counted.
        dropped: Rows that these removed.
    """

    rows: pa.Table
    late: Mapping[int, pa.Table] = field(default_factory=dict)
    untimed: Mapping[int, pa.Table] = field(default_factory=dict)
    replaced: pa.Table | None = None
    rules: tuple[RuleCount, ...] = ()
    dropped: int = 0


class BoundOperator(Protocol):
    """An operator whose inputs are known."""

    @property
    def output(self) -> pa.Schema:
        """Columns of its rows."""
        ...

    @property
    def tables(self) -> Mapping[str, pa.Schema]:
        """Name of each table of its state to the columns."""
        ...

    @property
    def lags(self) -> Mapping[str, int]:
        """Name of a table of its state to the microseconds by which its watermark is behind that of the flow, if it is."""
        ...

    @property
    def event_times(self) -> Mapping[str, int]:
        """Columns of ``output`` that hold event time, to how far below the watermark a row put out may lie, in microseconds."""
        ...

    @property
    def shape(self) -> Mapping[str, Any]:
        """What its state depends on; plain JSON values."""
        ...

    @property
    def upsert_keys(self) -> tuple[str, ...]:
        """Columns of ``output`` that identify a row of the table, if later rows replace earlier ones."""
        ...

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        """Apply the rows of a flush.

        Args:
            state: The state; changed in place, to be written by the caller.
            rows: Number of an input to its rows, in the order in which they came.
            before: Watermark by which the rows are judged: that of the last commit.
            after: Watermark with these rows: what it closes is put out and expires.
        """
        ...


class Operator(Protocol):
    """An operator as it is declared."""

    @property
    def columns(self) -> Sequence[str]:
        """Every column name and SQL text in it, to find the columns that it uses."""
        ...

    @property
    def time_column(self) -> str | None:
        """Column of event time that it names itself."""
        ...

    @property
    def replaces_rows(self) -> bool:
        """Whether its rows take the place of earlier ones."""
        ...

    def bind(self, inputs: Sequence[Input]) -> BoundOperator:
        """Check it against its inputs.

        Raises:
            UserError: It does not fit them. Not retryable.
        """
        ...
