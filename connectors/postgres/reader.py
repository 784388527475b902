"""Reads the tables of one slot: first loads and changes, side by side, as micro-batches of one partition each.

A table has two partitions. Its changes: a position is an LSN; every commit whose record begins before it was emitted. Its
first load: a position is a chunk's number, or ``LOADED``. Tables share the stream, but each has its own position in it: what
a table holds already is not emitted again.

When the connection is lost, the stream is opened again where each table stands. Of a commit that was being handed on in
pieces the server sends every row again: as many as were emitted are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from connectors.postgres.catalog import SourceTable
from connectors.postgres.ledger import SourceLedger
from connectors.postgres.load import LOADED, Chunk, Loader
from connectors.postgres.rows import RowMaker
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.stream import ChangeStream, Segment
from connectors.postgres.timeline import SNAPSHOT, TIMELINE, ServerIdentity
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.changes import COMMIT_POSITION
from waxlake.stream.errors import SourceChanged, TerminalError, TransientError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.source import PartitionPlan, SourcePlan

__all__ = ["PostgresReader"]

_WAIT_S: Final = 0.05
_ADVANCE_S: Final = 0.5


class PostgresReader:
    """Reads the tables of a plan.

    Args:
        settings: The source.
        plan: What to read.
        tables: Its tables, by oid.
        ledger: Where chunks end.
        server: The server that the plan was made for.
        maker: Makes the rows.
        is_reload: Whether tables are loaded again after a slot was lost: a truncate comes first.
        on_stream: Told of the stream while one is open.

    Guarantee: every row of a first load and every change once per run, changes in the order of commits.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        plan: SourcePlan,
        tables: Mapping[int, SourceTable],
        ledger: SourceLedger,
        *,
        server: ServerIdentity,
        maker: RowMaker,
        is_reload: bool,
        on_stream: Callable[[ChangeStream | None], None],
    ) -> None:
        self._settings, self._plan, self._ledger, self._maker = settings, plan, ledger, maker
        self._is_reload, self._on_stream, self._identity = is_reload, on_stream, server
        self._tables = {oid: table for oid, table in tables.items() if table.partition in plan.partitions}
        self._positions = {key: part.read_from for key, part in plan.partitions.items()}
        marks = [part.mark for part in self._stream_parts().values() if part.mark is not None]
        self._target = max(marks, default=None)
        self._reached = self._server = 0
        self._advanced_at_s = time.monotonic()
        self._loading: set[int] = set()
        self._open_commit = 0
        self._sent: dict[int, int] = {}
        self._to_skip: dict[int, int] = {}
        self._loader: Loader | None = None
        self._stream: ChangeStream | None = None
        self._is_turn_of_load = False
        self._check_fences()

    @property
    def is_done(self) -> bool:
        """Whether loads are complete, and changes were read up to the mark and up to the last snapshot of a load."""
        target = self._target
        if target is None or self._open_commit or self._to_load(is_keyed=True) or self._to_load(is_keyed=False):
            return False
        return all(self._positions[key] >= target for key in self._stream_parts())

    def positions(self) -> Mapping[str, int]:
        """Return the next position of each partition."""
        return dict(self._positions)

    def read(self) -> Sequence[MicroBatch]:
        """Return what is ready: tables without a key first, then chunks and changes as they come.

        Raises:
            TransientError: The server is away, or the slot is in use. Retryable.
            SourceMoved: ``POSTGRES_SLOT_LOST``, ``POSTGRES_SLOT_AHEAD``. Not retryable.
            SourceChanged: A table has columns that the plan does not know, or another server answers. Planning again settles it.
        """
        try:
            return self._read()
        except TransientError as error:
            self._disconnect()
            if self._loading:
                raise SourceChanged(
                    "the load of a table without a key was interrupted",
                    code="POSTGRES_LOAD_INTERRUPTED",
                    found=error.found,
                    remedy="It begins anew: nothing of it was committed",
                ) from error
            raise

    def close(self) -> None:
        """End the threads and free the slot. Never raises."""
        self._disconnect()

    def _read(self) -> list[MicroBatch]:
        keyless = self._to_load(is_keyed=False)
        if keyless:
            return self._chunk(self._opened_loader(keyless).take(_WAIT_S))
        stream = self._opened_stream()
        keyed = self._to_load(is_keyed=True)
        self._is_turn_of_load = bool(keyed) and not self._is_turn_of_load
        if self._is_turn_of_load:
            batches = self._chunk(self._opened_loader(keyed).take(0))
            if batches:
                return batches
        segment = stream.take(_WAIT_S)
        batches = self._changes(segment) if segment is not None else []
        return [*batches, *self._advance_now_and_then()]

    def _stream_parts(self) -> dict[str, PartitionPlan]:
        return {t.partition: self._plan.partitions[t.partition] for t in self._tables.values()}

    def _check_fences(self) -> None:
        for table in self._tables.values():
            load = self._plan.partitions.get(table.load_partition)
            if not table.key and load is not None and load.start < LOADED and load.fences:
                raise TerminalError(
                    f"cannot add a flow that reads {table.name} beside one that has its rows already",
                    code="POSTGRES_SECOND_FLOW",
                    found="a table without a key",
                    remedy="Give the new flow a slot of its own, or read the first flow's table with wl.read_stream",
                )

    def _to_load(self, *, is_keyed: bool) -> list[tuple[SourceTable, int]]:
        keyed = [
            (t, self._plan.partitions.get(t.load_partition)) for t in self._tables.values() if bool(t.key) == is_keyed
        ]
        wanted = [(t, LOADED if part.mark is None else part.mark) for t, part in keyed if part is not None]
        return [(t, at) for t, mark in wanted if (at := self._positions[t.load_partition]) < mark]

    def _opened_loader(self, starts: Sequence[tuple[SourceTable, int]]) -> Loader:
        if self._loader is not None and self._loader.is_done:
            self._loader.close()
            self._loader = None
        if self._loader is None:
            self._loader = Loader(
                self._settings,
                self._ledger,
                self._plan.identity,
                starts,
                server=self._identity,
                is_bounded=self._target is not None,
            )
            self._loader.start()
        return self._loader

    def _opened_stream(self) -> ChangeStream:
        if self._stream is None:
            tables = self._tables.values()
            names = self._settings.publication_name, self._settings.append_publication_name
            publications = [name for name, keyed in zip(names, (True, False), strict=True)
                            if any(bool(t.key) == keyed for t in tables)]  # fmt: skip
            start = min(self._positions[table.partition] for table in tables)
            stream = ChangeStream(self._settings, publications, self._tables, start, server=self._identity)
            stream.start()
            self._stream, self._reached = stream, start
            self._to_skip = dict(self._sent)
            self._on_stream(stream)
        return self._stream

    def _disconnect(self) -> None:
        self._on_stream(None)
        for part in (self._loader, self._stream):
            if part is not None:
                part.close()
        self._loader = self._stream = None
        self._maker.close()

    # First loads

    def _chunk(self, chunk: Chunk | None) -> list[MicroBatch]:
        if chunk is None:
            return []
        table, partition = chunk.table, chunk.table.load_partition
        if self._target is not None:
            self._target = max(self._target, chunk.snapshot)
        start, rows = self._positions[partition], self._maker.loaded(chunk)
        if self._is_reload and start == 0 and table.oid not in self._loading:
            begin = self._plan.partitions[table.partition].start
            rows = pa.concat_tables([self._maker.truncate(table, begin - 1), rows])
        if not table.key and chunk.end == chunk.start:
            self._loading.add(table.oid)
            return [self._batch(partition, start, start, rows, is_partial=True)]
        batches = []
        if not table.key:  # one commit holds all pieces, and lets the changes go on behind the snapshot
            self._loading.discard(table.oid)
            batches.append(self._batch(partition, start, start, rows.slice(0, 0), is_partial=True))
            batches += self._empty_up_to(table, chunk.snapshot)
        self._positions[partition] = chunk.end
        failpoint("chunk-read")
        return [*batches, self._batch(partition, start, chunk.end, rows, snapshot=chunk.snapshot)]

    # Changes

    def _changes(self, segment: Segment) -> list[MicroBatch]:
        self._server = max(self._server, segment.server)
        grouped: dict[int, list[pa.Table]] = {}
        for rows in segment.rows:
            table = self._tables[rows.relation.oid]
            grouped.setdefault(table.oid, []).append(self._maker.changed(table, rows))
        batches: list[MicroBatch] = []
        for oid, parts in grouped.items():
            changed = self._without_sent(oid, pa.concat_tables(parts))
            emit = self._piece if segment.is_partial else self._whole
            batches += emit(self._tables[oid], changed, segment.position)
        if segment.is_partial:
            self._open_commit = segment.position
            failpoint("piece-read")
        elif segment.position > self._open_commit:
            for oid in self._sent.keys() - grouped.keys():
                batches += self._empty_up_to(self._tables[oid], segment.position)
            self._sent, self._to_skip, self._open_commit = {}, {}, 0
        self._reached = max(self._reached, segment.position)
        return batches

    def _without_sent(self, oid: int, changed: pa.Table) -> pa.Table:
        """Leave out rows of the open commit that were emitted before the connection was lost."""
        count = self._to_skip.get(oid, 0)
        if not count:
            return changed
        first, last = np.searchsorted(
            changed.column(COMMIT_POSITION).to_numpy(), [self._open_commit, self._open_commit + 1]
        )
        again = min(count, int(last - first))
        self._to_skip[oid] = count - again
        return changed.slice(first + again)

    def _piece(self, table: SourceTable, changed: pa.Table, commit: int) -> list[MicroBatch]:
        """Return rows of a commit that has not ended here; a table that holds the commit already gets none."""
        if self._positions[table.partition] > commit:
            return []
        before = self._empty_up_to(table, commit)
        self._sent[table.oid] = self._sent.get(table.oid, 0) + changed.num_rows
        return [*before, self._batch(table.partition, commit, commit, changed, is_partial=True)]

    def _whole(self, table: SourceTable, changed: pa.Table, end: int) -> list[MicroBatch]:
        """Return rows of whole commits, cut at the stored positions of flows that share the read."""
        position = self._positions[table.partition]
        if end <= position:
            return []
        commits = changed.column(COMMIT_POSITION).to_numpy()
        fences = [f for f in self._plan.partitions[table.partition].fences if position < f < end]
        batches = []
        for start, stop in pairwise([position, *fences, end]):
            first, last = np.searchsorted(commits, [start, stop])
            batches.append(self._batch(table.partition, start, stop, changed.slice(first, last - first)))
        self._positions[table.partition] = end
        return batches

    def _empty_up_to(self, table: SourceTable, end: int) -> list[MicroBatch]:
        """Return batches of no rows that move a table's position; nothing for one that is there."""
        return self._whole(table, table.empty(), end)

    def _advance_now_and_then(self) -> list[MicroBatch]:
        """Move tables without changes on, so that their positions do not hold the slot back."""
        is_at_end = self._target is not None and self._reached >= self._target
        now_s = time.monotonic()
        if self._open_commit or not (is_at_end or now_s - self._advanced_at_s >= _ADVANCE_S):
            return []
        self._advanced_at_s = now_s
        return [batch for table in self._tables.values() for batch in self._empty_up_to(table, self._reached)]

    def _batch(
        self,
        partition: str,
        start: int,
        end: int,
        rows: pa.Table,
        *,
        is_partial: bool = False,
        snapshot: int | None = None,
    ) -> MicroBatch:
        is_change = ":" not in partition
        notes = {TIMELINE: self._identity.timeline} | ({} if snapshot is None else {SNAPSHOT: snapshot})
        return MicroBatch(
            table=self._maker.narrowed(rows),
            source=self._plan.identity,
            partition=partition,
            start=start,
            end=end,
            read=rows.num_rows,
            backlog=Backlog(size_bytes=max(0, self._server - end)) if is_change else None,
            is_partial=is_partial,
            notes=notes,
        )
