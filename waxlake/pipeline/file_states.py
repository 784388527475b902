"""What became of each file of a table's sources: folded from the commits into the sources' journals, and shown as a table.

Called while a run goes on and at its end (the fold), by ``waxlake files-state`` and by ``files_state('table')`` in SQL.
Whether a file is committed is said by the table's own position; its rows by the commits that moved it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from deltalake import DeltaTable

from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.commits import Commit, commits_since
from waxlake.pipeline.completion import DurablePositions
from waxlake.pipeline.definitions import FilesRead
from waxlake.pipeline.graph import Graph
from waxlake.pipeline.source_groups import SourceGroup
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import TableLocation, delta_errors, stored_position
from waxlake.stream.errors import UsageError, WaxlakeError
from waxlake.stream.file_counts import FILES_FACT, decode_counts
from waxlake.stream.position import app_id
from waxlake.stream.settings import nearest
from waxlake.stream.source import SourcePlan

if TYPE_CHECKING:
    from connectors.files import FilesConnector
    from connectors.files.journal import FileJournal
    from connectors.files.ledger import Ledger

__all__ = ["FILE_STATES", "FILE_STATE_SCHEMA", "FileKeeper", "durable_positions", "file_states", "schema_history"]

FILE_STATES: Final = ("pending", "committed", "failed", "skipped", "missing")
FILE_STATE_SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("number", pa.int64()),
        ("size_bytes", pa.int64()),
        ("modified_at", pa.timestamp("us", tz="UTC")),
        ("etag", pa.string()),
        ("discovered_at", pa.timestamp("us", tz="UTC")),
        ("state", pa.string()),
        ("commit_time", pa.timestamp("us", tz="UTC")),
        ("version", pa.int64()),
        ("rows", pa.int64()),
        ("rescued_rows", pa.int64()),
        ("error", pa.string()),
        ("flow", pa.string()),
        ("cleaned", pa.string()),
        ("cleaned_at", pa.timestamp("us", tz="UTC")),
        ("moved_to", pa.string()),
    ]
)
_SCHEMA_HISTORY: Final = pa.schema(
    [
        ("flow", pa.string()),
        ("version", pa.int64()),
        ("added", pa.string()),
        ("file", pa.string()),
        ("changed_at", pa.timestamp("us", tz="UTC")),
        ("schema", pa.string()),
    ]
)
_PARTITION: Final = "files"
_NO_FILE: Final = -1
"""Number in a journal row of kind ``refilled``: a full refresh, before which nothing counts any more."""
_FOLD_INTERVAL_S: Final = 60.0
_EVERY_COMMIT: Final = 1 << 62
_log = logging.getLogger("waxlake.files")


@dataclass(frozen=True, slots=True)
class _Feed:
    """One flow that takes files into a table."""

    flow: str
    table: TableLocation
    connector: FilesConnector

    def unfolded(self, journal: FileJournal, identity: str) -> tuple[pa.Table, str, int]:
        """Return what the commits say that the journal does not hold yet, under which app id, and up to which version."""
        handle = self.table.open()
        table_id, version = str(handle.metadata().id), handle.version()
        app = f"waxlake/files/{table_id}/{app_id(self.flow, identity, '')}"
        folded = journal.folded(app)
        commits = commits_since(self.table, folded, limit=_EVERY_COMMIT) if version > folded else []
        return _told(commits, self.flow, identity, table_id), app, max([version, *(c.version for c in commits)])


def _told(commits: Sequence[Commit], flow: str, identity: str, table_id: str) -> pa.Table:
    """Return what commits say about the files of a source, as rows of its journal."""
    from connectors.files.journal import JOURNAL_SCHEMA, journal_rows

    parts = [JOURNAL_SCHEMA.empty_table()]
    for commit in commits:
        common = {"table_id": table_id, "flow": flow, "version": commit.version, "at": commit.committed_at}
        if commit.is_refill:
            parts.append(journal_rows(number=[_NO_FILE], kind="refilled", **common))
        for source in commit.flows.get(flow, {}).get("sources") or ():
            if source["source"] != identity or FILES_FACT not in source:
                continue
            numbers, rows, rescued, left_out = decode_counts(source[FILES_FACT])
            unknown = rescued < 0
            parts.append(
                journal_rows(number=numbers, kind="read", rows=rows, rescued=pa.array(rescued, mask=unknown), **common)
            )
            for lost in left_out:
                parts.append(journal_rows(number=[lost.number], kind=lost.state, error=lost.error, **common))
    return pa.concat_tables(parts)


def _feeds(graph: Graph, table: str | None = None) -> list[_Feed]:
    """Return the flows that take files, into one table or into any."""
    checked, found = CheckedGraph(graph), []
    for dataset in graph.datasets.values():
        if dataset.location is None or dataset.kind != "table" or table not in (None, dataset.name):
            continue
        for flow in dataset.flows:
            for branch in flow.branches:
                if isinstance(branch.read, FilesRead):
                    connector: FilesConnector = checked.connector(branch.read)  # type: ignore[assignment]
                    found.append(_Feed(flow.name, dataset.location, connector))
    return found


@dataclass(slots=True)
class _Source:
    """One files source of the pipeline, with all flows that take its files: those that share its ledger."""

    feeds: list[_Feed]
    _handles: dict[str, DeltaTable] = field(default_factory=dict)
    _ledger: Ledger | None = None

    @property
    def connector(self) -> FilesConnector:
        """The source."""
        return self.feeds[0].connector

    def covers(self, path: str) -> bool:
        """Return whether it reads a file of that path."""
        return self.connector.covers(path)

    def numbers(self, paths: Sequence[str]) -> Mapping[str, int]:
        """Return the last number of each path that it knows."""
        if self.connector.identity is None:
            return {}
        if self._ledger is None:
            self._ledger = self.connector.ledger()
        self._ledger.refresh()
        return self._ledger.numbers(paths)

    def position(self) -> int | None:
        """Return the smallest position that its tables hold; None if one has none."""
        identity = self.connector.identity
        if identity is None:
            return None
        stored = [self._stored(feed, identity) for feed in self.feeds]
        known = [position for position in stored if position is not None]
        return min(known) if len(known) == len(stored) else None

    def _stored(self, feed: _Feed, identity: str) -> int | None:
        key = feed.table.uri
        if key in self._handles:
            with delta_errors(f"read table '{feed.table.label}'"):
                self._handles[key].update_incremental()
        elif feed.table.exists():
            self._handles[key] = feed.table.open()
        else:
            return None
        return self._handles[key].transaction_version(app_id(feed.flow, identity, _PARTITION))


def _sources(graph: Graph) -> dict[str, _Source]:
    """Return the files sources of a pipeline by the place of their ledgers."""
    found: dict[str, _Source] = {}
    for feed in _feeds(graph):
        found.setdefault(feed.connector.location.uri, _Source([])).feeds.append(feed)
    return found


class FileKeeper:
    """Tells how far every table holds a files source, and folds what the commits say about its files now and then.

    Used by one thread at a time. It also tells the source which others of the pipeline may read the same files.
    """

    def __init__(self, graph: Graph, group: SourceGroup) -> None:
        connector: FilesConnector = group.connector  # type: ignore[assignment]
        sources = _sources(graph)
        self._source = sources.pop(connector.location.uri)
        self._connector = connector
        connector.others = tuple(sources.values())
        self._interval_s = _FOLD_INTERVAL_S
        if connector.settings.clean_source != "OFF":  # clean-up goes by the commits in the journal
            self._interval_s = min(_FOLD_INTERVAL_S, connector.settings.clean_source_retention / 10)
        self._clock = Clock()
        self._folded_at_s: float | None = None

    def __call__(self) -> Mapping[str, int]:
        """Return the smallest stored position of all tables."""
        now_s = self._clock.now_s()
        if self._folded_at_s is None or now_s - self._folded_at_s >= self._interval_s:
            self._folded_at_s = now_s
            try:
                self._fold()
            except WaxlakeError as error:  # nothing depends on it: the commits say the same, and it is tried again
                _log.warning("what became of files is not noted at the moment: %s", error)
        position = self._source.position()
        return {} if position is None else {_PARTITION: position}

    def _fold(self) -> None:
        journal, identity = self._connector.journal(), self._connector.identity
        for feed in self._source.feeds if identity is not None else ():
            rows, app, version = feed.unfolded(journal, str(identity))
            if len(rows):
                journal.fold(rows, app, version)


def durable_positions(checked: CheckedGraph, group: SourceGroup, source: SourcePlan) -> DurablePositions | FileKeeper:
    """Return what tells how far every table holds a source."""
    if isinstance(group.flows[0].read, FilesRead):
        return FileKeeper(checked.graph, group)
    return DurablePositions(checked, group, source)


def file_states(graph: Graph, table: str) -> pa.Table:
    """Return one row a file and flow of a table, in the order in which they are read.

    Raises:
        UsageError: No such table, or one that no files are taken into. Not retryable.
        ExternalError: A ledger or the table cannot be read.
    """
    parts = [FILE_STATE_SCHEMA.empty_table(), *(_states(feed) for feed in _feeds_of(graph, table))]
    return pa.concat_tables(parts)


def schema_history(graph: Graph, table: str) -> pa.Table:
    """Return one row a version of the schema of each files source of a table: all columns, what is new, and by which file.

    Raises:
        UsageError: No such table, or one that no files are taken into. Not retryable.
        ExternalError: A history cannot be read.
    """
    rows = []
    for feed in _feeds_of(graph, table):
        for version in feed.connector.schema_versions():
            facts = {"schema": version.ddl, "added": version.added, "file": version.file or None}
            rows.append({"flow": feed.flow, "version": version.number, **facts, "changed_at": version.changed_at})
    return pa.Table.from_pylist(rows, schema=_SCHEMA_HISTORY)


def _feeds_of(graph: Graph, table: str) -> list[_Feed]:
    """Return the flows that take files into a table; none is an error."""
    feeds = _feeds(graph, table)
    if not feeds:
        fed = list(dict.fromkeys(feed.table.label for feed in _feeds(graph)))
        raise UsageError(
            f"no flow takes files into {table!r}",
            code="TABLE_WITHOUT_FILES",
            remedy=nearest(table, fed) if fed else "No table of this pipeline is fed by read_files",
        )
    return feeds


def _states(feed: _Feed) -> pa.Table:
    import duckdb

    identity = feed.connector.identity
    if identity is None:
        return FILE_STATE_SCHEMA.empty_table()
    ledger, journal = feed.connector.ledger(), feed.connector.journal()
    handle = feed.table.open() if feed.table.exists() else None
    noted, position, table_id = journal.rows(), None, ""
    if handle is not None:
        table_id = str(handle.metadata().id)
        position = stored_position(handle, app_id(feed.flow, identity, _PARTITION))
        noted = pa.concat_tables([noted, feed.unfolded(journal, identity)[0]])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("ledger", ledger.rows())
        connection.register("noted", noted)
        values = {"position": position or 0, "first": ledger.begin or 0, "flow": feed.flow, "table": table_id}
        found = connection.sql(_STATES, params=values).to_arrow_table()
        return found.cast(FILE_STATE_SCHEMA)


_STATES: Final = """
WITH file AS (
  SELECT * FROM ledger QUALIFY row_number() OVER (PARTITION BY number ORDER BY edition DESC) = 1
), done AS (
  SELECT number, max("at") AS done_at, max(version) AS version, sum("rows") AS "rows",
         CASE WHEN count(*) FILTER (kind = 'read' AND rescued IS NULL) = 0 THEN sum(rescued) END AS rescued,
         max(kind) FILTER (kind <> 'read') AS left_out, max(error) FILTER (kind <> 'read') AS error
  FROM noted WHERE table_id = $table AND flow = $flow AND number >= 0 AND version >= coalesce(
    (SELECT max(version) FROM noted WHERE table_id = $table AND flow = $flow AND kind = 'refilled'), 0)
  GROUP BY number
), failure AS (
  SELECT number, edition, arg_max(error, "at") AS error FROM noted WHERE kind = 'failed' GROUP BY number, edition
), cleaned AS (
  SELECT number, arg_max(kind, "at") AS kind, max("at") AS cleaned_at, arg_max(moved_to, "at") AS moved_to,
         arg_max(error, "at") AS error
  FROM noted WHERE table_id IS NULL AND kind <> 'failed' GROUP BY number
), judged AS (
  SELECT file.*, done.done_at, done.version, done."rows", done.rescued, cleaned.kind AS cleaned,
         cleaned.cleaned_at, cleaned.moved_to,
         CASE WHEN (file.number + 1) << 36 <= $position THEN
                CASE WHEN done.left_out IS NOT NULL THEN done.left_out
                     WHEN file.number < $first AND done.number IS NULL THEN 'skipped' ELSE 'committed' END
              WHEN failure.error IS NOT NULL THEN 'failed'
              WHEN file.number < $first THEN 'skipped'
              ELSE 'pending' END AS state,
         done.error AS left_out_error, failure.error AS failure_error, cleaned.error AS clean_error
  FROM file
  LEFT JOIN done USING (number)
  LEFT JOIN failure ON failure.number = file.number AND failure.edition = file.edition
  LEFT JOIN cleaned ON cleaned.number = file.number
)
SELECT path, number, size_bytes, modified_at, etag, discovered_at, state,
       CASE WHEN state NOT IN ('pending', 'failed') THEN done_at END AS commit_time,
       CASE WHEN state NOT IN ('pending', 'failed') THEN version END AS version,
       "rows"::BIGINT AS "rows", rescued::BIGINT AS rescued_rows,
       CASE state WHEN 'failed' THEN failure_error WHEN 'committed' THEN clean_error
            ELSE coalesce(left_out_error,
                          CASE WHEN state = 'skipped' THEN 'there before the first run; include_existing_files is false' END)
       END AS error,
       $flow AS flow, cleaned, cleaned_at, moved_to
FROM judged ORDER BY number
"""
