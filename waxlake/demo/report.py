"""What the demo says at its end, from figures that it is given. Called by `run`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from waxlake.demo.verify import Check
from waxlake.pipeline.rows import aligned
from waxlake.pipeline.status import PipelineStatus

__all__ = ["DemoFigures", "command_name", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFigures:
    """What happened while the demo ran.

    Attributes:
        events: Events published.
        running_s: Seconds from the first event to the last one stored.
        killed_at_rows: Rows of bronze.flights when the pipeline was killed.
        down_s: Seconds from the kill to the first commit after the restart.
        caught_up_rows: Rows of that commit.
        total_s: Seconds that the demo took.
    """

    events: int
    running_s: float
    killed_at_rows: int
    down_s: float
    caught_up_rows: int
    total_s: float


def report(
    console: Console, status: PipelineStatus, checks: Sequence[Check], figures: DemoFigures, folder: Path
) -> None:
    """Write the summary: tables, rules, the kill, throughput, checks, and where to look further."""
    rows = [[table.name, f"{table.rows or 0:,}"] for table in status.tables if table.batches is None]
    rows += [
        [f"{table.name} (sink)", f"{table.batches:,} batches"] for table in status.tables if table.batches is not None
    ]
    rows += [[f"{table.name}_quarantine", f"{table.quarantined:,}"] for table in status.tables if table.quarantined]
    _table(console, ["table", "rows"], rows, right=(1,))
    rules = [
        [rule.dataset, rule.rule, rule.action, f"{rule.passed:,}", f"{rule.failed:,}"]
        for table in status.tables
        for rule in table.rules
    ]
    _table(console, ["rules of", "rule", "action", "passed", "broken"], rules, right=(3, 4))
    for line in (*_story(checks, figures), "", *_commands(folder)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _story(checks: Sequence[Check], figures: DemoFigures) -> Iterator[str]:
    wrong = [check for check in checks if not check.is_ok]
    outcome = "the counts are exact" if not wrong else "the counts are WRONG"
    yield (
        f"killed with SIGKILL at {figures.killed_at_rows:,} of {figures.events:,} rows, restarted: {outcome}\n"
        f"  {figures.caught_up_rows:,} rows in the first commit after it, {figures.down_s:.1f} s after the kill"
    )
    yield (
        f"{figures.events:,} events through bronze in {figures.running_s:.1f} s, as they arrived: "
        f"{figures.events / max(figures.running_s, 0.001):,.0f} rows/s, the kill included"
    )
    yield f"{len(checks) - len(wrong)} of {len(checks)} checks against the data set passed, {figures.total_s:.0f} s in all"
    for check in wrong:
        yield f"  WRONG {check.what}: found {check.found:,}, expected {check.expected:,}"


def _commands(folder: Path) -> Iterator[str]:
    name, spec = command_name(), folder / "waxlake.yml"
    yield "Look further:"
    yield f'  {name} sql "SELECT * FROM gold.delay_by_weather ORDER BY mean_delay DESC" --spec {spec}'
    yield f"  {name} show silver.flights_quarantine --spec {spec}"
    yield f"  {name} events --type flow_progress --spec {spec}"
    yield f"The pipeline is {folder / 'pipeline.py'}; the tables are plain Delta, in {folder / 'lake'}"


def command_name() -> str:
    """Return how the user can call this program again."""
    program = Path(sys.argv[0])
    if program.name != "waxlake":
        return "python -m waxlake"
    found = shutil.which("waxlake")
    if found is not None and Path(found).resolve() == program.resolve():
        return "waxlake"
    home = Path.cwd()
    return str(program.relative_to(home)) if program.is_relative_to(home) else str(program)


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    if not console.is_terminal:
        for line in ("", *aligned(headings, rows, right), ""):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    drawn = Table(box=SIMPLE, pad_edge=False)
    for index, heading in enumerate(headings):
        drawn.add_column(Text(heading), justify="right" if index in right else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)
