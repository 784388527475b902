"""The steps of a flow before, at and after its stateful operator. Read by whoever resolves or checks a flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waxlake.pipeline.definitions import Expect, Expectation, Query, Stateful, Step, WatermarkStep, WithColumns
from waxlake.pipeline.graph import Flow
from waxlake.stream.errors import DefinitionError

__all__ = ["SplitSteps", "has_operator", "keeps_late", "replaces_rows", "split_steps", "steps_statics"]


@dataclass(frozen=True, slots=True)
class SplitSteps:
    """The steps of a branch: what workers do, the operator with its event time, and what is done with its rows."""

    before: tuple[Step, ...]
    watermark: WatermarkStep | None = None
    operator: Stateful | None = None
    after: tuple[Step, ...] = ()


def split_steps(steps: Sequence[Step], flow: str, metadata_columns: Sequence[str]) -> SplitSteps:
    """Return the parts of a branch. Metadata columns that the operator uses are made columns of its rows.

    Raises:
        DefinitionError: ``STATEFUL_CHAIN``, two operators. Not retryable.
    """
    places = [index for index, step in enumerate(steps) if isinstance(step, Stateful)]
    rest = tuple(step for step in steps if not isinstance(step, WatermarkStep | Stateful))
    if not places:
        return SplitSteps(rest)
    if len(places) > 1:
        second = steps[places[1]]
        raise DefinitionError(
            f"flow '{flow}' has two stateful operators one after the other",
            where=second.where,
            code="STATEFUL_CHAIN",
            expected="one for each table",
            remedy="Let a table of its own hold the rows of the first, and read that with wl.read_stream",
        )
    operator = steps[places[0]]
    assert isinstance(operator, Stateful)
    watermarks = [step for step in steps[: places[0]] if isinstance(step, WatermarkStep)]
    before = tuple(step for step in steps[: places[0]] if not isinstance(step, WatermarkStep))
    watermark = watermarks[-1] if watermarks else None
    used = [*operator.operator.columns, *([watermark.time.column] if watermark is not None else [])]
    revealed = tuple((name, name) for name in metadata_columns if any(name in text for text in used))
    if revealed and not any(name in getattr(step, "expressions", ()) for step in before for name, _ in revealed):
        before = (*before, WithColumns(columns=revealed, where=operator.where))
    after = tuple(step for step in steps[places[0] + 1 :] if not isinstance(step, WatermarkStep))
    return SplitSteps(before, watermark, operator, after)


def steps_statics(steps: Sequence[Step], flow: Flow, rules: Sequence[Expectation] = ()) -> tuple[str, ...]:
    """Return the static datasets that the queries among some steps of a flow, and its rules, read."""
    texts = [step.text for step in steps if isinstance(step, Query)]
    of_views = [rule for step in steps if isinstance(step, Expect) for rule in step.expectations]
    of_rules = {name for rule in (*rules, *of_views) for name in rule.tables}
    return tuple(
        name for name in flow.statics if name in of_rules or any(name.rpartition(".")[2] in text for text in texts)
    )


def has_operator(flow: Flow) -> bool:
    """Return whether a flow has a stateful operator."""
    return any(isinstance(step, Stateful) for branch in flow.branches for step in branch.steps)


def replaces_rows(flow: Flow) -> bool:
    """Return whether the operator of a flow puts out rows that take the place of earlier ones."""
    steps = [step for branch in flow.branches for step in branch.steps]
    return any(isinstance(step, Stateful) and step.operator.replaces_rows for step in steps)


def keeps_late(flow: Flow) -> bool:
    """Return whether a flow sends rows that come too late to the quarantine table."""
    steps = [step for branch in flow.branches for step in branch.steps]
    return has_operator(flow) and any(isinstance(step, WatermarkStep) and step.time.keeps_late for step in steps)
