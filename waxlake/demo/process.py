"""Child processes that die with their parent and keep a log.

The demo's broker is one, and so are the services that the tests start. A child is started through a one-line
launcher that asks the kernel for its own death when the parent dies, then becomes the command: the process id stays.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["ChildFailed", "ChildProcess", "free_port"]

_PROBE_INTERVAL_S = 0.05

# Not a `preexec_fn`: that runs Python between fork and exec, which can deadlock in a process with threads. The parent
# may have died before the kernel was asked, hence the comparison. PR_SET_PDEATHSIG is 1; see prctl(2).
_LAUNCHER = """
import os, signal, sys
parent = int(sys.argv[1])
if sys.platform.startswith("linux"):
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("parent process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildFailed(Exception):
    """A child process ended, or did not answer in time; the text holds the end of its log."""


class ChildProcess:
    """A running command, bound to the life of this process.

    On Linux it is killed even when this process dies by SIGKILL; elsewhere when the interpreter exits. Trap: the kernel
    binds it to the *thread* that started it, so start it from one that lives as long as the child should.

    Args:
        command: Program and arguments.
        log_path: Standard output and error are appended here.
        environment: Variables to set besides the inherited ones.
        directory: Working directory.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.log_path = log_path
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                launch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the parent, which then stops the child
            )
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        """Process id of the command."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended yet."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the command ended: its exit code, or minus the signal that killed it; None while it runs."""
        return self._popen.poll()

    def wait_until(self, answers: Callable[[], bool], *, timeout_s: float) -> None:
        """Block until ``answers()`` is true.

        Raises:
            ChildFailed: The command ended first, or ``timeout_s`` seconds went by. Not retryable.
        """
        deadline = time.monotonic() + timeout_s
        while not answers():
            if not self.is_running:
                raise ChildFailed(f"ended with exit code {self._popen.returncode}; end of its log:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"did not answer within {timeout_s:g} s; end of its log:\n{self.log_tail()}")
            time.sleep(_PROBE_INTERVAL_S)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last ``lines`` lines of the log."""
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(errors="replace").strip()
            return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
        return "(no log)"

    def stop(self, *, grace_s: float = 10) -> None:
        """Ask the command to end; kill it after ``grace_s`` seconds. Does nothing when it has ended."""
        if self.is_running:
            self._popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """End the command at once, as a crash would."""
        atexit.unregister(self.kill)
        if self.is_running:
            self._popen.kill()
        self._popen.wait()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
