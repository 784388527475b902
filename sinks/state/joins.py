"""Joins of two streams: rows with equal keys, the event time of the right one within a span around that of the left one.

Rows of both sides are kept until the watermark says that no partner can come any more. A row of an outer side that found none
is put out then. The watermark is that of both sides together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from sinks.state.dedupe import require_columns
from sinks.state.operator import Applied, BoundOperator, Input, OperatorState
from sinks.state.rows import ROW, TIME, judge
from sinks.state.store import EXPIRES, ID
from sinks.state.watermark import require_time
from waxlake.stream.engine import quote_name, select_list
from waxlake.stream.errors import UserError
from waxlake.stream.schema import no_rows

__all__ = ["HOW", "Join"]

HOW: Final = ("inner", "left", "right", "full", "semi")
_SIDES: Final = ("left", "right")
_OUTER: Final = {"left": (0,), "right": (1,), "full": (0, 1)}
_MATCH: Final = "match_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """``join``.

    Attributes:
        on: Key columns, of the same name on both sides.
        within_us: Most microseconds between the times of two rows that belong together, or how many the right row's time may lie
            before and after the left row's (a negative number bounds from the other side); None for no bound.
        how: One of ``HOW``.
    """

    on: tuple[str, ...]
    within_us: int | tuple[int, int] | None
    how: str = "inner"

    @property
    def columns(self) -> Sequence[str]:
        """Every column name in it."""
        return self.on

    @property
    def time_column(self) -> str | None:
        """Return None: the event time is that of the watermark."""
        return None

    @property
    def replaces_rows(self) -> bool:
        """Return False: the table only grows."""
        return False

    def bind(self, inputs: Sequence[Input]) -> BoundOperator:
        """Check it against its inputs."""
        if self.within_us is None:
            raise UserError(
                "a join of two streams needs a bound in time",
                code="JOIN_UNBOUNDED",
                found="no within=",
                expected="within='1 hour', say",
                remedy="Without it every row of both streams would have to be kept for ever, as any later row might match it; to "
                "join with all rows of a table as it is now, name the table in .sql()",
            )
        span = self.within_us if isinstance(self.within_us, tuple) else (self.within_us, self.within_us)
        if sum(span) < 0:
            raise UserError(
                "the bounds in time of a join leave nothing between them",
                code="ARGUMENT_INVALID",
                found=f"a right row at least {-span[0] / 1e6:g} s and at most {span[1] / 1e6:g} s after the left one",
            )
        left, right = inputs
        for side, source in zip(_SIDES, inputs, strict=True):
            require_columns(source.schema, self.on, what=f"join() on the {side} side")
            if source.time is None:
                raise UserError(
                    f"join() needs a watermark on the {side} side",
                    code="WATERMARK_MISSING",
                    remedy="Put .with_watermark(column, delay) on both streams: it says when rows can be forgotten",
                )
            require_time(source.schema, source.time.column, what="with_watermark()")
        for name in self.on:
            kinds = [source.schema.field(name).type for source in inputs]
            if kinds[0] != kinds[1]:
                raise UserError(
                    f"join() on '{name}' compares two types", code="SCHEMA_MISMATCH", found=kinds[1], expected=kinds[0]
                )
        twice = sorted((set(left.schema.names) & set(right.schema.names)) - set(self.on))
        if twice and self.how != "semi":
            raise UserError(
                f"both sides of join() have a column '{twice[0]}'",
                code="DUPLICATE_COLUMN",
                found=", ".join(twice),
                remedy="Rename or drop it on one side",
            )
        return _BoundJoin(self, span, left, right)


class _BoundJoin:
    def __init__(self, rule: Join, span: tuple[int, int], left: Input, right: Input) -> None:
        self._rule, self._inputs = rule, (left, right)
        self._earlier, self._later = span
        #: For each side: microseconds beyond a row's time at which the watermark has passed every possible partner.
        self._reach = (self._later, self._earlier)
        self._outer = _OUTER.get(rule.how, ())
        self.upsert_keys: tuple[str, ...] = ()
        self.lags: Mapping[str, int] = {}
        left_fields = [item.with_nullable(True) for item in left.schema]
        right_fields = [item.with_nullable(True) for item in right.schema if item.name not in rule.on]
        self.output = pa.schema(left_fields if rule.how == "semi" else left_fields + right_fields)
        tables = {}
        for side, source in zip(_SIDES, (left, right), strict=True):
            fields = [item.with_nullable(True) for item in source.schema]
            tables[side] = pa.schema([*fields, pa.field(TIME, pa.int64())])
        for number in self._flagged:
            tables[f"{_SIDES[number]}_matched"] = pa.schema([pa.field(_MATCH, pa.int64())])
        self.tables: Mapping[str, pa.Schema] = tables
        self.shape: Mapping[str, Any] = {
            "operator": "join",
            "on": list(rule.on),
            "how": rule.how,
            "within_us": span[0] if span[0] == span[1] else list(span),
            **{side: {f.name: str(f.type) for f in tables[side]} for side in _SIDES},
        }

    @property
    def event_times(self) -> Mapping[str, int]:
        """Both event times: a row may have waited for its partner as long as one could come."""
        sides = zip(self._inputs, self._reach, strict=True)
        times = {source.time.column: max(reach, 0) for source, reach in sides if source.time is not None}
        return {column: lag for column, lag in times.items() if column in self.output.names}

    @property
    def _flagged(self) -> tuple[int, ...]:
        """Sides of which is kept which rows have found a partner."""
        return (0,) if self._rule.how == "semi" else self._outer

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        late: dict[int, pa.Table] = {}
        untimed: dict[int, pa.Table] = {}
        made = []
        first = [state.tables[side].next_id for side in _SIDES]
        for number in (0, 1):
            if number in rows:
                late[number], untimed[number], lone = self._take(state, number, rows[number], before)
                made.append(lone)
        if rows:
            made.append(self._matches(state, first))
        made += [self._unmatched(state, number, after) for number in self._outer]
        for table in state.tables.values():
            table.expire(after)
        return Applied(rows=pa.concat_tables([no_rows(self.output), *made]), late=late, untimed=untimed)

    def _take(
        self, state: OperatorState, number: int, table: pa.Table, before: int | None
    ) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Keep the rows of a side; return the late ones, the untimed ones, and those put out at once for want of a key."""
        session, time = state.session, self._inputs[number].time
        assert time is not None
        judged = judge(session, table, time.column, before)
        columns = select_list(table.column_names)
        whole = " AND ".join(f"{quote_name(name)} IS NOT NULL" for name in self._rule.on)
        state.tables[_SIDES[number]].put(
            f"SELECT {columns}, {TIME}, {TIME} + {self._reach[number]} AS {EXPIRES} FROM judged WHERE {whole}"
        )
        untimed = table.take(judged.untimed)
        lone = table.slice(0, 0)
        if number in self._outer:
            found = session.sql(f"SELECT {ROW} FROM judged WHERE NOT ({whole}) ORDER BY {ROW}").to_arrow_table()
            lone = pa.concat_tables([table.take(found.column(0)), untimed])
            untimed = untimed.slice(0, 0)
        session.unregister("judged")
        return table.take(judged.late), untimed, self._alone(lone)

    def _alone(self, rows: pa.Table) -> pa.Table:
        """Return rows of one side as output, with NULLs for the other."""
        columns = [
            rows.column(item.name) if item.name in rows.column_names else pa.nulls(rows.num_rows, item.type)
            for item in self.output
        ]
        return pa.table(columns, schema=self.output)

    def _matches(self, state: OperatorState, first: Sequence[int]) -> pa.Table:
        """Put out the pairs of which one row is of this flush."""
        session = state.session
        old_left = f"(SELECT * FROM {state.tables['left'].sql_name} WHERE {ID} < {first[0]})"
        new_left = f"(SELECT * FROM {state.tables['left'].sql_name} WHERE {ID} >= {first[0]})"
        all_right = state.tables["right"].sql_name
        new_right = f"(SELECT * FROM {all_right} WHERE {ID} >= {first[1]})"
        pairs = " UNION ALL ".join(self._pairs_sql(*pair) for pair in ((new_left, all_right), (old_left, new_right)))
        session.execute(f"CREATE OR REPLACE TEMP TABLE pairs AS {pairs}")
        fresh = [self._flag(state, number) for number in self._flagged]
        if self._rule.how != "semi":
            made: pa.Table = session.sql(f"SELECT {select_list(self.output.names)} FROM pairs").to_arrow_table()
            return made.cast(self.output)
        left = state.tables["left"]
        made = session.sql(
            f"SELECT {select_list(self.output.names)} FROM {left.sql_name} WHERE {ID} IN (SELECT {_MATCH} FROM {fresh[0]})"
        ).to_arrow_table()
        return made.cast(self.output)

    def _pairs_sql(self, left: str, right: str) -> str:
        rule = self._rule
        rest = [name for name in self._inputs[1].schema.names if name not in rule.on] if rule.how != "semi" else []
        columns = [f"l.{quote_name(n)}" for n in self._inputs[0].schema.names] + [f"r.{quote_name(n)}" for n in rest]
        on = " AND ".join(f"l.{quote_name(name)} = r.{quote_name(name)}" for name in rule.on)
        near = f"r.{TIME} >= l.{TIME} - {self._earlier} AND r.{TIME} <= l.{TIME} + {self._later}"
        ids = [f"{alias}.{column} AS {side}_{name}" for alias, side in (("l", "left"), ("r", "right"))
               for column, name in ((ID, "id"), (EXPIRES, "expires"))]  # fmt: skip
        return f"SELECT {', '.join([*columns, *ids])} FROM {left} l JOIN {right} r ON {on} AND {near}"

    def _flag(self, state: OperatorState, number: int) -> str:
        """Remember which rows of a side have found a partner for the first time; return the table of their ids."""
        side = _SIDES[number]
        flags, fresh = state.tables[f"{side}_matched"], f"fresh_{side}"
        state.session.execute(
            f"CREATE OR REPLACE TEMP TABLE {fresh} AS SELECT {side}_id AS {_MATCH}, max({side}_expires) AS {EXPIRES} FROM pairs "
            f"WHERE {side}_id NOT IN (SELECT {_MATCH} FROM {flags.sql_name}) GROUP BY {side}_id"
        )
        flags.put(f"SELECT * FROM {fresh}")
        return fresh

    def _unmatched(self, state: OperatorState, number: int, after: int | None) -> pa.Table:
        """Put out the rows of an outer side that can find no partner any more and never found one."""
        if after is None:
            return no_rows(self.output)
        side, flags = state.tables[_SIDES[number]], state.tables[f"{_SIDES[number]}_matched"]
        names = self._inputs[number].schema.names
        found: pa.Table = state.session.sql(
            f"SELECT {select_list(names)} FROM {side.sql_name} WHERE {EXPIRES} < {after} "
            f"AND {ID} NOT IN (SELECT {_MATCH} FROM {flags.sql_name})"
        ).to_arrow_table()
        return self._alone(found.cast(self._inputs[number].schema))
