"""Read a Delta table as change rows: the table as it is, as inserts, and then what each version did, in order.

What a version did is in its change data files where the table's writer makes them (``delta.enableChangeDataFeed``); else it is
the difference between the files that the version removed and those that it added. So the cost follows what changed, and tables
that changes are merged into, and materialized views, can be followed without any setting of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from connectors.delta.connector import _SNAPSHOT_FLAG, DeltaConnector, _DeltaReader
from connectors.delta.versions import committed_at, files_of, has_changes
from waxlake.stream.changes import CHANGE_COLUMNS, CHANGE_TYPE, DELETE, INSERT, UPDATE
from waxlake.stream.engine import open_session, select_list
from waxlake.stream.errors import UsageError
from waxlake.stream.position import RowPosition
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Reader, SourcePlan

__all__ = ["DeltaChanges"]

_BEFORE = (DELETE, "update_preimage")
_AFTER = (INSERT, "update_postimage")


@dataclass(frozen=True, slots=True)
class DeltaChanges(DeltaConnector):
    """A Delta table whose changes are followed.

    Guarantee: the changes of each version once, versions in order, deletes of a version before its updates and inserts. Needs the
    files that a version removed: vacuum later than the pipeline runs.
    """

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return f"changes:{self.location.label}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Those of change rows."""
        return tuple(CHANGE_COLUMNS.names)

    def empty(self) -> pa.Table:
        """Return no rows, in the table's schema, and the columns of a change.

        Raises:
            UsageError: The table has a column of such a name, or lacks a key. Not retryable.
        """
        schema = DeltaConnector.empty(self).schema
        taken = [name for name in schema.names if name in CHANGE_COLUMNS.names]
        if taken:
            raise UsageError(
                f"cannot read the changes of {self.location.label}",
                code="CHANGE_COLUMN_TAKEN",
                found=f"a column of the table named {taken[0]!r}",
                remedy="Its rows seem to be changes already: read it without read_change_feed",
            )
        missing = [key for key in self.settings.keys if key not in schema.names]
        if missing:
            raise UsageError(
                f"cannot read the changes of {self.location.label}",
                code="UNKNOWN_COLUMN",
                found=f"key {missing[0]!r}",
                expected=", ".join(schema.names),
            )
        return no_rows(pa.schema([*schema, *CHANGE_COLUMNS]))

    def _usual_begin(self, handle: Any) -> RowPosition:
        return RowPosition(handle.version(), _SNAPSHOT_FLAG)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader; a bounded one ends at the version that is the latest when it is opened."""
        return _ChangeReader(self, plan)


class _ChangeReader(_DeltaReader):
    """Follows the changes of one table."""

    def __init__(self, connector: DeltaChanges, plan: SourcePlan) -> None:
        super().__init__(connector, plan)
        self._schema = pa.schema([f for f in self._output if f.name not in CHANGE_COLUMNS.names])
        self._label, self._keys = connector.location.label, connector.settings.keys

    def _version_pieces(self, position: RowPosition) -> Iterator[tuple[int, pa.Table]] | None:
        pieces = super()._version_pieces(position)
        if pieces is None or position.minor < _SNAPSHOT_FLAG:
            return pieces
        return self._inserted(pieces, position.major, committed_at(self._location.read_log(position.major)))

    def _changed_pieces(self, log: list[dict[str, Any]], position: RowPosition) -> Iterator[tuple[int, pa.Table]]:
        at, files = committed_at(log), files_of(log, "cdc")
        if not files and not has_changes(log):
            return self._inserted(super()._changed_pieces(log, position), position.major, at)
        if files:
            feed = self._gathered(files, position.major, pa.schema([*self._schema, (CHANGE_TYPE, pa.string())]))
            before, after = (self._of_types(feed, types) for types in (_BEFORE, _AFTER))
        else:
            before = self._gathered(files_of(log, "remove"), position.major, self._schema)
            after = self._gathered(files_of(log, "add"), position.major, self._schema)
        return self._differing(before, after, position.major, at)

    def _inserted(
        self, pieces: Iterator[tuple[int, pa.Table]], version: int, at: datetime | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield rows that a version added, as inserts."""
        for position, rows in pieces:
            last = RowPosition.unpack(position).minor & (_SNAPSHOT_FLAG - 1)
            kinds = pa.repeat(pa.scalar(INSERT), rows.num_rows)
            yield position, self._as_changes(rows, kinds, version, at, first=last - rows.num_rows)

    def _differing(
        self, before: pa.Table, after: pa.Table, version: int, at: datetime | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield what became of the rows that were there before."""
        made = self._difference(before, after)
        kinds = made.column(CHANGE_TYPE).combine_chunks()
        rows = made.drop_columns([CHANGE_TYPE]).cast(self._schema)
        yield RowPosition(version + 1).pack(), self._as_changes(rows, kinds, version, at, first=0)

    def _difference(self, before: pa.Table, after: pa.Table) -> pa.Table:
        with open_session() as session:
            session.register("before_rows", before)
            session.register("after_rows", after)
            session.execute("CREATE TEMP TABLE gone AS (FROM before_rows EXCEPT ALL FROM after_rows)")
            session.execute("CREATE TEMP TABLE come AS (FROM after_rows EXCEPT ALL FROM before_rows)")
            parts = [f"SELECT *, '{DELETE}' AS {CHANGE_TYPE} FROM gone", f"SELECT *, '{INSERT}' FROM come"]
            if self._keys:
                keys = select_list(self._keys)
                parts = [
                    f"SELECT *, '{DELETE}' AS {CHANGE_TYPE} FROM gone ANTI JOIN come USING ({keys})",
                    f"SELECT *, '{UPDATE}' FROM come SEMI JOIN gone USING ({keys})",
                    f"SELECT *, '{INSERT}' FROM come ANTI JOIN gone USING ({keys})",
                ]
            tables = [session.sql(part).to_arrow_table() for part in parts]
            for name in ("gone", "come"):
                session.execute(f"DROP TABLE {name}")
        schema = pa.schema([*self._schema, (CHANGE_TYPE, pa.string())])
        return pa.concat_tables([table.rename_columns(schema.names).cast(schema) for table in tables])

    def _as_changes(
        self, rows: pa.Table, kinds: pa.Array, version: int, at: datetime | None, *, first: int
    ) -> pa.Table:
        count = rows.num_rows
        columns = [
            kinds,
            pa.repeat(pa.scalar(version, pa.int64()), count),
            pa.array(range(first, first + count), pa.int64()),
            pa.repeat(pa.scalar(at, pa.timestamp("us", tz="UTC")), count),
            pa.repeat(pa.scalar(self._label), count),
            pa.nulls(count, CHANGE_COLUMNS.field("_unchanged").type),
        ]
        return pa.table([*rows.columns, *columns], schema=self._output)

    def _gathered(self, files: Sequence[Mapping[str, Any]], version: int, schema: pa.Schema) -> pa.Table:
        tables = [rows for file in files for rows in self._rows_of_version(file, version, schema)]
        return pa.concat_tables(tables) if tables else no_rows(schema)

    def _of_types(self, feed: pa.Table, types: Sequence[str]) -> pa.Table:
        import pyarrow.compute as pc

        rows = feed.filter(pc.is_in(feed.column(CHANGE_TYPE), value_set=pa.array(types)))
        return rows.drop_columns([CHANGE_TYPE])
