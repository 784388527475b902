"""The files connector: what there is to read, its schema, and readers of it; and a Bytewax source for plain dataflows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors.files.cleaning import Cleaner, OtherReader
from connectors.files.discovery.discover import Discovery
from connectors.files.discovery.open import open_discovery, open_store
from connectors.files.evolution import Evolution
from connectors.files.formats.choice import make_format
from connectors.files.history import FileHistory
from connectors.files.journal import FileJournal
from connectors.files.ledger import Ledger
from connectors.files.local_store import LocalStore, raw_path
from connectors.files.partition_columns import PartitionColumns, declared_partitions
from connectors.files.preview import preview_files
from connectors.files.problems import log_warning
from connectors.files.provenance import METADATA_TYPE, Provenance
from connectors.files.reader import PARTITION, FilesReader
from connectors.files.removal import Removal, check_destination
from connectors.files.schema_history import SchemaHistory, SchemaVersion
from connectors.files.settings import FilesSettings
from connectors.files.store import Store
from waxlake.stream.ddl import parse_ddl, to_ddl
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError, UsageError, UserError, WaxlakeError
from waxlake.stream.growth import merge_schemas
from waxlake.stream.position import RowPosition
from waxlake.stream.preview import SourcePreview
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState
from waxlake.stream.standalone import StandaloneSource

__all__ = ["METADATA_COLUMN", "FilesConnector", "FilesSource"]

METADATA_COLUMN = "_metadata"
_FORGET_EVERY_S = 3600.0
_CLEANING_S = 0.5


class FilesConnector:
    """New files under a path, each read exactly once.

    Args:
        settings: What to read and how.
        ledger: Where the source keeps its ledger; its own, and durable like the tables it feeds.
        fixed: Columns of a table that does not grow: of those that the source got later, only these are read as columns.

    Attributes:
        others: Other sources of the pipeline that may read the same files: none is cleaned up before they have it.
        on_warning: Takes what is strange and no failure, for people, from any thread.

    Guarantee: each file gets one number before any of its rows is emitted; together with a sink that stores positions every
    row is stored exactly once. A file is its path: content that changes after it was read is not read again.
    """

    def __init__(self, settings: FilesSettings, ledger: TableLocation, *, fixed: pa.Schema | None = None) -> None:
        self.settings = settings
        self.location = ledger
        self.history = SchemaHistory(ledger)
        self._fixed = fixed
        self._lock = threading.Lock()
        self._opened_store: Store | None = None
        self._opened_ledger: Ledger | None = None
        self._opened_discovery: Discovery | None = None
        self._forget_at_s = 0.0
        self._schema: pa.Schema | None = None
        self._readers: list[FilesReader] = []
        self._cleaner: Cleaner | None = None
        self.others: Sequence[OtherReader] = ()
        self.on_warning: Callable[[str], None] = log_warning
        if settings.clean_source == "MOVE":
            check_destination(settings, self._store)

    @property
    def name(self) -> str:
        """What the user calls the source."""
        glob = self.settings.path_glob_filter
        return f"files:{self._store.shown}" + (f":{glob}" if glob else "")

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """The column that stays out of ``*``."""
        return (METADATA_COLUMN,)

    @property
    def on_data_loss(self) -> str:
        """``fail`` or ``skip``."""
        return self.settings.on_data_loss

    def resolve_schema(self) -> pa.Schema:
        """Return the columns of the files: declared, else remembered by the ledger, else inferred. Writes nothing.

        Raises:
            SchemaError: A typo in the declared schema. Not retryable.
            UserError: ``FILES_SCHEMA_UNKNOWN``: nothing declared, and no file to infer from. Not retryable.
            TerminalError: ``FILES_PATH_NOT_FOUND``. Not retryable.
        """
        if self._schema is None:
            first = self._first_schema()
            self._schema = merge_schemas(pa.schema([field.with_nullable(True) for field in first]), self._later(first))
        return self._schema

    def _first_schema(self) -> pa.Schema:
        """Return the columns that the source began with."""
        declared = self.settings.declared_schema
        if declared is not None:
            return declared_partitions(self.settings, parse_ddl(declared))
        ddl = self._ledger.stored_ddl()
        return self._inferred() if ddl is None else parse_ddl(ddl)

    def _later(self, first: pa.Schema) -> pa.Schema:
        """Return the columns that the source got later, as far as they are read as columns."""
        is_declared = self.settings.declared_schema is not None
        if (is_declared and not self.settings.evolves) or not self._ledger.exists():
            return first
        versions = self.history.versions()
        if not versions:
            return first
        latest = versions[-1].schema
        if self._fixed is None:
            return latest
        return pa.schema(
            [field for field in latest if field.name in self._fixed.names and field.name not in first.names]
        )

    def empty(self) -> pa.Table:
        """Return a table of no rows with every column a batch may have. Writes nothing."""
        schema = self.resolve_schema()
        fields = [
            *schema,
            pa.field(self.settings.rescued_data_column, pa.string()),
            pa.field(METADATA_COLUMN, METADATA_TYPE),
        ]
        return pa.schema(fields).empty_table()

    def inspect(self) -> SourceState:
        """List the path, give numbers to new files, and return what there is to read.

        Raises:
            TerminalError: ``FILES_PATH_NOT_FOUND``, no access, or the ledger belongs to another source. Not retryable.
            UserError: ``FILES_SCHEMA_UNKNOWN``. Not retryable.
            TransientError: A store does not answer. Retryable.
        """
        schema = self.resolve_schema()
        with self._lock:
            self._check_path()
            self._ledger.create(to_ddl(schema) if self.settings.declared_schema is None else None)
            self._ledger.refresh()
        self.discover(waits=True)
        with self._lock:
            self._discovery.close()  # a run that has an end hears nothing more; another opens it again
            self._ledger.compact()
            high = RowPosition(self._ledger.next_number).pack()
            low = RowPosition(self._ledger.low).pack()
            begin = max(low, RowPosition(self._ledger.begin or 0).pack())
            identity = f"files:{self._source}@{self._ledger.table_id}"
        return SourceState(
            identity=identity,
            name=self.name,
            partitions={PARTITION: SourceRange(low=low, high=high)},
            begin={PARTITION: begin},
        )

    def preview(self) -> SourcePreview:
        """Return what there is to read; no file gets a number."""
        with self._lock:
            self._check_path()
            return preview_files(
                self.settings, self._store, self._ledger, source=self._source, name=self.name, partition=PARTITION
            )

    def discover(self, *, waits: bool = False) -> int:
        """Look for new files and record them; return how many. Safe to call from any thread.

        Args:
            waits: Wait a moment for files that were just written.
        """
        with self._lock:
            return self._discovery.look(waits=waits)

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return one group: files are read in the order of their numbers by one reader."""
        return {"0000": tuple(plan.partitions)} if plan.partitions and count else {}

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return the reader of a run; no columns asks for all but the metadata column."""
        schema = self.resolve_schema()
        rescued_column = self.settings.rescued_data_column
        wanted = columns or frozenset({*schema.names, rescued_column})
        has_rescued, has_metadata = rescued_column in wanted, METADATA_COLUMN in wanted
        if not has_rescued:  # with it every column counts: what is not declared is rescued
            schema = pa.schema([field for field in schema if field.name in wanted] or [schema.field(0)])
        fields = [*schema]
        fields += [pa.field(rescued_column, pa.string())] if has_rescued else []
        fields += [pa.field(METADATA_COLUMN, METADATA_TYPE)] if has_metadata else []
        ledger, format = self.ledger(), make_format(self.settings, schema, has_rescued=has_rescued)
        reader = FilesReader(
            settings=self.settings,
            store=self._store,
            ledger=ledger,
            plan=plan.partitions[partitions[0]],
            identity=plan.identity,
            format=format,
            empty=pa.schema(fields).empty_table(),
            provenance=Provenance(
                settings=self.settings,
                partitions=PartitionColumns.of(self.settings, schema, self._store.root),
                has_metadata=has_metadata,
            ),
            discover=self.discover,
            history=FileHistory(self.journal(), ledger, self._store, format, self.settings.format),
            evolution=Evolution(self.settings, self._store, schema, self.history, self.name)
            if has_rescued and self._fixed is None
            else None,
        )
        self._readers = [reader, *(other for other in self._readers if not other.is_closed)]
        return reader

    def confirm(self, plan: SourcePlan, durable: Mapping[str, int]) -> None:
        """Clean up files that every table holds, if the settings say so; forget those that are too old."""
        self._clean(durable)
        self._forget(durable)

    def _clean(self, durable: Mapping[str, int]) -> None:
        """Clean up what is due; what fails is noted and tried again."""
        if self.settings.clean_source == "OFF" or PARTITION not in durable:
            return
        if self._cleaner is None:
            removal = Removal(self.settings, self._store)
            self._cleaner = Cleaner(self.settings, self.ledger(), self.journal(), removal, self.others, warn=self._warn)
        is_reading = any(not reader.is_closed for reader in self._readers)
        try:
            self._cleaner.clean(durable[PARTITION], until_s=time.monotonic() + _CLEANING_S if is_reading else None)
        except WaxlakeError as error:
            self._warn(f"the files of '{self._store.shown}' are not cleaned up at the moment: {error}")

    def _warn(self, text: str) -> None:
        self.on_warning(text)

    def _forget(self, durable: Mapping[str, int]) -> None:
        """Forget, now and then, files that are too old to count and that every table has."""
        age_s, now_s = self.settings.max_file_age, time.monotonic()
        if age_s is None or PARTITION not in durable or now_s < self._forget_at_s:
            return
        self._forget_at_s = now_s + _FORGET_EVERY_S
        below = RowPosition.unpack(durable[PARTITION]).major
        if self.settings.clean_source != "OFF":
            below = min(below, self.journal().cleaned)
        with self._lock:
            self._ledger.refresh()
            self._ledger.forget(age_s, time.time(), below=below)

    def covers(self, path: str) -> bool:
        """Return whether a file of that path belongs to the source, wherever links lead."""
        store = self._store
        if isinstance(store, LocalStore):
            root, real = os.path.realpath(store.root), os.path.realpath(os.fsdecode(raw_path(path)))
            path = store.root + real[len(root) :] if real.startswith(root) else real
        return store.admits(path)

    @property
    def identity(self) -> str | None:
        """Identity of the source, without a look at its files; None if it was never read."""
        with self._lock:
            return f"files:{self._source}@{self._ledger.table_id}" if self._ledger.exists() else None

    def schema_versions(self) -> list[SchemaVersion]:
        """Return the schemas that the source has had, oldest first; only the first, inferred one if none was added."""
        found = self.history.versions() if self._ledger.exists() else []
        ddl = self._ledger.stored_ddl()
        if found or ddl is None:
            return found
        return [SchemaVersion(number=0, ddl=ddl, added=ddl, file="", changed_at=None)]

    def journal(self) -> FileJournal:
        """Return what became of each file, for one user."""
        return FileJournal(self.location)

    def ledger(self) -> Ledger:
        """Return the ledger, for one user."""
        return self._new_ledger()

    @property
    def _store(self) -> Store:
        if self._opened_store is None:
            self._opened_store = open_store(self.settings)
        return self._opened_store

    @property
    def _ledger(self) -> Ledger:
        if self._opened_ledger is None:
            self._opened_ledger = self._new_ledger()
        return self._opened_ledger

    def _new_ledger(self) -> Ledger:
        return Ledger(self.location, self._source, tracks_versions=self.settings.tracks_versions)

    @property
    def _discovery(self) -> Discovery:
        if self._opened_discovery is None:
            self._opened_discovery = open_discovery(self.settings, self._store, self._ledger, self._warn)
        return self._opened_discovery

    @property
    def _source(self) -> str:
        """What is listed: path and glob, without credentials."""
        depth = "" if self.settings.recursive else ":flat"
        return f"{self._store.shown}:{self.settings.path_glob_filter or ''}{depth}"

    def _check_path(self) -> None:
        """Stop at a path that is not there. A prefix of an object store is not there while it is empty."""
        above = self._store.check()
        if above is None or (not self._store.is_local and self._ledger.exists()):
            return
        raise TerminalError(
            f"cannot read files of '{self._store.shown}'",
            code="FILES_PATH_NOT_FOUND",
            found=f"nothing there; nearest that exists: '{above}'",
            expected="a folder, a file or a glob below an existing folder",
            remedy="Correct the path, or create the folder"
            if self._store.is_local
            else "Correct the path, or put a file there",
        )

    def _inferred(self) -> pa.Schema:
        from connectors.files.inference import infer_schema  # brings every format along

        self._check_path()
        schema = infer_schema(
            self.settings, self._store, [file for block in self._store.list_files() for file in block]
        )
        if schema is None:
            raise UserError(
                f"cannot infer the schema of '{self._store.shown}'",
                code="FILES_SCHEMA_UNKNOWN",
                found="no file with a column",
                expected=f"a {self.settings.format} file, or a declared schema",
                remedy="Declare it, as in schema='id BIGINT, name STRING', or put a first file there",
            )
        return schema


class FilesSource(StandaloneSource):
    """Files as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    The path is listed when Bytewax builds the dataflow. Positions are what the caller says: give those that the target table
    holds, and rows are stored exactly once together with them. New columns of an inferred schema end the dataflow with
    ``SchemaGrown``: they are stored then, and the next start reads on with them.

    Args:
        path: Folder, file or glob; local, or an fsspec URI.
        format: ``json``, ``csv``, ``parquet``, ``avro``, ``orc``, ``text``, ``binaryfile`` or ``xml``.
        ledger: Where the source keeps its ledger of files.
        schema: Columns as DDL text or a pyarrow schema; inferred once if not given.
        positions: Stored position of the partition ``files``, or a function from what the source holds to it; none starts at
            the first file.
        is_bounded: End at the files that are there when the dataflow is built.
        columns: Metadata columns that are wanted: ``_metadata``.
        options: Further fields of ``FilesSettings``.

    Guarantee: every row once per run, in order; exactly once with a sink that stores positions.
    """

    def __init__(
        self,
        path: str,
        *,
        format: str,
        ledger: TableLocation | str,
        schema: str | pa.Schema | None = None,
        positions: Mapping[str, int] | Callable[[SourceState], Mapping[str, int]] | None = None,
        is_bounded: bool = False,
        columns: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        location = ledger if isinstance(ledger, TableLocation) else TableLocation(str(ledger))
        settings = FilesSettings.of(path, format=format, schema=schema, **options)
        if settings.clean_source != "OFF":
            raise UsageError(
                f"FilesSource({path!r}) cannot clean up: it does not know what tables hold",
                code="OPTION_INVALID",
                found=f"clean_source={settings.clean_source!r}",
                remedy="Use read_files in a pipeline, or leave clean_source out",
            )
        connector = FilesConnector(settings, location)
        super().__init__(connector, positions=positions, is_bounded=is_bounded, columns=columns)
