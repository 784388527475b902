"""Read a Delta table as a stream of appended rows, by table version.

A position is ``RowPosition(version, row)``: the row within the rows that the version added, in the order of the log. When
the log no longer reaches back to version 0, or the table was filled anew since, a new flow first reads the table as it is:
positions of that first read carry a flag in ``row``, so that a restart in the middle of it knows what it was reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from connectors.delta.settings import DeltaReadSettings
from connectors.delta.versions import (
    columns_of,
    committed_at,
    files_of,
    first_version_since,
    has_changes,
    operation_of,
    table_id_of,
)
from waxlake.stream.batch import Backlog, MicroBatch
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import REBUILT_APP_ID, RELEASED, TableLocation, arrow_schema, delta_errors
from waxlake.stream.errors import SchemaGrown, SourceMoved, TerminalError
from waxlake.stream.position import RowPosition
from waxlake.stream.preview import SourcePreview
from waxlake.stream.schema import no_rows
from waxlake.stream.settings import StorageOptions
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState, spread
from waxlake.stream.standalone import Positions, StandaloneSource

__all__ = ["DeltaConnector", "DeltaSource"]

_PARTITION = "log"
_SNAPSHOT_FLAG = 1 << 35
_BATCH_ROWS = 200_000
_PREVIEW_VERSIONS = 500
_LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class DeltaConnector:
    """A Delta table to be followed.

    Args:
        location: The table.
        schema: Its columns; None takes them from the table, which must exist then.
        settings: Where to begin, and what to do with versions that do not only append.

    Guarantee: every row of every appending version once, in log order. A version that deletes or rewrites rows stops the
    stream, or is left out on request.
    """

    location: TableLocation
    schema: pa.Schema | None = None
    settings: DeltaReadSettings = field(default_factory=DeltaReadSettings)

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return f"delta:{self.location.label}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def on_data_loss(self) -> str:
        """Lost versions always stop the stream."""
        return "fail"

    def empty(self) -> pa.Table:
        """Return no rows, in the table's schema."""
        return no_rows(self.schema or arrow_schema(self.location.open()))

    def inspect(self) -> SourceState:
        """Return the versions that can be read now."""
        handle = self.location.open()
        latest = handle.version()
        begin = self._chosen_begin(latest) or self._usual_begin(handle)
        return SourceState(
            identity=f"delta:{handle.metadata().id}",
            name=self.name,
            partitions={_PARTITION: SourceRange(low=0, high=RowPosition(latest + 1).pack())},
            begin={_PARTITION: begin.pack()},
        )

    def preview(self) -> SourcePreview:
        """Return what there is to read, in rows where few enough versions are to be read."""
        state = self.inspect()
        latest = RowPosition.unpack(state.partitions[_PARTITION].high).major - 1

        def backlog(_: str, position: int | None) -> Backlog:
            start = RowPosition.unpack(state.begin[_PARTITION] if position is None else position)
            if start.minor >= _SNAPSHOT_FLAG or latest - start.major >= _PREVIEW_VERSIONS:
                return Backlog()
            return Backlog(records=max(0, self._rows_since(start, latest)))

        return SourcePreview(state=state, backlog=backlog)

    def _rows_since(self, start: RowPosition, latest: int) -> int:
        rows = -start.minor
        for version in range(start.major, latest + 1):
            for action in self.location.read_log(version) or ():
                if "add" in action and action["add"].get("dataChange", True):
                    rows += int(json.loads(action["add"].get("stats") or "{}").get("numRecords") or 0)
        return rows

    def _chosen_begin(self, latest: int) -> RowPosition | None:
        """Return where a flow is to begin if the user said so."""
        chosen, at = self.settings.starting_version, self.settings.starting_at
        if at is not None:
            return RowPosition(first_version_since(self.location, at, latest))
        if chosen == "latest":
            return RowPosition(latest + 1)
        if chosen is None:
            return None
        if int(chosen) > latest + 1:
            raise SourceMoved(
                f"cannot read {self.name} from version {chosen}",
                code="STARTING_VERSION_UNKNOWN",
                found=f"latest version {latest}",
                expected=f"starting_version of at most {latest + 1}, the next one",
                remedy="Choose an earlier one, or 'latest'",
            )
        return RowPosition(int(chosen))

    def _usual_begin(self, handle: DeltaTable) -> RowPosition:
        was_rebuilt = handle.transaction_version(REBUILT_APP_ID) is not None
        reaches_back = not was_rebuilt and self.location.read_log(0) is not None
        return RowPosition(0) if reaches_back else RowPosition(handle.version(), _SNAPSHOT_FLAG)

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return the one group: versions are read in order."""
        return spread(list(plan.partitions), 1)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader; a bounded one ends at the version that is the latest when it is opened."""
        return _DeltaReader(self, plan)


class DeltaSource(StandaloneSource):
    """A Delta table as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    Args:
        uri: Local path or URI of the table.
        storage_options: Options of its store, as delta-rs names them.
        settings: Where to begin, and what to do with versions that do not only append.
        positions: Stored position, or a function from what the source holds to it; none starts at the first version.
        is_bounded: End at the version that is the latest when it is opened.

    Guarantee: every appended row once per run, in log order; exactly once with a sink that stores positions.
    """

    def __init__(
        self,
        uri: str,
        *,
        storage_options: Mapping[str, str] | None = None,
        settings: DeltaReadSettings | None = None,
        positions: Positions | None = None,
        is_bounded: bool = False,
    ) -> None:
        location = TableLocation(uri, StorageOptions(storage_options))
        connector = DeltaConnector(location, settings=settings or DeltaReadSettings())
        super().__init__(connector, positions=positions, is_bounded=is_bounded)


class _DeltaReader:
    """Follows the log of one table."""

    def __init__(self, connector: DeltaConnector, plan: SourcePlan) -> None:
        self._location, self._plan, self._settings = connector.location, plan, connector.settings
        self._schema = self._output = connector.empty().schema
        self._is_foreign = connector.schema is None
        self._filesystem = connector.location.filesystem()
        part = plan.partitions[_PARTITION]
        self._position = part.read_from
        self._fences = part.fences
        self._handle = connector.location.open()
        self._mark = None if part.mark is None else RowPosition(self._handle.version() + 1).pack()
        self._pieces: Iterator[tuple[int, pa.Table]] | None = None
        self._clock = Clock()
        self._looked_at_s = -_LOOK_EVERY_S
        self._last: tuple[int, tuple[object, ...]] | None = None

    @property
    def is_done(self) -> bool:
        """Whether a bounded read has reached the version it was opened at."""
        return self._mark is not None and self._position >= self._mark

    def positions(self) -> Mapping[str, int]:
        """Return the next position."""
        return {_PARTITION: self._position}

    def close(self) -> None:
        """There is nothing to free."""

    def read(self) -> Sequence[MicroBatch]:
        """Return the next rows as one batch; several small versions share one."""
        start, tables, rows = self._position, [], 0
        while rows < _BATCH_ROWS and not self.is_done:
            if self._pieces is None:
                self._pieces = self._version_pieces(RowPosition.unpack(self._position))
                if self._pieces is None:
                    break
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = None
                continue
            self._position, table = piece
            tables.append(table)
            rows += table.num_rows
            if self._position in self._fences:
                break
        if self._position == start:
            return []
        table = pa.concat_tables(tables) if tables else no_rows(self._output)
        backlog = None if self._mark is None else Backlog(files=None, records=None)
        return [
            MicroBatch(
                table=table,
                source=self._plan.identity,
                partition=_PARTITION,
                start=start,
                end=self._position,
                read=rows,
                backlog=backlog,
            )
        ]

    def _version_pieces(self, position: RowPosition) -> Iterator[tuple[int, pa.Table]] | None:
        """Return the rest of one version as (position after, rows); None if it is not there yet."""
        if position.minor >= _SNAPSHOT_FLAG:
            handle = self._location.open(version=position.major)
            actions = pa.table(handle.get_add_actions(flatten=False)).sort_by("path").to_pylist()
            adds = [{"path": a["path"], "partitionValues": a.get("partition") or {}} for a in actions]
            return self._pieces_of(adds, position, first_row=_SNAPSHOT_FLAG)
        log = self._log_of(position.major)
        return None if log is None else self._changed_pieces(log, position)

    def _changed_pieces(self, log: list[dict[str, Any]], position: RowPosition) -> Iterator[tuple[int, pa.Table]]:
        """Return the rest of what a version appended."""
        if any(RELEASED in (action.get("commitInfo", {}).get("waxlake") or {}) for action in log):
            return self._pieces_of([], position, first_row=0)
        if has_changes(log):
            if not self._settings.skip_change_commits:
                raise self._not_append_only(log, position.major)
            return self._pieces_of([], position, first_row=0)
        return self._pieces_of(files_of(log, "add"), position, first_row=0)

    def _log_of(self, version: int) -> list[dict[str, Any]] | None:
        """Return the log entry of a version of the table that the positions belong to; None if it is not there yet."""
        if self._last is not None and self._location.log_stamp(self._last[0]) != self._last[1]:
            self._require_same_table()
        log = self._location.read_log(version)
        if log is None:
            self._refuse_lost_version(version)
            return None
        self._last = (version, self._location.log_stamp(version))
        columns = columns_of(log)
        if columns is not None:
            if f"delta:{table_id_of(log)}" != self._plan.identity:
                self._require_same_table()
            self._check_columns(columns, version)
        return log

    def _require_same_table(self) -> DeltaTable:
        """Stop if the table was dropped and created anew."""
        handle = self._location.open()
        if f"delta:{handle.metadata().id}" != self._plan.identity:
            raise SourceMoved(
                f"cannot read {self._plan.name}",
                code="SOURCE_RECREATED",
                found=f"another table at its place: delta:{handle.metadata().id}",
                expected=f"{self._plan.identity}, the one whose versions were read",
                remedy="It was dropped and created again. Give the flow a new name to read it from its beginning",
            )
        return handle

    def _check_columns(self, columns: Mapping[str, str], version: int) -> None:
        """Stop where a version takes columns away; end the plan where it adds some that the plan does not know."""
        before = self._columns_before(version)
        lost = [name for name in before if before[name] != columns.get(name) and name in self._schema.names]
        gone = [name for name in lost if name not in columns]
        if gone and not self._settings.ignore_dropped_columns:
            raise SourceMoved(
                f"cannot read {self._plan.name}",
                code="SOURCE_COLUMN_GONE",
                found=f"version {version} without {', '.join(map(repr, gone))}",
                expected="the columns that were read so far",
                remedy="Set ignore_dropped_columns=True to read on: the column is NULL from there on",
            )
        if self._is_foreign and any(name not in self._schema.names for name in columns):
            latest = arrow_schema(self._location.open())
            added = [name for name in latest.names if name not in self._schema.names]
            if added:
                raise SchemaGrown(
                    f"{self._plan.name} has new columns",
                    code="SCHEMA_GROWN",
                    found=", ".join(added),
                    remedy="Run again: they are read from there on",
                    added=added,
                    file=f"version {version}",
                )

    def _columns_before(self, version: int) -> Mapping[str, str]:
        if version == 0:
            return {}
        try:
            schema = json.loads(self._location.open(version=version - 1).schema().to_json())
        except TerminalError:  # its log was cleaned: nothing to compare with
            return {}
        return {field["name"]: json.dumps(field["type"], sort_keys=True) for field in schema["fields"]}

    def _refuse_lost_version(self, version: int) -> None:
        """Stop if a version that is not in the log will never be there; looks at the table now and then."""
        now_s = self._clock.now_s()
        if now_s - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        latest = self._require_same_table().version()
        if version <= latest and self._location.read_log(version) is None:
            raise SourceMoved(
                f"cannot read {self._plan.name}",
                code="SOURCE_EXPIRED",
                found=f"no log of version {version}; the latest is {latest}",
                expected="every version since the last one read",
                remedy="The log was cleaned before it was read. Delete the table that reads it to fill it anew",
            )

    def _not_append_only(self, log: list[dict[str, Any]], version: int) -> SourceMoved:
        operation, at = operation_of(log), committed_at(log)
        by = f" ({operation}{f' of {at:%Y-%m-%d %H:%M:%SZ}' if at else ''})" if operation else ""
        return SourceMoved(
            f"cannot read {self._plan.name} as a stream",
            code="SOURCE_NOT_APPEND_ONLY",
            found=f"version {version}{by} deletes or rewrites rows",
            expected="versions that only append",
            remedy="Set skip_change_commits=True to leave such versions out, or read_change_feed=True to get what they change. "
            "Or read it with wl.read in a materialized view, or delete both tables to fill them anew",
        )

    def _pieces_of(
        self, adds: list[dict[str, Any]], position: RowPosition, *, first_row: int
    ) -> Iterator[tuple[int, pa.Table]]:
        row, skip = first_row, position.minor
        for add in adds:
            for rows in self._rows_of_version(add, position.major):
                begin, end = row, row + rows.num_rows
                row = end
                if end <= skip:
                    continue
                rows, begin = rows.slice(max(0, skip - begin)), max(begin, skip)
                for cut in [*self._fence_rows(position.major, begin, end), end]:
                    yield RowPosition(position.major, cut).pack(), rows.slice(0, cut - begin)
                    rows, begin = rows.slice(cut - begin), cut
        yield RowPosition(position.major + 1).pack(), no_rows(self._schema)

    def _rows_of_version(
        self, add: Mapping[str, Any], version: int, schema: pa.Schema | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows of a file; one that is gone is told as what it is."""
        try:
            yield from self._file_rows(add, schema or self._schema)
        except TerminalError as error:
            if error.code != "TABLE_NOT_FOUND":
                raise
            raise SourceMoved(
                f"cannot read {self._plan.name}",
                code="SOURCE_EXPIRED",
                found=f"a file of version {version} is gone: {error.found}",
                expected="the files of every version since the last one read",
                remedy="It was vacuumed before it was read. Delete the table that reads it to fill it anew",
            ) from error

    def _fence_rows(self, version: int, begin: int, end: int) -> list[int]:
        fences = (RowPosition.unpack(fence) for fence in self._fences)
        return [fence.minor for fence in fences if fence.major == version and begin < fence.minor < end]

    def _file_rows(self, add: Mapping[str, Any], schema: pa.Schema) -> Iterator[pa.Table]:
        if add.get("deletionVector"):
            raise SourceMoved(
                f"cannot read {self._plan.name} as a stream",
                code="SOURCE_NOT_APPEND_ONLY",
                found=f"a deletion vector on {add['path']}",
                expected="files without one",
                remedy="Read it with wl.read in a materialized view",
            )
        what = f"read {add['path']} of table '{self._location.label}'"
        with delta_errors(what), self._filesystem.open_input_file(add["path"]) as stream:
            for rows in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS):
                yield _shaped(pa.table(rows), add.get("partitionValues") or {}, schema)


def _shaped(rows: pa.Table, partition: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Return the rows in the table's schema: partition values added, columns that came later filled with NULL."""
    columns = []
    for wanted in schema:
        if wanted.name in partition:
            value = partition[wanted.name]
            text = pa.scalar(None if value in (None, "") else str(value), pa.string())
            column: Any = pa.repeat(_parsed(text, wanted.type), rows.num_rows)
        elif wanted.name in rows.column_names:
            column = rows.column(wanted.name).cast(wanted.type)
        else:
            column = pa.nulls(rows.num_rows, wanted.type)
        columns.append(column)
    return pa.table(columns, schema=schema)


def _parsed(text: pa.Scalar, kind: pa.DataType) -> pa.Scalar:
    """Return a partition value in its column's type."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pc.assume_timezone(pc.cast(text, pa.timestamp("us")), "UTC")
    if pa.types.is_binary(kind):
        return pc.cast(text, pa.binary())
    return pc.cast(text, kind)
