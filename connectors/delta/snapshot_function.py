"""Snapshots that a function hands over, one version after the other: kept in a Delta table, then compared like its versions.

A snapshot is stored, with its version as a ``txn``, before any row of it is emitted; so every run sees the same snapshots under
the same table versions, and the function is asked for a version again only if it was not stored. Where a crash can fall:

1. before the snapshot is stored (``snapshot-taken``): the function is asked for it again, with the same argument.
2. after that (``snapshot-stored``): it is in the table; whatever runs next reads it from there.

Files that a later snapshot replaced are deleted once the target holds everything up to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from connectors.delta.connector import _PARTITION, _SNAPSHOT_FLAG
from connectors.delta.snapshots import CHANGES, DeltaSnapshots, SnapshotReader
from waxlake.stream.batch import MicroBatch
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import TableLocation, arrow_schema, delta_errors
from waxlake.stream.errors import DefinitionError, SourceChanged, TransientError, WaxlakeError, shorten
from waxlake.stream.failpoints import failpoint
from waxlake.stream.growth import added_fields, merge_schemas
from waxlake.stream.position import RowPosition
from waxlake.stream.schema import cast_exact, delta_schema, no_rows
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState

__all__ = ["FunctionSnapshots", "SnapshotFunction"]

_VERSION: Final = "waxlake/snapshot"
_ASK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class SnapshotFunction:
    """What a flow takes its snapshots from.

    Args:
        flow: Name of the flow.
        function: Takes the last version it returned, None at first; returns (rows, version) of the next, None if there is none.
        keys: Columns that identify a row.
        schema: Columns of the snapshots; None takes those of the first one.
        where: ``file:line`` of the declaration.
    """

    flow: str
    function: Callable[[int | None], Any]
    keys: tuple[str, ...]
    schema: pa.Schema | None = None
    where: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """What users call it."""
        return f"snapshots:{self.flow}"

    def connector(self, ledger: Callable[[str], TableLocation]) -> FunctionSnapshots:
        """Return the connector; ``ledger`` finds a place for the snapshots."""
        return FunctionSnapshots(ledger(f"snapshots-{self.flow}"), self.schema, keys=self.keys, source=self)

    def ask(self, last: int | None) -> tuple[pa.Table, int] | None:
        """Return the rows and the version of the next snapshot; None if there is none.

        Raises:
            DefinitionError: The function fails, or returns something else. Not retryable.
        """
        try:
            found = self.function(last)
        except WaxlakeError:
            raise
        except Exception as exc:  # whatever a user's function raises is reported as that function's error
            raise self._wrong("SNAPSHOT_FUNCTION_FAILED", f"{type(exc).__name__}: {shorten(exc)}") from exc
        if found is None:
            return None
        if not isinstance(found, tuple) or len(found) != 2:
            raise self._wrong("SNAPSHOT_INVALID", shorten(repr(type(found))), "(rows, version), or None")
        rows, version = found
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            raise self._wrong("SNAPSHOT_INVALID", f"version {shorten(repr(version))}", "a whole number from 0")
        if last is not None and version <= last:
            raise self._wrong("SNAPSHOT_INVALID", f"version {version} after {last}", "versions that grow")
        return self._as_table(rows), version

    def _as_table(self, rows: Any) -> pa.Table:
        if isinstance(rows, pa.RecordBatchReader):
            rows = rows.read_all()
        elif not isinstance(rows, pa.Table):
            try:
                rows = pa.table(rows)
            except (TypeError, ValueError, pa.ArrowException) as exc:
                kind = type(rows).__name__
                raise self._wrong(
                    "SNAPSHOT_INVALID", f"rows of type {kind}", "an Arrow table, or what becomes one"
                ) from exc
        missing = [key for key in self.keys if key not in rows.column_names]
        if missing:
            raise self._wrong("SNAPSHOT_INVALID", f"no key column {', '.join(missing)}", ", ".join(rows.column_names))
        return rows

    def _wrong(self, code: str, found: str, expected: str | None = None) -> DefinitionError:
        return DefinitionError(
            f"cannot take a snapshot for flow '{self.flow}'",
            where=self.where,
            code=code,
            found=found,
            expected=expected,
        )


@dataclass(frozen=True, slots=True)
class FunctionSnapshots(DeltaSnapshots):
    """A function's snapshots, in a Delta table of their own.

    Guarantee: the changes from each snapshot to the next once, in order.
    """

    source: SnapshotFunction | None = None
    _known: list[pa.Schema] = field(default_factory=list, compare=False)
    _first: list[tuple[pa.Table, int]] = field(default_factory=list, compare=False)

    @property
    def asked(self) -> SnapshotFunction:
        """The function."""
        assert self.source is not None
        return self.source

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return self.asked.label

    def empty(self) -> pa.Table:
        """Return no rows, in the columns of the snapshots, and the columns of a change: the same for as long as the run lasts.

        Raises:
            DefinitionError: ``SNAPSHOT_SCHEMA_UNKNOWN``: there is no snapshot yet and no schema. Not retryable.
        """
        if not self._known:
            self._known.append(self._columns())
        return no_rows(pa.schema([*self._known[0], *CHANGES]))

    def inspect(self) -> SourceState:
        """Take the snapshots that there are, and return them as versions; a new flow begins with the first that is kept."""
        while self.take():
            pass
        handle = self._opened()
        latest = handle.version()
        begin = RowPosition(latest, _SNAPSHOT_FLAG) if self._has_forgotten(latest) else RowPosition(1)
        return SourceState(
            identity=f"delta:{handle.metadata().id}",
            name=self.name,
            partitions={_PARTITION: SourceRange(low=0, high=RowPosition(latest + 1).pack())},
            begin={_PARTITION: begin.pack()},
        )

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader; an unbounded one asks for the next snapshot every few seconds."""
        return _FunctionReader(self, plan)

    def confirm(self, plan: SourcePlan, durable: Mapping[str, int]) -> None:
        """Delete the files that snapshots replaced which the target holds."""
        held = durable.get(_PARTITION)
        if held is None:
            return
        filesystem = self.location.filesystem()
        for version in range(
            max(2, RowPosition.unpack(plan.partitions[_PARTITION].start).major), RowPosition.unpack(held).major
        ):
            for path in self._replaced(version):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_file(path)

    def take(self) -> bool:
        """Store the next snapshot; return whether there was one.

        Raises:
            TransientError: Another run stored one at the same time. Retryable.
            SchemaError: Its rows do not fit the columns of those before. Not retryable.
        """
        handle = self._opened()
        last = handle.transaction_version(_VERSION)
        found = self._first.pop() if last is None and self._first else self.asked.ask(last)
        if found is None:
            return False
        rows, version = found
        failpoint("snapshot-taken")
        stored = arrow_schema(handle)
        schema = merge_schemas(stored, delta_schema(rows.schema))
        rows = cast_exact(rows, schema, what=f"snapshot {version} of flow '{self.asked.flow}'")
        properties = CommitProperties(app_transactions=[Transaction(_VERSION, version)])
        try:
            with delta_errors(f"store a snapshot in '{self.location.label}'"):
                write_deltalake(handle, rows, mode="overwrite", schema_mode="overwrite", commit_properties=properties)
        except CommitFailedError as exc:
            raise TransientError(
                f"cannot store a snapshot for flow '{self.asked.flow}'",
                code="SNAPSHOT_CONTENTION",
                found="another run that stored one at the same time",
                remedy="Let one run at a time take snapshots",
            ) from exc
        failpoint("snapshot-stored")
        return True

    def _columns(self) -> pa.Schema:
        if self.location.exists():
            return arrow_schema(self.location.open())
        if self.schema is not None:
            return delta_schema(self.schema)
        if not self._first:
            found = self.asked.ask(None)
            if found is None:
                raise DefinitionError(
                    f"the columns of the snapshots of flow '{self.asked.flow}' are not known",
                    where=self.asked.where,
                    code="SNAPSHOT_SCHEMA_UNKNOWN",
                    found="no snapshot yet",
                    remedy="Declare them with schema=",
                )
            self._first.append(found)
        return delta_schema(self._first[0][0].schema)

    def _opened(self) -> DeltaTable:
        if self.location.exists():
            return self.location.open()
        return self.location.create(self._columns(), comment=f"Snapshots that flow '{self.asked.flow}' has taken")

    def _replaced(self, version: int) -> list[str]:
        """Return the files that a version replaced."""
        log = self.location.read_log(version) or []
        return [unquote(action["remove"]["path"]) for action in log if "remove" in action]

    def _has_forgotten(self, latest: int) -> bool:
        """Return whether files of the first snapshot are gone: they are deleted in the order of versions."""
        if latest < 2:
            return False
        if self.location.read_log(1) is None:
            return True
        filesystem = self.location.filesystem()
        first = [path for version in range(2, latest + 1) for path in self._replaced(version)[:1]][:1]
        return any(info.size is None for info in filesystem.get_file_info(first))


class _FunctionReader(SnapshotReader):
    """Reads the snapshots that are stored, and asks for more."""

    def __init__(self, connector: FunctionSnapshots, plan: SourcePlan) -> None:
        super().__init__(connector, plan)
        self._source = connector
        self._clock = Clock()
        self._asked_at_s = self._clock.now_s()
        self._asking: Future[bool] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshots") if self._mark is None else None

    def read(self) -> Sequence[MicroBatch]:
        """Return what the next snapshot changed, as one batch."""
        if self._asking is not None:
            if not self._asking.done():
                return []
            asking, self._asking = self._asking, None
            asking.result()
        if self._is_known():
            return super().read()
        now_s = self._clock.now_s()
        if self._pool is not None and now_s - self._asked_at_s >= _ASK_S:
            self._asked_at_s = now_s
            self._asking = self._pool.submit(self._source.take)
        return []

    def close(self) -> None:
        """Wait for the function if it runs just now."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _is_known(self) -> bool:
        """Return whether the next version is there; its columns are those that the run was planned with."""
        if self.is_done:
            return False
        with delta_errors(f"read table '{self._location.label}'"):
            self._handle.update_incremental()
        if RowPosition.unpack(self._position).major > self._handle.version():
            return False
        new = added_fields(self._schema, arrow_schema(self._handle))
        if new:
            raise SourceChanged(
                f"cannot go on with {self._source.name}",
                code="SOURCE_COLUMNS_CHANGED",
                found=f"a snapshot with new columns {', '.join(map(str, new))}",
                expected=", ".join(self._schema.names),
                remedy="Run again: they are taken from that snapshot on",
            )
        return True

    def _number(self, version: int, log: Sequence[Mapping[str, Any]] | None) -> int:
        """Return the version that the function gave the snapshot of a table version."""
        if log is None:
            return int(self._location.open(version=version).transaction_version(_VERSION) or 0)
        return next(int(action["txn"]["version"]) for action in log if "txn" in action)
