"""Windowed aggregates: tumbling, sliding and session windows of event time, and running aggregates without a window.

Append mode puts a window's row out once, when the watermark has passed its end. Update mode puts out the row of every group that
a commit touched, to take the place of the one before. Windows begin at whole multiples of their step since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from sinks.state.dedupe import require_columns
from sinks.state.operator import Applied, BoundOperator, Input, OperatorState
from sinks.state.rows import ROW, TIME, judge, same_keys
from sinks.state.store import EXPIRES, StateTable
from sinks.state.watermark import require_time
from waxlake.stream.engine import open_session, quote_name, select_list
from waxlake.stream.errors import UserError
from waxlake.stream.schema import delta_schema, no_rows

if TYPE_CHECKING:
    from sinks.state.partials import Partials

__all__ = ["Aggregate", "Window"]

START, END = "window_start", "window_end"
LOW: Final = "__waxlake_low"
HIGH: Final = "__waxlake_high"
_SESSION: Final = "__waxlake_session"
_FOLD_ROWS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A kind of window.

    Attributes:
        kind: ``tumbling``, ``sliding`` or ``session``.
        column: Event time.
        size_us: Length in microseconds; for a session the gap that ends it.
        every_us: Microseconds between the beginnings of windows; for a session 0.
    """

    kind: str
    column: str
    size_us: int
    every_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """``group_by(...).agg(...)``.

    Attributes:
        keys: Columns to group by; NULLs are a group of their own.
        window: Window to group by too, or None.
        aggregates: Names and SQL.
        mode: ``append`` or ``update``.
    """

    keys: tuple[str, ...]
    window: Window | None
    aggregates: tuple[tuple[str, str], ...]
    mode: str = "append"

    @property
    def columns(self) -> Sequence[str]:
        """Every column name and SQL text in it."""
        window = () if self.window is None else (self.window.column,)
        return (*self.keys, *window, *(text for _, text in self.aggregates))

    @property
    def time_column(self) -> str | None:
        """Column of the window."""
        return None if self.window is None else self.window.column

    @property
    def replaces_rows(self) -> bool:
        """Whether its rows take the place of earlier ones."""
        return self.mode == "update"

    def bind(self, inputs: Sequence[Input]) -> BoundOperator:
        """Check it against its input."""
        (source,) = inputs
        require_columns(source.schema, self.keys, what="group_by()")
        self._check_mode(source)
        made = [*self.keys, *((START, END) if self.window is not None else ()), *(name for name, _ in self.aggregates)]
        twice = sorted({name for name in made if made.count(name) > 1})
        if twice:
            raise UserError(
                f"agg() makes the column '{twice[0]}' twice", code="DUPLICATE_COLUMN", found=", ".join(made)
            )
        return _BoundAggregate(self, source)

    def _check_mode(self, source: Input) -> None:
        window = self.window
        if window is None:
            if self.mode == "append":
                raise UserError(
                    "group_by() without a window never has a last row to append",
                    code="WINDOW_MISSING",
                    remedy="Give window=wl.tumbling(...), or mode='update' to keep the table's rows up to date",
                )
            return
        require_time(source.schema, window.column, what="the window")
        if source.time is None or source.time.column != window.column:
            raise UserError(
                "a window needs a watermark on its column",
                code="WATERMARK_MISSING",
                found=f"a watermark on {source.time.column}" if source.time is not None else "none",
                expected=f"one on {window.column}",
                remedy=f"Put .with_watermark('{window.column}', delay) before group_by(): without it no window ever ends",
            )
        if window.kind == "session" and self.mode == "update":
            raise UserError(
                "session windows have no update mode: two sessions may become one",
                code="NOT_AVAILABLE",
                remedy="Use mode='append'",
            )


class _BoundAggregate:
    def __init__(self, rule: Aggregate, source: Input) -> None:
        self._rule, self._source, self._window = rule, source, rule.window
        self._keys = rule.keys
        self._is_session = rule.window is not None and rule.window.kind == "session"
        from sinks.state.partials import partials_of  # SQL is parsed for windows only

        self._partials: Partials = partials_of(rule.aggregates, source.schema)
        #: Columns by which partial rows belong together, and those that say where a row lies in event time.
        self._spans = (LOW, HIGH) if self._is_session else (LOW,) if rule.window is not None else ()
        self._group = (*self._keys, *(() if self._is_session else self._spans))
        self.tables: Mapping[str, pa.Schema] = {"groups": self._state_schema()}
        self.output = self._output_schema()
        window_key = (START,) if rule.window is not None else ()
        self.upsert_keys = (*self._keys, *window_key) if rule.mode == "update" else ()
        self.lags: Mapping[str, int] = {}
        self.shape: Mapping[str, Any] = {
            "operator": "aggregate",
            "keys": {name: str(source.schema.field(name).type) for name in self._keys},
            "window": None
            if self._window is None
            else [self._window.kind, self._window.size_us, self._window.every_us],
            "mode": rule.mode,
            "kept": [[name, sql] for name, sql in self._partials.columns],
            "columns": {f.name: str(f.type) for f in self.tables["groups"]},
        }

    @property
    def event_times(self) -> Mapping[str, int]:
        """End and beginning of a window, which is put out when the watermark has passed the end."""
        if self._window is None or self._rule.mode == "update":
            return {}
        return {END: 0} if self._is_session else {END: 0, START: self._window.size_us}

    # -- SQL

    def _partial_sql(self, rows: str) -> str:
        """Return the query that makes state rows of timed rows, of which each has its window or its session."""
        parts = self._partials
        if parts.keeps_rows:
            spans = [f"{TIME} AS {LOW}", f"{TIME} AS {HIGH}"] if self._is_session else list(self._spans)
            kept = [f"{sql} AS {quote_name(self._kept_name(name))}" for name, sql in parts.columns]
            return f"SELECT {', '.join([*map(quote_name, self._keys), *spans, *kept])} FROM {rows}"
        kept = [f"{sql} AS {name}" for name, sql in parts.columns]
        if self._is_session:
            spans = [f"min({TIME}) AS {LOW}", f"max({TIME}) AS {HIGH}"]
            group = [*self._keys, _SESSION]
        else:
            spans, group = list(self._spans), list(self._group)
        by = f" GROUP BY {select_list(group)}" if group else ""
        return f"SELECT {', '.join([*map(quote_name, self._keys), *spans, *kept])} FROM {rows}{by}"

    def _combined_sql(self, rows: str) -> str:
        """Return the query that makes one row of each group of partial rows; sessions have their number by then."""
        if self._partials.keeps_rows:
            return f"SELECT * FROM {rows}"
        kept = [f"{sql} AS {name}" for name, sql in self._partials.combined]
        spans = [f"min({LOW}) AS {LOW}", f"max({HIGH}) AS {HIGH}"] if self._is_session else list(self._spans)
        group = [*self._keys, _SESSION] if self._is_session else list(self._group)
        by = f" GROUP BY {select_list(group)}" if group else ""
        return f"SELECT {', '.join([*map(quote_name, self._keys), *spans, *kept])} FROM {rows}{by}"

    def _result_sql(self, rows: str) -> str:
        """Return the query that makes output rows: of combined rows, or of the kept rows of whole groups."""
        columns = [quote_name(name) for name in self._keys]
        keeps_rows = self._partials.keeps_rows
        if self._window is not None:
            low, high = LOW, f"{LOW} + {self._window.size_us}"
            if self._is_session:
                low, high = (f"min({LOW})", f"max({HIGH})") if keeps_rows else (LOW, HIGH)
                high += f" + {self._window.size_us}"
            columns += [f"{self._time_sql(low)} AS {START}", f"{self._time_sql(high)} AS {END}"]
        columns += [f"{sql} AS {quote_name(name)}" for name, sql in self._partials.results]
        if not keeps_rows:
            return f"SELECT {', '.join(columns)} FROM {rows}"
        group = [*self._keys, _SESSION] if self._is_session else list(self._group)
        by = f" GROUP BY {select_list(group)}" if group else ""
        rows = self._named_sql(rows)
        return f"SELECT {', '.join(columns)} FROM ({rows}){by}"

    def _named_sql(self, rows: str) -> str:
        """Return kept rows under the names that the aggregates know them by."""
        given = [
            f"{quote_name(self._kept_name(n))} AS {quote_name(n)}"
            for n, _ in self._partials.columns
            if n not in self._keys
        ]
        rest = [*map(quote_name, self._keys), *self._spans, *([_SESSION] if self._is_session else [])]
        return f"SELECT {', '.join([*rest, *given])} FROM {rows}"

    def _kept_name(self, name: str) -> str:
        """Return the name of a kept column in the state: none of a key's or of ours."""
        return f"kept_{name}"

    def _sessions_sql(self, rows: str, low: str, high: str) -> str:
        """Return rows with the number of their session within their key."""
        assert self._window is not None
        by = f"PARTITION BY {select_list(self._keys)} " if self._keys else ""
        before = f"max({high}) OVER ({by}ORDER BY {low}, {high} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        return (
            f"SELECT *, sum(CASE WHEN {low} < __before + {self._window.size_us} THEN 0 ELSE 1 END) "
            f"OVER ({by}ORDER BY {low}, {high} ROWS UNBOUNDED PRECEDING) AS {_SESSION} "
            f"FROM (SELECT *, {before} AS __before FROM {rows})"
        )

    def _windows_sql(self, rows: str, before: int | None) -> str:
        """Return timed rows once for each window that they are in and that is still open."""
        window = self._window
        if window is None:
            return f"SELECT * FROM {rows}"
        if self._is_session:
            return self._sessions_sql(rows, TIME, TIME)
        open_ = f" WHERE {LOW} + {window.size_us} > {before}" if before is not None else ""
        latest = _floor_sql(TIME, window.every_us)
        if window.every_us >= window.size_us:
            return f"SELECT * FROM (SELECT *, {latest} AS {LOW} FROM {rows}){open_}"
        count = -(-window.size_us // window.every_us)
        return (
            f"SELECT * FROM (SELECT r.*, {latest} - i.range * {window.every_us} AS {LOW} FROM {rows} r, range({count}) i "
            f"WHERE {latest} - i.range * {window.every_us} + {window.size_us} > {TIME}){open_}"
        )

    def _time_sql(self, value: str) -> str:
        assert self._window is not None
        kind = self._source.schema.field(self._window.column).type
        is_zoned = pa.types.is_timestamp(kind) and kind.tz is not None
        return f"make_timestamptz({value})" if is_zoned else f"make_timestamp({value})"

    def _state_schema(self) -> pa.Schema:
        timed = no_rows(self._source.schema).append_column(TIME, pa.array([], pa.int64()))
        return _schema_of(timed, self._partial_sql(f"({self._windows_sql('probe', None)})"))

    def _output_schema(self) -> pa.Schema:
        probe = no_rows(self.tables["groups"])
        rows = "probe" if not self._is_session else f"({self._sessions_sql('probe', LOW, HIGH)})"
        found = _schema_of(probe, self._result_sql(f"({self._combined_sql(rows)})"))
        return pa.schema([item.with_nullable(True) for item in delta_schema(found)])

    # -- work

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        table = rows.get(0, no_rows(self._source.schema))
        groups, session = state.tables["groups"], state.session
        late = untimed = table.slice(0, 0)
        replaced: pa.Table | None = None
        if table.num_rows:
            late, untimed = self._take(session, table, before)
            if self._rule.mode == "update":
                replaced = self._touched(session, groups)
            groups.put(f"SELECT *, {self._expires()} AS {EXPIRES} FROM fresh")
        if self._rule.mode == "update":
            made = self._touched_rows(session, groups) if table.num_rows else no_rows(self.output)
        elif self._is_session:
            made = self._closed_sessions(session, groups, after)
        else:
            made = self._closed(session, groups, after)
        groups.expire(after)
        self._fold(groups)
        return Applied(rows=made.cast(self.output), late={0: late}, untimed={0: untimed}, replaced=replaced)

    def _take(
        self, session: duckdb.DuckDBPyConnection, table: pa.Table, before: int | None
    ) -> tuple[pa.Table, pa.Table]:
        """Make partial rows of the rows of a flush, as table ``fresh``; return the late and the untimed ones."""
        column = None if self._window is None else self._window.column
        judged = judge(session, table, column, None)
        late = table.slice(0, 0)
        if self._window is not None and before is not None:
            first = TIME if self._is_session else _floor_sql(TIME, self._window.every_us)
            found = session.sql(
                f"SELECT {ROW} FROM judged WHERE {first} + {self._window.size_us} <= {before} ORDER BY {ROW}"
            )
            numbers = found.to_arrow_table().column(0)
            late = table.take(numbers)
            if len(numbers):
                session.execute(
                    f"CREATE OR REPLACE TEMP TABLE timely AS SELECT * FROM judged "
                    f"WHERE {first} + {self._window.size_us} > {before}"
                )
                session.unregister("judged")
        rows = "timely" if late.num_rows else "judged"
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE fresh AS {self._partial_sql(f'({self._windows_sql(rows, before)})')}"
        )
        if late.num_rows:
            session.execute("DROP TABLE timely")
        else:
            session.unregister("judged")
        return late, table.take(judged.untimed)

    def _expires(self) -> str:
        if self._window is None or self._is_session:
            return "NULL"
        return f"{LOW} + {self._window.size_us - 1}"

    def _closed(self, session: duckdb.DuckDBPyConnection, groups: StateTable, after: int | None) -> pa.Table:
        if after is None:
            return no_rows(self.output)
        rows = f"(SELECT * FROM {groups.sql_name} WHERE {EXPIRES} < {after})"
        made: pa.Table = session.sql(self._result_sql(f"({self._combined_sql(rows)})")).to_arrow_table()
        return made

    def _closed_sessions(self, session: duckdb.DuckDBPyConnection, groups: StateTable, after: int | None) -> pa.Table:
        """Put out the sessions that have ended; the parts of others of the same keys are made one row each."""
        if after is None:
            return no_rows(self.output)
        assert self._window is not None
        gap = self._window.size_us
        ended = f"SELECT * FROM {groups.sql_name} WHERE {HIGH} + {gap} <= {after}"
        touched = f"SELECT s.* FROM {groups.sql_name} s"
        if self._keys:
            touched += f" SEMI JOIN ({ended}) e ON {same_keys(self._keys, 's', 'e')}"
        by = select_list([*self._keys, _SESSION])
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE sessions AS SELECT *, "
            f"max({HIGH}) OVER (PARTITION BY {by}) + {gap} <= {after} AS __ended, "
            f"count(*) OVER (PARTITION BY {by}) AS __parts FROM ({self._sessions_sql(f'({touched})', LOW, HIGH)})"
        )
        done = "(SELECT * FROM sessions WHERE __ended)"
        made: pa.Table = session.sql(self._result_sql(f"({self._combined_sql(done)})")).to_arrow_table()
        if self._partials.keeps_rows:
            groups.remove("SELECT * FROM sessions WHERE __ended")
            return made
        session.execute(
            "CREATE OR REPLACE TEMP TABLE merged AS "
            + self._combined_sql("(SELECT * FROM sessions WHERE NOT __ended AND __parts > 1)")
        )
        groups.remove("SELECT * FROM sessions WHERE __ended OR __parts > 1")
        groups.put(f"SELECT *, NULL AS {EXPIRES} FROM merged")
        return made

    def _touched(self, session: duckdb.DuckDBPyConnection, groups: StateTable) -> pa.Table:
        """Return the keys of the rows that were put out before for the groups of ``fresh``."""
        names = [quote_name(name) for name in self._keys]
        if self._window is not None:
            names.append(f"{self._time_sql(LOW)} AS {START}")
        on = same_keys(self._group, "s", "f") or "true"
        held: pa.Table = session.sql(
            f"SELECT DISTINCT {', '.join(names)} FROM {groups.sql_name} s SEMI JOIN fresh f ON {on}"
        ).to_arrow_table()
        return held.cast(pa.schema([self.output.field(name) for name in held.column_names]))

    def _touched_rows(self, session: duckdb.DuckDBPyConnection, groups: StateTable) -> pa.Table:
        on = same_keys(self._group, "s", "f") or "true"
        rows = f"(SELECT s.* FROM {groups.sql_name} s SEMI JOIN fresh f ON {on})"
        made: pa.Table = session.sql(self._result_sql(f"({self._combined_sql(rows)})")).to_arrow_table()
        return made

    def _fold(self, groups: StateTable) -> None:
        """Make one row of the partial rows of each group, once they have become twice as many as they were."""
        rows = groups.rows
        if self._partials.keeps_rows or rows <= 2 * groups.folded_rows + _FOLD_ROWS:
            return
        source = groups.sql_name
        if self._is_session:
            source = f"({self._sessions_sql(source, LOW, HIGH)})"
        groups.replace(f"SELECT *, {self._expires()} AS {EXPIRES} FROM ({self._combined_sql(source)})")
        groups.folded_rows = groups.rows


def _floor_sql(time: str, step_us: int) -> str:
    """Return the last whole multiple of a step that is not above a time."""
    return f"({time} - (({time} % {step_us}) + {step_us}) % {step_us})"


def _schema_of(probe: pa.Table, query: str) -> pa.Schema:
    session = open_session()
    try:
        session.register("probe", probe)
        return session.sql(query).to_arrow_table().schema
    finally:
        session.close()
