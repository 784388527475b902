"""A project of some queries in a folder, run as a user runs it: ``python -m waxlake run``, in processes that may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.nexmark.generator import SCHEMAS, ddl
from benchmarks.nexmark.queries import libraries

__all__ = ["Project"]

ROOT: Final = Path(__file__).resolve().parents[2]
_FOREIGN: Final = ("WAXLAKE_", "BYTEWAX_")


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
            "trigger_interval": "100ms",
            "configuration": {"data": str(self.data), "format": self.form, **{kind: ddl(kind) for kind in SCHEMAS}},
            "libraries": [{"glob": {"include": path}} for path in libraries(self.queries)],
        }
        (self.folder / "waxlake.yml").write_text(json.dumps(spec, indent=1))
        return self

    def start(self, *words: str, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """Start an update; what it prints goes to ``run.log``."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        environ["PYTHONPATH"] = str(ROOT)
        if failpoint is not None:
            environ["WAXLAKE_FAILPOINT"] = failpoint
        with (self.folder / "run.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "waxlake", "run", *words], cwd=self.folder, env=environ, stdout=log, stderr=log
            )

    def log(self) -> str:
        """Return the end of what its processes printed."""
        return (self.folder / "run.log").read_text(errors="replace")[-4000:]
