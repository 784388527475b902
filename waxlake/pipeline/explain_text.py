"""``waxlake plan`` for people: the lines of what an update would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from waxlake.pipeline.explain import DatasetPlan, FlowPlan, PartitionView, UpdateView
from waxlake.stream.position import RowPosition

__all__ = ["plan_lines"]


def plan_lines(view: UpdateView) -> Iterator[str]:
    """Yield the lines of a plan."""
    yield f"pipeline {view.pipeline}: what an update would do"
    for dataset in view.datasets:
        yield from _dataset_lines(dataset)
    for note in view.notes:
        yield f"NOTE {note}"


def _dataset_lines(plan: DatasetPlan) -> Iterator[str]:
    kind = plan.kind.replace("_", " ")
    rows = "" if plan.rows is None else f", {plan.rows:,} rows"
    yield f"{kind} {plan.dataset}{rows}{'' if plan.exists else ': is created'}"
    if plan.refresh is not None:
        what = {"FULL": "is recomputed in full", "INCREMENTAL": "is refreshed incrementally"}.get(
            plan.refresh.mode, "stays as it is"
        )
        yield f"  {what}: {plan.refresh.reason} [{plan.refresh.code}]"
    for flow in plan.flows:
        yield from _flow_lines(plan, flow)
    if plan.refill:
        yield f"  full refresh: {plan.refill}"


def _flow_lines(plan: DatasetPlan, flow: FlowPlan) -> Iterator[str]:
    if flow.has_run_once:
        yield f"  flow {flow.flow}: has run once, and is done"
    elif plan.kind != "materialized_view":
        yield f"  flow {flow.flow}{': first run' if flow.is_first_run else ''}"
    for read in flow.reads:
        yield f"    {_read_line(read)}"
    for problem in flow.problems:
        yield f"    cannot be read: {problem}"
    for change in flow.changes:
        held = f" The table holds {plan.rows:,} rows." if plan.rows else ""
        yield f"    {change.aspect or 'definition'} changed [{change.code}].{held} {change.meaning}"
        yield from (f"      {line}" for line in change.diff)


def _read_line(read: PartitionView) -> str:
    place = "the beginning" if read.start is None else _position(read.source, read.start)
    partition = f" partition {read.partition}" if read.partition not in ("", "files", "log", "query") else ""
    return f"{read.source}{partition} from {place}: {_backlog(read.backlog)}{f' ({read.note})' if read.note else ''}"


def _position(source: str, position: int) -> str:
    kind = {"files": "file", "delta": "version", "query": "poll"}.get(source.partition(":")[0])
    if kind is None:
        return f"position {position}"
    row = RowPosition.unpack(position)
    return f"{kind} {row.major}" + (f" row {row.minor}" if row.minor else "")


def _backlog(backlog: Mapping[str, int | None]) -> str:
    units = (("records", "records"), ("files", "files"), ("size_bytes", "bytes"))
    known = [f"{backlog[key]:,} {unit}" for key, unit in units if backlog.get(key) is not None]
    if not known:
        return "how much is not known"
    return "nothing to go" if all(text.startswith("0 ") for text in known) else f"{', '.join(known)} to go"
