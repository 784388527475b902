"""Rules over keys: which rows of a batch have a key that the table, or a row on its way there, has already.

Judged by the one committer of a table, for admitted batches only: a step sees the rows of one worker, and batches that the table
already holds. Keys are looked up in the table's own files, in the range of the batch, so nothing is kept in memory but the keys
of the last few commits, which may not be in the held snapshot yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from waxlake.pipeline.definitions import Expectation
from waxlake.pipeline.expectations import OnOffenders, judge, verdict_column, verdict_sql
from waxlake.pipeline.quarantine import with_provenance
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import delta_errors
from waxlake.stream.engine import open_session, quote_name, select_list

__all__ = ["UniqueRows"]

_KEPT_VERSIONS = 4


@dataclass(slots=True)
class UniqueRows:
    """Judges batches of one table by its rules over keys; used by one thread, in the order in which they are committed.

    Args:
        dataset: Table name.
        rules: Rules over keys.
        on_offenders: Is told of rows that break one.
    """

    dataset: str
    rules: Sequence[Expectation]
    on_offenders: OnOffenders | None = None
    _pending: list[tuple[int, pa.Table]] = field(default_factory=list)
    _session: duckdb.DuckDBPyConnection | None = None

    def __call__(self, batch: MicroBatch, handle: DeltaTable) -> MicroBatch:
        """Return a batch without the rows that the rules take out.

        Raises:
            ExpectationFailed: More rows have a known key than a rule allows. Not retryable.
        """
        rows, rejected, counts, dropped = self.judge(batch.table, handle)
        if rejected is not None:
            rejected = with_provenance(rejected, batch)
            parts = [part for part in (batch.rejected, rejected) if part is not None]
            rejected = pa.concat_tables(parts, promote_options="default")
        return replace(
            batch,
            table=rows,
            rejected=rejected if rejected is not None else batch.rejected,
            rules=(*batch.rules, *counts),
            dropped=batch.dropped + dropped,
        )

    def judge(self, table: pa.Table, handle: DeltaTable) -> tuple[pa.Table, pa.Table | None, Any, int]:
        """Split rows as ``expectations.judge`` does, and remember the keys of those that stay."""
        if self._session is None:
            self._session = open_session()
        numbered = table
        for index, rule in enumerate(self.rules):
            numbered = numbered.append_column(verdict_column(index), self._verdict(table, rule, handle))
        outcome = judge(numbered, self.rules, self.dataset, self._session, self.on_offenders)
        self._pending = [(v, keys) for v, keys in self._pending if v + _KEPT_VERSIONS >= handle.version()]
        columns = list(dict.fromkeys(name for rule in self.rules for name in rule.columns))
        self._pending.append((handle.version(), outcome[0].select(columns)))
        return outcome

    def _verdict(self, table: pa.Table, rule: Expectation, handle: DeltaTable) -> pa.ChunkedArray:
        assert self._session is not None
        names = list(rule.columns)
        keys = table.select(names)
        known = [pending.select(names) for _, pending in self._pending]
        stored = self._stored(keys, handle)
        columns = select_list(names)
        numbered = keys.append_column("__row", pa.array(range(keys.num_rows), pa.int64()))
        session = self._session
        session.register("batch_keys", numbered)
        session.register("known_keys", pa.concat_tables(known) if known else keys.slice(0, 0))
        try:
            taken = f"SELECT {columns} FROM known_keys"
            if stored is not None:
                session.register("stored_keys", stored)
                taken += f" UNION ALL SELECT {columns} FROM stored_keys SEMI JOIN batch_keys USING ({columns})"
            first = verdict_sql(rule, order_by="__row")
            same = " AND ".join(f"t.{quote_name(n)} = batch_keys.{quote_name(n)}" for n in names)
            text = f"""
                WITH taken AS MATERIALIZED ({taken})
                SELECT ({first}) AND NOT EXISTS (SELECT 1 FROM taken AS t WHERE {same}) AS verdict, __row
                FROM batch_keys ORDER BY __row
            """
            return session.sql(text).to_arrow_table().column("verdict")
        finally:
            for name in ("batch_keys", "known_keys", "stored_keys"):
                session.unregister(name)

    def _stored(self, keys: pa.Table, handle: DeltaTable) -> Any:
        """Return the stored rows that may have one of these keys, as a stream of their key columns; None if there are none."""
        names = keys.column_names
        if any(name not in {f.name for f in handle.schema().fields} for name in names):
            return None
        with delta_errors(f"read table '{self.dataset}'"):
            dataset = handle.to_pyarrow_dataset()
            bounds = pc.min_max(keys.column(0)) if _has_order(keys.schema.field(0).type) else None
            wanted = None
            if bounds is not None and bounds["min"].is_valid:
                column = pc.field(names[0])
                wanted = (column >= bounds["min"]) & (column <= bounds["max"])
            return dataset.scanner(columns=names, filter=wanted).to_reader()


def _has_order(kind: pa.DataType) -> bool:
    """Return whether a range holds all its values: not so of floats, where NaN is a value as well and in no range."""
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_string(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
        or types.is_decimal(kind)
    )
