"""Someone at a shell: commands as they are typed, each in its own process, in a folder that need not be a project yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(slots=True)
class User:
    """Someone at a shell in a folder."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def process_environ(self, **environ: str) -> dict[str, str]:
        foreign = ("WAXLAKE_", "BYTEWAX_", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {**kept, "PYTHONPATH": str(SOURCES), "COLUMNS": "200", **self.environ, **environ}

    def waxlake(self, *words: str, **environ: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "waxlake", *words],
            cwd=self.folder,
            env=self.process_environ(**environ),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
