"""From definition files to a graph: files imported, names resolved, views inlined, cycles and misuse found.

No data and no source is touched here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.definition_files import import_path, line_in, load_file
from waxlake.pipeline.definitions import (
    DatasetDefinition,
    Expect,
    Expectation,
    FilesRead,
    FlowDefinition,
    KafkaRead,
    Query,
    Read,
    SqlQuery,
    Step,
    TableRead,
    located,
)
from waxlake.pipeline.dialect import translated, translated_changes, translated_rules
from waxlake.pipeline.expectations import check_scope
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Dataset, Flow, Graph, is_external, read_name, resolve_path
from waxlake.pipeline.order import circle, upstream_first
from waxlake.pipeline.own_schema import in_own_schema, known_name
from waxlake.pipeline.registry import Registry, registering
from waxlake.pipeline.sql import place_of, referenced_tables
from waxlake.pipeline.stateful_steps import keeps_late
from waxlake.pipeline.stream import Batch, Branch, Relation, Stream
from waxlake.stream.delta_table import unusable_sign
from waxlake.stream.errors import DefinitionError, UsageError, WaxlakeError
from waxlake.stream.position import FENCE_APP_ID, fence_app_id
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = ["load_graph"]


def load_graph(spec: Spec, adapt: Callable[[Registry], Registry] | None = None) -> Graph:
    """Import the definition files of a spec and resolve what they say.

    Args:
        spec: The pipeline.
        adapt: Changes what was declared before it is resolved, as a test does that puts rows in place of sources.

    Raises:
        DefinitionError: Unknown names, cycles, duplicates, a stream where a batch is meant or the reverse. Not retryable.
        UsageError: A definition file cannot be imported, or there is nothing to run. Not retryable.
    """
    registry = Registry(configuration=spec.configuration, dialect=spec.dialect, spec=spec)
    # What a user's file prints must not get between the lines of a command that is read by a machine.
    with registering(registry), import_path(spec.folder), redirect_stdout(sys.stderr):
        for path in spec.definition_files():
            load_file(path, registry)
        registry.refuse_lost_rules()
        return _Resolver(spec, registry if adapt is None else adapt(registry)).graph()


class _Resolver:
    """Builds the graph of one registry's definitions."""

    def __init__(self, spec: Spec, registry: Registry) -> None:
        self._spec = spec
        names = {definition.name for definition in registry.datasets()}
        self._extra_flows = [
            replace(flow, target=known_name(flow.target, spec.schema_name, names)) for flow in registry.flows()
        ]
        self._event_hooks = tuple(registry.event_hooks)
        self._definitions = self._unique(registry.datasets())
        self._known = {
            *self._definitions,
            *(n + QUARANTINE_SUFFIX for n, d in self._definitions.items() if _quarantines(d)),
        }
        self._relations: dict[str, Relation] = {}
        self._visiting: list[str] = []

    def graph(self) -> Graph:
        if not self._definitions:
            raise UsageError(
                f"pipeline '{self._spec.name}' defines no table",
                code="PIPELINE_EMPTY",
                found=f"{len(self._spec.definition_files())} definition files without one",
                remedy="Decorate a function with @wl.table, and check `libraries` in the spec",
            )
        self._check_flow_targets()
        datasets = {}
        for definition in self._definitions.values():
            dataset = self._dataset(definition)
            datasets[dataset.name] = dataset
            if dataset.quarantine is not None:
                name = dataset.name + QUARANTINE_SUFFIX
                datasets[name] = Dataset(
                    name=name,
                    kind="quarantine",
                    definition=definition,
                    location=dataset.quarantine,
                    quarantine=None,
                    flows=(),
                )
        graph = Graph(spec=self._spec, datasets=datasets, order=(), event_hooks=self._event_hooks)
        return replace(graph, order=upstream_first(graph))

    def _unique(self, definitions: Iterable[DatasetDefinition]) -> dict[str, DatasetDefinition]:
        unique: dict[str, DatasetDefinition] = {}
        by_folded: dict[str, DatasetDefinition] = {}
        for definition in definitions:
            taken = by_folded.setdefault(definition.name.casefold(), definition)  # SQL does not tell names by case
            if taken is not definition:
                alike = "" if taken.name == definition.name else f", '{taken.name}': SQL takes the two for one"
                raise DefinitionError(
                    f"dataset '{definition.name}' is defined twice",
                    where=definition.where,
                    code="DUPLICATE_DATASET",
                    found=f"another one at {taken.where}{alike}",
                    remedy="Rename one, or feed one table with wl.append_flow",
                )
            rules = tuple(map(_with_tables, translated_rules(definition.expectations, self._spec.dialect)))
            is_merged = any(f.changes is not None and f.target == definition.name for f in self._extra_flows)
            unique[definition.name] = replace(definition, expectations=rules, is_merged=is_merged)
        for name, definition in unique.items():
            self._check_rules(name, definition, unique)
        return unique

    def _check_rules(self, name: str, definition: DatasetDefinition, all_: Mapping[str, DatasetDefinition]) -> None:
        seen: set[str] = set()
        for rule in definition.expectations:
            if rule.name in seen:
                raise DefinitionError(
                    f"dataset '{name}' has two expectations named '{rule.name}'",
                    where=rule.where,
                    code="DUPLICATE_EXPECTATION",
                )
            seen.add(rule.name)
            if rule.action == "quarantine" and definition.kind == "temporary_view":
                raise DefinitionError(
                    f"temporary view '{name}' has no table to quarantine rows for",
                    where=rule.where,
                    code="QUARANTINE_ON_VIEW",
                    remedy="Put the rule on the table that reads the view",
                )
            check_scope(definition, rule)
        quarantine = (name + QUARANTINE_SUFFIX).casefold()
        if _quarantines(definition) and (colliding := [n for n in all_ if n.casefold() == quarantine]):
            raise DefinitionError(
                f"dataset '{colliding[0]}' collides with the quarantine table of '{name}'",
                where=all_[colliding[0]].where,
                code="DUPLICATE_DATASET",
            )

    def _check_flow_targets(self) -> None:
        names = set(self._definitions)
        seen = {d.name: d.where for d in self._definitions.values() if d.function is not None}
        for flow in self._extra_flows:
            target = self._definitions.get(flow.target)
            if target is None or target.kind not in ("table", "sink"):
                raise DefinitionError(
                    f"flow '{flow.name}' has no streaming table or sink '{flow.target}' to feed",
                    where=flow.where,
                    code="UNKNOWN_DATASET",
                    remedy=nearest(
                        flow.target, [n for n in names if self._definitions[n].kind in ("table", "sink")] or ["(none)"]
                    ),
                )
            if flow.name in seen:
                raise DefinitionError(
                    f"flow '{flow.name}' is defined twice",
                    where=flow.where,
                    code="DUPLICATE_FLOW",
                    found=f"another one at {seen[flow.name]}",
                )
            seen[flow.name] = flow.where
            if target.is_merged and (flow.changes is None or target.function is not None):
                raise DefinitionError(
                    f"table '{flow.target}' is fed by AUTO CDC and by other flows",
                    where=flow.where,
                    code="AUTO_CDC_MIXED_FLOWS",
                    remedy="Let AUTO CDC flows alone feed it; make it with wl.create_streaming_table",
                )

    def _dataset(self, definition: DatasetDefinition) -> Dataset:
        flows = []
        if definition.function is not None:
            flows.append(
                FlowDefinition(
                    name=definition.name, target=definition.name, function=definition.function, where=definition.where
                )
            )
        flows += [flow for flow in self._extra_flows if flow.target == definition.name]
        if not flows:
            raise DefinitionError(
                f"{'sink' if definition.sink else 'table'} '{definition.name}' has no flow",
                where=definition.where,
                code="DATASET_WITHOUT_FLOW",
                remedy=f"Add a function with @wl.append_flow(target='{definition.name}')",
            )
        stored = definition.kind != "temporary_view"
        location = None
        with located(definition.where):
            usual = self._spec.table_location(definition.name)
        fence_app = FENCE_APP_ID
        if definition.sink is not None:
            location = definition.sink.location(self._spec, definition.name)
            fence_app = FENCE_APP_ID if definition.sink.has_ledger else fence_app_id(self._spec.name)
        elif stored:
            location = usual
            if definition.path:
                location = replace(location, uri=_table_path(self._spec, definition))
        resolved = tuple(self._flow(definition, flow) for flow in flows)
        quarantine = None
        if (_quarantines(definition) or any(map(keeps_late, resolved))) and location is not None:
            if definition.path:
                quarantine = replace(
                    location, uri=location.uri + QUARANTINE_SUFFIX, name=definition.name + QUARANTINE_SUFFIX
                )
            else:
                quarantine = self._spec.table_location(definition.name + QUARANTINE_SUFFIX)
        return Dataset(
            name=definition.name,
            kind=definition.kind,
            definition=definition,
            location=location,
            quarantine=quarantine,
            flows=resolved,
            fence_app=fence_app,
        )

    def _flow(self, definition: DatasetDefinition, flow: FlowDefinition) -> Flow:
        relation = self._relation(flow, definition)
        dialect = self._spec.dialect
        branches = tuple(
            translated(inlined, dialect)
            for branch in relation.branches
            for inlined in self._inlined(branch, flow.where)
        )
        self._check_distinct_reads(flow, branches, is_stream=isinstance(relation, Stream))
        inputs: list[str] = []
        statics: list[str] = []
        pinned: list[str] = []
        for branch in branches:
            if isinstance(relation, Stream):
                inputs.append(read_name(branch.read))
            elif isinstance(branch.read, TableRead):
                statics.append(branch.read.name)
            elif isinstance(branch.read, SqlQuery):
                statics += sorted(self._resolved(branch.read.text, branch.read.where))
            for step in branch.steps:
                if isinstance(step, Query):
                    found = sorted(self._resolved(step.text, step.where) - {"stream"})
                    statics += found
                    pinned += found if step.pinned else []
                elif isinstance(step, Expect):
                    statics += self._tables_of_rules(step.expectations)
        statics += self._tables_of_rules(definition.expectations)
        return Flow(
            name=flow.name,
            target=flow.target,
            branches=branches,
            inputs=tuple(dict.fromkeys(inputs)),
            statics=tuple(dict.fromkeys(statics)),
            where=flow.where,
            changes=translated_changes(flow.changes, dialect, flow.where),
            once=flow.once,
            pinned=tuple(dict.fromkeys(pinned)),
        )

    def _tables_of_rules(self, rules: Iterable[Expectation]) -> list[str]:
        for rule in rules:
            for name in rule.tables:
                self._check_known(name, rule.where)
        return [name for rule in rules for name in rule.tables]

    def _check_distinct_reads(self, flow: FlowDefinition, branches: Sequence[Branch], *, is_stream: bool) -> None:
        reads: list[Read] = []
        for branch in branches:
            if is_stream and any(_is_same_source(branch.read, read) for read in reads):
                raise DefinitionError(
                    f"flow '{flow.name}' reads {read_name(branch.read)} twice",
                    where=branch.read.where,
                    code="DUPLICATE_SOURCE",
                    remedy="A flow has one position in each source. Use two flows with wl.append_flow",
                )
            reads.append(branch.read)

    def _relation(self, flow: FlowDefinition, definition: DatasetDefinition) -> Relation:
        if flow.name in self._relations:
            return self._relations[flow.name]
        relation = _call(flow)
        schema, dialect = self._spec.schema_name, self._spec.dialect
        own = tuple(in_own_schema(branch, schema, self._known, dialect) for branch in relation.branches)
        relation = replace(relation, branches=own)
        wants_batch = definition.kind == "materialized_view"
        if definition.kind in ("table", "sink") and not isinstance(relation, Stream):
            kind = "sink" if definition.sink else "streaming table"
            raise DefinitionError(
                f"{kind} '{definition.name}' needs a stream",
                where=flow.where,
                code="BATCH_FOR_STREAMING_TABLE",
                found="a batch query",
                expected="wl.read_stream, wl.read_kafka or wl.read_files",
                remedy="Use wl.read_stream, or declare it with @wl.materialized_view",
            )
        if wants_batch and all(isinstance(branch.read, FilesRead) for branch in relation.branches):
            relation = Batch(relation.branches)  # all files, as they are at each refresh
        if wants_batch and not isinstance(relation, Batch):
            raise DefinitionError(
                f"materialized view '{definition.name}' needs a batch query",
                where=flow.where,
                code="STREAM_FOR_MATERIALIZED_VIEW",
                found="a stream",
                expected="wl.read, wl.sql or wl.read_files",
                remedy="Use wl.read or wl.sql, or declare it with @wl.table",
            )
        self._relations[flow.name] = relation
        return relation

    def _inlined(self, branch: Branch, where: str) -> Iterator[Branch]:
        """Yield the branch with a temporary view that it streams from replaced by the view's own reads and steps."""
        read = branch.read
        if not isinstance(read, TableRead):
            yield branch
            return
        self._check_known(read.name, read.where)
        view = self._definitions.get(read.name)
        if view is None or view.kind != "temporary_view":
            yield branch
            return
        if view.name in self._visiting:
            raise circle([*self._visiting, view.name], view.where)
        self._visiting.append(view.name)
        relation = self._view_relation(view)
        rules: tuple[Step, ...] = ()
        if view.expectations:
            rules = (Expect(dataset=view.name, expectations=view.expectations, where=view.where),)
        for inner in relation.branches:
            for leaf in self._inlined(inner, where):
                yield Branch(leaf.read, (*leaf.steps, *rules, *branch.steps))
        self._visiting.pop()

    def _view_relation(self, view: DatasetDefinition) -> Relation:
        assert view.function is not None
        flow = FlowDefinition(name=view.name, target=view.name, function=view.function, where=view.where)
        return self._relation(flow, view)

    def _check_known(self, name: str, where: str) -> None:
        known = self._known
        if name not in known and not is_external(name):
            raise DefinitionError(
                f"unknown dataset '{name}'", where=where, code="UNKNOWN_DATASET", remedy=nearest(name, known)
            )
        if name in self._definitions and self._definitions[name].sink is not None:
            raise DefinitionError(
                f"sink '{name}' cannot be read",
                where=where,
                code="SINK_NOT_READABLE",
                remedy="Let the flow feed a table, and stream from that into the sink",
            )

    def _resolved(self, text: str, where: str) -> set[str]:
        names = referenced_tables(text, where)
        for name in sorted(names - {"stream"}):
            self._check_known(name, place_of(name, where))
        return names


def _with_tables(rule: Expectation) -> Expectation:
    """Return a rule with the datasets that its sub-queries read."""
    if rule.tables or "select" not in rule.sql.lower():
        return rule
    try:
        found = referenced_tables(f"SELECT ({rule.sql}) FROM stream", rule.where)
    except DefinitionError:  # compiling the rule tells what is wrong with it, by its name
        return rule
    return replace(rule, tables=tuple(sorted(found - {"stream"})))


def _is_same_source(one: Read, other: Read) -> bool:
    """Return whether two reads would store their positions in the same place, whatever else they differ in."""
    if isinstance(one, KafkaRead | FilesRead | TableRead):
        return type(one) is type(other) and read_name(one) == read_name(other)
    return one == other


def _table_path(spec: Spec, definition: DatasetDefinition) -> str:
    """Return where a table with a path of its own lies."""
    path = resolve_path(spec, definition.path or "")
    sign = unusable_sign(path)
    if sign is not None:
        raise DefinitionError(
            f"table '{definition.name}' cannot lie there",
            where=definition.where,
            code="PATH_INVALID",
            found=f"{sign!r} in {path!r}",
            expected="a path without [ ] ^ | \\, control characters and '%' before two hex digits",
        )
    return path


def _quarantines(definition: DatasetDefinition) -> bool:
    return definition.is_merged or any(rule.action == "quarantine" for rule in definition.expectations)


def _call(flow: FlowDefinition) -> Relation:
    try:
        relation: Any = flow.function()
    except WaxlakeError:
        raise
    except (Exception, SystemExit) as exc:  # whatever a user's function raises is reported as that function's error
        path = Path(flow.where.rsplit(":", 1)[0])
        raise DefinitionError(
            f"the query function of '{flow.name}' failed: {type(exc).__name__}: {exc}",
            where=line_in(path, exc),
            code="QUERY_FUNCTION_FAILED",
        ) from exc
    if not isinstance(relation, Relation):
        raise DefinitionError(
            f"the query function of '{flow.name}' returned no relation",
            where=flow.where,
            code="QUERY_RETURN_TYPE",
            found=type(relation).__name__,
            expected="what wl.read_kafka, wl.read_files, wl.read_stream, wl.read or wl.sql return",
        )
    return relation
