"""A pipeline over two tables of a database under a workload, and the check of its change logs and the other targets."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from tests.recovery.project import Project, wait
from tests.recovery.targets import TARGET_DEFINITIONS, check_targets
from tests.recovery.workload import KEYS, Key, Workload, logged_changes, replayed

_METADATA = '"_change_type", "_commit_position", "_change_index", "_unchanged"'
_DEFINITIONS = """
import waxlake as wl

@wl.table
def accounts():
    return {accounts}.select("*", {metadata})

@wl.table
def entries():
    return {entries}.select("*", {metadata})

def changes_of(table):
    return {{"accounts": {accounts}, "entries": {entries}}}[table]
""" + TARGET_DEFINITIONS.replace("{", "{{").replace("}", "}}")
_SPEC = """
name: changes
storage: {storage}
libraries: [{{glob: {{include: "flows/definitions.py"}}}}]
trigger_interval: 200ms
"""


@dataclass(slots=True)
class DatabaseLake(Project):
    """One pipeline: a change log, current rows and a history of each table.

    Args:
        workload: What changes the tables.
        reads: Table to the expression that reads it.
    """

    workload: Workload
    reads: dict[str, str]
    has_old_versions: bool = True
    killed: int = 0
    has_begun: bool = False

    def make(self) -> None:
        """Create the project."""
        (self.folder / "flows").mkdir(parents=True)
        (self.folder / "flows" / "__init__.py").touch()
        (self.folder / "flows" / "main.py").write_text("from waxlake.pipeline.deploy import flow\n")
        definitions = _DEFINITIONS.format(metadata=_METADATA, **self.reads)
        (self.folder / "flows" / "definitions.py").write_text(definitions)
        (self.folder / "waxlake.yml").write_text(_SPEC.format(storage=self.folder / "lake"))

    def kill_at(self, failpoint: str, mode: str = "triggered") -> None:
        """Run until a failpoint kills the process."""
        self.run_to_failpoint(mode, failpoint)
        self.killed += 1

    def kill_after_commit(self, seconds: float, mode: str = "continuous") -> None:
        """Run until a table has a commit more than when it was called, and kill the process some seconds later."""
        before = self.commits()
        self.killed += self.run_and_kill_when(mode, lambda: self.commits() > before, seconds)

    def commits(self) -> int:
        """Return the number of commits of all tables."""
        return sum(1 for _ in (self.folder / "lake" / "tables").glob("**/_delta_log/*.json"))

    def finish(self, mode: str = "triggered") -> None:
        """Run to the end without a kill."""
        process = self.start(mode)
        if mode == "continuous":
            process.send_signal(signal.SIGTERM)
        assert wait(process) == 0, self.log(mode)

    def handle(self, table: str) -> DeltaTable:
        """Return a change log."""
        return DeltaTable(str(Path(self.folder) / "lake" / "tables" / "default" / table))

    def begin(self) -> None:
        """Let the workload count, once every table has rows: its source is followed from there on."""
        if not self.has_begun and all(self.handle(table).to_pyarrow_table().num_rows for table in KEYS):
            self.workload.begin()
            self.has_begun = True

    def _done(self, table: str, changes: Counter[tuple[str, str, Key, int]]) -> Counter[tuple[str, str, Key, int]]:
        found: Counter[tuple[str, str, Key, int]] = Counter()
        for (name, kind, key, version), count in changes.items():
            if name == table:
                found[name, kind, key, version if kind != "delete" or self.has_old_versions else 0] += count
        return found

    def check(self, actual: dict[str, list[dict[str, Any]]], since: int) -> int:
        """Compare change logs with what was done: each change once, replayed the tables' rows; and the other targets.

        Args:
            actual: Table to the rows that the source holds.
            since: Where the first loads were complete.

        Returns:
            Number of committed states that the histories were compared with.
        """
        assert self.has_begun
        for table, keys in KEYS.items():
            log = self.handle(table).to_pyarrow_table()
            expected = self.workload.rows[table]
            assert {tuple(row[k] for k in keys): row for row in actual[table]} == expected, (
                f"the workload is wrong on {table}"
            )
            done, before = self._done(table, self.workload.changes), self._done(table, self.workload.before)
            logged = logged_changes(table, log, has_old_versions=self.has_old_versions)
            assert logged - done - before == Counter(), f"{table}: twice, or never done"
            assert done - logged == Counter(), f"{table}: missing"
            assert replayed(table, log) == expected
        return check_targets(self.folder / "lake" / "tables" / "default", self.workload, since=since)
