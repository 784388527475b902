"""Put the rows of a quarantine table through the rules again, after a rule or a row was corrected. Called by `waxlake replay`.

What is stored of a rejected row is what the flow made of it; its source may be gone. So a replay runs on those rows: ``--set``
does to them what a corrected transform would have done, the table's rules as they are now judge them, and those that keep every
rule but a warning go into the table, through the same sink as the rows of its flows (a merge, for AUTO CDC). The others stay, as
they were, with the names of the rules they break now.

Where a crash can fall, and what the next replay or run finds:

1. before the primary commit: files that no log names; nothing has changed.
2. after the primary commit, before the quarantine commit: the primary commit holds the rows, the number of the replay and a
   manifest of the quarantine files it took over and of those with the rest; the quarantine is finished from that, before
   anything else is read or written.
3. after both: done. A replay of many rows is several such pairs; each file is taken over once.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from sinks.cdc import MergeSink
from sinks.delta import CommitReceipt, DeltaSink, DeltaTarget, SinkControl
from sinks.delta.files import StoredFile, stored_files
from sinks.delta.quarantine import finish_quarantine
from waxlake.pipeline.auto_cdc import flow_expectations
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.definitions import Expectation, Step, WithColumns
from waxlake.pipeline.events import EventLog, progress_events
from waxlake.pipeline.expectations import FAILED_RULES
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Dataset, Flow, Graph, resolve_path
from waxlake.pipeline.lease import LeaseTerms, UpdateLease
from waxlake.pipeline.quarantine import QUARANTINE_COLUMNS
from waxlake.pipeline.sql import sql_refused
from waxlake.pipeline.stateful_steps import has_operator
from waxlake.pipeline.transform import Transform
from waxlake.pipeline.uniqueness import UniqueRows
from waxlake.stream.batch import MicroBatch, RuleCount
from waxlake.stream.delta_table import REPLAYED_APP_ID, TableLocation, arrow_schema, delta_errors, stored_position
from waxlake.stream.engine import open_session
from waxlake.stream.errors import UsageError
from waxlake.stream.position import app_id
from waxlake.stream.schema import no_rows
from waxlake.stream.settings import nearest

__all__ = ["Replay", "ReplayOptions", "ReplayResult", "run_replay"]

_ROW = "__row"
_PARTITION = "quarantine"
_ROUND_ROWS = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay.

    Attributes:
        where: Condition over the columns of the quarantine table; None for all rows.
        sets: Column to SQL: how the rows are corrected first.
        is_dry: Write nothing.
    """

    where: str | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    is_dry: bool = False


@dataclass(slots=True, kw_only=True)
class ReplayResult:
    """What a replay did, or would do.

    Attributes:
        table: Table name.
        replayed: Rows that were put through the rules again.
        passed: Rows of them that went into the table.
        kept: Rows of them that stay in quarantine.
        rules: Rule to the number of replayed rows that break it.
        commits: Commits made.
    """

    table: str
    replayed: int = 0
    passed: int = 0
    kept: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    commits: int = 0


def run_replay(graph: Graph, table: str, options: ReplayOptions) -> ReplayResult:
    """Replay the quarantine of a table, and tell the event log of the commits.

    Raises:
        WaxlakeError: As ``Replay`` and its ``run``; ``UPDATE_RUNNING`` while an update of the pipeline runs.
    """
    spec = graph.spec
    if options.is_dry:
        return Replay(graph, table, options).run()
    log, lease = EventLog(spec.events_location()), UpdateLease(spec, LeaseTerms(), threading.Event())
    try:
        lease.ensure()
        update_id = uuid.uuid4().hex

        def committed(receipt: CommitReceipt) -> None:
            for event in progress_events(receipt, pipeline=spec.name, update_id=update_id):
                log.record(event)

        return Replay(graph, table, options, committed, run_id=update_id).run()
    finally:
        lease.close()
        log.close()


@dataclass(slots=True)
class _Judged:
    """What became of the rows of one flow in one round; ``read`` of them were put through the rules."""

    passing: list[pa.Table] = field(default_factory=list)
    kept: list[pa.Table] = field(default_factory=list)
    counts: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    read: int = 0

    @property
    def passed(self) -> int:
        """Rows that go into the table."""
        return sum(table.num_rows for table in self.passing)

    def add(self, part: _Judged, *, with_rows: bool) -> None:
        """Take what became of the rows of one file; without its rows where the file stays as it is."""
        self.passing += part.passing if with_rows else []
        self.kept += part.kept if with_rows else []
        self.read += part.read
        for key, (passed, failed) in part.counts.items():
            known = self.counts.setdefault(key, [0, 0])
            known[0] += passed
            known[1] += failed


class Replay:
    """One replay of a table's quarantine.

    Args:
        graph: The pipeline.
        table: Table name.
        options: What to replay.
        on_commit: Told of every commit.
        run_id: Identity of the update that the commits belong to.

    Raises:
        UsageError: No such table, or one that has no quarantine to replay. Not retryable.
    """

    def __init__(
        self,
        graph: Graph,
        table: str,
        options: ReplayOptions,
        on_commit: Callable[[CommitReceipt], None] = lambda receipt: None,
        *,
        run_id: str = "replay",
    ) -> None:
        self._graph, self._options, self._on_commit = graph, options, on_commit
        self._dataset = _dataset(graph, table)
        assert self._dataset.location is not None
        self._table = self._dataset.location
        self._quarantine = _quarantine(graph, self._dataset)
        self._run_id = run_id
        self._transforms: dict[str, Transform] = {}
        self._session = open_session()
        keys = [_strict(rule) for rule in self._dataset.expectations if rule.scope == "key"]
        self._keys = UniqueRows(self._dataset.name, keys)

    def run(self) -> ReplayResult:
        """Replay, in as many commits as the number of rows asks for.

        Raises:
            DefinitionError: A rule, ``--where`` or ``--set`` is wrong. Not retryable.
            CommitConflict: Another run writes the table. Not retryable.
        """
        result = ReplayResult(table=self._dataset.name)
        if not (self._table.exists() and self._quarantine.exists()):
            return result
        if not self._options.is_dry:
            finish_quarantine(self._table, self._quarantine)
        handle = self._quarantine.open()
        schema = arrow_schema(handle)
        _check_columns(self._dataset, self._table, schema)
        for files in _rounds(stored_files(handle)):
            self._round(handle, files, result)
        return result

    def _round(self, handle: DeltaTable, files: Sequence[StoredFile], result: ReplayResult) -> None:
        judged: dict[str, _Judged] = {}
        released: list[str] = []
        for file, rows in self._rows_of(handle, files):
            parts = {flow.name: self._judge(flow, part) for flow, part in self._by_flow(rows)}
            is_same = _is_same(rows, parts.values())
            if not is_same:
                released.append(file.path)
            for flow, part in parts.items():
                _tell(result, part)
                judged.setdefault(flow, _Judged()).add(part, with_rows=not is_same)
        if released and not self._options.is_dry:
            self._commit(judged, released)
            result.commits += 1

    def _rows_of(self, handle: DeltaTable, files: Sequence[StoredFile]) -> Iterator[tuple[StoredFile, pa.Table]]:
        wanted = {file.file_path: file for file in files}
        with delta_errors(f"read table '{self._quarantine.label}'"):
            dataset = handle.to_pyarrow_dataset()
            for fragment in dataset.get_fragments():
                if fragment.path in wanted:
                    yield wanted[fragment.path], fragment.to_table(schema=dataset.schema)

    def _by_flow(self, rows: pa.Table) -> Iterator[tuple[Flow, pa.Table]]:
        """Yield the rows of each flow; where several merge into the table, a row is of the one that read its source."""
        flows = self._dataset.flows
        if len(flows) == 1 or not self._dataset.definition.is_merged:
            yield flows[0], rows
            return
        primary = self._table.open()
        found: dict[str, Any] = {}
        sources = rows.select(["_source", "_source_partition"]).group_by(["_source", "_source_partition"]).aggregate([])
        for source in sources.to_pylist():
            names = [
                f.name
                for f in flows
                if stored_position(primary, app_id(f.name, source["_source"], source["_source_partition"])) is not None
            ]
            if len(names) != 1:
                raise _not_possible(
                    self._dataset.name,
                    f"rows of {source['_source']}, which {len(names)} of its AUTO CDC flows read",
                    "rows of which one flow is the origin",
                )
            mask = pc.and_(
                pc.equal(rows.column("_source"), source["_source"]),
                pc.equal(rows.column("_source_partition"), source["_source_partition"]),
            )
            found[names[0]] = mask if names[0] not in found else pc.or_(found[names[0]], mask)
        for flow in flows:
            if flow.name in found:
                yield flow, rows.filter(found[flow.name])

    def _judge(self, flow: Flow, rows: pa.Table) -> _Judged:
        """Put rows through the rules; those that ``where`` leaves out stay as they are."""
        rows = rows.combine_chunks()
        chosen = self._chosen(rows)
        judged = _Judged(read=pc.sum(chosen).as_py() or 0)
        if judged.read < rows.num_rows:
            judged.kept.append(rows.filter(pc.invert(chosen)))
        if not judged.read:
            return judged
        rows = rows.filter(chosen)
        transform = self._transform(flow, rows.schema)
        numbered = rows.drop_columns([FAILED_RULES]).append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
        outcome = transform.apply(numbered, self._static)
        actions = {rule.name: rule.action for rule in flow_expectations(self._dataset, flow)}
        for count in outcome.rules:
            judged.counts[count.dataset, count.rule, actions[count.rule]] = [count.passed, count.failed]
        passing, rejected = outcome.table, [] if outcome.rejected is None else [outcome.rejected]
        if self._keys.rules:
            passing, twice, counts, _ = self._keys.judge(passing, self._table.open())
            rejected += [] if twice is None else [twice]
            for count in counts:
                judged.counts[count.dataset, count.rule, actions[count.rule]] = [count.passed, count.failed]
        judged.passing.append(passing)
        for failing in rejected:
            stays = rows.take(failing.column(_ROW))
            at = stays.schema.get_field_index(FAILED_RULES)
            judged.kept.append(stays.set_column(at, FAILED_RULES, failing.column(FAILED_RULES)))
        return judged

    def _chosen(self, rows: pa.Table) -> pa.ChunkedArray:
        if self._options.where is None:
            return pa.chunked_array([pa.repeat(True, rows.num_rows)])
        try:
            self._session.register("quarantined", rows)
            chosen = self._session.sql(
                f"SELECT coalesce(({self._options.where})::BOOLEAN, false) AS chosen FROM quarantined"
            )
            return chosen.to_arrow_table().column("chosen")
        except duckdb.Error as exc:
            raise sql_refused("--where", "", exc) from exc
        finally:
            self._session.unregister("quarantined")

    def _transform(self, flow: Flow, stored: pa.Schema) -> Transform:
        if flow.name not in self._transforms:
            sets = tuple(self._options.sets.items())
            steps: tuple[Step, ...] = (WithColumns(columns=sets, where="--set"),) if sets else ()
            rules = [_strict(rule) for rule in flow_expectations(self._dataset, flow) if rule.scope == "row"]
            source = [f for f in stored if f.name != FAILED_RULES]
            transform = Transform(
                flow=flow.name,
                dataset=self._dataset.name,
                steps=steps,
                expectations=tuple(rules),
                source=no_rows(pa.schema([*source, pa.field(_ROW, pa.int64())])),
                hidden=(),
                statics=tuple(dict.fromkeys(name for rule in rules for name in rule.tables)),
                tables=self._static,
            )
            transform.compile()
            unknown = [name for name, _ in sets if name not in stored.names]
            if unknown:
                raise UsageError(
                    f"--set {unknown[0]}=…", code="UNKNOWN_COLUMN", remedy=nearest(unknown[0], stored.names)
                )
            self._transforms[flow.name] = transform
        return self._transforms[flow.name]

    def _static(self, name: str) -> Any:
        """Return the rows of a table that a rule refers to."""
        dataset = self._graph.datasets.get(name)
        if dataset is not None and dataset.location is None:
            raise _not_possible(self._dataset.name, f"a rule that reads the temporary view '{name}'", "a stored table")
        spec = self._graph.spec
        location = (
            TableLocation(resolve_path(spec, name), spec.storage_options, name) if dataset is None else dataset.location
        )
        assert location is not None
        with delta_errors(f"read table '{name}'"):
            return location.open().to_pyarrow_dataset()

    def _commit(self, judged: Mapping[str, _Judged], released: Sequence[str]) -> None:
        """Commit the rows of a round: the rows that pass, the files taken over and those with the rest."""
        quarantine = self._quarantine.open()
        source = f"replay:{quarantine.metadata().id}"
        primary = self._table.open()
        columns = self._columns(primary)
        batches = []
        for number, (flow, part) in enumerate(judged.items()):
            start = stored_position(primary, app_id(flow, source, _PARTITION)) or 0
            passing = pa.concat_tables(part.passing, promote_options="default") if part.passing else None
            kept = pa.concat_tables(part.kept, promote_options="default") if part.kept else None
            rows = no_rows(columns) if passing is None else passing
            batches.append(
                MicroBatch(
                    table=rows.select([name for name in rows.column_names if name in columns.names]),
                    source=source,
                    partition=_PARTITION,
                    start=start,
                    end=start + 1,
                    flow=flow,
                    target=self._dataset.name,
                    rejected=kept,
                    rules=tuple(
                        RuleCount(dataset=dataset, rule=rule, action=action, passed=passed, failed=failed)
                        for (dataset, rule, action), (passed, failed) in part.counts.items()
                    ),
                    read=rows.num_rows + (0 if kept is None else kept.num_rows),
                    released=tuple(released),
                    is_last=number == len(judged) - 1,
                    partition_count=1,
                )
            )
        writer = self._sink({flow: {REPLAYED_APP_ID: primary.version() + 1} for flow in judged}).build_part(
            "", "table", None
        )
        try:
            writer.write_batch(batches)
        finally:
            writer.close()

    def _columns(self, primary: DeltaTable) -> pa.Schema:
        """Return the columns that rows have on their way to the table: of the changes, where it is merged into."""
        if not self._dataset.definition.is_merged:
            return arrow_schema(primary)
        own = {f.name for f in QUARANTINE_COLUMNS}
        return pa.schema([f for f in arrow_schema(self._quarantine.open()) if f.name not in own])

    def _sink(self, identities: Mapping[str, Mapping[str, int]]) -> DeltaSink:
        target = DeltaTarget(location=self._table, quarantine=self._quarantine)
        control = SinkControl(run_id=self._run_id, on_commit=self._on_commit, identities=identities, maintains=False)
        if not self._dataset.definition.is_merged:
            return DeltaSink(target=target, control=control)
        plan = check_graph(self._graph).merges[self._dataset.name]
        return MergeSink(target=target, control=control, **plan.sink_options())


def _tell(result: ReplayResult, part: _Judged) -> None:
    result.replayed += part.read
    result.passed += part.passed
    result.kept += part.read - part.passed
    for (_, rule, _), (_, failed) in part.counts.items():
        result.rules[rule] = result.rules.get(rule, 0) + failed


def _strict(rule: Expectation) -> Expectation:
    """Return a rule whose offenders stay in quarantine, whatever it does with rows that come from a source."""
    return replace(rule, action="warn" if rule.action == "warn" else "quarantine", threshold=None, max_violations=None)


def _is_same(before: pa.Table, parts: Iterable[_Judged]) -> bool:
    """Return whether no row of a file passed and the same rules are named: the file may stay as it is."""
    found = list(parts)
    if any(part.passed for part in found):
        return False
    names = [names for part in found for table in part.kept for names in table.column(FAILED_RULES).to_pylist()]
    return sorted(map(str, names)) == sorted(map(str, before.column(FAILED_RULES).to_pylist()))


def _rounds(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    """Yield the files in groups of a bounded number of rows."""
    group: list[StoredFile] = []
    rows = 0
    for file in sorted(files, key=lambda f: f.path):
        group.append(file)
        rows += file.rows or 0
        if rows >= _ROUND_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _dataset(graph: Graph, name: str) -> Dataset:
    dataset = graph.datasets.get(name)
    tables = [n for n, d in graph.datasets.items() if d.kind == "table"]
    if dataset is not None and dataset.kind == "quarantine":
        raise _not_possible(name, "a quarantine table", f"the table itself: waxlake replay {dataset.definition.name}")
    if dataset is not None and dataset.kind != "table":
        why = "what it handed over is elsewhere" if dataset.kind == "sink" else "its rows are made anew from its inputs"
        raise _not_possible(name, f"a {dataset.kind.replace('_', ' ')}: {why}", "a streaming table")
    if dataset is None:
        raise UsageError(f"cannot replay '{name}'", code="UNKNOWN_DATASET", remedy=nearest(name, tables or ["(none)"]))
    if any(has_operator(flow) for flow in dataset.flows):
        expected = "a table without one: rows of its quarantine would go past the operator's state"
        raise _not_possible(name, "a table whose flow has a stateful operator", expected)
    return dataset


def _quarantine(graph: Graph, dataset: Dataset) -> TableLocation:
    """Return where the quarantine of a table lies, also when no rule fills it any more."""
    if dataset.quarantine is not None:
        return dataset.quarantine
    assert dataset.location is not None
    if dataset.definition.path:
        uri, name = dataset.location.uri + QUARANTINE_SUFFIX, dataset.name + QUARANTINE_SUFFIX
        return replace(dataset.location, uri=uri, name=name)
    return graph.spec.table_location(dataset.name + QUARANTINE_SUFFIX)


def _check_columns(dataset: Dataset, table: TableLocation, stored: pa.Schema) -> None:
    own = {f.name for f in QUARANTINE_COLUMNS}
    lost = [name for name in arrow_schema(table.open()).names if name in own]
    if lost:
        raise _not_possible(dataset.name, f"a column {lost[0]} of its own, which its quarantine lacks", "other names")
    if FAILED_RULES not in stored.names:
        raise _not_possible(dataset.name, "a quarantine table without the names of rules", FAILED_RULES)


def _not_possible(name: str, found: str, expected: str) -> UsageError:
    return UsageError(f"cannot replay '{name}'", code="REPLAY_NOT_POSSIBLE", found=found, expected=expected)
