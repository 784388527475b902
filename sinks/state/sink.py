"""StatefulSink: a Bytewax output whose flows go through a stateful operator on their way into one Delta table, exactly once.

It takes, keeps and commits batches as ``DeltaSink`` does. What a flush writes is what the operators make of the batches; output,
state, positions and fence are one log entry. Crash points: docs/decisions/0012-where-state-lives.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from sinks.delta.files import StoredFile
from sinks.delta.parquet import DataFileWriter
from sinks.delta.protocol import Committer, Move
from sinks.delta.sink import DeltaSink, Output, TableWriter
from sinks.state.operator import Applied, BoundOperator, Finished
from sinks.state.store import StateStore, state_app_id
from sinks.state.upsert import rewritten_without
from sinks.state.watermark import EventTime, Watermark
from waxlake.stream.batch import MicroBatch
from waxlake.stream.clock import utc_now
from waxlake.stream.errors import UserError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import cast_exact, compare_schemas, delta_schema

__all__ = ["StatefulFlow", "StatefulSink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatefulFlow:
    """A flow with an operator.

    Attributes:
        operator: It.
        times: Number of an input to its event time.
        sources: Number of sources that it reads.
        finish: What is done with its rows before they are the table's.
        output: Columns of the rows that ``finish`` makes.
        reject: Turns rows that are left out, and why, into rows of the quarantine table; None drops them.
    """

    operator: BoundOperator
    times: Mapping[int, EventTime]
    sources: int
    finish: Callable[[pa.Table], Finished]
    output: pa.Schema
    reject: Callable[[pa.Table, str], pa.Table] | None = None


@dataclass(slots=True)
class StatefulSink(DeltaSink):
    """A Bytewax output onto one Delta table.

    Args:
        flows: Flow name to its operator; other flows append.

    Guarantee: exactly once per (flow, source, partition, position), the state included.
    """

    flows: Mapping[str, StatefulFlow] = field(default_factory=dict)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the committer; Bytewax calls it when the first item arrives."""
        return _StatefulWriter(self)


@dataclass(slots=True)
class _Pending:
    """Rows of the next commit: those for operators, and data files of others."""

    files: DataFileWriter
    rows: int = 0
    size_bytes: int = 0
    partition_by: tuple[str, ...] = ()
    inputs: dict[tuple[str, int], list[pa.Table]] = field(default_factory=dict)

    def append(self, table: pa.Table) -> None:
        self.files.partition_by = self.partition_by
        self.files.append(table)
        self._count(table)

    def take(self, flow: str, side: int, table: pa.Table) -> None:
        if table.num_rows:
            self.inputs.setdefault((flow, side), []).append(table)
            self._count(table)

    def _count(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.size_bytes += table.nbytes

    def taken(self, flow: str) -> dict[int, pa.Table]:
        """Return the rows of a flow by input, and forget them."""
        sides = [side for name, side in self.inputs if name == flow]
        return {s: pa.concat_tables(self.inputs.pop((flow, s)), promote_options="default") for s in sides}

    def abandon(self) -> None:
        self.files.abandon()
        self.inputs.clear()
        self.rows = self.size_bytes = 0


@dataclass(slots=True)
class _Running:
    """An operator at work."""

    flow: StatefulFlow
    store: StateStore
    watermark: Watermark
    number: int | None = None


class _StatefulWriter(TableWriter):
    """The one committer of a table in this run."""

    def __init__(self, sink: StatefulSink) -> None:
        super().__init__(sink)
        self._flows = sink.flows
        self._running: dict[str, _Running] = {}
        self._current = ""
        self._touched: dict[str, None] = {}

    def close(self) -> None:
        """Drop what is not committed; it will be read again."""
        super().close()
        while self._running:
            self._running.popitem()[1].store.close()

    def _row_store(self) -> _Pending:
        return _Pending(DataFileWriter(self._target.location))

    def _new_schema(self, batch: MicroBatch) -> pa.Schema:
        flow = self._flows.get(batch.flow or self._sink.flow)
        return super()._new_schema(batch) if flow is None else delta_schema(flow.output)

    def _take(self, batch: MicroBatch) -> None:
        self._current = batch.flow or self._sink.flow
        super()._take(batch)

    def _grows(self, table: pa.Table) -> bool:
        """Return whether rows bring new columns; those that an operator takes are not the table's."""
        return self._current not in self._flows and super()._grows(table)

    def _fitted(self, committer: Committer, table: pa.Table, flow: str) -> pa.Table:
        return table if flow in self._flows else super()._fitted(committer, table, flow)

    def _keep(self, batch: MicroBatch, rows: pa.Table, *, is_growth: bool) -> None:
        flow = self._flows.get(self._current)
        if flow is None:
            super()._keep(batch, rows, is_growth=is_growth)
            return
        assert isinstance(self._rows, _Pending)
        running = self._opened_flow(self._current, flow)
        time = flow.times.get(batch.side)
        if time is not None:
            running.watermark.note(batch, time, now_s=utc_now().timestamp(), clock_s=self._clock.now_s())
        self._rows.take(self._current, batch.side, rows)
        self._touched[self._current] = None
        if batch.rejected is not None and batch.rejected.num_rows:
            self._reject(batch.rejected)
        if rows.num_rows or batch.rejected is not None:
            self._since_s = self._since_s or self._clock.now_s()

    def _opened_flow(self, name: str, flow: StatefulFlow) -> _Running:
        if name not in self._running:
            assert self._committer is not None
            operator = flow.operator
            store = StateStore(self._target.location, name, operator.tables, operator.shape, operator.lags)
            running = self._running[name] = _Running(flow, store, Watermark(sources=flow.sources))
            number = self._committer.stored(state_app_id(name)) or 0
            if number:
                store.load(number)
                running.watermark.restore(store.meta)
        return self._running[name]

    def _output(self, committer: Committer) -> Output:
        assert isinstance(self._rows, _Pending)
        facts: dict[str, dict[str, Any]] = {}
        removes: list[StoredFile] = []
        # a commit that adds columns takes its rows alone; what was gathered for operators went into the one before
        touched = list(self._touched) if self._growth is None else []
        for name in touched:
            running = self._running[name]
            with _user_errors(name):
                rows, removed, facts[name] = self._advanced(committer, name, running)
            removes += removed
            self._check(rows)
            self._rows.append(rows)
        failpoint("state-applied")
        for name in touched:
            running = self._running[name]
            app = state_app_id(name)
            if facts[name].pop("has_changed") or committer.stored(app) is None:
                running.number = running.store.write(running.watermark.to_json())
                self._moves[app] = Move(start=committer.stored(app), end=running.number)
        files, self._rows.rows, self._rows.size_bytes = self._rows.files, 0, 0
        rows_written = files.rows
        for name in touched:
            del self._touched[name]
        is_growth = self._growth is not None
        return Output(adds=files.finish(), removes=removes, facts=facts, rows=None if is_growth else rows_written)

    def _advanced(
        self, committer: Committer, name: str, running: _Running
    ) -> tuple[pa.Table, Sequence[StoredFile], dict[str, Any]]:
        """Apply what was gathered for a flow; return rows of the table, the files they replace, and facts."""
        assert isinstance(self._rows, _Pending)
        watermark, before = running.watermark, running.watermark.value
        taken = self._rows.taken(name)
        after = watermark.advance(now_s=utc_now().timestamp(), clock_s=self._clock.now_s())
        applied = running.flow.operator.apply(running.store, taken, before, after)
        rejected = self._leave_out(running.flow, applied)
        done = running.flow.finish(applied.rows)
        if done.rejected is not None and done.rejected.num_rows:
            self._reject(done.rejected)
            rejected += done.rejected.num_rows
        self._tally.add_counts(
            name, rules=(*applied.rules, *done.rules), dropped=applied.dropped + done.dropped, quarantined=rejected
        )
        rows = self._of_table(committer, done.table)
        removes: Sequence[StoredFile] = []
        if applied.replaced is not None and applied.replaced.num_rows:
            removes = rewritten_without(
                self._target.location, committer.handle, self._schema, applied.replaced, self._rows.append
            )
        facts = {
            "rows": rows.num_rows,
            "late": sum(t.num_rows for t in applied.late.values()),
            "untimed": sum(t.num_rows for t in applied.untimed.values()),
            "future": watermark.future,
            "watermark_us": after,
            "state": sum(table.rows for table in running.store.tables.values()),
            "has_changed": bool(taken) or before != after,
        }
        watermark.future = 0
        return rows, removes, facts

    def _leave_out(self, flow: StatefulFlow, applied: Applied) -> int:
        """Send rows that are late or untimed to the quarantine table, if that was asked for; return how many."""
        if flow.reject is None:
            return 0
        count = 0
        for why, tables in (("late", applied.late), ("no event time", applied.untimed)):
            for side, table in tables.items():
                if table.num_rows and flow.times[side].keeps_late:
                    self._reject(flow.reject(table, why))
                    count += table.num_rows
        return count

    def _of_table(self, committer: Committer, rows: pa.Table) -> pa.Table:
        """Return rows in the table's columns; those that the table lacks are added to it first."""
        if rows.schema.equals(self._schema):
            return rows
        change = compare_schemas(self._schema, delta_schema(rows.schema))
        if change.added or change.grown:
            committer.add_columns(delta_schema(rows.schema))
            self._read_schema(committer)
        return cast_exact(rows, self._schema, what=f"table '{self._target.location.label}'")

    def _committed(self, output: Output) -> None:
        failpoint("state-committed")
        for running in self._running.values():
            if running.number is not None:
                running.store.committed(running.number)
                running.number = None


@contextmanager
def _user_errors(flow: str) -> Iterator[None]:
    """Let what the rows do to an expression of the operator be the user's error, and not a crash.

    Raises:
        UserError: ``STATE_QUERY_FAILED``. Not retryable.
    """
    try:
        yield
    except duckdb.Error as exc:
        raise UserError(
            f"the stateful operator of flow '{flow}' failed: {str(exc).strip()}", code="STATE_QUERY_FAILED"
        ) from exc
