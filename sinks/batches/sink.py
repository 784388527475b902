"""BatchSink: a Bytewax output that hands rows over batch by batch, to Kafka or to a function.

It is the append sink with another end: what an append would write as data files is staged beside a ledger, and handed over after
the commit that moves the positions. ``sinks.batches.delivery`` says what happens at a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from sinks.batches.delivery import Delivery, Handoff, Patience
from sinks.batches.staging import BATCH_APP_ID, StagedBatch, ledger_schema, staged_number
from sinks.delta.protocol import Committer
from sinks.delta.sink import DeltaSink, Output, RowStore, TableWriter
from sinks.delta.tally import CommitTally
from waxlake.stream.batch import MicroBatch, SourceSpan
from waxlake.stream.failpoints import failpoint
from waxlake.stream.growth import merge_schemas
from waxlake.stream.schema import cast_exact, compare_schemas, delta_schema

__all__ = ["BatchSink"]


@dataclass(slots=True)
class BatchSink(DeltaSink):
    """A Bytewax output that hands batches over to something outside.

    ``target.location`` is the ledger. Batches are limited by ``flush``; each holds rows of one flow.

    Args:
        handoff: The other side.
        schema: Columns of the rows.
        patience: How long a hand-over is tried again.

    Guarantee: each row is in exactly one batch, and each batch is handed over once where the other side keeps its number in a
    transaction with the rows; else at least once, always with the same number and the same rows.
    """

    handoff: Handoff | None = None
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    patience: Patience = field(default_factory=Patience)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the one writer; Bytewax calls it when the first item arrives."""
        return _BatchWriter(self)


class _FlowRows:
    """Rows of the next batches, by flow."""

    def __init__(self) -> None:
        self.rows = self.size_bytes = 0
        self.partition_by: tuple[str, ...] = ()
        self.flow = ""
        self._tables: dict[str, list[pa.Table]] = {}

    def append(self, table: pa.Table) -> None:
        """Take rows of the flow that ``flow`` names."""
        if table.num_rows:
            self._tables.setdefault(self.flow, []).append(table)
            self.rows += table.num_rows
            self.size_bytes += table.nbytes

    def take(self, schema: pa.Schema) -> dict[str, pa.Table]:
        """Return the rows of each flow in one schema, and forget them."""
        made = {
            flow: pa.concat_tables(
                [
                    rows if rows.schema.equals(schema) else cast_exact(rows, schema, what=f"flow '{flow}'")
                    for rows in tables
                ]
            )
            for flow, tables in self._tables.items()
        }
        self.abandon()
        return made

    def abandon(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self.rows = self.size_bytes = 0


class _BatchWriter(TableWriter):
    """The one writer of a sink in this run."""

    leaves_small_files: ClassVar[bool] = False

    def __init__(self, sink: BatchSink) -> None:
        super().__init__(sink)
        assert sink.handoff is not None
        self._columns = delta_schema(sink.schema)
        self._delivery = Delivery(sink.target.location, sink.handoff, sink.patience)

    def close(self) -> None:
        """Drop what is not decided, and disconnect."""
        super().close()
        self._delivery.close()

    def _row_store(self) -> RowStore:
        return _FlowRows()

    def _new_schema(self, batch: MicroBatch) -> pa.Schema:
        return ledger_schema()

    def _read_schema(self, committer: Committer) -> None:
        self._schema = self._columns

    def _grows(self, table: pa.Table) -> bool:
        return False  # a ledger has no columns to be added to

    def _opened(self, batch: MicroBatch) -> Committer:
        is_new = self._committer is None
        committer = super()._opened(batch)
        if is_new:
            self._delivery.finish(committer)
        return committer

    def _fitted(self, committer: Committer, table: pa.Table, flow: str) -> pa.Table:
        rows = self._rows
        assert isinstance(rows, _FlowRows)
        rows.flow = flow
        if table.num_rows == 0 or table.schema.equals(self._schema):
            return table
        change = compare_schemas(self._schema, delta_schema(table.schema))
        if change.added or change.grown:
            self._schema = self._columns = merge_schemas(self._schema, delta_schema(table.schema))
        return cast_exact(table, self._schema, what=f"sink '{self._target.location.label}'")

    def _flush(self) -> None:
        """Decide what was taken so far, and hand it over."""
        committer = self._committer
        if committer is None or not (self._moves or self._endings):
            return
        rows = self._rows
        assert isinstance(rows, _FlowRows)
        quarantine = self._side_output()
        facts = self._facts(Output(adds=()))
        count, tables = rows.rows, rows.take(self._schema)
        batches: list[StagedBatch] = []
        versions: dict[str, int] = {}
        if tables:
            batches, versions = self._delivery.staging.write(
                tables,
                after=staged_number(committer.handle, BATCH_APP_ID),
                sources=_sources(facts),
                update_id=self._sink.control.run_id,
            )
            facts["batches"] = [batch.number for batch in batches]
            failpoint("batch-written")
        receipt = committer.commit(
            [],
            self._moves,
            rows=count,
            identities={**self._identities, **self._endings, **versions},
            quarantine=quarantine,
            metadata=facts,
        )
        self._moves, self._tally = {}, CommitTally()
        self._since_s = self._moved_since_s = None
        self._flushed_at_s = self._clock.now_s()
        self._is_ending, self._endings = False, {}
        failpoint("batch-decided")
        if batches:
            self._delivery.hand_over(committer, batches, list(tables.values()))
        self._sink.control.on_commit(receipt)
        if self._target.shares_source:
            failpoint("between-tables")
        self._maintain(0, quarantine)


def _sources(facts: Mapping[str, Any]) -> dict[str, list[SourceSpan]]:
    """Return what each flow's rows were made from, as its commit will say."""
    return {
        flow: [
            SourceSpan(source=moved["source"], partition=moved["partition"], start=moved["start"], end=moved["end"])
            for moved in counts["sources"]
        ]
        for flow, counts in facts["flows"].items()
    }
