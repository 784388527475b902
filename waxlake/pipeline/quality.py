"""The quality table of a pipeline: what each rule counted in each commit of each table. Made of the commits, and of nothing else.

It lies at ``<storage>/quality`` and is completed at the start and at the end of an update; whoever reads it gets what the newest
commits say besides, so it never disagrees with the data. Each row is a fact of one commit. Where a crash can fall:

1. before its commit: nothing is lost, the tables' own commits are read again from the version it is complete to.
2. after it: that version is a ``txn`` of the same log entry, so nothing is there twice. Of two processes one commits, the other
   reads again.

Deleted, it is made anew of what the tables' logs still hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from waxlake.pipeline.commits import Commit, commits_since
from waxlake.pipeline.graph import Graph
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import WaxlakeError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import no_rows

__all__ = ["QUALITY_SCHEMA", "complete_quality", "quality_rows", "quality_sums"]

QUALITY_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("flow", pa.string(), nullable=False),
        pa.field("update_id", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("passed", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("dropped", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
_ALL = 1_000_000
_ATTEMPTS = 5
_log = logging.getLogger("waxlake.quality")


def quality_rows(graph: Graph) -> pa.Table:
    """Return what every rule counted, oldest first: what is stored, and what the commits since then say.

    Raises:
        ExternalError: A table cannot be read.
    """
    location = graph.spec.quality_location()
    stored = no_rows(QUALITY_SCHEMA)
    if location.exists():
        with delta_errors("read the quality table"):
            stored = location.open().to_pyarrow_table().select(QUALITY_SCHEMA.names).cast(QUALITY_SCHEMA)
    newer, _ = _newer(graph, location)
    order = [(name, "ascending") for name in ("at", "table", "version", "flow", "rule")]
    return pa.concat_tables([stored, newer]).sort_by(order)


def quality_sums(rows: pa.Table) -> pa.Table:
    """Return the counts of each rule over all its commits."""
    counts = ("passed", "failed", "dropped", "quarantined")
    keys = ["table", "dataset", "rule", "action"]
    sums = rows.group_by(keys, use_threads=False).aggregate([(name, "sum") for name in counts] + [("version", "count")])
    names = {f"{name}_sum": name for name in counts} | {"version_count": "commits"}
    sums = sums.rename_columns([names.get(name, name) for name in sums.column_names])
    return sums.select([*keys, *counts, "commits"]).sort_by([(name, "ascending") for name in keys])


def complete_quality(graph: Graph) -> None:
    """Store what the commits say since the table was last completed. Never raises: it is done another time."""
    location = graph.spec.quality_location()
    try:
        for _ in range(_ATTEMPTS):
            rows, versions = _newer(graph, location)
            if not rows.num_rows:
                return
            handle = location.open() if location.exists() else location.create(QUALITY_SCHEMA)
            if any((handle.transaction_version(app) or 0) >= version for app, version in versions.items()):
                continue
            properties = CommitProperties(app_transactions=[Transaction(a, v) for a, v in versions.items()])
            failpoint("quality-write")
            try:
                with delta_errors("append to the quality table"):
                    write_deltalake(handle, rows, mode="append", commit_properties=properties)
            except CommitFailedError:
                continue
            failpoint("quality-written")
            return
    except WaxlakeError as error:
        _log.warning("the quality table is completed another time: %s", error)


def _newer(graph: Graph, location: TableLocation) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of the commits that are not stored yet, and the versions that they complete the table to."""
    handle = location.open() if location.exists() else None
    rows: list[Mapping[str, Any]] = []
    versions: dict[str, int] = {}
    for name, dataset in graph.datasets.items():
        if dataset.location is None or dataset.kind == "quarantine" or not dataset.location.exists():
            continue
        app = f"waxlake/quality/{dataset.location.open().metadata().id}"
        done = None if handle is None else handle.transaction_version(app)
        found = commits_since(dataset.location, -1 if done is None else done, limit=_ALL)
        fresh = [row for commit in found for row in _rows(name, commit)]
        if fresh:
            rows += fresh
            versions[app] = found[-1].version
    return pa.Table.from_pylist([dict(row) for row in rows], schema=QUALITY_SCHEMA), versions


def _rows(table: str, commit: Commit) -> Iterator[Mapping[str, Any]]:
    for flow, facts in commit.flows.items():
        for rule in facts.get("rules") or ():
            if not rule["passed"] and not rule["failed"]:
                continue
            yield {
                "table": table,
                "dataset": rule["dataset"],
                "rule": rule["rule"],
                "action": rule["action"],
                "flow": flow,
                "update_id": commit.run,
                "version": commit.version,
                "passed": rule["passed"],
                "failed": rule["failed"],
                "dropped": rule["failed"] if rule["action"] == "drop" else 0,
                "quarantined": rule["failed"] if rule["action"] == "quarantine" else 0,
                "at": commit.committed_at,
            }
