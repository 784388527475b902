"""The demo's summary: it says what it is given, and does not hide what is wrong."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from waxlake.demo.report import DemoFigures, command_name, report
from waxlake.demo.run import require_exact
from waxlake.demo.verify import Check
from waxlake.pipeline.status import PipelineStatus, RuleStatus, TableStatus
from waxlake.stream.errors import InternalError

FIGURES = DemoFigures(events=1000, running_s=4.0, killed_at_rows=517, down_s=2.5, caught_up_rows=123, total_s=31.4)
RIGHT = Check(what="rows of gold.sums", found=7, expected=7)
WRONG = Check(what="rows of bronze.flights", found=1001, expected=1000)
STATUS = PipelineStatus(
    pipeline="demo",
    update=None,
    tables=[
        TableStatus(name="bronze.flights", kind="table", version=3, rows=1000),
        TableStatus(
            name="silver.flights",
            kind="table",
            version=2,
            rows=980,
            dropped=14,
            quarantined=6,
            rules=[RuleStatus(dataset="silver.flights", rule="is_sane", action="quarantine", passed=994, failed=6)],
        ),
    ],
)


def text(*checks: Check, is_terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=60)
    report(console, STATUS, checks, FIGURES, Path("waxlake-demo"))
    return stream.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_it_says_all_figures(is_terminal: bool) -> None:
    said = text(RIGHT, is_terminal=is_terminal)
    for words in (
        ("bronze.flights", "1,000"),
        ("silver.flights_quarantine", "6"),
        ("is_sane", "quarantine", "994", "6"),
    ):
        assert any(all(word in line for word in words) for line in said.splitlines()), (words, said)
    assert "at 517 of 1,000 rows, restarted: the counts are exact" in said
    assert "123 rows in the first commit after it, 2.5 s after the kill" in said
    assert "250 rows/s" in said
    assert "1 of 1 checks" in said


def test_a_wrong_count_is_called_wrong() -> None:
    said = text(RIGHT, WRONG)
    assert "the counts are WRONG" in said
    assert "exact" not in said
    assert "WRONG rows of bronze.flights: found 1,001, expected 1,000" in said
    assert "1 of 2 checks" in said


def test_a_mismatch_is_an_error() -> None:
    require_exact([RIGHT, replace(WRONG, found=1000)], Path("demo"))
    with pytest.raises(InternalError, match=r"rows of bronze\.flights: found 1,001, expected 1,000") as error:
        require_exact([RIGHT, WRONG], Path("demo"))
    assert (error.value.code, error.value.exit_code) == ("DEMO_MISMATCH", 1)


def test_a_line_for_the_shell_is_never_broken() -> None:
    commands = [line for line in text(RIGHT).splitlines() if "--spec" in line]
    assert len(commands) == 3
    assert all(shlex.split(line)[-1] == "waxlake-demo/waxlake.yml" for line in commands)


def test_the_command_is_what_the_user_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "waxlake"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert command_name() == "bin/waxlake"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command_name() == "waxlake"
    monkeypatch.setattr(sys, "argv", ["/x/waxlake/__main__.py", "demo"])
    assert command_name() == "python -m waxlake"
