"""Check a graph without reading data: every query is compiled against tables without rows, upstream first.

That finds unknown columns, wrong types and misuse, and yields the columns of every dataset. ``waxlake dry-run`` is this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from waxlake.pipeline.auto_cdc import flow_expectations, merge_plan, target_schema
from waxlake.pipeline.checked import BatchQuery, CheckedFlow, CheckedGraph, base_rows
from waxlake.pipeline.cleaned_files import check_cleaned_files
from waxlake.pipeline.columns import check_constraints, derived_columns
from waxlake.pipeline.definitions import FilesRead, TableRead, located
from waxlake.pipeline.graph import Dataset, Flow, Graph, read_name
from waxlake.pipeline.places import check_places
from waxlake.pipeline.quarantine import quarantine_schema
from waxlake.pipeline.replaced_files import check_replaced_files
from waxlake.pipeline.sinks import check_sink
from waxlake.pipeline.stateful import StatefulPlan, stateful_plans, with_inputs
from waxlake.pipeline.stateful_steps import split_steps, steps_statics
from waxlake.pipeline.stream import Branch
from waxlake.pipeline.tables import EmptyTables
from waxlake.pipeline.transform import Transform, mentioned
from waxlake.pipeline.trigger import VIEW_INTERVAL_S, own_interval_s
from waxlake.stream.changes import UNCHANGED_COLUMNS
from waxlake.stream.delta_table import arrow_schema
from waxlake.stream.errors import DefinitionError, TransientError
from waxlake.stream.growth import merged_type
from waxlake.stream.schema import compare_schemas, delta_schema, no_rows
from waxlake.stream.source import Sharing
from waxlake.stream.table_properties import order_columns

__all__ = ["check_graph"]


def check_graph(graph: Graph, *, known: Sequence[CheckedFlow] = ()) -> CheckedGraph:
    """Compile every query of a graph, upstream first.

    Args:
        graph: The pipeline.
        known: Its flows as they were checked before: a source that does not answer now is taken to be as it was then.

    Raises:
        DefinitionError: An unknown column, a type error, flows of one table that do not fit together; names file and line.
            Not retryable.
        SchemaError: A column of a type that Delta cannot hold. Not retryable.
    """
    check_places(graph)
    checked = CheckedGraph(graph, known=known)
    for name in graph.order:
        dataset = graph.datasets[name]
        if dataset.kind == "quarantine":
            of = dataset.definition.name
            rows = checked.merges[of].changes if of in checked.merges else checked.schemas[of]
            rows = with_inputs(rows, checked.stateful.get(of, {}), dataset)
            checked.schemas[name] = quarantine_schema(rows)
        elif dataset.kind in ("table", "sink"):
            _check_table(checked, dataset)
            check_sink(checked, dataset)
        elif _is_streaming_view(dataset):
            _check_streaming_view(checked, dataset)
        else:
            _check_view(checked, dataset)
        own_interval_s(dataset)
        if dataset.kind in ("table", "materialized_view"):
            check_constraints(dataset.definition, checked.schemas[name])
        _check_stored(checked, dataset)
    check_cleaned_files(graph, checked.file_settings)
    checked.known = ()
    return checked


def _is_streaming_view(dataset: Dataset) -> bool:
    return any(flow.inputs for flow in dataset.flows)


def _check_table(checked: CheckedGraph, dataset: Dataset) -> None:
    compiled = [_compiled_branch(checked, dataset, flow, branch) for flow in dataset.flows for branch in flow.branches]
    if dataset.definition.is_merged:
        plan = checked.merges[dataset.name] = merge_plan(dataset, compiled)
        checked.schemas[dataset.name] = target_schema(dataset, plan.shape)
        _check_layout(dataset, checked.schemas[dataset.name])
        check_replaced_files(dataset, compiled, checked.schemas[dataset.name])
        checked.flows += compiled
        return
    plans = stateful_plans(checked, dataset, compiled)
    schema = dataset.definition.schema
    schema = delta_schema(schema) if schema is not None else _merged(dataset, compiled, plans)
    for part in compiled:
        made_by = plans[part.flow.name].finish if part.flow.name in plans else part.transform
        made_by.output = schema
    if plans:
        checked.stateful[dataset.name] = plans
    _check_layout(dataset, schema)
    check_replaced_files(dataset, compiled, schema)
    checked.schemas[dataset.name] = schema
    checked.flows += compiled


def _compiled_branch(checked: CheckedGraph, dataset: Dataset, flow: Flow, branch: Branch) -> CheckedFlow:
    fixed = _fixed_columns(dataset, flow, branch)
    connector, away = checked.connector(branch.read, fixed=fixed), None
    if flow.once and isinstance(connector, Sharing):
        raise DefinitionError(
            f"flow '{flow.name}' cannot run once: it would need a slot of its own in the log of its database",
            where=flow.where,
            code="NOT_AVAILABLE",
            remedy="Leave out once=True: the first load of a table is read once anyway",
        )
    try:
        empty = connector.empty()
        partitions = connector.takes() if isinstance(connector, Sharing) else None
    except TransientError as error:
        before = _known_part(checked, flow, branch)
        if before is None:
            raise
        away, connector = error, before.connector
        empty, partitions = before.empty, before.partitions
    expectations = tuple(rule for rule in flow_expectations(dataset, flow) if rule.scope != "key")
    rules = [rule.sql for rule in expectations]
    steps = split_steps(branch.steps, connector.metadata_columns)
    of_changes = _columns_of_changes(flow, connector.metadata_columns)
    used = mentioned(branch.steps, connector.metadata_columns) | {
        name for name in connector.metadata_columns if any(name in rule for rule in rules)
    }
    used |= of_changes
    visible = [name for name in empty.column_names if name not in connector.metadata_columns or name in used]
    statics = steps_statics(branch.steps, flow, expectations)
    declared = dataset.definition.schema if steps.operator is None else None
    transform = Transform(
        flow=flow.name,
        dataset=dataset.name,
        steps=steps.before,
        expectations=expectations if steps.operator is None else (),
        source=empty.select(visible),
        hidden=tuple(name for name in visible if name in connector.metadata_columns and name not in of_changes),
        statics=statics,
        tables=EmptyTables(checked),
        schema=delta_schema(declared) if declared is not None and flow.changes is None else None,
        derived=derived_columns(declared) if flow.changes is None else (),
    )
    with located(flow.where):
        transform.compile()
    upstream = [branch.read.name] if isinstance(branch.read, TableRead) else []
    gates = tuple(name for name in dict.fromkeys([*upstream, *statics]) if name in checked.graph.datasets)
    return CheckedFlow(
        flow=flow,
        read=branch.read,
        connector=connector,
        transform=transform,
        columns=frozenset(visible),
        gates=gates,
        partitions=partitions,
        fixed=fixed,
        side=steps.operator.side if steps.operator is not None else 0,
        empty=empty,
        away=away,
    )


def _known_part(checked: CheckedGraph, flow: Flow, branch: Branch) -> CheckedFlow | None:
    """Return the read of a flow as it was checked before; None if it is another one now."""
    return next((part for part in checked.known if part.flow.name == flow.name and part.read == branch.read), None)


def _columns_of_changes(flow: Flow, metadata_columns: Sequence[str]) -> frozenset[str]:
    """Return the metadata columns that the merge of a flow's changes needs."""
    if flow.changes is None:
        return frozenset()
    texts = flow.changes.texts
    return frozenset(n for n in metadata_columns if n == UNCHANGED_COLUMNS or any(n in text for text in texts))


def _fixed_columns(dataset: Dataset, flow: Flow, branch: Branch) -> pa.Schema | None:
    """Return the declared columns of a table, which keep its files from adding any: those stay in ``_rescued_data``."""
    schema = dataset.definition.schema
    if schema is None or not isinstance(branch.read, FilesRead) or not branch.read.settings.evolves:
        return None
    if branch.read.settings.schema_evolution_mode is not None:
        raise DefinitionError(
            f"flow '{flow.name}' cannot add columns to table '{dataset.name}'",
            where=flow.where,
            code="EVOLUTION_OF_DECLARED_TABLE",
            found=f"schema_evolution_mode={branch.read.settings.schema_evolution_mode!r} and a declared schema= of the table",
            remedy="Leave out schema= of the table, or the mode: new fields then stay in _rescued_data",
        )
    return delta_schema(schema)


def _merged(
    dataset: Dataset, compiled: Sequence[CheckedFlow], plans: Mapping[str, StatefulPlan] | None = None
) -> pa.Schema:
    """Return the columns of all flows together; a column of two types is an error."""
    fields: dict[str, pa.Field] = {}
    for part in compiled:
        plan = (plans or {}).get(part.flow.name)
        for item in part.transform.output if plan is None else plan.finish.output:
            known = fields.setdefault(item.name, item)
            both = merged_type(known.type, item.type)
            if both is not None:
                fields[item.name] = known.with_type(both)
            else:
                raise DefinitionError(
                    f"the flows of table '{dataset.name}' do not agree on column '{item.name}'",
                    where=part.flow.where,
                    code="SCHEMA_MISMATCH",
                    found=f"{item.type} from {read_name(part.read)}",
                    expected=str(known.type),
                    remedy="Cast it to one type, or declare schema=",
                )
    several = len(compiled) > 1
    return pa.schema([f.with_nullable(True) if several else f for f in fields.values()])


def _check_layout(dataset: Dataset, schema: pa.Schema) -> None:
    ordered = order_columns(dataset.definition.properties)
    wanted = [("partitioned", name) for name in dataset.definition.partition_by]
    for what, name in [*wanted, *(("clustered", name) for name in ordered)]:
        if name not in schema.names:
            raise DefinitionError(
                f"table '{dataset.name}' is {what} by an unknown column '{name}'",
                where=dataset.where,
                code="UNKNOWN_COLUMN",
                expected=", ".join(schema.names),
            )


def _check_streaming_view(checked: CheckedGraph, dataset: Dataset) -> None:
    """A temporary view over a stream is inlined where it is read; here it is only checked."""
    compiled = [_compiled_branch(checked, dataset, flow, branch) for flow in dataset.flows for branch in flow.branches]
    checked.schemas[dataset.name] = _merged(dataset, compiled, stateful_plans(checked, dataset, compiled))


def _check_view(checked: CheckedGraph, dataset: Dataset) -> None:
    flow = dataset.flows[0]
    query = BatchQuery(flow)
    empty = EmptyTables(checked)
    declared = dataset.definition.schema
    for branch in flow.branches:
        transform = Transform(
            flow=flow.name,
            dataset=dataset.name,
            steps=branch.steps,
            expectations=dataset.expectations if dataset.kind == "temporary_view" else (),
            source=_empty_rows(checked, query, branch),
            hidden=("_metadata",) if isinstance(branch.read, FilesRead) and _uses_metadata(branch) else (),
            statics=steps_statics(branch.steps, flow, dataset.expectations),
            tables=empty,
            schema=delta_schema(declared) if declared is not None else None,
            derived=derived_columns(declared),
        )
        with located(flow.where):
            transform.compile()
        query.branches.append((branch, transform))
    query.schema = query.branches[0][1].output
    for branch, transform in query.branches[1:]:
        if not transform.output.equals(query.schema):
            raise DefinitionError(
                f"the parts of view '{dataset.name}' do not have the same columns",
                where=branch.read.where,
                code="UNION_MISMATCH",
                found=", ".join(f"{f.name} {f.type}" for f in transform.output),
                expected=", ".join(f"{f.name} {f.type}" for f in query.schema),
            )
    checked.queries[dataset.name] = query
    checked.schemas[dataset.name] = query.schema
    if dataset.kind == "materialized_view":
        checked.flows.append(_view_flow(checked, dataset, query))
        _check_layout(dataset, query.schema)
        if dataset.definition.refresh_policy.startswith("incremental"):
            from waxlake.pipeline.incremental.refresh import require_incremental

            require_incremental(checked, dataset)


def _uses_metadata(branch: Branch) -> bool:
    return bool(mentioned(branch.steps, ("_metadata",)))


def _empty_rows(checked: CheckedGraph, query: BatchQuery, branch: Branch) -> pa.Table:
    """Return no rows of what a batch query starts from; a read of files is opened here."""
    if not isinstance(branch.read, FilesRead):
        return base_rows(branch.read, EmptyTables(checked), query.flow)
    from connectors.files.scan import FilesScan
    from waxlake.pipeline.file_rows import FileRows

    with located(branch.read.where):
        scan = FilesScan(checked.file_settings(branch.read))
        rows = query.files[id(branch)] = FileRows(scan, scan.schema(), _uses_metadata(branch))
    return rows.empty()


def _view_flow(checked: CheckedGraph, dataset: Dataset, query: BatchQuery) -> CheckedFlow:
    from waxlake.pipeline.view import ViewConnector

    flow = dataset.flows[0]
    assert dataset.location is not None
    transform = Transform(
        flow=flow.name,
        dataset=dataset.name,
        steps=(),
        expectations=dataset.expectations,
        source=no_rows(query.schema),
        hidden=(),
        statics=tuple(dict.fromkeys(name for rule in dataset.expectations for name in rule.tables)),
        tables=EmptyTables(checked),
        schema=query.schema,
    )
    transform.compile()
    gates = tuple(name for name in stored_tables_of(checked, flow.statics) if name in checked.graph.datasets)
    return CheckedFlow(
        flow=flow,
        read=TableRead(name=f"view:{dataset.name}"),
        connector=ViewConnector(
            checked,
            dataset.name,
            stored_tables_of(checked, flow.statics),
            tuple(query.files.values()),
            min_interval_s=own_interval_s(dataset) or VIEW_INTERVAL_S,
        ),
        transform=transform,
        columns=frozenset(query.schema.names),
        gates=gates,
        empty=transform.source,
    )


def stored_tables_of(checked: CheckedGraph, names: Iterable[str]) -> tuple[str, ...]:
    """Return the stored tables that are read under some names, temporary views looked through."""
    found: list[str] = []
    for name in names:
        dataset = checked.graph.datasets.get(name)
        if dataset is not None and dataset.kind == "temporary_view":
            found += stored_tables_of(checked, dataset.flows[0].statics)
        else:
            found.append(name)
    return tuple(dict.fromkeys(found))


def _check_stored(checked: CheckedGraph, dataset: Dataset) -> None:
    """Compare with the table that exists: an append cannot change a column's type."""
    if dataset.location is None or dataset.kind == "materialized_view" or dataset.has_ledger:
        return
    if not dataset.location.exists():
        return
    stored = arrow_schema(dataset.location.open())
    change = compare_schemas(stored, checked.schemas[dataset.name])
    if change.changed:
        name, before, after = change.changed[0]
        raise DefinitionError(
            f"column '{name}' of table '{dataset.name}' changed its type",
            where=dataset.where,
            code="SCHEMA_CHANGED",
            found=str(after),
            expected=f"{before}, as stored",
            remedy=f"Cast it to the stored type, give the new column another name, or fill the table anew with waxlake run "
            f"--full-refresh {dataset.name}",
        )
