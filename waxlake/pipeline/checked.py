"""A graph whose queries compile: its flows with their connectors and transforms, its views with their queries.

``check_graph`` makes one; planning, compiling and running go on from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from waxlake.pipeline.auto_cdc import MergePlan
from waxlake.pipeline.definitions import DatabaseRead, FilesRead, KafkaRead, Read, SqlQuery, Step, TableRead
from waxlake.pipeline.graph import Flow, Graph, resolve_path
from waxlake.pipeline.sql import StaticTables, run_query, sql_refused, static_alias, with_static_aliases
from waxlake.pipeline.stateful import StatefulPlan
from waxlake.pipeline.stream import Branch
from waxlake.pipeline.table_reads import table_connector
from waxlake.pipeline.transform import Outcome, Transform
from waxlake.stream.delta_table import TableLocation, arrow_schema
from waxlake.stream.engine import open_session, quote_name
from waxlake.stream.errors import TransientError
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Connector

if TYPE_CHECKING:
    from waxlake.pipeline.file_rows import FileRows

__all__ = ["BatchQuery", "CheckedFlow", "CheckedGraph", "base_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFlow:
    """One read of one flow, compiled.

    Attributes:
        flow: The flow.
        read: What it reads; equal reads may share one reader.
        connector: The source.
        transform: What is done to its rows.
        columns: Source columns it uses.
        gates: Datasets that must be up to date before a triggered run reads it.
        partitions: Source partitions whose batches it takes; None for all.
        fixed: Declared columns of its table, where that keeps the source from adding any; None otherwise.
        side: Number of the input of the flow's stateful operator that it feeds.
        empty: No rows, with every column of the source.
        away: Why the source could not be asked now: it is as it was when it was checked before.
    """

    flow: Flow
    read: Read
    connector: Connector
    transform: Transform
    columns: frozenset[str]
    gates: tuple[str, ...]
    partitions: frozenset[str] | None = None
    fixed: pa.Schema | None = None
    side: int = 0
    empty: pa.Table
    away: TransientError | None = None

    def takes(self, partition: str) -> bool:
        """Return whether the flow takes the batches of a source partition."""
        return self.partitions is None or partition in self.partitions

    def fitted(self, rows: pa.Table) -> pa.Table:
        """Return a batch with the columns the flow was compiled for: others that share the read use others."""
        wanted = self.transform.source.schema
        if rows.schema.names == wanted.names:
            return rows
        if self.partitions is None:
            return rows.select(wanted.names)
        columns = [
            rows.column(f.name) if f.name in rows.column_names else pa.nulls(rows.num_rows, f.type) for f in wanted
        ]
        return pa.table(columns, schema=wanted)


@dataclass(slots=True)
class BatchQuery:
    """The query of a materialized or temporary view, compiled; ``transform`` holds the rules of the view.

    ``files`` are its reads of files, by the identity of their branch.
    """

    flow: Flow
    branches: list[tuple[Branch, Transform]] = field(default_factory=list)
    files: dict[int, FileRows] = field(default_factory=dict)
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @property
    def fingerprint(self) -> str:
        """Changes when the query does, and not when its lines move."""
        parts = [(_essence(b.read), [_essence(step) for step in b.steps]) for b, _ in self.branches]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def run(self, tables: StaticTables) -> pa.Table:
        """Return the rows of the query over the inputs as ``tables`` finds them."""
        outcomes = [transform.apply(self._start(branch, tables), tables) for branch, transform in self.branches]
        return _gathered(outcomes, self.schema)

    def _start(self, branch: Branch, tables: StaticTables) -> pa.Table:
        files = self.files.get(id(branch))
        return files.read() if files is not None else base_rows(branch.read, tables, self.flow)


def _essence(element: Read | Step) -> tuple[object, ...]:
    """Return what a read or step does, without the place where it was written."""
    values: list[object] = [type(element).__name__]
    for item in fields(element):
        value = getattr(element, item.name)
        if item.name == "where":
            continue
        code = getattr(value, "__code__", None)
        values.append(value if code is None else (value.__qualname__, code.co_code, repr(code.co_consts)))
    return tuple(values)


def _gathered(outcomes: Sequence[Outcome], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([outcome.table for outcome in outcomes]) if outcomes else no_rows(schema)


def base_rows(read: Read, tables: StaticTables, flow: Flow) -> pa.Table:
    """Return the rows a batch query starts from."""
    connection = open_session()
    try:
        if isinstance(read, TableRead):
            connection.register(static_alias(read.name), tables(read.name))
            return run_query(connection, f"SELECT * FROM {quote_name(static_alias(read.name))}")
        assert isinstance(read, SqlQuery)
        for name in flow.statics:
            connection.register(static_alias(name), tables(name))
        return run_query(connection, with_static_aliases(read.text, flow.statics))
    except duckdb.Error as exc:
        raise sql_refused(f"view '{flow.target}'", read.where, exc) from exc
    finally:
        connection.close()


@dataclass(slots=True)
class CheckedGraph:
    """A graph whose queries compile.

    Attributes:
        graph: The graph.
        schemas: Dataset name to its columns.
        flows: Streaming flows, one entry a read.
        queries: View name to its query.
        merges: Name of a table that changes are merged into, to how.
        stateful: Name of a table to its flows that have a stateful operator.
        selected: Datasets that the update brings up to date; None for all.
        is_shadow: Its selected tables are filled beside the real ones: no source may forget what the real ones lack.
        refreshers: View name to what refreshes it, as far as anybody asked.
    """

    graph: Graph
    schemas: dict[str, pa.Schema] = field(default_factory=dict)
    flows: list[CheckedFlow] = field(default_factory=list)
    queries: dict[str, BatchQuery] = field(default_factory=dict)
    merges: dict[str, MergePlan] = field(default_factory=dict)
    stateful: dict[str, dict[str, StatefulPlan]] = field(default_factory=dict)
    selected: frozenset[str] | None = None
    is_shadow: bool = False
    refreshers: dict[str, Any] = field(default_factory=dict)
    known: Sequence[CheckedFlow] = ()

    def is_selected(self, name: str) -> bool:
        """Return whether the update brings a dataset up to date."""
        return self.selected is None or name in self.selected

    @property
    def selected_flows(self) -> list[CheckedFlow]:
        """The flows of the datasets that the update brings up to date."""
        return [part for part in self.flows if self.is_selected(part.flow.target)]

    def external(self, name: str) -> TableLocation:
        """Return the location of a table named by URI or path."""
        spec = self.graph.spec
        return TableLocation(resolve_path(spec, name), spec.storage_options, name)

    def schema_of(self, name: str) -> pa.Schema:
        """Return the columns of a dataset or of a table named by URI."""
        if name not in self.schemas:
            self.schemas[name] = arrow_schema(self.external(name).open())
        return self.schemas[name]

    def file_settings(self, read: FilesRead) -> Any:
        """Return the settings of a read of files, with paths and the store's options as the spec means them."""
        spec = self.graph.spec
        update: dict[str, Any] = {"path": resolve_path(spec, read.settings.path)}
        if not read.settings.storage_options:
            update["storage_options"] = spec.storage_options
        if read.settings.clean_source_move_destination is not None:
            update["clean_source_move_destination"] = resolve_path(spec, read.settings.clean_source_move_destination)
        return read.settings.model_copy(update=update)

    def connector(self, read: Read, *, fixed: pa.Schema | None = None) -> Connector:
        """Return the connector of a read.

        Args:
            read: What is read.
            fixed: Columns of a table that does not grow.
        """
        spec = self.graph.spec
        if isinstance(read, KafkaRead):
            from connectors.kafka import KafkaConnector

            settings = read.settings
            if settings.descriptor_file is not None:
                path = resolve_path(self.graph.spec, settings.descriptor_file)
                settings = settings.model_copy(update={"descriptor_file": path})
            return KafkaConnector(settings)
        if isinstance(read, FilesRead):
            from connectors.files import FilesConnector

            settings = self.file_settings(read)
            chosen = (read.settings.path, settings.format, settings.path_glob_filter, settings.recursive)
            key = repr((*chosen, *settings.selection))
            ledger = spec.ledger_location(hashlib.sha256(key.encode()).hexdigest()[:16])
            return FilesConnector(settings, ledger=ledger, fixed=fixed)
        if isinstance(read, DatabaseRead):
            return read.settings.connector(spec.ledger_location)
        assert isinstance(read, TableRead)
        return table_connector(self, read)
