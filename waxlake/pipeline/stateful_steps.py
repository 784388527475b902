"""The steps of a flow before, at and after its stateful operator. Read by whoever resolves or checks a flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waxlake.pipeline.definitions import (
    Drop,
    Expect,
    Expectation,
    Query,
    Stateful,
    Step,
    WatermarkStep,
    Where,
    WithColumns,
)
from waxlake.pipeline.graph import Flow

__all__ = ["ChainedSteps", "SplitSteps", "has_operator", "keeps_late", "replaces_rows", "split_steps", "steps_statics"]


@dataclass(frozen=True, slots=True)
class ChainedSteps:
    """A further operator: the steps between the one before it and it, and the event time that is named there."""

    between: tuple[Step, ...]
    watermark: WatermarkStep | None
    operator: Stateful


@dataclass(frozen=True, slots=True)
class SplitSteps:
    """The steps of a branch: what workers do, the operators with their event time, and what is done with the last one's rows."""

    before: tuple[Step, ...]
    watermark: WatermarkStep | None = None
    operator: Stateful | None = None
    chain: tuple[ChainedSteps, ...] = ()
    after: tuple[Step, ...] = ()


def split_steps(steps: Sequence[Step], metadata_columns: Sequence[str]) -> SplitSteps:
    """Return the parts of a branch. Metadata columns that an operator uses are made columns of its rows."""
    parts: list[ChainedSteps] = []
    rest: list[Step] = []
    watermark: WatermarkStep | None = None
    for step in _hoisted(steps):
        if isinstance(step, WatermarkStep):
            watermark = step
        elif isinstance(step, Stateful):
            parts.append(ChainedSteps(tuple(rest), watermark, step))
            rest, watermark = [], None
        else:
            rest.append(step)
    if not parts:
        return SplitSteps(tuple(rest))
    first = parts[0]
    before = first.between
    used = [text for part in parts for text in _texts(part)]
    revealed = tuple((name, name) for name in metadata_columns if any(name in text for text in used))
    if revealed and not any(name in getattr(step, "expressions", ()) for step in before for name, _ in revealed):
        before = (*before, WithColumns(columns=revealed, where=first.operator.where))
    return SplitSteps(before, first.watermark, first.operator, tuple(parts[1:]), tuple(rest))


def _texts(part: ChainedSteps) -> Sequence[str]:
    return (*part.operator.operator.columns, *([part.watermark.time.column] if part.watermark is not None else []))


def _hoisted(steps: Sequence[Step]) -> Sequence[Step]:
    """Return the steps with a watermark that follows a first ``drop_duplicates`` put before it.

    That operator hands its rows on as they are, so time may as well begin in front of it, where the sources are known.
    """
    places = [index for index, step in enumerate(steps) if isinstance(step, Stateful)]
    if len(places) < 2 or any(isinstance(step, WatermarkStep) for step in steps[: places[0]]):
        return steps
    from sinks.state import Dedupe

    at = places[0]
    first = steps[at]
    mark = next((i for i in range(at + 1, places[1]) if not isinstance(steps[i], Where | Expect | Drop)), at)
    if not (
        isinstance(first, Stateful) and isinstance(first.operator, Dedupe) and isinstance(steps[mark], WatermarkStep)
    ):
        return steps
    return [*steps[:at], steps[mark], *steps[at:mark], *steps[mark + 1 :]]


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
    """Return whether an operator of a flow puts out rows that take the place of earlier ones."""
    steps = [step for branch in flow.branches for step in branch.steps]
    return any(isinstance(step, Stateful) and step.operator.replaces_rows for step in steps)


def keeps_late(flow: Flow) -> bool:
    """Return whether a flow sends rows that come too late to the quarantine table."""
    steps = [step for branch in flow.branches for step in branch.steps]
    return has_operator(flow) and any(isinstance(step, WatermarkStep) and step.time.keeps_late for step in steps)
