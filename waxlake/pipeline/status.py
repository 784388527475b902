"""How a pipeline stands: its last update, and each table's positions, backlog and rule counts. Called by `waxlake status`.

Figures of tables come from their commits, so they are right after any crash; only the update's state comes from the event
log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.binlogs import pipeline_binlogs
from waxlake.pipeline.commits import Commit, recent_commits
from waxlake.pipeline.events import Event, read_events
from waxlake.pipeline.lake import StoredTable, stored_tables, table_facts
from waxlake.pipeline.sinks import batch_counts
from waxlake.pipeline.slots import pipeline_slots
from waxlake.stream.errors import ExternalError

if TYPE_CHECKING:
    from connectors.mysql.status import BinlogStatus
    from connectors.postgres.slots import SlotStatus
    from waxlake.pipeline.graph import Graph

__all__ = ["PipelineStatus", "PositionStatus", "RuleStatus", "TableStatus", "UpdateStatus", "pipeline_status"]

_COMMITS = 1000
_ENDS = ("COMPLETED", "FAILED", "CANCELED")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatus:
    """The last update.

    Attributes:
        update_id: Its identity.
        state: State last recorded; ``RUNNING`` while it runs, and also when it was killed.
        started_at: When it started, or the first that is known of it.
        duration_s: Seconds from start to end; None without an end.
        message: What was last said about it.
    """

    update_id: str
    state: str
    started_at: datetime
    duration_s: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionStatus:
    """Where a flow stands in one source partition, as of the table's last commit that moved it."""

    flow: str
    source: str
    partition: str
    position: int
    backlog: Mapping[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class RuleStatus:
    """What a rule counted, over the commits looked at."""

    dataset: str
    rule: str
    action: str
    passed: int = 0
    failed: int = 0


@dataclass(slots=True, kw_only=True)
class TableStatus:
    """One table.

    Attributes:
        name: Dataset name.
        kind: Kind of dataset.
        version: Table version; None before the first commit.
        rows: Rows it holds.
        dropped: Rows that rules removed, over the commits looked at.
        quarantined: Rows in its quarantine table.
        commits: Number of flows' commits that the counts are over.
        batches: Number of the last batch of a sink that hands over batches; None for anything else.
        pending: How many of its batches are decided and not known to be handed over.
        positions: One entry a flow, source and partition.
        rules: One entry a rule.
    """

    name: str
    kind: str
    version: int | None
    rows: int | None
    dropped: int = 0
    quarantined: int = 0
    commits: int = 0
    batches: int | None = None
    pending: int = 0
    positions: list[PositionStatus] = field(default_factory=list)
    rules: list[RuleStatus] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """A pipeline: its last update (None before the first), its tables, slots and binlogs it reads, what could not be asked."""

    pipeline: str
    update: UpdateStatus | None
    tables: Sequence[TableStatus]
    slots: Sequence[SlotStatus] = ()
    binlogs: Sequence[BinlogStatus] = ()
    problems: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; times are aware datetimes."""
        return asdict(self)


def pipeline_status(graph: Graph) -> PipelineStatus:
    """Return how a pipeline stands.

    Raises:
        ExternalError: A table cannot be read.
    """
    tables = stored_tables(graph)
    statuses, newest = [], None
    for table in tables.values():
        if table.kind in ("quarantine", "events"):
            continue
        commits = recent_commits(table.location, limit=_COMMITS) if table.location.exists() else []
        if commits and (newest is None or commits[0].committed_at > newest.committed_at):
            newest = commits[0]
        statuses.append(_table_status(table, commits, tables.get(f"{table.name}_quarantine")))
    slots: Sequence[SlotStatus] = ()
    problems = []
    try:
        slots = pipeline_slots(graph, only_used=True)
    except ExternalError as error:  # a database that is away says nothing about the tables
        problems.append(str(error))
    binlogs: Sequence[BinlogStatus] = ()
    try:
        binlogs = pipeline_binlogs(graph, statuses)
    except ExternalError as error:
        problems.append(str(error))
    return PipelineStatus(
        pipeline=graph.spec.name,
        update=_last_update(graph, newest),
        tables=statuses,
        slots=slots,
        binlogs=binlogs,
        problems=problems,
    )


def _table_status(table: StoredTable, commits: Sequence[Commit], quarantine: StoredTable | None) -> TableStatus:
    facts = table_facts(table)
    status = TableStatus(name=table.name, kind=table.kind, version=facts.version, rows=facts.rows)
    if table.is_ledger:
        status.batches, status.pending = batch_counts(table.location)
    status.quarantined = (table_facts(quarantine).rows or 0) if quarantine is not None else 0
    counted = _since_full(commits, is_view=table.kind == "materialized_view")
    status.commits = len(counted)
    rules: dict[tuple[str, str], RuleStatus] = {}
    for commit in counted:
        for facts_of_flow in commit.flows.values():
            status.dropped += facts_of_flow.get("dropped", 0)
            for count in facts_of_flow.get("rules") or ():
                key = (count["dataset"], count["rule"])
                rule = rules.setdefault(key, RuleStatus(dataset=key[0], rule=key[1], action=count["action"]))
                rule.passed += count["passed"]
                rule.failed += count["failed"]
    status.rules = list(rules.values())
    status.positions = _positions(commits)
    return status


def _since_full(commits: Sequence[Commit], *, is_view: bool) -> Sequence[Commit]:
    """Return the commits up to the newest that replaced the whole content; newest first, like what is given."""
    for number, commit in enumerate(commits, 1):
        if commit.is_refill or (is_view and _recomputes(commit)):
            return commits[:number]
    return commits


def _recomputes(commit: Commit) -> bool:
    return any((facts.get("refresh") or {}).get("mode") != "INCREMENTAL" for facts in commit.flows.values())


def _positions(commits: Sequence[Commit]) -> list[PositionStatus]:
    """Return the newest position of each flow, source and partition."""
    newest: dict[tuple[str, str, str], PositionStatus] = {}
    for commit in commits:
        for flow, facts in commit.flows.items():
            for source in reversed(facts.get("sources") or ()):
                key = (flow, str(source["source"]), str(source["partition"]))
                if key not in newest:
                    newest[key] = PositionStatus(
                        flow=flow,
                        source=key[1],
                        partition=key[2],
                        position=source["end"],
                        backlog=source.get("backlog"),
                    )
    return [newest[key] for key in sorted(newest)]


def _last_update(graph: Graph, newest: Commit | None) -> UpdateStatus | None:
    events = read_events(graph.spec.events_location(), event_type=("create_update", "update_progress"))
    events = [event for event in events if event.pipeline == graph.spec.name]
    if not events:
        return None if newest is None else _unreported(newest)
    last = events[-1]
    is_reported = newest is None or any(event.update_id == newest.run for event in events)
    if newest is not None and not is_reported and newest.committed_at > last.timestamp:
        return _unreported(newest)
    return _reported([event for event in events if event.update_id == last.update_id])


def _unreported(commit: Commit) -> UpdateStatus:
    """An update that was killed before the event log heard of it: its commits are all that is known."""
    return UpdateStatus(update_id=commit.run, state="RUNNING", started_at=commit.committed_at)


def _reported(events: Sequence[Event]) -> UpdateStatus:
    states = [(event.details.get("update_progress") or {}).get("state") for event in events]
    ends = [event for event, state in zip(events, states, strict=True) if state in _ENDS]
    duration_s = None
    if ends:
        reported = (ends[-1].details.get("update_progress") or {}).get("duration_s")
        duration_s = reported or (ends[-1].timestamp - events[0].timestamp).total_seconds()
    return UpdateStatus(
        update_id=events[0].update_id,
        state=next((str(state) for state in reversed(states) if state), "RUNNING"),
        started_at=events[0].timestamp,
        duration_s=duration_s,
        message=events[-1].message,
    )
