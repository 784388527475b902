"""A project of some queries in a folder, run as a user runs it: ``python -m waxlake run``, in processes that may be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.nexmark.generator import SCHEMAS, ddl
from benchmarks.nexmark.queries import libraries

__all__ = ["Project", "UpdateFailed", "kill_at_random"]

ROOT: Final = Path(__file__).resolve().parents[2]
_FOREIGN: Final = ("WAXLAKE_", "BYTEWAX_", "PYTHONDONTWRITEBYTECODE")
_UPDATE_S: Final = 600.0


class UpdateFailed(Exception):
    """An update ended otherwise than it should: its exit code, and the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project.

    Args:
        folder: Where it lies; its lake too.
        data: Folder of the events.
        queries: Names of the queries.
        form: Format of the events' files.
    """

    folder: Path
    data: Path
    queries: Sequence[str]
    form: str = "parquet"

    @property
    def lake(self) -> Path:
        """Where the tables lie."""
        return self.folder / "lake"

    def write(self) -> Project:
        """Write the spec."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {
            "name": "nexmark",
            "storage": "./lake",
            "configuration": {"data": str(self.data), "format": self.form, **{kind: ddl(kind) for kind in SCHEMAS}},
            "libraries": [{"glob": {"include": path}} for path in libraries(self.queries)],
        }
        (self.folder / "waxlake.yml").write_text(json.dumps(spec, indent=1))
        return self

    def run(self, *, kill_after_s: float = _UPDATE_S, failpoint: str = "") -> float | None:
        """Run an update.

        Args:
            kill_after_s: When to kill it with SIGKILL.
            failpoint: Where it kills itself, as ``name:n``; empty for nowhere.

        Returns:
            The seconds that it took, or None if it was killed.

        Raises:
            UpdateFailed: It failed, or hung.
        """
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        environ |= {"PYTHONPATH": str(ROOT), "WAXLAKE_FAILPOINT": failpoint}
        started_s = time.perf_counter()
        with (self.folder / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "waxlake", "run"], cwd=self.folder, env=environ, stdout=log, stderr=log
            )
        try:
            code = process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return time.perf_counter() - started_s
        was_meant = code == -signal.SIGKILL and failpoint if code is not None else kill_after_s < _UPDATE_S
        if was_meant:
            return None
        end = (self.folder / "run.log").read_text(errors="replace")[-4000:]
        raise UpdateFailed(f"exit code {code}\n{end}")


def kill_at_random(project: Project, land: Callable[[], bool], kills: int, seed: int) -> int:
    """Let events land and kill the update that reads them, again and again at moments drawn at random, and let a last one end.

    Args:
        project: It.
        land: Lets further events land; returns whether there were any.
        kills: How often.
        seed: What the random numbers begin with.

    Returns:
        How many updates ended before they could be killed.
    """
    moments = random.Random(seed)
    land()
    update_s = project.run() or 0.0
    killed = ended = 0
    while killed < kills:
        land()
        seconds = project.run(kill_after_s=update_s * moments.uniform(0.2, 1.0))
        if seconds is None:
            killed += 1
        else:
            ended, update_s = ended + 1, seconds
    while land():
        pass
    project.run()
    return ended
