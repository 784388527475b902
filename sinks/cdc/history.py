"""SCD type 2: the history of each key, a row a version.

The history of a key is a function of its changes in the order of their sequence. What changes there were is read back from the
stored versions (a version begins with an upsert; one that ends where no other begins ended with a delete) and from the state,
which holds those that left no trace of their own: so a late change splits, moves or ends versions as if it had come in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sinks.cdc.outcome import FILE, KEY, ROW, Outcome, counts_by_flow
from sinks.cdc.rules import (
    DELETED,
    END_AT,
    FLOW,
    KIND,
    SEQUENCE,
    START_AT,
    UNSET,
    UPSERTED,
    TargetShape,
)
from waxlake.stream.engine import quote_name, quote_text, select_list

__all__ = ["HistoryInputs", "apply_history"]

_STORED, _STATE, _CHANGE, _TRUNCATE = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryInputs:
    """Everything that decides about the history of some keys.

    Attributes:
        keys: The keys, with ``k``.
        changes: Prepared upserts and deletes, with ``k``.
        stored: Versions of these keys, with ``k``, file and row.
        events: Events of these keys from the state, with ``k``.
        truncates: Sequences at which every key was deleted.
        arrivals: Sequences of this batch, truncates included.
    """

    keys: pa.Table
    changes: pa.Table
    stored: pa.Table
    events: pa.Table
    truncates: pa.Table
    arrivals: pa.Table


def apply_history(session: duckdb.DuckDBPyConnection, shape: TargetShape, inputs: HistoryInputs) -> Outcome:
    """Return what the changes make of the stored versions of their keys."""
    for name, table in (
        ("keys", inputs.keys),
        ("changes", inputs.changes),
        ("stored", inputs.stored),
        ("state", inputs.events),
        ("truncates", inputs.truncates),
        ("arrivals", inputs.arrivals),
    ):
        session.register(name, table)
    text = _HistorySql(shape)
    session.execute(f"CREATE OR REPLACE TEMP TABLE marked AS {text.marked()}")
    session.execute(f"CREATE OR REPLACE TEMP TABLE versions AS {text.versions()}")
    session.execute(f"CREATE OR REPLACE TEMP TABLE same AS {text.same()}")
    drops = session.sql(
        f"SELECT {FILE}, {ROW} FROM stored ANTI JOIN same USING ({FILE}, {ROW}) WHERE {START_AT} IS NOT NULL"
    )
    rows = session.sql(text.new_rows()).to_arrow_table()
    events = session.sql(text.events()).to_arrow_table()
    closing = session.sql(
        f"SELECT {FLOW} FROM marked WHERE {KIND} = {DELETED} AND __waxlake_origin = {_CHANGE} AND __waxlake_ends_version"
    ).to_arrow_table()
    return Outcome(
        drops=drops.to_arrow_table(),
        rows=rows.drop_columns([FLOW]),
        events=events,
        upserted=counts_by_flow(rows.column(FLOW).filter(pc.invert(_is_closed_only(rows)))),
        deleted=counts_by_flow(closing.column(FLOW)),
    )


def _is_closed_only(rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows are there because no change of this batch opened or overwrote them, only ended them."""
    return pc.is_null(rows.column(FLOW))


class _HistorySql:
    """The queries, for one shape. Where changes may be partial, a value is a struct, NULL where the change does not set it."""

    def __init__(self, shape: TargetShape) -> None:
        self._shape = shape
        self._values = shape.values
        self._keys = select_list(shape.keys)

    def marked(self) -> str:
        """Every change of the keys in order, with the number of the version it belongs to."""
        differs = (
            " OR ".join(
                f"{quote_name(c)} IS DISTINCT FROM lag({quote_name(c)}) OVER by_key" for c in self._shape.tracked
            )
            or "false"
        )
        opens = f"({KIND} = {DELETED} OR lag({KIND}) OVER by_key IS DISTINCT FROM {UPSERTED} OR {differs})"
        values = _list(select_list(self._values))
        return f"""
            WITH {self._collapsed()},
            opened AS (
                SELECT *, coalesce({opens}, true) AS __waxlake_opens,
                    coalesce(lag({KIND}) OVER by_key = {UPSERTED}, false) AS __waxlake_ends_version
                FROM whole WINDOW by_key AS (PARTITION BY {KEY} ORDER BY {SEQUENCE})
            )
            SELECT {KEY}, {SEQUENCE}, {KIND}, __waxlake_origin, {FLOW}, __waxlake_opens,
                __waxlake_ends_version, __waxlake_left{values},
                   sum(__waxlake_opens::INTEGER) OVER (PARTITION BY {KEY} ORDER BY {SEQUENCE}) AS __waxlake_version
            FROM opened
        """

    def versions(self) -> str:
        """The rows of the target that the changes give."""
        values = _list(select_list(self._values))
        unset = "NULL::VARCHAR[]"
        if self._shape.is_partial:
            parts = [
                f"CASE WHEN bool_and(list_contains(__waxlake_left, {quote_text(c)})) OVER span THEN {quote_text(c)} END"
                for c in self._values
            ]
            unset = f"list_filter([{', '.join(parts)}]::VARCHAR[], lambda x: x IS NOT NULL)"
        return f"""
            WITH spans AS (
                SELECT {KEY}, {KIND}, __waxlake_version, {FLOW}{values}, {SEQUENCE},
                       {unset} AS __waxlake_lefts, min({SEQUENCE}) OVER span AS {START_AT},
                       row_number() OVER (PARTITION BY {KEY}, __waxlake_version ORDER BY {SEQUENCE} DESC) AS __waxlake_back
                FROM marked WINDOW span AS (PARTITION BY {KEY}, __waxlake_version)
            ),
            last AS (
                SELECT *, lead({START_AT}) OVER (PARTITION BY {KEY} ORDER BY __waxlake_version) AS {END_AT}
                    FROM spans WHERE __waxlake_back = 1
            )
            SELECT {KEY}, {self._keys}{values}, {START_AT}, {END_AT}, {FLOW},
                   CASE WHEN len(__waxlake_lefts) > 0 THEN __waxlake_lefts END AS {UNSET}
            FROM last JOIN keys USING ({KEY}) WHERE {KIND} = {UPSERTED}
        """

    def same(self) -> str:
        """The stored rows that stay as they are."""
        names = [*(quote_name(c) for c in self._values), END_AT, *([UNSET] if self._shape.is_partial else [])]
        equal = " AND ".join(f"s.{name} IS NOT DISTINCT FROM v.{name}" for name in names)
        return f"""
            SELECT s.{FILE}, s.{ROW}, s.{KEY}, s.{START_AT}
            FROM stored s JOIN versions v ON s.{KEY} = v.{KEY} AND s.{START_AT} = v.{START_AT} AND {equal}
            QUALIFY row_number() OVER (PARTITION BY s.{KEY}, s.{START_AT} ORDER BY s.{FILE}, s.{ROW}) = 1
        """

    def new_rows(self) -> str:
        """The versions that are not stored yet, with the file of the row they replace, if any."""
        unset = f", v.{UNSET}" if self._shape.is_partial else ""
        names = select_list([*self._shape.names, START_AT, END_AT], "v.")
        return f"""
            WITH places AS (SELECT {KEY}, max({FILE}) AS {FILE} FROM stored ANTI JOIN same USING ({FILE}, {ROW}) GROUP BY {KEY})
            SELECT {names}{unset}, p.{FILE}, v.{FLOW}
            FROM versions v LEFT JOIN places p USING ({KEY})
            WHERE NOT EXISTS (SELECT 1 FROM same WHERE same.{KEY} = v.{KEY} AND same.{START_AT} = v.{START_AT})
            ORDER BY v.{KEY}, v.{START_AT}
        """

    def events(self) -> str:
        """The changes that the versions do not show: what a late change will need.

        One that is in the state already is written anew: a change of the same sequence may have made it another one.
        """
        values = _list(select_list(self._values, "m."))
        return f"""
            WITH crowded AS (
                SELECT {KEY}, __waxlake_version FROM marked WHERE {KIND} = {UPSERTED} GROUP BY ALL HAVING count(*) > 1
            )
            SELECT {select_list(self._shape.keys, "n.")}{values}, m.{SEQUENCE}, m.{KIND},
                   CASE WHEN len(m.__waxlake_left) > 0 THEN m.__waxlake_left END AS {UNSET}
            FROM marked m JOIN keys n ON n.{KEY} = m.{KEY}
                LEFT JOIN crowded c ON c.{KEY} = m.{KEY} AND c.__waxlake_version = m.__waxlake_version
            WHERE (m.{KIND} = {DELETED} AND NOT m.__waxlake_ends_version AND m.__waxlake_origin <> {_TRUNCATE})
                OR c.{KEY} IS NOT NULL
               OR (m.{KIND} = {UPSERTED} AND EXISTS (
                   SELECT 1 FROM state t WHERE t.{KEY} = m.{KEY} AND t.{SEQUENCE} = m.{SEQUENCE} AND t.{KIND} = {UPSERTED}))
        """

    def _collapsed(self) -> str:
        """CTEs from the sources of changes to ``whole``: one change a key and sequence, every value filled in."""
        if self._shape.is_partial:
            return self._partial()
        values = _list(select_list(self._values))
        order = "".join(f", {quote_name(c)} DESC NULLS LAST" for c in self._values)
        return f"""
            every AS ({self._every(self._values)}),
            whole AS (
                SELECT {KEY}, {SEQUENCE}, {KIND}, __waxlake_origin, {FLOW}{values}, NULL::VARCHAR[] AS __waxlake_left
                FROM every QUALIFY row_number() OVER (PARTITION BY {KEY}, {SEQUENCE}
                    ORDER BY {KIND} DESC{order}, __waxlake_origin) = 1
            )
        """

    def _partial(self) -> str:
        parts = [(f"__waxlake_p{i}", quote_name(c), quote_text(c)) for i, c in enumerate(self._values)]
        best = "".join(f", max({part}) FILTER ({KIND} = {UPSERTED}) AS {part}" for part, _, _ in parts)
        split = "".join(
            f", CASE WHEN NOT coalesce(list_contains({UNSET}, {text}), false) "
            f"THEN {{'known': {column} IS NOT NULL, 'value': {column}}} END AS {part}"
            for part, column, text in parts
        )
        filled = "".join(
            f", (last_value(CASE WHEN {KIND} = {UPSERTED} THEN {part} END IGNORE NULLS) OVER __waxlake_life).value AS {column}"
            for part, column, _ in parts
        )
        left = ", ".join(f"CASE WHEN {part} IS NULL THEN {text} END" for part, _, text in parts)
        return f"""
            every AS ({self._every([*self._values, UNSET])}),
            split AS (SELECT {KEY}, {SEQUENCE}, {KIND}, __waxlake_origin, {FLOW}{split} FROM every),
            single AS (
                SELECT {KEY}, {SEQUENCE}, max({KIND}) AS {KIND},
                    arg_min(__waxlake_origin, (-{KIND}, __waxlake_origin)) AS __waxlake_origin,
                       max({FLOW}) AS {FLOW}{best}
                FROM split GROUP BY {KEY}, {SEQUENCE}
            ),
            lives AS (
                SELECT *, sum(({KIND} = {DELETED})::INTEGER) OVER (PARTITION BY {KEY} ORDER BY {SEQUENCE})
                    AS __waxlake_life FROM single
            ),
            whole AS (
                SELECT {KEY}, {SEQUENCE}, {KIND}, __waxlake_origin, {FLOW}{filled},
                       list_filter([{left}]::VARCHAR[], lambda x: x IS NOT NULL) AS __waxlake_left
                FROM lives WINDOW __waxlake_life AS (PARTITION BY {KEY}, __waxlake_life ORDER BY {SEQUENCE}
                                           ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
            )
        """

    def _every(self, columns: Sequence[str]) -> str:
        """SQL for every change of the keys, wherever it is known from; a stored opener gives way to its own record."""
        names = _list(select_list(columns))
        nulls = "".join(f", NULL AS {quote_name(name)}" for name in columns)
        return f"""
            SELECT {KEY}, {SEQUENCE}, {KIND}, {_CHANGE} AS __waxlake_origin, {FLOW}{names} FROM changes
            UNION ALL SELECT {KEY}, {SEQUENCE}, {KIND}, {_STATE}, NULL{names} FROM state t
                WHERE {SEQUENCE} >= (SELECT min({SEQUENCE}) FROM arrivals)
                   OR EXISTS (SELECT 1 FROM stored s WHERE s.{KEY} = t.{KEY} AND s.{START_AT} <= t.{SEQUENCE})
            UNION ALL SELECT {KEY}, {START_AT}, {UPSERTED}, {_STORED}, NULL{names} FROM stored s
                WHERE {START_AT} IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM state t
                    WHERE t.{KEY} = s.{KEY} AND t.{SEQUENCE} = s.{START_AT} AND t.{KIND} = {UPSERTED})
            UNION ALL SELECT {KEY}, {END_AT}, {DELETED}, {_STORED}, NULL{nulls} FROM stored s
                WHERE {END_AT} IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM stored n WHERE n.{KEY} = s.{KEY} AND n.{START_AT} = s.{END_AT})
            UNION ALL SELECT k.{KEY}, t.{SEQUENCE}, {DELETED}, {_TRUNCATE}, NULL{nulls}
                FROM keys k CROSS JOIN truncates t
        """


def _list(names: str) -> str:
    return f", {names}" if names else ""
