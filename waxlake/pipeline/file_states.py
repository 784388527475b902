"""What became of each file of a table's sources: folded from the commits into the sources' journals, and shown as a table.

Called while a run goes on and at its end (the fold), by ``waxlake files-state`` and by ``files_state('table')`` in SQL.
Whether a file is committed is said by the table's own position; its rows by the commits that moved it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from waxlake.pipeline.check import CheckedGraph
from waxlake.pipeline.commits import Commit, commits_since
from waxlake.pipeline.definitions import FilesRead
from waxlake.pipeline.graph import Graph
from waxlake.pipeline.plan import DurablePositions, SourceGroup
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import UsageError
from waxlake.stream.file_counts import FILES_FACT, decode_counts
from waxlake.stream.position import app_id
from waxlake.stream.settings import nearest
from waxlake.stream.source import SourcePlan

if TYPE_CHECKING:
    from connectors.files import FilesConnector
    from connectors.files.journal import FileJournal

__all__ = ["FILE_STATES", "FILE_STATE_SCHEMA", "FileKeeper", "durable_positions", "file_states"]

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
_FOLD_INTERVAL_S: Final = 60.0
_EVERY_COMMIT: Final = 1 << 62


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
        for source in commit.flows.get(flow, {}).get("sources") or ():
            if source["source"] != identity or FILES_FACT not in source:
                continue
            numbers, rows, rescued, left_out = decode_counts(source[FILES_FACT])
            common = {"table_id": table_id, "flow": flow, "version": commit.version, "at": commit.committed_at}
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


class FileKeeper:
    """Tells how far every table holds a files source, and folds what the commits say about its files now and then.

    Used by one thread at a time, as ``DurablePositions`` is.
    """

    def __init__(self, checked: CheckedGraph, group: SourceGroup, source: SourcePlan) -> None:
        self._positions = DurablePositions(checked, group, source)
        self._source = source
        self._connector: FilesConnector = group.connector  # type: ignore[assignment]
        name = self._connector.name
        self._feeds = [feed for feed in _feeds(checked.graph) if feed.connector.name == name]
        self._clock = Clock()
        self._folded_at_s: float | None = None

    def __call__(self) -> Mapping[str, int]:
        """Return the smallest stored position of all tables."""
        now_s = self._clock.now_s()
        if self._folded_at_s is None or now_s - self._folded_at_s >= _FOLD_INTERVAL_S:
            self._fold()
            self._folded_at_s = now_s
        return self._positions()

    def _fold(self) -> None:
        journal = self._connector.journal()
        for feed in self._feeds:
            rows, app, version = feed.unfolded(journal, self._source.identity)
            if len(rows):
                journal.fold(rows, app, version)


def durable_positions(checked: CheckedGraph, group: SourceGroup, source: SourcePlan) -> DurablePositions | FileKeeper:
    """Return what tells how far every table holds a source."""
    if isinstance(group.flows[0].read, FilesRead):
        return FileKeeper(checked, group, source)
    return DurablePositions(checked, group, source)


def file_states(graph: Graph, table: str) -> pa.Table:
    """Return one row a file and flow of a table, in the order in which they are read.

    Raises:
        UsageError: No such table, or one that no files are taken into. Not retryable.
        ExternalError: A ledger or the table cannot be read.
    """
    feeds = _feeds(graph, table)
    if not feeds:
        fed = list(dict.fromkeys(feed.table.label for feed in _feeds(graph)))
        raise UsageError(
            f"no flow takes files into {table!r}",
            code="TABLE_WITHOUT_FILES",
            remedy=nearest(table, fed) if fed else "No table of this pipeline is fed by read_files",
        )
    parts = [FILE_STATE_SCHEMA.empty_table(), *(_states(feed) for feed in feeds)]
    return pa.concat_tables(parts)


def _states(feed: _Feed) -> pa.Table:
    import duckdb

    identity = feed.connector.identity
    if identity is None:
        return FILE_STATE_SCHEMA.empty_table()
    ledger, journal = feed.connector.ledger(), feed.connector.journal()
    handle = feed.table.open() if feed.table.exists() else None
    noted, position, table_id = journal.rows(), None, ""
    if handle is not None:
        from connectors.files.reader import PARTITION

        table_id = str(handle.metadata().id)
        position = handle.transaction_version(app_id(feed.flow, identity, PARTITION))
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
  FROM noted WHERE table_id = $table AND flow = $flow GROUP BY number
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
