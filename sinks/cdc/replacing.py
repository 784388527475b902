"""ReplacingSink: appends to one Delta table, and takes out the older rows of a file that was written anew, in the same commit.

A source that reads a file again says so with the first rows of the new version (``MicroBatch.replaced``). Data files that hold
rows of the old version are rewritten without them. Crash points are those of an append: what leaves, what comes, positions
and fence are one log entry; a run that goes on inside the new version finds the old one gone already.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from sinks.delta.files import StoredFile, stored_files
from sinks.delta.protocol import Committer
from sinks.delta.sink import DeltaSink, Output, TableWriter
from sinks.delta.stored import FileReader, may_hold
from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import UserError
from waxlake.stream.schema import delta_schema

__all__ = ["ReplacingSink"]


@dataclass(slots=True)
class ReplacingSink(DeltaSink):
    """A Bytewax output onto one Delta table in which each row names the file that it came from.

    Args:
        column: Column of the table that holds the path of the file, as ``_metadata.file_path`` gives it.

    Guarantee: exactly once per (flow, source, partition, position); rows of two versions of a file are never visible together.
    """

    column: str = "file_path"

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> TableWriter:
        """Build the committer; Bytewax calls it when the first item arrives."""
        return _ReplacingWriter(self, self.column)


class _ReplacingWriter(TableWriter):
    """The one committer of a table in this run."""

    def __init__(self, sink: DeltaSink, column: str) -> None:
        super().__init__(sink)
        self._column = column
        self._replaced: set[str] = set()
        self._gathered: set[str] = set()  # files with rows in the next commit

    def _take(self, batch: MicroBatch) -> None:
        if batch.replaced:
            committer = self._opened(batch)
            is_growth = self._grows(batch.table)
            if is_growth or not self._gathered.isdisjoint(batch.replaced):
                self._flush()  # older rows must be in the table before they can leave it
            if is_growth:  # in a commit of its own: one that grows the table takes no files out of it
                committer.add_columns(delta_schema(batch.table.schema))
                self._read_schema(committer)
        super()._take(batch)

    def _note_move(self, committer: Committer, app: str, batch: MicroBatch) -> None:
        super()._note_move(committer, app, batch)
        if batch.replaced:
            self._replaced.update(batch.replaced)
            self._since_s = self._since_s or self._clock.now_s()
        if batch.table.num_rows:
            self._gathered.update(pc.unique(self._paths(batch.table)).to_pylist())

    def _paths(self, table: pa.Table) -> pa.ChunkedArray:
        if self._column not in table.column_names:
            raise UserError(
                f"cannot replace rows of table '{self._target.location.label}'",
                code="REPLACE_COLUMN",
                found=f"columns {', '.join(table.column_names)}",
                expected=f"a column {self._column!r} that holds `_metadata.file_path`",
                remedy=f"Add it, as in .with_columns({self._column}='_metadata.file_path'), or set replace_column",
            )
        return table.column(self._column)

    def _output(self, committer: Committer) -> Output:
        removes = self._rewritten(committer) if self._replaced else []
        return Output(adds=super()._output(committer).adds, removes=removes)

    def _rewritten(self, committer: Committer) -> list[StoredFile]:
        """Return the stored files with rows that leave; the rows of them that stay are written anew."""
        paths = pa.array(sorted(self._replaced), pa.string())
        reader = FileReader(self._target.location, self._schema)
        removes = []
        for file in stored_files(committer.handle):
            if not may_hold(file, [self._column], [paths]):
                continue
            leaves = pc.is_in(reader.columns(file, [self._column]).column(0), value_set=paths)
            count = pc.sum(leaves).as_py() or 0
            if not count:
                continue
            removes.append(file)
            if count < len(leaves):
                for rows in reader.groups(file):
                    stays = pc.invert(pc.is_in(rows.column(self._column), value_set=paths))
                    self._rows.append(rows.filter(stays).cast(self._schema))
        return removes

    def _committed(self, output: Output) -> None:
        super()._committed(output)
        self._replaced, self._gathered = set(), set()
