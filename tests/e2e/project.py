"""A user's project in a folder, and what the user does with it: write definitions, run commands, look into the tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from deltalake import DeltaTable

SOURCES = Path(__file__).resolve().parents[2]
DEFINITIONS = "flows/definitions.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def refused(self, error_code: str, *said: str, exit_code: int = 1) -> str:
        """Assert that the command failed with one of our errors, and return its text.

        The message is all there is on standard error: no traceback, no noise of an engine.
        """
        assert self.code == exit_code, self
        assert "Traceback" not in self.err, self.err
        assert self.err.rstrip().endswith(f"[{error_code}]"), self.err
        for part in said:
            assert part in self.err, f"{part!r} is not in {self.err!r}"
        return self.err

    def succeeded(self) -> Outcome:
        """Assert that the command did what it should without a word of complaint."""
        assert (self.code, self.err) == (0, ""), self
        return self


@dataclass(slots=True)
class Project:
    """A pipeline in a folder.

    Args:
        folder: Where the spec lies.
        storage: `storage` of the spec.
        storage_options: `storage_options` of the spec.
        environ: Environment variables of every command.
    """

    folder: Path
    storage: str = "./lake"
    storage_options: Mapping[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spec()

    def spec(self, **keys: Any) -> None:
        """Write the spec; keys besides, or instead of, the usual ones."""
        values = {
            "name": "shop",
            "storage": self.storage,
            "trigger_interval": "100ms",
            "storage_options": dict(self.storage_options),
            **keys,
        }
        self.write("waxlake.yml", json.dumps(values))  # JSON is YAML

    def define(self, text: str) -> None:
        """Write the definitions."""
        self.write(DEFINITIONS, "import waxlake as wl\n" + text)

    def write(self, path: str, content: str | bytes) -> Path:
        """Write a file below the folder; it appears whole and old enough to be read at once."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        hidden = file.with_name(f".{file.name[:40]}.tmp")
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)
        settled = time.time() - 60
        os.utime(hidden, (settled, settled))
        hidden.rename(file)
        return file

    def land(self, name: str, *rows: Mapping[str, Any], folder: str = "inbox") -> Path:
        """Let a file of JSON lines arrive."""
        return self.write(f"{folder}/{name}", "".join(json.dumps(row) + "\n" for row in rows))

    def process_environ(self, **environ: str) -> dict[str, str]:
        """Return the environment of a command: nothing of Waxlake or a cloud is inherited; bytecode is kept, as for a user."""
        foreign = ("WAXLAKE_", "BYTEWAX_", "AWS_", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {**kept, "PYTHONPATH": str(SOURCES), "COLUMNS": "200", **self.environ, **environ}

    def waxlake(self, *words: str, timeout_s: float = 90, **environ: str) -> Outcome:
        """Run a command to its end; one that hangs fails the test."""
        started_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "waxlake", *words],
            cwd=self.folder,
            env=self.process_environ(**environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr, seconds=time.monotonic() - started_s)

    def run(self, *words: str, **environ: str) -> Outcome:
        """Run an update that should succeed."""
        return self.waxlake("run", *words, **environ).succeeded()

    @contextmanager
    def continuous(self) -> Iterator[ContinuousRun]:
        """Run continuously while the block runs; it is killed at the end if it has not ended by then."""
        run = ContinuousRun(self)
        try:
            yield run
        finally:
            run.kill()

    # -- what is stored

    def path(self, table: str) -> str:
        """Return the path or URI of a table."""
        root = self.storage if "://" in self.storage else str((self.folder / self.storage).resolve())
        return f"{root}/tables/default/{table}"

    def handle(self, table: str) -> DeltaTable:
        """Return a table."""
        return DeltaTable(self.path(table), storage_options=dict(self.storage_options))

    def rows(self, table: str, *columns: str) -> list[Any]:
        """Return a table's rows in order: values if one column is named, else tuples or whole rows."""
        rows = self.handle(table).to_pyarrow_table().to_pylist()
        if len(columns) == 1:
            return sorted((row[columns[0]] for row in rows), key=repr if columns[0] != "id" else None)
        if columns:
            return sorted((tuple(row[name] for name in columns) for row in rows), key=repr)
        return sorted(rows, key=repr)

    def is_stored(self, table: str) -> bool:
        """Return whether a table is there."""
        return DeltaTable.is_deltatable(self.path(table), storage_options=dict(self.storage_options))

    def events(self, event_type: str) -> list[dict[str, Any]]:
        """Return events of one type, as `waxlake events` shows them."""
        done = self.waxlake("events", "--type", event_type, "--json", "-n", "1000").succeeded()
        return [json.loads(line) for line in done.out.splitlines()]

    def everything_written(self) -> bytes:
        """Return the bytes of every file of the lake: logs, ledgers, event log; data pages decompressed."""
        import pyarrow.parquet as pq

        root = self.folder / self.storage
        parts = []
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            parts.append(file.read_bytes())
            if file.suffix == ".parquet":
                parts.append(json.dumps(pq.read_table(file).to_pylist(), default=str).encode())
        return b"\n".join(parts)


class ContinuousRun:
    """`waxlake run --continuous --json` in the background, and the events it writes."""

    def __init__(self, project: Project) -> None:
        self._seen: list[dict[str, Any]] = []
        self._events: Queue[dict[str, Any] | None] = Queue()
        self._err_path = project.folder / "continuous.err"
        with self._err_path.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "waxlake", "run", "--continuous", "--json"],
                cwd=project.folder,
                env=project.process_environ(),
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._events.put(json.loads(line))
        self._events.put(None)

    @property
    def err(self) -> str:
        """What it wrote on standard error so far."""
        return self._err_path.read_text()

    def await_event(self, is_wanted: Callable[[dict[str, Any]], bool], *, timeout_s: float = 120) -> dict[str, Any]:
        """Wait for an event, among those not looked at before."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no such event in {timeout_s} s; the last: {self._seen[-3:]}") from None
            assert event is not None, f"the run ended: {self._seen[-2:]}\n{self.err}"
            self._seen.append(event)
            if is_wanted(event):
                return event

    def await_status(self, status: str, flow: str) -> dict[str, Any]:
        """Wait until a flow reports a status."""
        return self.await_event(
            lambda event: event["flow"] == flow and event["details"].get("flow_progress", {}).get("status") == status
        )

    def await_rows(self, table: str, count: int) -> None:
        """Wait until further ``count`` rows were committed to a table."""
        seen = 0

        def is_last(event: dict[str, Any]) -> bool:
            nonlocal seen
            if event["dataset"] == table and event["level"] == "METRICS":
                seen += event["details"]["flow_progress"]["metrics"]["num_output_rows"]
            return seen >= count

        self.await_event(is_last)
        assert seen == count

    def terminate(self) -> Outcome:
        """Ask it to end, and return how it did."""
        self._process.send_signal(signal.SIGTERM)
        return self.ended()

    def stop(self) -> None:
        """Ask it to end, and assert that it ends well."""
        self.terminate().succeeded()

    def ended(self, *, timeout_s: float = 60) -> Outcome:
        """Wait until it ends by itself."""
        started_s = time.monotonic()
        code = self._process.wait(timeout=timeout_s)
        self._reader.join(timeout=10)
        return Outcome(code=code, out="", err=self.err, seconds=time.monotonic() - started_s)

    def kill(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)
