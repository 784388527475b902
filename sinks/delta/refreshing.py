"""RefreshSink: keeps the table of a materialized view equal to its query; a batch replaces everything, or some rows.

Where a crash can fall, and what the next run finds:

1. before the new data files are written, or after: the log names none of them; the view is as it was, and is refreshed again
   from the input versions that it holds.
2. after the commit: rows that came, rows that went, the position and the input versions are one log entry; nothing is left to do.

Files without a row that goes stay. Small files are written anew together, once there are many, in the commit of a refresh.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sinks.delta.files import StoredFile, stored_files
from sinks.delta.protocol import Committer
from sinks.delta.sink import DeltaSink, Output, TableWriter
from sinks.delta.stored import FileReader
from waxlake.stream.batch import DROP_FILE, DROP_ROW, MicroBatch, Refresh
from waxlake.stream.delta_table import arrow_schema
from waxlake.stream.errors import FilesMoved
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import cast_exact

__all__ = ["RefreshSink"]

_SMALL_BYTES = 1 << 20
_SMALL_FILES = 16
_TOGETHER_BYTES = 32 << 20


class RefreshSink(DeltaSink):
    """A Bytewax output onto the table of one materialized view.

    Guarantee: exactly once per (flow, source, partition, position); no version shows a part of a refresh.
    """

    __slots__ = ()

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the committer."""
        return _RefreshWriter(self)


class _RefreshWriter(TableWriter):
    """The one committer of a view's table in this run."""

    def __init__(self, sink: DeltaSink) -> None:
        super().__init__(sink)
        self._refresh: Refresh | None = None

    def _keep(self, batch: MicroBatch, rows: pa.Table, *, is_growth: bool) -> None:
        refresh = batch.refresh
        if refresh is not None and refresh.drops is not None:
            assert self._committer is not None
            self._check(rows)
            schema = arrow_schema(self._committer.handle)
            self._rows.append(cast_exact(rows, schema, what=f"view '{self._target.location.label}'"))
            if batch.rejected is not None and batch.rejected.num_rows:
                self._reject(batch.rejected)
        else:
            super()._keep(batch, rows, is_growth=is_growth)
        if refresh is not None:
            self._refresh = refresh
            self._since_s = self._since_s or self._clock.now_s()

    def _output(self, committer: Committer) -> Output:
        refresh = self._refresh
        if refresh is None:
            return super()._output(committer)
        removes: list[StoredFile] = []
        if refresh.drops is not None:
            removes = self._rewritten(committer, refresh.drops)
        adds = super()._output(committer).adds
        failpoint("view-written")
        facts = {flow: {"refresh": dict(refresh.facts)} for flow in self._tally.facts()["flows"]}
        return Output(adds=adds, removes=removes, versions=refresh.versions, facts=facts)

    def _committed(self, output: Output) -> None:
        super()._committed(output)
        self._refresh = None

    def _rewritten(self, committer: Committer, drops: pa.Table) -> list[StoredFile]:
        """Return the files with rows that go, and small ones; the rows of them that stay are written anew."""
        files = {file.path: file for file in stored_files(committer.handle)}
        touched = drops.column(DROP_FILE).unique().to_pylist()
        gone = [path for path in touched if path not in files]
        if gone:
            raise FilesMoved(
                f"cannot refresh view '{self._target.location.label}' at version {committer.handle.version()}",
                code="COMMIT_CONFLICT",
                found=f"{len(gone)} of {len(touched)} data files gone, such as {gone[0]}",
                expected="the files that were read",
                remedy="Another writer changes this table. Nothing is lost: run again",
            )
        reader = FileReader(self._target.location, arrow_schema(committer.handle))
        schema = arrow_schema(committer.handle)
        for path in touched:
            leaving = drops.filter(pc.equal(drops.column(DROP_FILE), path)).column(DROP_ROW)
            start = 0
            for rows in reader.groups(files[path]) if len(leaving) != files[path].rows else ():
                stays = pc.invert(pc.is_in(_numbers(len(rows), start), value_set=leaving))
                start += len(rows)
                self._rows.append(rows.filter(stays).cast(schema))
        small = self._small(files, touched)
        for file in small:
            for rows in reader.groups(file):
                self._rows.append(rows.cast(schema))
        return [*(files[path] for path in touched), *small]

    def _small(self, files: dict[str, StoredFile], touched: Sequence[str]) -> list[StoredFile]:
        """Return untouched small files to be written anew together; none if there are few, or nothing else is written."""
        if not touched and not self._rows.rows:
            return []
        small = [file for path, file in files.items() if file.size_bytes < _SMALL_BYTES and path not in touched]
        chosen, size = [], 0
        for file in sorted(small, key=lambda file: file.size_bytes):
            size += file.size_bytes
            if size > _TOGETHER_BYTES:
                break
            chosen.append(file)
        return chosen if len(chosen) >= _SMALL_FILES else []


def _numbers(count: int, start: int) -> pa.Array:
    return pc.add(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), count)), pa.scalar(start - 1, pa.int64()))
