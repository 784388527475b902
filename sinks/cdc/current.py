"""SCD type 1: the newest change of each key wins.

The row of a key is what its changes give when they are applied in the order of their sequence, whatever order they arrive in.
A change that has every column wins or loses as a whole, which one comparison of sequences decides; only keys with a change
that leaves columns as they are, or with a tie, are worked out column by column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sinks.cdc.outcome import FILE, KEY, ROW, Outcome, counts_by_flow
from sinks.cdc.rules import DELETED, FLOW, KIND, SEQUENCE, UNSET, UPSERTED, TargetShape
from waxlake.stream.engine import quote_name, quote_text, select_list

__all__ = ["CurrentInputs", "apply_current"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentInputs:
    """Everything that decides about some keys.

    Attributes:
        keys: The keys, with ``k``.
        changes: Prepared upserts and deletes, with ``k``.
        stored: Rows of these keys: ``k``, file, row, sequence, and for a partial shape the columns' own sequences.
        events: Events of these keys from the state, with ``k``.
        truncates: Sequences at which every key was deleted.
        content: Returns the columns of some of the stored rows, given as positions in ``stored``.
    """

    keys: pa.Table
    changes: pa.Table
    stored: pa.Table
    events: pa.Table
    truncates: pa.Table
    content: Callable[[pa.Array], pa.Table]


def apply_current(session: duckdb.DuckDBPyConnection, shape: TargetShape, inputs: CurrentInputs) -> Outcome:
    """Return what the changes make of the stored rows of their keys."""
    merge = _CurrentMerge(session, shape, inputs)
    return merge.run()


class _CurrentMerge:
    def __init__(self, session: duckdb.DuckDBPyConnection, shape: TargetShape, inputs: CurrentInputs) -> None:
        self._session, self._shape, self._inputs = session, shape, inputs
        self._changes = inputs.changes.append_column("__waxlake_event", _numbers(len(inputs.changes)))
        self._stored = inputs.stored.append_column("__waxlake_place", _numbers(len(inputs.stored)))

    def run(self) -> Outcome:
        session = self._session
        session.register("keys", self._inputs.keys)
        session.register("changes", self._changes)
        session.register("stored", self._stored)
        session.register("state", self._inputs.events)
        session.register("truncates", self._inputs.truncates)
        simple = self._simple()
        if not self._shape.is_partial:
            return simple
        return _together(simple, self._folded())

    # -- changes that win or lose as a whole

    def _simple(self) -> Outcome:
        won = self._winners()
        ups = won.filter(pc.equal(won.column(KIND), UPSERTED))
        downs = won.filter(pc.equal(won.column(KIND), DELETED))
        rows = self._changes.take(ups.column("__waxlake_event")).select([*self._shape.names, SEQUENCE])
        if self._shape.is_partial:
            rows = rows.append_column(
                self._shape.hidden.field(UNSET), pa.nulls(len(rows), self._shape.hidden.field(UNSET).type)
            )
        rows = rows.append_column(FILE, ups.column(FILE))
        self._session.register("won", won.select([KEY]))
        gone = self._session.sql(f"SELECT {FILE}, {ROW} FROM stored SEMI JOIN won USING ({KEY})")
        hit = downs.filter(pc.is_valid(downs.column(FILE)))
        return Outcome(
            drops=gone.to_arrow_table(),
            rows=rows,
            events=self._changes.take(downs.column("__waxlake_event")),
            upserted=counts_by_flow(self._changes.column(FLOW).take(ups.column("__waxlake_event"))),
            deleted=counts_by_flow(self._changes.column(FLOW).take(hit.column("__waxlake_event"))),
        )

    def _winners(self) -> pa.Table:
        """Return the changes that win: number, key, kind, and the file of the row they replace."""
        verdicts: pa.Table = self._session.sql(f"""
            WITH newest AS ({self._newest()}),
            held AS (SELECT {KEY}, max({SEQUENCE}) AS seq, min({FILE}) AS {FILE},
                min(__waxlake_place) AS __waxlake_place FROM stored GROUP BY {KEY}),
            dead AS (SELECT {KEY}, max({SEQUENCE}) AS seq FROM state WHERE {KIND} = {DELETED} GROUP BY {KEY}),
            floor AS (SELECT max({SEQUENCE}) AS seq FROM truncates)
            SELECT c.__waxlake_event, c.{KEY}, c.{KIND}, held.{FILE}, held.__waxlake_place,
                   coalesce(c.{SEQUENCE} = held.seq AND c.{KIND} = {UPSERTED}, false) AS is_tie
            FROM newest c LEFT JOIN held USING ({KEY}) LEFT JOIN dead USING ({KEY}) CROSS JOIN floor
            WHERE (floor.seq IS NULL OR c.{SEQUENCE} > floor.seq)
              AND (dead.seq IS NULL OR c.{SEQUENCE} > dead.seq)
              AND (held.seq IS NULL OR c.{SEQUENCE} >= held.seq)
            ORDER BY c.__waxlake_event
        """).to_arrow_table()
        ties = verdicts.filter(verdicts.column("is_tie"))
        if not len(ties):
            return verdicts
        return verdicts.filter(pc.invert(pc.is_in(verdicts.column("__waxlake_event"), value_set=self._lost_ties(ties))))

    def _newest(self) -> str:
        """Return SQL for the winning change of each key of the batch; only whole changes where some are partial."""
        columns = f"__waxlake_event, {KEY}, {SEQUENCE}, {KIND}"
        if self._shape.is_partial:
            rest = f"{KEY} NOT IN (SELECT {KEY} FROM ({self._complex()}))"
            return f"SELECT {columns} FROM changes c WHERE {UNSET} IS NULL AND {rest}"
        if pc.count_distinct(self._changes.column(KEY)).as_py() == len(self._changes):
            return f"SELECT {columns} FROM changes"
        order = ", ".join(f"{quote_name(name)} DESC NULLS LAST" for name in self._shape.values)
        return (
            f"SELECT {columns} FROM changes QUALIFY row_number() OVER (PARTITION BY {KEY} "
            f"ORDER BY {SEQUENCE} DESC, {KIND} DESC{', ' + order if order else ''}) = 1"
        )

    def _lost_ties(self, ties: pa.Table) -> pa.Array:
        """Return the changes that have the sequence of a stored row and no greater content than it."""
        values = self._shape.values
        if not values:
            return ties.column("__waxlake_event").combine_chunks()
        content = self._inputs.content(ties.column("__waxlake_place").combine_chunks()).append_column(
            "__waxlake_event", ties.column("__waxlake_event")
        )
        self._session.register("content", content)
        names = select_list(values)
        order = ", ".join(f"{quote_name(name)} DESC NULLS LAST" for name in values)
        lost: pa.Table = self._session.sql(f"""
            SELECT __waxlake_event FROM (
                SELECT __waxlake_event, 0 AS __waxlake_is_change, {names} FROM content
                UNION ALL
                SELECT __waxlake_event, 1 AS __waxlake_is_change, {names} FROM changes SEMI JOIN content USING (__waxlake_event)
            ) QUALIFY row_number() OVER (PARTITION BY __waxlake_event ORDER BY {order}, __waxlake_is_change)
                = 1 AND __waxlake_is_change = 0
        """).to_arrow_table()
        return lost.column("__waxlake_event").combine_chunks()

    # -- changes that are folded column by column

    def _complex(self) -> str:
        """Return SQL for the keys that one comparison does not decide."""
        return f"""
            SELECT {KEY} FROM changes GROUP BY {KEY} HAVING count(*) > 1 OR bool_or({UNSET} IS NOT NULL)
            UNION
            SELECT c.{KEY} FROM changes c JOIN stored s USING ({KEY})
            WHERE s.{SEQUENCE} IS NOT NULL AND c.{SEQUENCE} <= s.{SEQUENCE}
              AND (c.{SEQUENCE} = s.{SEQUENCE} OR s.{UNSET} IS NOT NULL)
            UNION
            SELECT {KEY} FROM keys ANTI JOIN changes USING ({KEY})
        """

    def _folded(self) -> Outcome:
        session, shape = self._session, self._shape
        session.execute(f"CREATE OR REPLACE TEMP TABLE complex AS {self._complex()}")
        stored: pa.Table = session.sql(
            f"SELECT __waxlake_place, {KEY} FROM stored SEMI JOIN complex USING ({KEY}) ORDER BY __waxlake_place"
        ).to_arrow_table()
        positions = stored.column("__waxlake_place").combine_chunks()
        held = self._stored.take(positions)
        content = self._inputs.content(positions).select(shape.values)
        for name in shape.values:
            held = held.append_column(name, content.column(name))
        session.register("held", held)
        folded: pa.Table = session.sql(self._fold()).to_arrow_table()
        is_changed, is_alive = folded.column("__waxlake_is_changed"), folded.column("__waxlake_is_alive")
        alive = folded.filter(pc.and_(is_changed, is_alive))
        dead = folded.filter(pc.and_(is_changed, pc.invert(is_alive)))
        session.register("changed", folded.filter(is_changed).select([KEY]))
        gone = session.sql(f"SELECT {FILE}, {ROW} FROM held SEMI JOIN changed USING ({KEY})").to_arrow_table()
        deletes = session.sql(
            f"SELECT * FROM changes SEMI JOIN complex USING ({KEY}) WHERE {KIND} = {DELETED}"
        ).to_arrow_table()
        rows = alive.select([*shape.names, SEQUENCE, UNSET, FILE])
        return Outcome(
            drops=gone,
            rows=rows,
            events=deletes,
            upserted=counts_by_flow(alive.column(FLOW)),
            deleted=counts_by_flow(dead.filter(pc.is_valid(dead.column(FILE))).column(FLOW)),
        )

    def _fold(self) -> str:
        """Return SQL that folds all parts of the complex keys; a part sets a column to a value at a sequence."""
        shape = self._shape
        values = [(f"__waxlake_place{i}", quote_name(name), quote_text(name)) for i, name in enumerate(shape.values)]
        of_change = "".join(
            f", CASE WHEN NOT coalesce(list_contains({UNSET}, {text}), false) "
            f"THEN {{'seq': {SEQUENCE}, 'known': {column} IS NOT NULL, 'value': {column}}} END AS {part}"
            for part, column, text in values
        )
        of_held = "".join(
            f", CASE WHEN own{part} IS NULL THEN {{'seq': {SEQUENCE}, 'known': {column} IS NOT NULL, 'value': {column}}} "
            f"WHEN own{part}.sequence IS NOT NULL "
            f"THEN {{'seq': own{part}.sequence, 'known': {column} IS NOT NULL, 'value': {column}}} END AS {part}"
            for part, column, _ in values
        )
        own = "".join(
            f", list_filter(coalesce({UNSET}, []), lambda x: x.name = {text})[1] AS own{part}"
            for part, _, text in values
        )
        best = "".join(
            f", max({part}) FILTER ({part}.seq IS NOT NULL AND (dead.seq IS NULL OR {part}.seq > dead.seq)) AS {part}"
            f", any_value({part}) FILTER ({part} IS NOT NULL AND {part}.seq IS NULL AND dead.seq IS NULL) AS f{part}"
            for part, _, _ in values
        )
        made = "".join(
            f", CASE WHEN {part} IS NOT NULL THEN {part}.value ELSE f{part}.value END AS {column}"
            for part, column, _ in values
        )
        cases = ", ".join(
            f"CASE WHEN {part}.seq IS DISTINCT FROM seq THEN {{'name': {text}, 'sequence': {part}.seq}} END"
            for part, _, text in values
        )
        kept = f"list_filter([{cases}], lambda x: x IS NOT NULL)" if values else "[]"
        same = " AND ".join(
            f"f.{name} IS NOT DISTINCT FROM h.{name}" for name in (*(c for _, c, _ in values), SEQUENCE, UNSET)
        )
        keys = select_list(shape.keys)
        return f"""
            WITH floor AS (SELECT max({SEQUENCE}) AS seq FROM truncates),
            own AS (SELECT *{own} FROM held),
            parts AS (
                SELECT {KEY}, {SEQUENCE} AS seq{of_change} FROM changes SEMI JOIN complex USING ({KEY}) WHERE {KIND} = {UPSERTED}
                UNION ALL SELECT {KEY}, {SEQUENCE} AS seq{of_held} FROM own
            ),
            deletes AS (
                SELECT {KEY}, {SEQUENCE} AS seq FROM changes WHERE {KIND} = {DELETED}
                UNION ALL SELECT {KEY}, {SEQUENCE} AS seq FROM state WHERE {KIND} = {DELETED}
                UNION ALL SELECT {KEY}, floor.seq FROM complex CROSS JOIN floor WHERE floor.seq IS NOT NULL
            ),
            dead AS (SELECT {KEY}, max(seq) AS seq FROM deletes GROUP BY {KEY}),
            folded AS (
                SELECT {KEY}, count(parts.{KEY}) FILTER (dead.seq IS NULL OR parts.seq > dead.seq) > 0 AS __waxlake_is_alive,
                       max(parts.seq) FILTER (dead.seq IS NULL OR parts.seq > dead.seq) AS seq{best}
                FROM complex LEFT JOIN parts USING ({KEY}) LEFT JOIN dead USING ({KEY}) GROUP BY {KEY}
            ),
            flows AS (SELECT {KEY}, arg_max({FLOW}, {SEQUENCE}) AS {FLOW} FROM changes GROUP BY {KEY}),
            f AS (
                SELECT {KEY}, {keys}, {FLOW}, __waxlake_is_alive, seq AS {SEQUENCE}{made},
                       CASE WHEN len({kept}) > 0 THEN {kept} END AS {UNSET}
                FROM folded JOIN keys USING ({KEY}) LEFT JOIN flows USING ({KEY})
            ),
            h AS (SELECT * FROM held QUALIFY row_number() OVER (PARTITION BY {KEY} ORDER BY {FILE}, {ROW}) = 1)
            SELECT f.*, h.{FILE},
                   h.{KEY} IS NULL AND f.__waxlake_is_alive OR h.{KEY} IS NOT NULL AND
                       (NOT f.__waxlake_is_alive OR NOT ({same})) AS __waxlake_is_changed
            FROM f LEFT JOIN h USING ({KEY})
        """


def _together(first: Outcome, second: Outcome) -> Outcome:
    def added(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
        return {flow: a.get(flow, 0) + b.get(flow, 0) for flow in {*a, *b}}

    names = first.events.column_names
    return Outcome(
        drops=pa.concat_tables([first.drops, second.drops.select(first.drops.column_names).cast(first.drops.schema)]),
        rows=pa.concat_tables([first.rows, second.rows.select(first.rows.column_names).cast(first.rows.schema)]),
        events=pa.concat_tables([first.events, second.events.select(names).cast(first.events.schema)]),
        upserted=added(dict(first.upserted), dict(second.upserted)),
        deleted=added(dict(first.deleted), dict(second.deleted)),
    )


def _numbers(count: int) -> pa.Array:
    from sinks.cdc.keys import row_numbers

    return row_numbers(count)
