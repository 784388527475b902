"""Flows with a stateful operator as they are checked, planned and handed to the sink. The operators are ``sinks.state``'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import DeltaTable

from sinks.state import BoundOperator, Chain, EventTime, Input, Stage, StatefulFlow
from sinks.state.operator import Finished
from sinks.state.store import read_manifest, state_app_id
from waxlake.pipeline.columns import derived_columns
from waxlake.pipeline.definitions import Stateful, located
from waxlake.pipeline.expectations import FAILED_RULES
from waxlake.pipeline.pinned import flow_tables
from waxlake.pipeline.sql import StaticTables
from waxlake.pipeline.stateful_chain import next_stage, one_operator
from waxlake.pipeline.stateful_steps import SplitSteps, split_steps, steps_statics
from waxlake.pipeline.tables import EmptyTables
from waxlake.pipeline.transform import Outcome, Transform
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import stored_position
from waxlake.stream.errors import DefinitionError
from waxlake.stream.growth import merged_type
from waxlake.stream.schema import delta_schema, no_rows

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
    from waxlake.pipeline.graph import Dataset, Flow

__all__ = ["StatefulPlan", "require_same_state", "stateful_flows", "stateful_plans", "with_inputs"]


@dataclass(slots=True, kw_only=True)
class StatefulPlan:
    """The stateful operators of one flow, checked.

    Attributes:
        operators: They, in order.
        inputs: Inputs of the first, by their number; then that of each further one.
        between: For each further operator: the steps before it, and how far its watermark is behind.
        finish: The steps after the last one, and the rules of the table.
        sources: Number of sources that the flow reads.
    """

    operators: tuple[BoundOperator, ...]
    inputs: tuple[Input, ...]
    between: tuple[tuple[Transform, int], ...]
    finish: Transform
    sources: int

    @property
    def operator(self) -> BoundOperator:
        """All operators as one."""
        return self.joined(lambda transform: None)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What is done with the rows of operators."""
        return (*(transform for transform, _ in self.between), self.finish)

    def joined(self, prepare: Callable[[Transform], Callable[[pa.Table], Finished] | None]) -> BoundOperator:
        """Return all operators as one.

        Args:
            prepare: Returns what does the steps between two of them.
        """
        first, *others = self.operators
        if not others:
            return first
        stages = [
            Stage(operator=operator, prepare=prepare(transform), lag_us=lag)
            for operator, (transform, lag) in zip(others, self.between, strict=True)
        ]
        return Chain([Stage(operator=first), *stages], inputs=len(self.inputs) - len(others))

    @property
    def times(self) -> dict[int, EventTime]:
        """Number of an input to its event time."""
        return {number: item.time for number, item in enumerate(self.inputs) if item.time is not None}


def stateful_plans(checked: CheckedGraph, dataset: Dataset, parts: Sequence[CheckedFlow]) -> dict[str, StatefulPlan]:
    """Return the operators of a dataset's flows, by flow.

    Args:
        checked: The pipeline, upstream of the dataset.
        dataset: It.
        parts: Its reads, compiled up to the operator.

    Raises:
        DefinitionError: An operator does not fit its inputs, or the branches of a flow are not alike. Not retryable.
    """
    plans = {}
    for flow in dataset.flows:
        own = [part for part in parts if part.flow is flow]
        steps = [split_steps(b.steps, p.connector.metadata_columns) for b, p in zip(flow.branches, own, strict=True)]
        if any(split.operator is not None for split in steps):
            plans[flow.name] = _plan(checked, dataset, flow, own, steps)
    return plans


def _plan(
    checked: CheckedGraph, dataset: Dataset, flow: Flow, parts: Sequence[CheckedFlow], steps: Sequence[SplitSteps]
) -> StatefulPlan:
    first = one_operator(flow, steps)
    if flow.changes is not None:
        raise DefinitionError(
            f"AUTO CDC flow '{flow.name}' cannot have a stateful operator",
            where=first.where,
            code="NOT_AVAILABLE",
            remedy="Let a table of its own hold the operator's rows, and apply the changes from that",
        )
    if dataset.kind == "sink":
        raise DefinitionError(
            f"flow '{flow.name}' cannot have a stateful operator: '{dataset.name}' is a sink",
            where=first.where,
            code="NOT_AVAILABLE",
            remedy="State lies beside a table: let one hold the operator's rows, and feed the sink from that",
        )
    keys = [rule for rule in dataset.expectations if rule.scope == "key"]
    if keys:
        raise DefinitionError(
            f"expectation '{keys[0].name}' cannot be one of '{dataset.name}'",
            where=keys[0].where,
            code="EXPECTATION_SCOPE",
            found=f"a rule over keys of a table that the stateful operator of '{flow.name}' writes",
            expected="a table that streams from it",
        )
    with located(first.where):
        inputs = _inputs(flow, parts, steps)
        operator = first.operator.bind(inputs)
    operators = [operator]
    between: list[tuple[Transform, int]] = []
    for step in steps[0].chain:
        transform, source, lag = next_stage(checked, dataset, flow, step, operator)
        lag += between[-1][1] if between else 0
        with located(step.operator.where):
            operator = step.operator.operator.bind((source,))
        operators.append(operator)
        between.append((transform, lag))
        inputs = (*inputs, source)
    if operator.upsert_keys:
        _require_upsertable(dataset, flow, first)
    finish = Transform(
        flow=flow.name,
        dataset=dataset.name,
        steps=steps[0].after,
        expectations=dataset.expectations,
        source=no_rows(operator.output),
        hidden=(),
        statics=steps_statics(steps[0].after, flow, dataset.expectations),
        tables=EmptyTables(checked),
        schema=delta_schema(dataset.definition.schema) if dataset.definition.schema is not None else None,
        derived=derived_columns(dataset.definition.schema),
    )
    with located(flow.where):
        finish.compile()
    missing = [name for name in operator.upsert_keys if name not in finish.output.names]
    if missing:
        raise DefinitionError(
            f"flow '{flow.name}' leaves out a column that identifies its rows",
            where=first.where,
            code="STATEFUL_KEY_LEFT_OUT",
            found=", ".join(finish.output.names),
            expected=", ".join(operator.upsert_keys),
            remedy="Later rows replace earlier ones by these columns: keep them",
        )
    return StatefulPlan(
        operators=tuple(operators), inputs=inputs, between=tuple(between), finish=finish, sources=len(parts)
    )


def _require_upsertable(dataset: Dataset, flow: Flow, step: Stateful) -> None:
    if len(dataset.flows) > 1:
        raise DefinitionError(
            f"table '{dataset.name}' cannot be fed by other flows beside '{flow.name}'",
            where=step.where,
            code="STATEFUL_UPDATE_SHARED",
            found="an operator in update mode, whose rows replace earlier ones",
            remedy="Give it a table of its own, or use append mode",
        )


def _inputs(flow: Flow, parts: Sequence[CheckedFlow], steps: Sequence[SplitSteps]) -> tuple[Input, ...]:
    """Return the inputs of an operator; the branches of one have the columns of all of them."""
    sides = sorted({part.side for part in parts})
    found = []
    for side in sides:
        members = [(part, split) for part, split in zip(parts, steps, strict=True) if part.side == side]
        times = {split.watermark.time if split.watermark is not None else None for _, split in members}
        if len(times) > 1:
            raise DefinitionError(
                f"the branches of flow '{flow.name}' do not have the same watermark",
                where=flow.where,
                code="STATEFUL_UNION",
                remedy="Put with_watermark() after union()",
            )
        schema = _joined([part.transform.output for part, _ in members], flow)
        for part, _ in members:
            part.transform.output = schema
        found.append(Input(schema=schema, time=times.pop()))
    return tuple(found)


def _joined(schemas: Sequence[pa.Schema], flow: Flow) -> pa.Schema:
    fields: dict[str, pa.Field] = {}
    for item in (item for schema in schemas for item in schema):
        known = fields.setdefault(item.name, item)
        both = merged_type(known.type, item.type)
        if both is None:
            raise DefinitionError(
                f"the branches of flow '{flow.name}' do not agree on column '{item.name}'",
                where=flow.where,
                code="SCHEMA_MISMATCH",
                found=item.type,
                expected=known.type,
                remedy="Cast it to one type",
            )
        fields[item.name] = known.with_type(both).with_nullable(True)
    return pa.schema(list(fields.values()))


def with_inputs(rows: pa.Schema, plans: Mapping[str, StatefulPlan], dataset: Dataset) -> pa.Schema:
    """Return the columns of a table's rejected rows, with those of the inputs whose late rows are kept.

    Raises:
        DefinitionError: A column of an input has another type in the table. Not retryable.
    """
    fields = {item.name: item for item in rows}
    for plan in plans.values():
        for item in (
            item for one in plan.inputs if one.time is not None and one.time.keeps_late for item in one.schema
        ):
            if fields.setdefault(item.name, item).type != item.type:
                raise DefinitionError(
                    f"late rows cannot go to the quarantine table of '{dataset.definition.name}'",
                    where=dataset.where,
                    code="SCHEMA_MISMATCH",
                    found=f"column '{item.name}' {item.type} of the late rows",
                    expected=f"{fields[item.name].type}, as in the table",
                    remedy="Give the table's column another name",
                )
    return pa.schema(list(fields.values()))


def stateful_flows(
    checked: CheckedGraph, target: str, pinned: Mapping[str, int], tables: StaticTables
) -> dict[str, StatefulFlow]:
    """Return the operators of a table as its sink takes them.

    Args:
        checked: The pipeline.
        target: The table.
        pinned: Versions of static tables that flows pin.
        tables: Finds static tables.
    """
    flows = {flow.name: flow for flow in checked.graph.datasets[target].flows}
    own = {name: flow_tables(checked, flow, pinned, tables) for name, flow in flows.items()}
    return {
        flow: StatefulFlow(
            operator=plan.joined(partial(_Finish, tables=own[flow])),
            times=plan.times,
            sources=plan.sources,
            finish=_Finish(plan.finish, own[flow]),
            output=plan.finish.output,
            reject=_rejected if any(time.keeps_late for time in plan.times.values()) else None,
        )
        for flow, plan in checked.stateful[target].items()
    }


@dataclass(slots=True)
class _Finish:
    """What is done with the rows of an operator."""

    transform: Transform
    tables: StaticTables

    def __call__(self, rows: pa.Table) -> Outcome:
        outcome = self.transform.apply(rows, self.tables)
        if outcome.rejected is None or not outcome.rejected.num_rows:
            return outcome
        return replace(outcome, rejected=_stamped(outcome.rejected))


def _rejected(rows: pa.Table, why: str) -> pa.Table:
    rules = pa.repeat(pa.scalar([why], pa.list_(pa.string())), rows.num_rows)
    return _stamped(rows.append_column(pa.field(FAILED_RULES, pa.list_(pa.string())), rules))


def _stamped(rows: pa.Table) -> pa.Table:
    now = pa.scalar(utc_now(), pa.timestamp("us", "UTC"))
    return rows.append_column("_quarantined_at", pa.repeat(now, rows.num_rows))


def require_same_state(checked: CheckedGraph, part: CheckedFlow, handle: DeltaTable) -> None:
    """Stop if the state of a flow was made by another operator than the one it has now.

    Raises:
        DefinitionError: ``STATE_SHAPE_CHANGED``. Not retryable.
    """
    from waxlake.stream.position import sources_app_id

    dataset = checked.graph.datasets[part.flow.target]
    plan = checked.stateful.get(dataset.name, {}).get(part.flow.name)
    number = stored_position(handle, state_app_id(part.flow.name))
    has_run = stored_position(handle, sources_app_id(part.flow.name)) is not None
    if number is None and (
        plan is None or not has_run or handle.transaction_version(state_app_id(part.flow.name)) is not None
    ):
        return
    found = {} if plan is None else dict(plan.operator.shape)
    assert dataset.location is not None
    stored: dict[str, Any] = {} if number is None else read_manifest(dataset.location, part.flow.name, number)["shape"]
    if found == stored:
        return
    raise DefinitionError(
        f"flow '{part.flow.name}' has another state than the one that table '{dataset.name}' holds",
        where=part.flow.where,
        code="STATE_SHAPE_CHANGED",
        found=_difference(found, stored),
        expected=_difference(stored, found),
        remedy=f"Fill the table anew with waxlake run --full-refresh {dataset.name}; or keep its rows and read the sources from "
        f"where a new flow begins with --reset-checkpoint {dataset.name}; or undo the change",
    )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what of ``one`` is not in ``other``."""
    if not one:
        return "no stateful operator"
    parts = [f"{key} {value}" for key, value in one.items() if other.get(key) != value]
    return ", ".join(parts) or f"operator {one.get('operator')}"
