"""Read a Delta table as a row of snapshots: each version of it is the whole truth, and what changed since the last is emitted.

The first read emits the latest version as it is; every later version what differs from the one before, found in the files that
the version added and removed, so that the cost follows what changed. Versions come one by one and in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa

from connectors.delta.connector import _PARTITION, _SNAPSHOT_FLAG, DeltaConnector, _DeltaReader
from connectors.delta.versions import files_of
from waxlake.stream.batch import MicroBatch
from waxlake.stream.changes import CHANGE_TYPE, DELETE, INSERT
from waxlake.stream.errors import SourceMoved, TerminalError
from waxlake.stream.position import RowPosition
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState

__all__ = ["CHANGES", "SNAPSHOT_VERSION", "DeltaSnapshots", "SnapshotReader"]

SNAPSHOT_VERSION: Final = "_snapshot_version"
CHANGES: Final = (pa.field(CHANGE_TYPE, pa.string()), pa.field(SNAPSHOT_VERSION, pa.int64()))


@dataclass(frozen=True, slots=True)
class DeltaSnapshots(DeltaConnector):
    """A Delta table whose versions are full snapshots.

    Args:
        location: The table.
        schema: Its columns; None takes them from the table, which must exist then.
        keys: Columns that identify a row.

    Guarantee: the changes from each version to the next once, in order: rows that are new or differ as inserts, keys that are
    gone as deletes. Needs the files that a version removed: vacuum later than the pipeline runs.
    """

    keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return f"snapshots:{self.location.label}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """What a row is to its key, and the version that it comes from."""
        return (CHANGE_TYPE, SNAPSHOT_VERSION)

    def empty(self) -> pa.Table:
        """Return no rows, in the table's schema, and the columns of a change."""
        return no_rows(pa.schema([*DeltaConnector.empty(self).schema, *CHANGES]))

    def inspect(self) -> SourceState:
        """Return the versions that can be read now; a new flow begins with the latest."""
        handle = self.location.open()
        latest = handle.version()
        return SourceState(
            identity=f"delta:{handle.metadata().id}",
            name=self.name,
            partitions={_PARTITION: SourceRange(low=0, high=RowPosition(latest + 1).pack())},
            begin={_PARTITION: RowPosition(latest, _SNAPSHOT_FLAG).pack()},
        )

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader; a bounded one ends at the version that is the latest when it is opened."""
        return SnapshotReader(self, plan)


class SnapshotReader(_DeltaReader):
    """Follows the versions of one table."""

    def __init__(self, connector: DeltaSnapshots, plan: SourcePlan) -> None:
        super().__init__(connector, plan)
        self._keys = connector.keys
        self._schema = pa.schema([f for f in self._schema if f.name not in (CHANGE_TYPE, SNAPSHOT_VERSION)])

    def read(self) -> Sequence[MicroBatch]:
        """Return what the next version changed, as one batch."""
        if self.is_done:
            return []
        start, position = self._position, RowPosition.unpack(self._position)
        if position.minor >= _SNAPSHOT_FLAG:
            files = pa.table(self._location.open(version=position.major).get_add_actions(flatten=False)).to_pylist()
            adds = [{"path": unquote(f["path"]), "partitionValues": f.get("partition") or {}} for f in files]
            log, removes = None, list[dict[str, Any]]()
        else:
            log = self._location.read_log(position.major)
            if log is None:
                self._refuse_lost_version(position.major)
                return []
            adds, removes = files_of(log, "add"), files_of(log, "remove")
        table = self._changes(adds, removes, position.major, self._number(position.major, log))
        self._position = RowPosition(position.major + 1).pack()
        return [
            MicroBatch(
                table=table,
                source=self._plan.identity,
                partition=_PARTITION,
                start=start,
                end=self._position,
                read=table.num_rows,
            )
        ]

    def _number(self, version: int, log: Sequence[Mapping[str, Any]] | None) -> int:
        """Return the number of the snapshot that a table version is; ``log`` is None for the first read."""
        return version

    def _changes(
        self, adds: list[dict[str, Any]], removes: list[dict[str, Any]], version: int, number: int
    ) -> pa.Table:
        import duckdb

        after = self._rows(adds)
        try:
            before = self._rows(removes)
        except TerminalError as error:
            raise SourceMoved(
                f"cannot read {self._plan.name}",
                code="SOURCE_EXPIRED",
                found=f"files that version {version} removed are gone: {error.found}",
                expected="the files of every version since the last one read",
                remedy="They were vacuumed before they were read. Delete the table that reads them to fill it anew",
            ) from error
        keys = ", ".join(f'"{key}"' for key in self._keys)
        rest = ", ".join(f'"{f.name}"' if f.name in self._keys else f'NULL AS "{f.name}"' for f in self._schema)
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("after", after)
            connection.register("before", before)
            made = connection.sql(f"""
                SELECT *, '{INSERT}' AS {CHANGE_TYPE}, {number}::BIGINT AS {SNAPSHOT_VERSION}
                FROM (SELECT * FROM after EXCEPT SELECT * FROM before)
                UNION ALL
                SELECT {rest}, '{DELETE}', {number}::BIGINT
                FROM (SELECT DISTINCT {keys} FROM before) ANTI JOIN after USING ({keys})
            """).to_arrow_table()  # fmt: skip
        return made.cast(pa.schema([*self._schema, *CHANGES]))

    def _rows(self, files: Sequence[Mapping[str, Any]]) -> pa.Table:
        tables = [rows for file in files for rows in self._file_rows(file, self._schema)]
        return pa.concat_tables(tables) if tables else no_rows(self._schema)
