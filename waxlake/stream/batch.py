"""MicroBatch: rows and where they came from, the only item that travels through a dataflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

__all__ = ["DROP_FILE", "DROP_ROW", "Backlog", "BatchInfo", "MicroBatch", "Refresh", "RuleCount", "SourceSpan"]

DROP_FILE: Final = "__file"
DROP_ROW: Final = "__row"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCount:
    """What one expectation did to one batch.

    Attributes:
        dataset: Table or view that the rule belongs to.
        rule: Name of the expectation.
        action: ``warn``, ``drop``, ``fail`` or ``quarantine``.
        passed: Rows for which the rule is true.
        failed: Rows for which it is false or NULL.
    """

    dataset: str
    rule: str
    action: str
    passed: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What a source partition still has to read, as far as it knows.

    Attributes:
        records: Records not yet read; None when the source cannot tell.
        files: Files not yet read; None where there are none.
        size_bytes: Bytes not yet read; None when the source cannot tell.
    """

    records: int | None = None
    files: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """What the rows of a refreshed view do to those that its table holds.

    Attributes:
        drops: Places of stored rows that leave: ``DROP_FILE``, path of a data file as the log writes it, and ``DROP_ROW``,
            from 0; None if all stored rows leave.
        versions: App ids to be stored with the rows.
        facts: How the refresh was made, for the commit's metadata.
    """

    drops: pa.Table | None
    versions: Mapping[str, int]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """An Arrow table plus its provenance.

    ``start`` and ``end`` are half-open positions in one partition of one source: the batch holds every row of
    ``[start, end)`` that was not filtered out. A batch without rows still moves the position.

    Attributes:
        table: Rows, shape (n_rows, n_columns).
        source: Source identity.
        partition: Source partition key.
        start: Position of the first record.
        end: Position after the last record; ``end >= start``.
        flow: Name of the flow that carries it; empty until a flow takes it.
        target: Table that it is bound for; empty until a flow takes it.
        rejected: Rows for the quarantine table, with ``_failed_rules``; None if there are none.
        rules: What each expectation counted.
        dropped: Rows removed by expectations.
        read: Records the source read for it, before any filter.
        backlog: What the partition still has to read.
        skipped: Positions that the source no longer held and that were skipped on request, or None.
        is_last: The partition ends here in this run.
        is_end: It ends because its mark is reached, and not because the run was asked to stop.
        is_partial: Rows of something that has not ended yet, as a large transaction: ``start`` equals ``end``, and nothing of
            the table may be committed before the batch of this partition that moves the position.
        partition_count: Number of partitions that the run reads of this source; a sink that has seen the last batch of
            all of them commits at once.
        cost_bytes: Memory the batch holds of its source's byte budget.
        replaced: Files that were written anew and begin with this batch: their earlier rows leave the table in the commit that
            holds it (only with a sink that replaces; others ignore it).
        side: Number of the input of a stateful operator that the rows are for.
        released: Quarantine files whose rows are all in ``table`` or ``rejected`` again (a replay): they leave the quarantine.
        facts: Further values for the commit's metadata.
        notes: Further values to be stored beside ``end``, in the same commit.
        refresh: What it does to the stored rows of a materialized view; None for other tables.
    """

    table: pa.Table
    source: str
    partition: str
    start: int
    end: int
    flow: str = ""
    target: str = ""
    rejected: pa.Table | None = None
    rules: tuple[RuleCount, ...] = ()
    dropped: int = 0
    read: int = 0
    backlog: Backlog | None = None
    skipped: tuple[int, int] | None = None
    is_last: bool = False
    is_end: bool = False
    is_partial: bool = False
    partition_count: int = 0
    cost_bytes: int = 0
    budget: str = ""
    replaced: tuple[str, ...] = ()
    side: int = 0
    released: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    refresh: Refresh | None = None

    def with_rows(self, table: pa.Table, **changes: Any) -> MicroBatch:
        """Return a batch of the same provenance with other rows."""
        return replace(self, table=table, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpan:
    """Positions ``[start, end)`` of one partition of a source.

    Attributes:
        source: Source identity.
        partition: Source partition key.
        start: First position.
        end: Position after the last.
    """

    source: str
    partition: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInfo:
    """What a function of ``foreach_batch_sink`` is told of a batch.

    Attributes:
        batch_id: Its number: 1 for the first batch of the sink, one more with each. A batch that is handed over again, after a
            crash or an error, has the same number and the same rows; no other batch ever has it.
        flow: Flow that the rows come from; a batch holds rows of one flow.
        sources: What of which sources they were made from.
        update_id: Update that decided the batch.
        attempt: 1, or more if the function may have been called with this batch before.
    """

    batch_id: int
    flow: str
    sources: tuple[SourceSpan, ...]
    update_id: str
    attempt: int
