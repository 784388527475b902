"""A project folder whose pipeline is run as real processes, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODES: dict[str, list[str]] = {
    "triggered": ["-m", "waxlake", "run"],
    "continuous": ["-m", "waxlake", "run", "--continuous"],
    "takeover": ["-m", "waxlake", "run", "--continuous", "--takeover"],
    "two-workers": ["-m", "waxlake", "run", "--workers", "2"],
    "two-processes": ["-m", "waxlake", "run", "--processes", "2"],
    "bytewax-run": ["-m", "bytewax.run", "flows.main"],
}


_FOREIGN = ("WAXLAKE_FAILPOINT", "WAXLAKE_SPEC", "PYTHONDONTWRITEBYTECODE")


@dataclass(slots=True)
class Project:
    """A project in a folder.

    Args:
        folder: Where it lies.
    """

    folder: Path

    def start(self, mode: str, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """Start the pipeline's process, to be killed at a failpoint if one is given."""
        environ = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
        environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        if failpoint is not None:
            environ["WAXLAKE_FAILPOINT"] = failpoint if ":" in failpoint else f"{failpoint}:1"
        with (self.folder / f"{mode}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *MODES[mode]],
                cwd=self.folder,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, mode: str) -> str:
        """Return what the processes of a mode printed."""
        return (self.folder / f"{mode}.log").read_text(errors="replace")[-4000:]

    def run_to_failpoint(self, mode: str, failpoint: str) -> None:
        """Run until the failpoint kills a process."""
        process = self.start(mode, failpoint)
        code = wait(process)
        killed = code == -signal.SIGKILL if mode != "two-processes" else code != 0
        assert killed, f"{mode} was not killed at {failpoint} (exit {code}):\n{self.log(mode)}"

    def run_and_kill_after(self, mode: str, seconds: float) -> bool:
        """Run and kill the whole process group after a while; return whether it was still alive then."""
        process = self.start(mode)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _kill_descendants(self.folder)
            process.wait()
            return True
        assert process.returncode == 0, self.log(mode)
        return False

    def run_and_kill_when(self, mode: str, is_time: Callable[[], bool], seconds: float) -> bool:
        """Run, and kill the process group some seconds after something has happened; return whether it was still alive."""
        process = self.start(mode)
        deadline_s = time.monotonic() + 240
        while not is_time() and process.poll() is None:
            assert time.monotonic() < deadline_s, self.log(mode)
            time.sleep(0.02)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        assert process.returncode == 0, self.log(mode)
        return False


def wait(process: subprocess.Popen[bytes], timeout_s: float = 300) -> int:
    """Wait for a process; one that hangs is killed and fails the test."""
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{process.args} hangs") from None


def _kill_descendants(folder: Path) -> None:
    """Kill worker processes, which run in sessions of their own, by their working directory."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
