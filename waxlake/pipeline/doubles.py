"""A pipeline with rows of a test in place of its sources: what was declared, changed before it is resolved.

Called by ``waxlake.testing``. A name of ``inputs`` is a dataset, which then *is* those rows (its query and rules are not run), or
a source, which then delivers them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import write_deltalake

from waxlake.pipeline.definitions import DatabaseRead, DatasetDefinition, FilesRead, KafkaRead, Read, TableRead
from waxlake.pipeline.given_rows import GivenRows, shape_of, typed_rows
from waxlake.pipeline.graph import QUARANTINE_SUFFIX, Graph, is_external, read_name
from waxlake.pipeline.registry import Registry
from waxlake.pipeline.stream import Batch, Branch, Relation, Stream
from waxlake.stream.delta_table import TableLocation, is_remote
from waxlake.stream.errors import UsageError
from waxlake.stream.schema import delta_schema
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = ["Doubles"]

_TABLE = "table:"


@dataclass(slots=True)
class Doubles:
    """The rows that a test has given so far, by the name it gave them for.

    Args:
        spec: The pipeline, on storage of the test's own.
        rows_per_batch: Most rows of one micro-batch of a source.
    """

    spec: Spec
    rows_per_batch: int
    _pending: dict[str, list[Any]] = field(default_factory=dict)
    _sources: dict[str, GivenRows] = field(default_factory=dict)
    _datasets: dict[str, TableLocation] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _extra: set[str] = field(default_factory=set)

    def give(self, inputs: Mapping[str, Any]) -> None:
        """Take rows for the next run."""
        for name, rows in inputs.items():
            self._pending.setdefault(name, []).append(rows)

    def adapt(self, registry: Registry) -> Registry:
        """Return the definitions with the given rows in place.

        Raises:
            UsageError: ``TEST_INPUT_AMBIGUOUS``, ``TEST_ROWS_INVALID``. Not retryable.
        """
        definitions = {d.name: d for d in registry.datasets()}
        relations = {d.name: _described(d.function) for d in definitions.values()}
        of_flows = {f.name: _described(f.function) for f in registry.flows()}
        reads = {read_name(r): r for r in _reads([*relations.values(), *of_flows.values()]) if _is_source(r)}
        for name, given in list(self._pending.items()):
            for rows in given:
                self._place(name, rows, definitions, relations, reads)
            del self._pending[name]
        adapted = Registry(configuration=registry.configuration, dialect=registry.dialect)
        for definition in definitions.values():
            adapted.add_dataset(self._dataset(definition, relations[definition.name]))
        for name in sorted(self._extra - set(definitions)):
            adapted.add_dataset(self._extra_table(name))
        for flow in registry.flows():
            if flow.target not in self._datasets:
                adapted.add_flow(replace(flow, function=self._function(flow.function, of_flows[flow.name])))
        return adapted

    def pruned(self, graph: Graph, until: tuple[str, ...]) -> Graph:
        """Return the part of a graph that ``until`` needs, after checking that no source of it was forgotten.

        Raises:
            UsageError: ``TEST_INPUT_MISSING``, ``TEST_INPUT_UNKNOWN``, ``UNKNOWN_DATASET``. Not retryable.
        """
        self._check_used(graph)
        for name in until:
            if name not in graph.datasets:
                raise UsageError(
                    f"until='{name}' is no dataset of this pipeline",
                    code="UNKNOWN_DATASET",
                    remedy=nearest(name, graph.datasets),
                )
        needed = set(graph.datasets) if not until else _closure(graph, until)
        datasets = {name: dataset for name, dataset in graph.datasets.items() if name in needed}
        for dataset in datasets.values():
            for flow in dataset.flows:
                for branch in flow.branches:
                    if _needs_network(branch.read):
                        raise _missing(dataset.name, branch.read)
        return replace(graph, datasets=datasets, order=tuple(name for name in graph.order if name in needed))

    def _place(
        self,
        name: str,
        rows: Any,
        definitions: Mapping[str, DatasetDefinition],
        relations: Mapping[str, Relation | None],
        reads: Mapping[str, Read],
    ) -> None:
        """Put rows where their name says."""
        dataset = name.removeprefix(_TABLE)
        named = [label for label in reads if name in (label, label.partition(":")[2])]
        if dataset in definitions and name == dataset and named:
            raise UsageError(
                f"input '{name}' names both a dataset and its source",
                code="TEST_INPUT_AMBIGUOUS",
                expected=f"'{_TABLE}{name}', to be that table, or '{named[0]}', to be what is read",
            )
        if named and not name.startswith(_TABLE):
            for label in named:
                self._source(label, reads[label]).add(rows)
            return
        definition = definitions.get(dataset)
        if definition is None:
            self._extra.add(dataset)
        schema = definition.schema if definition is not None else None
        is_view = definition is not None and definition.kind == "materialized_view"
        is_view = is_view or isinstance(relations.get(dataset), Batch)
        self._store(dataset, typed_rows(rows, schema, f"'{dataset}'"), replaces=is_view)

    def _source(self, label: str, read: Read) -> GivenRows:
        if label not in self._sources:
            self._sources[label] = GivenRows(shape_of(read, label), self.rows_per_batch)
        return self._sources[label]

    def _store(self, name: str, rows: pa.Table, *, replaces: bool) -> None:
        """Write rows to a Delta table of the test's own, which stands for a dataset or a source."""
        plain = re.sub(r"\W", "_", name)
        location = self._datasets.setdefault(name, TableLocation(f"{self.spec.storage_uri}/inputs/{plain}", name=name))
        if not rows.num_columns:
            if not location.exists():
                raise UsageError(
                    f"cannot tell the columns of '{name}'",
                    code="TEST_ROWS_INVALID",
                    found="no rows",
                    remedy="wl.testing.rows('id BIGINT, …', []) is a table without rows",
                )
            return
        rows = rows.cast(delta_schema(rows.schema))
        if not location.exists():
            location.create(pa.schema([f.with_nullable(True) for f in rows.schema]))
        mode = "overwrite" if replaces else "append"
        write_deltalake(location.open(), rows, mode=mode, schema_mode="merge")  # type: ignore[call-overload]

    def _dataset(self, definition: DatasetDefinition, relation: Relation | None) -> DatasetDefinition:
        definition = replace(definition, path=None)
        if definition.kind == "sink":  # nothing is handed over: a table holds what would have been
            definition = replace(definition, kind="table", sink=None)
        if definition.sink is not None:  # what would be sent is a table of the result, and nothing is sent
            definition = replace(definition, kind="table", sink=None)
        if definition.name not in self._datasets:
            function = definition.function
            is_view = definition.kind == "materialized_view"
            return replace(definition, function=self._function(function, relation, is_view=is_view))
        kind = Batch if definition.kind == "materialized_view" or isinstance(relation, Batch) else Stream
        given = kind((Branch(TableRead(name=self._datasets[definition.name].uri, where=definition.where)),))
        return replace(definition, function=lambda: given, expectations=())

    def _extra_table(self, name: str) -> DatasetDefinition:
        """Return a table that other definition files make, and the test gives."""
        where = "inputs of the test"
        given = Stream((Branch(TableRead(name=self._datasets[name].uri, where=where)),))
        return DatasetDefinition(name=name, kind="table", function=lambda: given, where=where)

    def _function(self, function: Any, relation: Relation | None, *, is_view: bool = False) -> Any:
        """Return a query function over the given rows; one that cannot be called is left for the resolver to report."""
        if function is None or relation is None:
            return function
        branches = tuple(Branch(self._read(b.read, is_view=is_view), b.steps) for b in relation.branches)
        changed = any(one.read is not other.read for one, other in zip(branches, relation.branches, strict=True))
        if is_view and changed and isinstance(relation, Stream):
            made: Relation = Batch(branches)
        else:
            made = replace(relation, branches=branches)
        return lambda: made

    def _read(self, read: Read, *, is_view: bool) -> Read:
        label = read_name(read)
        given = self._sources.get(label)
        if given is None:
            return read
        if is_view or isinstance(read, TableRead):
            name = f"source {label}"
            hidden = [n for n in given.shape.metadata.names if n in given.table.column_names]
            self._store(name, given.table.drop_columns(hidden), replaces=True)
            return TableRead(name=self._datasets[name].uri, where=read.where)
        return DatabaseRead(settings=given, where=read.where)

    def _check_used(self, graph: Graph) -> None:
        read = {n for d in graph.datasets.values() for f in d.flows for n in (*f.inputs, *f.statics)}
        for name in sorted(self._extra):
            if name not in read:
                known = {*graph.datasets, *(r for r in read if ":" in r and not is_external(r))}
                raise UsageError(
                    f"nothing reads the input '{name}'", code="TEST_INPUT_UNKNOWN", remedy=nearest(name, known)
                )


def _described(function: Callable[[], Any] | None) -> Relation | None:
    """Return what a query function describes; None where it cannot be called."""
    if function is None:
        return None
    try:
        relation = function()
    except (Exception, SystemExit):  # noqa: BLE001 - the resolver calls it again and reports what it raises
        return None
    return relation if isinstance(relation, Relation) else None


def _reads(relations: Iterable[Relation | None]) -> Iterator[Read]:
    for relation in relations:
        for branch in relation.branches if relation is not None else ():
            yield branch.read


def _is_source(read: Read) -> bool:
    if isinstance(read, TableRead):
        return is_external(read.name)
    return isinstance(read, KafkaRead | FilesRead | DatabaseRead)


def _needs_network(read: Read) -> bool:
    if isinstance(read, KafkaRead):
        return True
    if isinstance(read, DatabaseRead):
        return not isinstance(read.settings, GivenRows)
    if isinstance(read, FilesRead):
        return is_remote(read.settings.path)
    return isinstance(read, TableRead) and is_remote(read.name)


def _closure(graph: Graph, until: tuple[str, ...]) -> set[str]:
    needed: set[str] = set()
    waiting = list(until)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += graph.upstream(name)
    return needed | {n + QUARANTINE_SUFFIX for n in needed if n + QUARANTINE_SUFFIX in graph.datasets}


def _missing(dataset: str, read: Read) -> UsageError:
    label = read_name(read)
    return UsageError(
        f"'{dataset}' reads {label}, and a test has no network",
        code="TEST_INPUT_MISSING",
        expected=f"rows for it: inputs={{'{label}': [...]}}, or for '{dataset}' itself",
        remedy="Give an empty list for none, or leave it out with until=",
    )
