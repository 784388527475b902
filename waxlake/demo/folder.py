"""The demo's work folder: definitions, spec, landing folder, lake and logs. Made anew by each demo, never over other files."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from waxlake.stream.errors import TerminalError, UsageError

__all__ = ["DemoFolder", "demo_folder"]

# Beside the package, in a checkout and in an installation.
_DEFINITIONS = Path(__file__).resolve().parents[2] / "flows" / "demo"
_COPIED = ("pipeline.py", "waxlake.yml")
_MARK = "README.md"
_README = """\
# A folder of `waxlake demo`

The next `waxlake demo` here makes it anew: copy it to keep it. `pipeline.py`, `alerts.sql` and `early.sql` hold the
definitions, `waxlake.yml` the settings, `landing/` the files as they arrived, `database/` the tables of the database as they
were at the end, `alerts.parquet` what was sent to the topic of alerts, `lake/` the tables, `logs/` what each process said.
"""


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Where the parts of the demo lie."""

    path: Path

    @property
    def spec(self) -> Path:
        """The spec."""
        return self.path / "waxlake.yml"

    @property
    def landing(self) -> Path:
        """Where files arrive."""
        return self.path / "landing"

    @property
    def go_file(self) -> Path:
        """File that lets the publisher go on to its end."""
        return self.path / "logs" / "pipeline-was-killed"

    @property
    def database(self) -> Path:
        """Where the tables of the database are kept as they were at the end, for comparison."""
        return self.path / "database"

    def use_database(self, dsn: str) -> None:
        """Let the pipeline read from a database; its password is not written down."""
        text = self.spec.read_text(encoding="utf-8")
        self.spec.write_text(text.replace('database: ""', f"database: {dsn}"), encoding="utf-8")

    @property
    def alerts(self) -> Path:
        """Where the records of the alerts' topic are kept as they were at the end, for comparison."""
        return self.path / "alerts.parquet"

    def add_definitions(self, name: str) -> None:
        """Let a further file of the demo's definitions be part of the pipeline."""
        shutil.copyfile(_DEFINITIONS / name, self.path / name)
        text = self.spec.read_text(encoding="utf-8")
        first = "  - glob: {include: pipeline.py}\n"
        self.spec.write_text(text.replace(first, f"{first}  - glob: {{include: {name}}}\n"), encoding="utf-8")

    def log(self, process: str) -> Path:
        """Return the log file of a process."""
        return self.path / "logs" / f"{process}.log"


@contextmanager
def demo_folder(path: Path) -> Iterator[DemoFolder]:
    """Make the folder, and keep other demos out of it while the block runs.

    Raises:
        UsageError: Something else is there (``DEMO_FOLDER_TAKEN``), or another demo runs in it (``DEMO_RUNNING``).
            Not retryable.
        TerminalError: It cannot be written (``DEMO_FOLDER_NOT_WRITABLE``). Not retryable.
    """
    mark = path / _MARK
    _refuse_other_files(path, mark)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with mark.open("a+", encoding="utf-8") as lock:
            _lock(lock.fileno(), path)
            _fill(path)
            yield DemoFolder(path)
    except OSError as exc:
        raise TerminalError(
            f"cannot make the demo's folder {path}",
            code="DEMO_FOLDER_NOT_WRITABLE",
            found=exc.strerror or str(exc),
            remedy="Name another one with --folder",
        ) from exc


def _refuse_other_files(path: Path, mark: Path) -> None:
    is_ours = mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == _README
    if not path.exists() or is_ours or (path.is_dir() and not any(path.iterdir())):
        return
    raise UsageError(
        f"cannot use {path} for the demo",
        code="DEMO_FOLDER_TAKEN",
        found="something that the demo did not make",
        expected="a new or empty folder, or one of an earlier demo",
        remedy="Name another one with --folder",
    )


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another demo is running in {path}",
            code="DEMO_RUNNING",
            remedy="Wait for it, or name another folder with --folder",
        ) from None


def _fill(path: Path) -> None:
    """Remove what an earlier demo left, and write what this one starts from."""
    for name in ("database", "lake", "landing", "logs"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in ("alerts.parquet", "alerts.sql", "early.sql"):
        (path / name).unlink(missing_ok=True)
    for name in ("landing", "logs"):
        (path / name).mkdir()
    for name in _COPIED:
        shutil.copyfile(_DEFINITIONS / name, path / name)
    (path / ".gitignore").write_text("*\n", encoding="utf-8")
    (path / _MARK).write_text(_README, encoding="utf-8")
