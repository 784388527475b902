"""What listeners are told of an update besides its commits: how it was made, what it defines, what changed, how it goes.

A run that is prepared makes one ``Reporter`` and hands it on; the event log is one of its listeners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sinks.delta import CommitReceipt
from waxlake.pipeline.changed import FlowHistory, definition_changes
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.definitions import FilesRead
from waxlake.pipeline.events import Event, backfill_from_commits, make_event, progress_events
from waxlake.pipeline.fingerprint import flow_fingerprint, flow_text
from waxlake.pipeline.graph import Dataset, Flow
from waxlake.pipeline.notify import Notifier
from waxlake.pipeline.plan import RunPlan
from waxlake.pipeline.progress import Listener
from waxlake.pipeline.quality import complete_quality
from waxlake.pipeline.spec import Spec
from waxlake.pipeline.state import Emit
from waxlake.stream.errors import SchemaGrown, WaxlakeError

__all__ = ["Reporter", "report_creation", "report_growth", "report_plan"]


class Reporter:
    """Hands events to the event log and to every listener."""

    def __init__(self, spec: Spec, update_id: str, listeners: Sequence[Listener]) -> None:
        self._spec, self.update_id, self._listeners = spec, update_id, list(listeners)
        self.rows: dict[str, int] = {}
        self._held: list[Event] | None = None

    def __call__(
        self,
        event_type: str,
        message: str,
        *,
        level: str = "INFO",
        dataset: str | None = None,
        flow: str | None = None,
        details: Mapping[str, Any] | None = None,
        error: WaxlakeError | None = None,
    ) -> None:
        """Tell of an event that is made of these; the pipeline, the update and the time are added."""
        shown = None if error is None else {"code": error.code, "message": str(error)}
        self.send(
            make_event(
                event_type,
                message,
                pipeline=self._spec.name,
                update_id=self.update_id,
                level=level,
                dataset=dataset,
                flow=flow,
                details=details,
                error=shown,
            )
        )

    def planning_failed(self, error: WaxlakeError, *, is_tried_again: bool) -> None:
        """Report an update that never ran, unless nobody has heard of it."""
        if self._held is None and is_tried_again:
            details = {"update_progress": {"state": "RESETTING", "cause": "RETRY_ON_FAILURE"}}
            self("update_progress", f"{error} Trying again", level="WARN", details=details, error=error)
        elif self._held is None:
            self("update_progress", f"update FAILED: {error}", level="ERROR",
                 details={"update_progress": {"state": "FAILED"}}, error=error)  # fmt: skip

    def committed(self, receipt: CommitReceipt) -> None:
        """Tell of a commit, and count its rows."""
        self.rows[receipt.table] = self.rows.get(receipt.table, 0) + receipt.rows
        for event in progress_events(receipt, pipeline=self._spec.name, update_id=self.update_id):
            self.send(event)

    def send(self, event: Event) -> None:
        """Hand an event on, or keep it as long as events are held back."""
        if self._held is not None:
            self._held.append(event)
            return
        for listener in self._listeners:
            listener.on_event(event)

    def attach_hooks(self, checked: CheckedGraph) -> None:
        """Let the event hooks of the definitions hear of the update."""
        for listener in self._listeners:
            if isinstance(listener, Notifier):
                listener.attach(checked.graph.event_hooks)

    def hold(self) -> None:
        """Keep events back until ``let_go``: whether this update begins at all is not known yet."""
        self._held = []

    def let_go(self) -> None:
        """Hand on what was kept back, and every event from now on at once."""
        held, self._held = self._held, None
        for event in held or ():
            self.send(event)

    def state(self, state: str, message: str, *, level: str = "INFO") -> None:
        """Report the state of the update."""
        self("update_progress", message, level=level, details={"update_progress": {"state": state}})


def report_creation(report: Reporter, checked: CheckedGraph, mode: str, cause: str) -> None:
    """Tell that an update begins, why, and of which tables."""
    asked: dict[str, Any] = {"mode": mode, "cause": cause}
    if checked.selected is not None:
        asked["full_refresh_selection" if checked.is_shadow else "refresh_selection"] = sorted(checked.selected)
    report("create_update", f"update {report.update_id} starts ({mode})", details={"create_update": asked})
    _report_unwidened(report, checked)


def _report_unwidened(report: Reporter, checked: CheckedGraph) -> None:
    """Say once an update that types are not widened where that was asked for: nothing here writes it to a Delta table."""
    for part in checked.flows:
        if isinstance(part.read, FilesRead) and part.read.settings.evolution.endswith("type_widening"):
            text = (
                f"types of {part.connector.name} are not widened: Delta tables are written without type widening. "
                "New columns are added; a value that does not fit its column stays in _rescued_data"
            )
            report("schema_evolution", text, level="WARN", dataset=part.flow.target, flow=part.flow.name)


def _definition_facts(checked: CheckedGraph, dataset: Dataset, flow: Flow) -> dict[str, Any]:
    text = flow_text(checked, dataset, flow)
    return {
        "inputs": list(flow.inputs),
        "statics": list(flow.statics),
        "definition": text,
        "fingerprint": flow_fingerprint(text),
    }


def _report_changes(report: Reporter, checked: CheckedGraph) -> None:
    """Say what changed in the definitions since the tables' last commits; called before this update's are recorded."""
    history = FlowHistory(checked.graph)
    for dataset in checked.graph.datasets.values():
        if dataset.location is None or dataset.kind == "quarantine" or not checked.is_selected(dataset.name):
            continue
        handle = dataset.location.open()
        for flow in dataset.flows:
            for change in definition_changes(checked, dataset, flow, handle, history):
                what = f"the {change.aspect or 'definition'} of flow {flow.name} changed"
                diff = "".join(f"\n  {line}" for line in change.diff)
                report(
                    "planning_information",
                    f"{what}. {change.meaning}{diff}",
                    dataset=dataset.name,
                    flow=flow.name,
                    details={"planning_information": {"change": asdict(change)}},
                )


def report_plan(report: Reporter, checked: CheckedGraph, plan: RunPlan, *, is_planned_again: bool) -> None:
    """Tell what the update defines, what changed since the last one, and what the plan leaves out.

    Commits that no event was written for, as after a crash, are told of here too.
    """
    if not (is_planned_again or checked.is_shadow):
        _report_changes(report, checked)
    spec = checked.graph.spec
    for name in checked.graph.order:
        dataset = checked.graph.datasets[name]
        if dataset.kind == "quarantine":
            continue
        columns = [{"name": f.name, "type": str(f.type)} for f in checked.schemas[name]]
        report(
            "dataset_definition",
            f"{dataset.kind} {name}",
            dataset=name,
            details={"dataset_definition": {"kind": dataset.kind, "where": dataset.where, "schema": columns}},
        )
        for flow in dataset.flows:
            report(
                "flow_definition",
                f"flow {flow.name}: {', '.join((*flow.inputs, *flow.statics)) or 'no input'} → {name}",
                dataset=name,
                flow=flow.name,
                details={"flow_definition": _definition_facts(checked, dataset, flow)},
            )
        if dataset.location is not None:
            for event in backfill_from_commits(spec.events_location(), dataset.location, pipeline=spec.name):
                report.send(event)
    if not checked.is_shadow:
        complete_quality(checked.graph)
    for text in plan.skipped:
        report("data_loss", text, level="WARN", details={"data_loss": {"skipped": text}})


def report_growth(report: Emit, growth: Sequence[SchemaGrown]) -> None:
    """Report the columns that sources have got, once each."""
    for text, error in {error.what: error for error in growth}.items():
        details = {"schema_evolution": {"added": error.facts.get("added"), "file": error.facts.get("file")}}
        report("schema_evolution", f"{text}, {error.found}", details=details)
