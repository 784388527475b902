"""State of a user's own by key: a Python function takes the rows of a flush and the state of their keys, and returns both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from sinks.state.dedupe import require_columns
from sinks.state.operator import Applied, BoundOperator, Input, OperatorState
from sinks.state.rows import ROW, TIME, judge, same_keys
from sinks.state.store import EXPIRES, ID, StateTable
from sinks.state.watermark import require_time
from waxlake.stream.engine import select_list
from waxlake.stream.errors import UserError, WaxlakeError
from waxlake.stream.schema import cast_exact, delta_schema, no_rows

__all__ = ["MapWithState", "StateFunction"]

StateFunction = Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]
TIMED_OUT: Final = "timed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapWithState:
    """``map_with_state``.

    Attributes:
        function: From (rows, state) to (output, new state).
        keys: Columns that say which state belongs to a row; NULLs are a key.
        schema: Columns of the output.
        state_schema: Columns of the state beside the keys.
        timeout_us: Microseconds of event time after a key's last row at which its state ends, or None.
    """

    function: StateFunction
    keys: tuple[str, ...]
    schema: pa.Schema
    state_schema: pa.Schema
    timeout_us: int | None = None

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
        require_columns(source.schema, self.keys, what="map_with_state()")
        if self.timeout_us is not None and source.time is None:
            raise UserError(
                "map_with_state(timeout=...) needs a watermark",
                code="WATERMARK_MISSING",
                remedy="Put .with_watermark(column, delay) before it: the timeout is one of event time",
            )
        if source.time is not None:
            require_time(source.schema, source.time.column, what="with_watermark()")
        twice = [name for name in self.state_schema.names if name in (*self.keys, TIMED_OUT)]
        if twice:
            raise UserError(
                f"state_schema= of map_with_state() names '{twice[0]}', which the state has anyway",
                code="DUPLICATE_COLUMN",
                remedy="Leave it out",
            )
        return _BoundMap(self, source)


class _BoundMap:
    def __init__(self, rule: MapWithState, source: Input) -> None:
        self._rule, self._source = rule, source
        self.upsert_keys: tuple[str, ...] = ()
        self.lags: Mapping[str, int] = {}
        self.event_times: Mapping[str, int] = {}  # what the function puts out, and when, is its own affair
        self.output = delta_schema(rule.schema)
        keys = [source.schema.field(name).with_nullable(True) for name in rule.keys]
        state = pa.schema([*keys, *(item.with_nullable(True) for item in delta_schema(rule.state_schema))])
        self._state = state
        self.tables: Mapping[str, pa.Schema] = {"keys": state}
        self.shape: Mapping[str, Any] = {
            "operator": "map_with_state",
            "keys": list(rule.keys),
            "columns": {f.name: str(f.type) for f in state},
            "timeout_us": rule.timeout_us,
        }

    def apply(
        self, state: OperatorState, rows: Mapping[int, pa.Table], before: int | None, after: int | None
    ) -> Applied:
        session, held = state.session, state.tables["keys"]
        table = rows.get(0, no_rows(self._source.schema))
        time = self._source.time.column if self._source.time is not None else None
        judged = judge(session, table, time, before)
        timely = session.sql(f"SELECT {ROW} FROM judged ORDER BY {ROW}").to_arrow_table().column(0)
        late_by = f"max({TIME})" if time is not None else "NULL::BIGINT"
        names = select_list(self._rule.keys)
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE touched AS SELECT {names}, {late_by} AS at FROM judged GROUP BY {names}"
        )
        session.unregister("judged")
        known = self._known(session, held, after)
        out = no_rows(self.output)
        if len(timely) or known.num_rows:
            out, new = self._called(table.take(timely), known)
            self._store(session, held, new)
        held.expire(after)
        return Applied(rows=out, late={0: table.take(judged.late)}, untimed={0: table.take(judged.untimed)})

    def _known(self, session: duckdb.DuckDBPyConnection, held: StateTable, after: int | None) -> pa.Table:
        """Return the state of the touched keys, and that of keys whose time is over."""
        on = same_keys(self._rule.keys, "s", "t")
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE known AS SELECT s.*, false AS {TIMED_OUT} "
            f"FROM {held.sql_name} s SEMI JOIN touched t ON {on}"
        )
        if after is not None:
            session.execute(
                f"INSERT INTO known SELECT s.*, true FROM {held.sql_name} s ANTI JOIN touched t ON {on} "
                f"WHERE s.{EXPIRES} < {after}"
            )
        columns = select_list([*self._state.names, TIMED_OUT])
        found: pa.Table = session.sql(f"SELECT {columns} FROM known ORDER BY {ID}").to_arrow_table()
        return found.cast(pa.schema([*self._state, pa.field(TIMED_OUT, pa.bool_())]))

    def _called(self, rows: pa.Table, known: pa.Table) -> tuple[pa.Table, pa.Table]:
        try:
            made = self._rule.function(rows, known)
        except WaxlakeError:
            raise
        except Exception as exc:  # whatever a user's function raises is reported as that function's error
            raise UserError(
                f"the map_with_state function failed: {type(exc).__name__}: {exc}",
                code="MAP_WITH_STATE_FAILED",
                found=f"{rows.num_rows} rows, {known.num_rows} rows of state",
            ) from exc
        if not isinstance(made, tuple) or len(made) != 2 or not all(isinstance(part, pa.Table) for part in made):
            raise UserError(
                "the map_with_state function did not return two tables",
                code="MAP_WITH_STATE_RETURN_TYPE",
                found=type(made).__name__,
                expected="(output, new state), each a pa.Table",
            )
        out = cast_exact(made[0], self.output, what="the output of map_with_state")
        new = made[1].drop_columns([TIMED_OUT]) if TIMED_OUT in made[1].column_names else made[1]
        return out, cast_exact(new, self._state, what="the new state of map_with_state")

    def _store(self, session: duckdb.DuckDBPyConnection, held: StateTable, new: pa.Table) -> None:
        """Put the new state of the touched keys in the place of the old; that of others is left out."""
        session.register("made", new)
        on = same_keys(self._rule.keys, "m", "t")
        timeout = self._rule.timeout_us
        expires = "NULL" if timeout is None else f"greatest(t.at + {timeout}, k.{EXPIRES})"
        keys = select_list(self._rule.keys)
        session.execute(
            f"CREATE OR REPLACE TEMP TABLE renewed AS SELECT m.*, {expires} AS {EXPIRES} FROM made m JOIN touched t ON {on} "
            f"LEFT JOIN (SELECT {keys}, max({EXPIRES}) AS {EXPIRES} FROM known GROUP BY {keys}) k "
            f"ON {same_keys(self._rule.keys, 'm', 'k')}"
        )
        session.unregister("made")
        held.remove(f"SELECT {ID} FROM known WHERE NOT {TIMED_OUT}")
        held.put("SELECT * FROM renewed")
