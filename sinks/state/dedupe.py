"""De-duplication: of rows with equal keys the first one stays, for ever or within a span of event time.

Within a span, a row is a duplicate of one that was kept if their times are no further apart than the span. Later rows than the
watermark allows are left out, so what is kept can be forgotten once the watermark is a span beyond it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import duckdb
import pyarrow as pa

from sinks.state.operator import Applied, BoundOperator, Input, OperatorState
from sinks.state.rows import ROW, TIME, judge, same_keys
from sinks.state.store import EXPIRES
from sinks.state.watermark import require_time
from waxlake.stream.engine import select_list
from waxlake.stream.errors import UserError
from waxlake.stream.schema import no_rows
from waxlake.stream.settings import nearest

__all__ = ["Dedupe", "require_columns"]

_PASSES: Final = 8


def require_columns(schema: pa.Schema, names: Sequence[str], *, what: str) -> None:
    """Stop unless every name is a column.

    Raises:
        UserError: One is not. Not retryable.
    """
    for name in names:
        if name not in schema.names:
            raise UserError(
                f"{what} names an unknown column '{name}'",
                code="UNKNOWN_COLUMN",
                expected=", ".join(schema.names),
                remedy=nearest(name, schema.names),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedupe:
    """``drop_duplicates``.

    Attributes:
        keys: Columns whose equality makes a duplicate, none for all of them; NULLs are equal.
        within_us: Span of event time, in microseconds; None for ever.
    """

    keys: tuple[str, ...] = ()
    within_us: int | None = None

    @property
    def columns(self) -> Sequence[str]:
        """Every column name in it."""
        return self.keys

    @property
    def time_column(self) -> str | None:
        """Return None: the event time is that of the watermark."""
        return None

    @property
    def replaces_rows(self) -> bool:
        """Return False: the table only grows."""
        return False

    def bind(self, inputs: Sequence[Input]) -> BoundOperator:
        """Check it against its input."""
        (source,) = inputs
        require_columns(source.schema, self.keys, what="drop_duplicates()")
        if self.within_us is not None and source.time is None:
            raise UserError(
                "drop_duplicates(within=...) needs a watermark",
                code="WATERMARK_MISSING",
                remedy="Put .with_watermark(column, delay) before it, or leave out within= to remember every key for ever",
            )
        if source.time is not None:
            require_time(source.schema, source.time.column, what="with_watermark()")
        return _BoundDedupe(replace(self, keys=self.keys or tuple(source.schema.names)), source)


class _BoundDedupe:
    def __init__(self, rule: Dedupe, source: Input) -> None:
        self._rule, self._source = rule, source
        time = source.time.column if source.time is not None else None
        self._within = rule.within_us
        if self._within is None and time in rule.keys:
            self._within = 0  # duplicates have the same time, so the watermark bounds what has to be remembered
        self._time = None if self._within is None else time
        self.output = source.schema
        self.upsert_keys: tuple[str, ...] = ()
        self.lags: Mapping[str, int] = {}
        self.event_times: Mapping[str, int] = {} if time is None else {time: 0}
        columns = [source.schema.field(name).with_nullable(True) for name in rule.keys]
        if self._time is not None:
            columns.append(pa.field(TIME, pa.int64()))
        self.tables: Mapping[str, pa.Schema] = {"keys": pa.schema(columns)}
        self.shape: Mapping[str, Any] = {
            "operator": "drop_duplicates",
            "keys": {name: str(source.schema.field(name).type) for name in rule.keys},
            "time": self._time,
            "within_us": self._within,
        }

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        table = rows.get(0, no_rows(self._source.schema))
        applied = Applied(rows=table)
        if table.num_rows:
            applied = self._applied(state, table, before)
        state.tables["keys"].expire(after)
        return applied

    def _applied(self, state: OperatorState, table: pa.Table, before: int | None) -> Applied:
        session = state.session
        judged = judge(session, table, self._time, before)
        kept = self._kept(state)
        return Applied(
            rows=table.take(kept), late={0: table.take(judged.late)}, untimed={0: table.take(judged.untimed)}
        )

    def _kept(self, state: OperatorState) -> pa.Array:
        """Return the numbers of the rows that are no duplicates, in order, and remember them."""
        session, keys = state.session, state.tables["keys"]
        names = select_list(self._rule.keys)
        time = f"{TIME}" if self._time is not None else "NULL::BIGINT"
        session.execute(f"CREATE OR REPLACE TEMP TABLE pending AS SELECT {names}, {ROW}, {time} AS {TIME} FROM judged")
        held = f"(SELECT s.* FROM {keys.sql_name} s SEMI JOIN pending p ON {self._equal('s', 'p')})"
        self._drop_duplicates_of(session, held)
        session.execute("CREATE OR REPLACE TEMP TABLE kept AS SELECT * FROM pending LIMIT 0")
        passes = 0
        while session.execute("SELECT count(*) FROM pending").fetchall() != [(0,)]:
            passes += 1
            if passes > _PASSES:
                self._keep_in_turn(session)
                break
            session.execute(
                f"CREATE OR REPLACE TEMP TABLE first AS SELECT {names}, min({ROW}) AS {ROW}, "
                f"arg_min({TIME}, {ROW}) AS {TIME} FROM pending GROUP BY {names}"
            )
            session.execute("INSERT INTO kept SELECT * FROM first")
            self._drop_duplicates_of(session, "first")
        expires = "NULL" if self._within is None else f"{TIME} + {self._within}"
        keys.put(f"SELECT *, {expires} AS {EXPIRES} FROM kept")
        rows: pa.Array = session.sql(f"SELECT {ROW} FROM kept ORDER BY {ROW}").to_arrow_table().column(0)
        return rows

    def _keep_in_turn(self, session: duckdb.DuckDBPyConnection) -> None:
        """Go through what is left row by row: a few keys hold many rows, and a pass keeps but one of each."""
        assert self._within is not None
        names = select_list(self._rule.keys)
        left = session.sql(
            f"SELECT dense_rank() OVER (ORDER BY {names}), {ROW}, {TIME} FROM pending ORDER BY {ROW}"
        ).fetchall()
        times: dict[int, list[int]] = {}
        taken = []
        for key, number, at in left:
            kept = times.setdefault(key, [])
            place = bisect_left(kept, at - self._within)
            if place == len(kept) or kept[place] > at + self._within:
                insort(kept, at)
                taken.append(number)
        session.register("taken", pa.table({ROW: pa.array(taken, pa.int64())}))
        session.execute(f"INSERT INTO kept SELECT p.* FROM pending p SEMI JOIN taken t ON p.{ROW} = t.{ROW}")
        session.unregister("taken")

    def _drop_duplicates_of(self, session: duckdb.DuckDBPyConnection, kept: str) -> None:
        span = "" if self._time is None else (
            f" AND p.{TIME} <= k.{TIME} + {self._within} AND p.{TIME} >= k.{TIME} - {self._within}"
        )  # fmt: skip
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE pending AS SELECT p.* FROM pending p ANTI JOIN {kept} k "
            f"ON {self._equal('p', 'k')}{span}"
        )

    def _equal(self, one: str, other: str) -> str:
        return same_keys(self._rule.keys, one, other)
