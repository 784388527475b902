"""``waxlake rewind``: tables go back to what they were, with their source positions, and those that read them with them.

Which version each table goes back to: the one asked for, or the one at the time asked for. A table that streams from another has
to have read exactly what that one keeps; where it has read more it goes back further, where it had read less the other one does.

Where a crash can fall, and what the next run does:

1. before the manifest is written: every table is as it was, nothing was decided.
2. after it, before or between the tables' commits: whatever runs next finishes them first, upstream first, before it reads a
   position.
3. after the last one, before the manifest is deleted: each table knows that the rewind is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from sinks.delta.log_state import read_state, txn_history
from sinks.delta.protocol import new_run_number
from sinks.delta.quarantine import MANIFEST_APP_ID
from sinks.delta.rewind import kept_rows, require_files, rewind_table
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.definitions import FilesRead, TableRead
from waxlake.pipeline.events import EventLog, make_event
from waxlake.pipeline.full_refresh import decide, finish_full_refreshes
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Dataset, Graph
from waxlake.pipeline.lease import LeaseTerms, UpdateLease
from waxlake.pipeline.rewound_state import require_state
from waxlake.stream.delta_table import REPLAYED_APP_ID, TableLocation, delta_errors, stored_position
from waxlake.stream.errors import TerminalError, UsageError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import RowPosition, app_id, once_app_id
from waxlake.stream.preview import Previewing
from waxlake.stream.settings import nearest

__all__ = ["RewindOptions", "TableRewind", "finish_rewind", "parse_time", "rewind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewindOptions:
    """What is asked for.

    Attributes:
        at: Time to go back to, or None.
        versions: Table name to version; with ``at``, these take precedence.
        tables: Tables to rewind to ``at``; none for all.
        cascades: Rewind those that stream from them, too; else refuse where one has read past it.
        is_dry: Only say what would happen.
        is_forced: Rewind although a source no longer holds what is removed.
    """

    at: datetime | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    cascades: bool = True
    is_dry: bool = False
    is_forced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRewind:
    """What happens to one table.

    Attributes:
        table: Dataset name; a quarantine table goes with its own.
        version: Version it has.
        to_version: Version it goes back to.
        removed: Rows that it loses, less those it gets back.
    """

    table: str
    version: int
    to_version: int
    removed: int


def rewind(graph: Graph, options: RewindOptions) -> list[TableRewind]:
    """Rewind tables of a pipeline; all of them or none.

    Returns:
        What happened to each, or would happen; tables that stay as they are are left out.

    Raises:
        UsageError: An unknown table, or neither a time nor a version. Not retryable.
        TerminalError: ``REWIND_LOSES_ROWS``, ``REWIND_NEEDS_DEPENDANTS``, ``REWIND_NOT_POSSIBLE``, ``REWIND_TOO_FAR``,
            ``REWIND_FILES_GONE``, ``REWIND_STATE_GONE``, or ``UPDATE_RUNNING``. Not retryable.
    """
    lease = UpdateLease(graph.spec, LeaseTerms(), threading.Event())
    try:
        lease.ensure()
        finish_full_refreshes(graph)
        checked = check_graph(graph)
        targets = _aligned(checked, _wanted(graph, options), cascades=options.cascades)
        entries = [_entry(checked, name, targets[name]) for name in graph.order if name in targets]
        entries = _moved(entries)
        if not options.is_forced:
            for entry in (entry for entry in entries if entry["version"] < entry["now"]):
                _require_sources(checked, entry["table"], entry["version"])
        done = [row for entry in entries for row in _rows(graph, entry)]
        if entries and not options.is_dry:
            failpoint("rewind-planned")
            decide(graph.spec, str(new_run_number()), {"rewind": entries})
            failpoint("rewind-decided")
            finish_full_refreshes(graph)
            _record(graph, done)
        return done
    finally:
        lease.close()


def _record(graph: Graph, done: Sequence[TableRewind]) -> None:
    log = EventLog(graph.spec.events_location())
    for row in done:
        log.record(
            make_event(
                "user_action",
                f"table {row.table} was rewound from version {row.version} to {row.to_version}",
                pipeline=graph.spec.name,
                update_id="",
                dataset=row.table,
                details={"user_action": {"action": "rewind", **asdict(row)}},
            )
        )
    log.close()


def finish_rewind(graph: Graph, key: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Put tables back as a manifest says, upstream first; each once.

    Raises:
        CommitConflict: A newer run writes one of them. Not retryable.
    """
    run_number = new_run_number()
    done: dict[str, int] = {}
    for entry in entries:
        dataset = graph.datasets.get(entry["table"])
        if dataset is None or dataset.location is None:
            continue
        if dataset.quarantine is not None and entry["quarantine"] is not None:
            facts = {"run": f"rewind-{key}", "rewind": {"to_version": entry["quarantine"]}}
            rewind_table(
                dataset.quarantine, entry["quarantine"], key=key, run_number=run_number, positions={}, facts=facts
            )
        positions = {
            app: RowPosition(done[upstream] + 1).pack() for app, upstream in entry["reads"].items() if upstream in done
        }
        facts = {"run": f"rewind-{key}", "rewind": {"to_version": entry["version"]}}
        done[dataset.name] = rewind_table(
            dataset.location, entry["version"], key=key, run_number=run_number, positions=positions, facts=facts
        )


def _wanted(graph: Graph, options: RewindOptions) -> dict[str, int]:
    """Return the version of each table that was asked for."""
    if options.at is None and not options.versions:
        raise UsageError("nothing to rewind to", code="OPTION_INVALID", expected="--to TIMESTAMP or --to-version T=V")
    stored = [name for name in graph.order if graph.datasets[name].kind == "table" and _exists(graph.datasets[name])]
    for name in (*options.tables, *options.versions):
        if name not in stored:
            raise UsageError(
                f"table '{name}' cannot be rewound",
                code="UNKNOWN_DATASET",
                expected="a streaming table that is stored; views follow by themselves",
                remedy=nearest(name, stored or ["(none)"]),
            )
    wanted = {}
    if options.at is not None:
        wanted = {name: _version_at(graph.datasets[name], options.at) for name in options.tables or stored}
    for name, version in options.versions.items():
        latest = _location(graph.datasets[name]).open().version()
        if not 0 <= version <= latest:
            raise UsageError(
                f"--to-version {name}={version}", code="OPTION_INVALID", expected=f"a version from 0 to {latest}"
            )
        wanted[name] = version
    return wanted


def _exists(dataset: Dataset) -> bool:
    return dataset.location is not None and dataset.location.exists()


def _location(dataset: Dataset) -> TableLocation:
    assert dataset.location is not None
    return dataset.location


def _version_at(dataset: Dataset, at: datetime) -> int:
    """Return the version that a table had at a time; 0, its creation without rows, if it was made later."""
    with delta_errors(f"read the log of table '{dataset.name}'"):
        history = _location(dataset).open().history()
    stamp = at.timestamp() * 1000
    reached = [int(entry["version"]) for entry in history if int(entry.get("timestamp") or 0) <= stamp]
    return max(reached, default=min(int(entry["version"]) for entry in history))


def _aligned(checked: CheckedGraph, wanted: Mapping[str, int], *, cascades: bool) -> dict[str, int]:
    """Return a version of each table so that none has read what another loses, or lacks what another keeps."""
    targets, edges = dict(wanted), _edges(checked)
    histories: dict[tuple[str, str], list[tuple[int, int]]] = {}
    is_settled = False
    while not is_settled:
        is_settled = True
        for upstream, part in edges:
            name = part.flow.target
            if upstream not in targets:
                continue
            location = _location(checked.graph.datasets[name])
            if name not in targets:
                targets[name] = location.open().version()
            app = _reads_as(checked, upstream, part)
            history = histories.setdefault((name, app), txn_history(location, app, location.open().version()))
            before = targets[upstream], targets[name]
            targets[upstream], targets[name] = _aligned_pair(history, *before)
            if targets[name] < location.open().version() and not cascades and name not in wanted:
                raise TerminalError(
                    f"table '{upstream}' cannot be rewound to version {before[0]} alone",
                    code="REWIND_NEEDS_DEPENDANTS",
                    found=f"table '{name}' has read what it would lose",
                    remedy=f"Leave out --no-cascade to rewind '{name}' with it",
                )
            is_settled = is_settled and before == (targets[upstream], targets[name])
    return targets


def _aligned_pair(history: Sequence[tuple[int, int]], upstream: int, downstream: int) -> tuple[int, int]:
    """Return versions at or below these at which the one has read exactly what the other holds."""
    want = RowPosition(upstream + 1).pack()
    for version, position in history:
        if version > downstream or position > want:
            downstream = min(downstream, version if position <= want else version - 1)
            continue
        if position == want or upstream == 0 or position < 0:  # below 0: it was told to read everything again
            return upstream, downstream
        place = RowPosition.unpack(max(0, position))
        if place.minor == 0:
            return max(0, place.major - 1), downstream
        downstream = version - 1
    return upstream, max(0, downstream)  # it has read nothing yet, and will read what is kept


def _edges(checked: CheckedGraph) -> list[tuple[str, CheckedFlow]]:
    """Return (table, flow that streams from it), upstream first."""
    order = {name: index for index, name in enumerate(checked.graph.order)}
    found = [
        (part.read.name, part)
        for part in checked.flows
        if isinstance(part.read, TableRead)
        and part.read.name in checked.graph.datasets
        and _exists(checked.graph.datasets[part.flow.target])
        and _exists(checked.graph.datasets[part.read.name])
    ]
    return sorted(found, key=lambda edge: order.get(edge[0], -1))


def _reads_as(checked: CheckedGraph, upstream: str, part: CheckedFlow) -> str:
    handle = _location(checked.graph.datasets[upstream]).open()
    return app_id(part.flow.name, f"delta:{handle.metadata().id}", "log")


def _entry(checked: CheckedGraph, name: str, version: int) -> dict[str, Any]:
    """Return what the manifest says of a table, after it was found possible."""
    dataset = checked.graph.datasets[name]
    location = _location(dataset)
    latest = location.open().version()
    reads = {
        _reads_as(checked, upstream, part): upstream for upstream, part in _edges(checked) if part.flow.target == name
    }
    entry: dict[str, Any] = {"table": name, "version": version, "now": latest, "reads": reads, "quarantine": None}
    if version >= latest:
        return entry
    _require_possible(checked, dataset)
    now, then = read_state(location, latest), read_state(location, version)
    if then.txns.get(REPLAYED_APP_ID) != now.txns.get(REPLAYED_APP_ID):
        raise _not_possible(name, "its quarantine was replayed since", "a version after the replay")
    require_files(location, now, then)
    require_state(checked, dataset, now, then)
    if dataset.quarantine is not None and dataset.quarantine.exists():
        entry["quarantine"] = _quarantine_version(
            dataset.quarantine, str(location.open().metadata().id), then.txns.get(MANIFEST_APP_ID, 0)
        )
        side = read_state(dataset.quarantine, dataset.quarantine.open().version())
        require_files(dataset.quarantine, side, read_state(dataset.quarantine, entry["quarantine"]))
    return entry


def _moved(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tables that go back, and those that stay but stream from one: they go on after its rewind."""
    moved: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["version"] < entry["now"] or any(upstream in moved for upstream in entry["reads"].values()):
            moved[entry["table"]] = entry
    return list(moved.values())


def _require_possible(checked: CheckedGraph, dataset: Dataset) -> None:
    """Stop at what keeps something outside of its table's log that cannot go back with it."""
    name = dataset.name
    if dataset.kind != "table":
        raise _not_possible(name, f"a {dataset.kind.replace('_', ' ')}: what it has handed over stays there", "a table")
    for other in checked.flows:
        if isinstance(other.read, TableRead) and other.read.name == name + QUARANTINE_SUFFIX:
            raise _not_possible(name, f"flow '{other.flow.name}' streams from its quarantine table", "no such flow")


def _not_possible(name: str, found: str, expected: str) -> TerminalError:
    return TerminalError(
        f"table '{name}' cannot be rewound",
        code="REWIND_NOT_POSSIBLE",
        found=found,
        expected=expected,
        remedy=f"Fill it anew instead: waxlake run --full-refresh {name}",
    )


def _quarantine_version(quarantine: TableLocation, primary_id: str, manifest: int) -> int:
    """Return the last version of a quarantine table that holds no more than the manifests up to a number."""
    latest = quarantine.open().version()
    history = txn_history(quarantine, f"waxlake/primary/{primary_id}", latest)
    later = [version for version, number in history if number > manifest]
    return latest if not later else min(later) - 1


def _require_sources(checked: CheckedGraph, name: str, version: int) -> None:
    """Stop where a source can no longer deliver what a table loses."""
    location = _location(checked.graph.datasets[name])
    then = location.open(version=version)
    for part in checked.flows:
        if part.flow.target != name or isinstance(part.read, TableRead):
            continue
        if isinstance(part.read, FilesRead) and part.read.settings.clean_source != "OFF":
            raise _loses(name, part.connector.name, f"clean_source={part.read.settings.clean_source!r}")
        if (
            part.flow.once
            and stored_position(location.open(), once_app_id(part.flow.name, part.connector.name)) is None
        ):
            continue
        state = part.connector.preview().state if isinstance(part.connector, Previewing) else part.connector.inspect()
        for partition, held in state.partitions.items() if state is not None else ():
            app = app_id(part.flow.name, state.identity if state is not None else "", partition)
            now, before = stored_position(location.open(), app), stored_position(then, app)
            if now is None or now == before or not part.takes(partition):
                continue
            if (before if before is not None else 0) < held.low:
                raise _loses(name, part.connector.name, f"partition {partition} begins at position {held.low} now")


def _loses(name: str, source: str, found: str) -> TerminalError:
    return TerminalError(
        f"rewinding '{name}' would lose rows",
        code="REWIND_LOSES_ROWS",
        found=f"{source}: {found}",
        expected="a source that still holds everything the table would lose",
        remedy="Choose a later time or version, or add --force",
    )


def _rows(graph: Graph, entry: Mapping[str, Any]) -> list[TableRewind]:
    dataset = graph.datasets[entry["table"]]
    rows = [_row(entry["table"], _location(dataset), entry["version"])]
    if dataset.quarantine is not None and entry["quarantine"] is not None:
        rows.append(_row(entry["table"] + QUARANTINE_SUFFIX, dataset.quarantine, entry["quarantine"]))
    return [row for row in rows if row.version != row.to_version]


def _row(name: str, location: TableLocation, version: int) -> TableRewind:
    latest = location.open().version()
    removed = kept_rows(read_state(location, latest)) - kept_rows(read_state(location, version))
    return TableRewind(table=name, version=latest, to_version=version, removed=removed)


def parse_time(text: str) -> datetime:
    """Return a time given as text; one without a zone is UTC.

    Raises:
        UsageError: Not a time. Not retryable.
    """
    try:
        at = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(
            "option --to", code="OPTION_INVALID", found=repr(text), expected="a time such as 2026-01-31T12:00:00Z"
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)
