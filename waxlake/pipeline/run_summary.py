"""What an update did so far, added up from its events. Called by the progress listeners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from waxlake.pipeline.event import Event

__all__ = ["RuleTotal", "RunSummary", "TableTotal"]


@dataclass(slots=True)
class RuleTotal:
    """One rule so far: rows that passed and rows that broke it."""

    action: str
    passed: int = 0
    failed: int = 0


@dataclass(slots=True)
class TableTotal:
    """One table so far.

    Attributes:
        rows: Rows written.
        read: Records read for it.
        dropped: Rows that a rule removed.
        quarantined: Rows in its quarantine table.
        lost_positions: Positions that were skipped because the source no longer held them.
        left_out_files: Files left out on request.
        status: Status last reported: RUNNING, FAILED, SKIPPED, RETRYING; empty before the first report.
        problem: Message of the last failure or retry.
        rules: Rule name (with its dataset, if that is another one) to its figures.
        backlogs: Flow to (records, files, bytes) still to be read.
    """

    rows: int = 0
    read: int = 0
    dropped: int = 0
    quarantined: int = 0
    lost_positions: int = 0
    left_out_files: int = 0
    status: str = ""
    problem: str = ""
    rules: dict[str, RuleTotal] = field(default_factory=dict)
    backlogs: dict[str, tuple[int | None, int | None, int | None]] = field(default_factory=dict)

    @property
    def violations(self) -> int:
        """Rows that broke a rule, counted once for each rule."""
        return sum(rule.failed for rule in self.rules.values())

    def backlog_text(self) -> str:
        """Return what is still to be read, in the first unit that a source can tell; empty if none can."""
        for index, unit in enumerate(("records", "files", "bytes")):
            known = [backlog[index] for backlog in self.backlogs.values() if backlog[index] is not None]
            if known:
                return f"{sum(n for n in known if n is not None):,} {unit}"
        return ""


@dataclass(slots=True)
class RunSummary:
    """Takes the events of one update. Events of earlier updates, which complete the event log, are passed over.

    Attributes:
        update_id: The update; that of the first event.
        state: State last reported.
        started_s: Time of the first event, in seconds since 1970.
        now_s: Time of the last one.
        tables: Table name to its figures, in the order of their first event.
        error: Message of the failure, if it failed.
        reported_s: Seconds that the run says it took, start-up included; None before its end.
    """

    update_id: str = ""
    state: str = ""
    started_s: float = 0.0
    now_s: float = 0.0
    tables: dict[str, TableTotal] = field(default_factory=dict)
    error: str = ""
    reported_s: float | None = None

    def take(self, event: Event) -> bool:
        """Add one event; return whether it belongs to this update."""
        self.update_id = self.update_id or event.update_id
        if event.update_id != self.update_id:
            return False
        self.now_s = event.timestamp.timestamp()
        self.started_s = self.started_s or self.now_s
        if event.event_type == "update_progress":
            progress: Mapping[str, Any] = event.details.get("update_progress") or {}
            self.state = str(progress.get("state", self.state))
            self.reported_s = progress.get("duration_s", self.reported_s)
            if self.state == "FAILED":
                self.error = event.message
        elif event.event_type == "flow_progress" and event.dataset:
            self._take_progress(event, self.tables.setdefault(event.dataset, TableTotal()))
        elif event.event_type == "data_loss" and event.dataset:
            lost = event.details.get("data_loss") or {}
            total = self.tables.setdefault(event.dataset, TableTotal())
            total.lost_positions += int(lost.get("lost_positions", 0))
            total.left_out_files += int(lost.get("left_out_files", 0))
        return True

    def _take_progress(self, event: Event, table: TableTotal) -> None:
        progress = event.progress
        table.status = str(progress.get("status", table.status))
        if event.level in ("WARN", "ERROR"):
            table.problem = event.message
        metrics: Mapping[str, Any] = progress.get("metrics") or {}
        table.rows += metrics.get("num_output_rows") or 0
        table.read += metrics.get("num_read_records") or 0
        table.quarantined += metrics.get("num_quarantined_rows") or 0
        if metrics:
            table.backlogs[event.flow or ""] = (
                metrics.get("backlog_records"),
                metrics.get("backlog_files"),
                metrics.get("backlog_bytes"),
            )
        quality: Mapping[str, Any] = progress.get("data_quality") or {}
        table.dropped += quality.get("dropped_records") or 0
        for rule in quality.get("expectations") or ():
            name = rule["name"] if rule["dataset"] == event.dataset else f"{rule['dataset']}.{rule['name']}"
            total = table.rules.setdefault(name, RuleTotal(rule["action"]))
            total.passed += rule["passed_records"]
            total.failed += rule["failed_records"]

    def lines(self) -> list[str]:
        """Return the closing summary for people: one line a table, one a rule that rows broke."""
        duration_s = self.reported_s if self.reported_s is not None else max(0.0, self.now_s - self.started_s)
        outcome = (self.state or "RUNNING").lower()
        written = {name: table for name, table in self.tables.items() if table.rows or table.read or table.status}
        if not any(table.rows or table.read for table in written.values()) and outcome == "completed":
            return [f"update completed in {duration_s:.1f} s: nothing new"]
        lines = [f"update {outcome} in {duration_s:.1f} s"]
        width = max((len(name) for name in written), default=0)
        for name, table in written.items():
            lines.append(f"  {name:<{width}}  {table.rows:>12,} rows{_extras(table)}")
            for rule, total in table.rules.items():
                if total.failed:
                    count = total.passed + total.failed
                    lines.append(
                        f"  {'':<{width}}    rule {rule} ({total.action}): {total.failed:,} of {count:,} rows broke it"
                    )
        return lines


def _extras(table: TableTotal) -> str:
    parts = [
        f"{table.dropped:,} dropped" if table.dropped else "",
        f"{table.quarantined:,} quarantined" if table.quarantined else "",
        f"{table.lost_positions:,} positions lost at the source" if table.lost_positions else "",
        f"{table.left_out_files:,} files left out" if table.left_out_files else "",
        table.status.lower() if table.status in ("FAILED", "SKIPPED") else "",
    ]
    return "".join(f", {part}" for part in parts if part)
