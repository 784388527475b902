"""Stateful operators one after the other, as they are checked. The rows between two of them are in the committing process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sinks.state import BoundOperator, Input
from sinks.state.chain import next_input
from waxlake.pipeline.definitions import Stateful, located
from waxlake.pipeline.stateful_steps import ChainedSteps, SplitSteps, keeps_late, steps_statics
from waxlake.pipeline.tables import EmptyTables
from waxlake.pipeline.transform import Transform
from waxlake.stream.errors import DefinitionError
from waxlake.stream.schema import no_rows

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.graph import Dataset, Flow

__all__ = ["next_stage", "one_operator"]


def one_operator(flow: Flow, steps: Sequence[SplitSteps]) -> Stateful:
    """Return the first operator of a flow, through which all of its branches go."""
    first = steps[0].operator
    if first is not None and all(
        s.operator is not None
        and s.operator.operator == first.operator
        and (s.chain, s.after) == (steps[0].chain, steps[0].after)
        for s in steps
    ):
        return first
    chained = [split.chain[-1].operator for split in steps if split.chain]
    if chained:
        raise DefinitionError(
            f"flow '{flow.name}' joins streams of which one has a stateful operator already",
            where=chained[-1].where,
            code="STATEFUL_CHAIN",
            expected="operators one after the other, of which only the first takes several streams",
            remedy="Let a table of its own hold the rows of that operator, and join with wl.read_stream of it",
        )
    raise DefinitionError(
        f"the branches of flow '{flow.name}' do not go through one stateful operator",
        where=flow.where,
        code="STATEFUL_UNION",
        remedy="Put union() before it, or feed the table from two flows with wl.append_flow",
    )


def next_stage(
    checked: CheckedGraph, dataset: Dataset, flow: Flow, step: ChainedSteps, before: BoundOperator
) -> tuple[Transform, Input, int]:
    """Return the steps between two operators, what they hand over, and how much further behind event time is there."""
    if before.upsert_keys:
        raise DefinitionError(
            f"flow '{flow.name}' has a stateful operator after one in update mode",
            where=step.operator.where,
            code="STATEFUL_CHAIN",
            found="rows that take the place of earlier ones",
            expected="an operator in append mode before another",
            remedy="Use windows in mode='append', or let a table of its own hold the rows and read that with wl.read",
        )
    transform = Transform(
        flow=flow.name,
        dataset=dataset.name,
        steps=step.between,
        expectations=(),
        source=no_rows(before.output),
        hidden=(),
        statics=steps_statics(step.between, flow),
        tables=EmptyTables(checked),
    )
    with located(step.operator.where):
        schema = transform.compile()
    with located(step.operator.where if step.watermark is None else step.watermark.where):
        named = None if step.watermark is None else step.watermark.time
        source, lag = next_input(before, schema, step.operator.operator, named, keeps_late=keeps_late(flow))
    return transform, source, lag
