"""The demo: a broker, a publisher and a pipeline, each in a process of its own; a kill half-way; every row compared.

Called by `waxlake demo`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
from rich.console import Console

from waxlake.demo.alerts import ALERT_DELAY, create_alerts_topic, read_alerts
from waxlake.demo.broker import EmbeddedBroker
from waxlake.demo.data import FAST, FULL, FlightData, Schedule, load_data
from waxlake.demo.database import DatabaseMissing, FlightDatabase
from waxlake.demo.folder import DemoFolder, demo_folder
from waxlake.demo.process import ChildFailed, ChildProcess
from waxlake.demo.publish import create_topic, land_reference_files
from waxlake.demo.report import DemoFigures, report
from waxlake.demo.stored import stored_rows
from waxlake.demo.verify import Check, check_rules, check_tables
from waxlake.pipeline.commits import commits_since
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import Spec, load_spec
from waxlake.pipeline.status import PipelineStatus, pipeline_status
from waxlake.stream.errors import InternalError, TerminalError

__all__ = ["main", "require_exact", "verify"]

_POLL_S = 0.1
_TELL_EVERY_S = 3.0
_STUCK_AFTER_S = 60.0
_UPDATE_S = 120.0
_DRAIN_S = 30.0
_EVENTS = "bronze.flights"
_CREDIBLE_DELAY = 900


def main(*, fast: bool = False, folder: Path | None = None) -> None:
    """Run the demo, from services to summary, in the foreground.

    Args:
        fast: Two weeks of the data instead of the year.
        folder: Work folder; ``waxlake-demo`` in the working directory if not given.

    Raises:
        UsageError: The folder is not the demo's. Not retryable.
        TerminalError: A package of the extra `demo` is missing, or a process ended that should not have. Not retryable.
        InternalError: ``DEMO_MISMATCH``: a table differs from the data set. Not retryable; a defect.
    """
    started_s = time.monotonic()
    schedule = FAST if fast else FULL
    data = load_data(schedule)
    with _ending_on_sigterm(), demo_folder(folder or Path("waxlake-demo")) as place:
        _Demo(place, schedule, data, started_s).run()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that the children are stopped."""

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def verify(spec: Spec, data: FlightData) -> tuple[PipelineStatus, list[Check]]:
    """Return how the demo's pipeline stands, and each comparison of its tables with the data set."""
    status = pipeline_status(load_graph(spec))
    (silver,) = (table for table in status.tables if table.name == "silver.flights")
    return status, [*check_tables(spec, data), *check_rules(silver, data)]


def require_exact(checks: Sequence[Check], folder: Path) -> None:
    """Stop at the first comparison that failed.

    Raises:
        InternalError: ``DEMO_MISMATCH``. Not retryable; a defect.
    """
    for check in checks:
        if not check.is_ok:
            raise InternalError(
                f"the demo's tables differ from the data set: {check.what}",
                code="DEMO_MISMATCH",
                found=f"{check.found:,}",
                expected=f"{check.expected:,}",
                remedy=f"Please report this with the folder {folder}",
            )


class _Demo:
    """One demo in progress."""

    def __init__(self, place: DemoFolder, schedule: Schedule, data: FlightData, started_s: float) -> None:
        self._place, self._schedule, self._data = place, schedule, data
        self._console = Console()
        self._started_s = started_s
        self._told_s = 0.0
        self._first_row_s: float | None = None
        self._spec = load_spec(place.spec, environ={})
        self._runs = 0
        self._database: FlightDatabase | None = None

    def run(self) -> None:
        """Run all stages."""
        total = self._data.flights.num_rows
        with ExitStack() as stack:
            broker = EmbeddedBroker(log_path=self._place.log("broker"))
            stack.enter_context(broker)
            self._tell(f"broker at {broker.bootstrap_servers}, work folder {self._place.path}")
            address = broker.bootstrap_servers
            create_topic(address)
            self._open_database(stack)
            land_reference_files(self._data, self._place.landing, has_database=self._database is not None)
            pipeline = self._start_pipeline(stack, address, "--continuous")
            self._tell("pipeline running: waxlake run --continuous")
            self._await_load(pipeline)
            publisher = self._start_publisher(stack, address)
            self._tell(f"publishing {total:,} flights as events and their weather as files")
            self._watch(publisher, pipeline, until_rows=total // 4)
            self._change(0)
            self._watch(publisher, pipeline, until_rows=total // 2)
            pipeline.kill()
            killed_at, killed_at_rows = datetime.now(timezone.utc), self._rows(_EVENTS)
            self._change(1)
            create_alerts_topic(address)
            self._place.add_definitions("alerts.sql")
            self._place.go_file.touch()
            self._tell(f"killed the pipeline with SIGKILL: {_EVENTS} holds {killed_at_rows:,} rows")
            pipeline = self._start_pipeline(stack, address, "--continuous")
            self._tell("restarted it, with a SQL file more: a sink to Kafka; events kept arriving meanwhile")
            self._change(2)
            self._watch(publisher, pipeline, until_rows=total)
            running_s = time.monotonic() - (self._first_row_s or self._started_s)
            self._tell(f"{_EVENTS} holds {self._rows(_EVENTS):,} rows; the pipeline drains and stops")
            self._drain(pipeline)
            self._update(stack, address)
            self._tell("a triggered update has brought every table up to date: waxlake run")
            self._replay(stack, address)
            self._place.add_definitions("early.sql")
            self._update(stack, address)
            self._tell("a last update has brought them to the tables after it, and a flow more to the sink")
            pq.write_table(read_alerts(address), self._place.alerts)
            self._keep_database()
        self._conclude(killed_at, killed_at_rows, running_s)

    def _open_database(self, stack: ExitStack) -> None:
        """Start the database and load it; where it cannot run, planes and airlines come as files."""
        try:
            database = stack.enter_context(FlightDatabase(log_path=self._place.log("database")))
        except DatabaseMissing as reason:
            self._tell(f"no PostgreSQL here, planes and airlines come as files: {reason}")
            return
        database.fill(self._data)
        self._place.use_database(database.dsn)
        self._spec = load_spec(self._place.spec, environ={})
        self._database = database
        self._tell(f"PostgreSQL at {database.dsn} holds {self._data.planes.num_rows:,} planes and their airlines")

    def _await_load(self, pipeline: ChildProcess) -> None:
        """Return once planes and airlines are stored: a flight is joined with what is there when it comes."""
        if self._database is None:
            return
        wanted = {"bronze.planes": self._data.planes.num_rows, "bronze.airlines": self._data.airlines.num_rows}

        def is_loaded() -> bool:
            return all(self._rows(name) >= count for name, count in wanted.items())

        self._wait(pipeline, is_loaded, "first load of the database", _UPDATE_S)
        self._tell("the first load is stored; from now on the pipeline follows the database's log")

    def _change(self, stage: int) -> None:
        if self._database is not None:
            self._database.change(stage)
            self._tell("planes and airlines change in the database, keys included")

    def _keep_database(self) -> None:
        """Keep the tables as they are now, to compare with."""
        if self._database is not None:
            self._place.database.mkdir()
            for name in ("airlines", "planes"):
                pq.write_table(self._database.rows(name), self._place.database / f"{name}.parquet")

    def _conclude(self, killed_at: datetime, killed_at_rows: int, running_s: float) -> None:
        self._tell("comparing every table with the data set")
        self._spec = load_spec(self._place.spec, environ={})  # with the definitions that were added
        status, checks = verify(self._spec, self._data)
        first = next(
            commit
            for commit in commits_since(self._spec.table_location(_EVENTS), -1)
            if commit.committed_at > killed_at
        )
        figures = DemoFigures(
            events=self._data.flights.num_rows,
            running_s=running_s,
            killed_at_rows=killed_at_rows,
            down_s=(first.committed_at - killed_at).total_seconds(),
            caught_up_rows=first.receipt(_EVENTS).rows,
            total_s=time.monotonic() - self._started_s,
        )
        report(self._console, status, checks, figures, self._place.path)
        require_exact(checks, self._place.path)

    def _start_publisher(self, stack: ExitStack, bootstrap_servers: str) -> ChildProcess:
        arguments = ["--bootstrap-servers", bootstrap_servers, "--landing", str(self._place.landing.absolute())]
        arguments += ["--weather-table", self._spec.table_location("bronze.weather").uri]
        arguments += ["--go-file", str(self._place.go_file.absolute())]
        if self._schedule is FAST:
            arguments.append("--fast")
        command = [sys.executable, "-m", "waxlake.demo.publish", *arguments]
        return self._start(stack, command, "publisher")

    def _start_pipeline(self, stack: ExitStack, bootstrap_servers: str, *options: str) -> ChildProcess:
        self._runs += 1
        command = [sys.executable, "-m", "waxlake", "run", "--spec", str(self._place.spec.absolute()), *options]
        command += ["--param", f"bootstrap_servers={bootstrap_servers}", "--param", f"alert_delay={ALERT_DELAY}"]
        return self._start(stack, command, f"pipeline-{self._runs}")

    def _start(self, stack: ExitStack, command: Sequence[str], name: str) -> ChildProcess:
        # In the work folder: Python looks for modules in the working directory first, and the user's may hold anything.
        environment = self._database.environment if self._database is not None else {}
        log = self._place.log(name)
        child = ChildProcess(command, log_path=log, environment=environment, directory=self._place.path)
        stack.callback(child.kill)
        return child

    def _watch(self, publisher: ChildProcess, pipeline: ChildProcess, *, until_rows: int) -> None:
        """Return once bronze.flights holds so many rows; say how it goes meanwhile."""
        last, moved_s = -1, time.monotonic()
        while (rows := self._rows(_EVENTS)) < until_rows:
            if not pipeline.is_running:
                raise self._failed(pipeline, "the pipeline ended")
            if not publisher.is_running and publisher.exit_code:
                raise self._failed(publisher, "the publisher ended")
            if rows != last:
                last, moved_s = rows, time.monotonic()
                if rows:
                    self._first_row_s = self._first_row_s or moved_s
            elif time.monotonic() - moved_s > _STUCK_AFTER_S:
                raise self._failed(pipeline, f"{_EVENTS} has held {rows:,} rows for {_STUCK_AFTER_S:g} s")
            if time.monotonic() - self._told_s >= _TELL_EVERY_S:
                self._tell_progress()
            time.sleep(_POLL_S)

    def _drain(self, pipeline: ChildProcess) -> None:
        pipeline.stop(grace_s=_DRAIN_S)
        if pipeline.exit_code != 0:
            raise self._failed(pipeline, f"the pipeline ended with exit code {pipeline.exit_code} after SIGTERM")

    def _update(self, stack: ExitStack, bootstrap_servers: str) -> None:
        update = self._start_pipeline(stack, bootstrap_servers)
        self._wait(update, lambda: not update.is_running, "update", _UPDATE_S)
        if update.exit_code != 0:
            raise self._failed(update, f"the update ended with exit code {update.exit_code}")

    def _replay(self, stack: ExitStack, bootstrap_servers: str) -> None:
        """Raise the limit of one rule, and put the rows that it had rejected through the rules again."""
        command = [sys.executable, "-m", "waxlake", "replay", "silver.flights"]
        command += ["--spec", str(self._place.spec.absolute())]
        command += ["--param", f"bootstrap_servers={bootstrap_servers}", "--param", f"credible_delay={_CREDIBLE_DELAY}"]
        replay = self._start(stack, command, "replay")
        self._wait(replay, lambda: not replay.is_running, "replay", _UPDATE_S)
        if replay.exit_code != 0:
            raise self._failed(replay, f"the replay ended with exit code {replay.exit_code}")
        said = self._place.log("replay").read_text(errors="replace").splitlines()
        self._tell(f"a delay of {_CREDIBLE_DELAY} minutes is credible now: waxlake replay {said[0]}")

    def _wait(self, child: ChildProcess, answers: Callable[[], bool], name: str, timeout_s: float) -> None:
        try:
            child.wait_until(answers, timeout_s=timeout_s)
        except ChildFailed as exc:
            raise self._failed(child, f"the {name} failed") from exc

    def _failed(self, child: ChildProcess, what: str) -> TerminalError:
        return TerminalError(
            f"the demo cannot go on: {what}",
            code="DEMO_FAILED",
            found=f"at the end of its log\n{child.log_tail()}\n",
            remedy=f"See {child.log_path}",
        )

    def _rows(self, table: str) -> int:
        return stored_rows(self._spec.table_location(table))

    def _published(self) -> dict[str, int] | None:
        """Return what the publisher last said; None before its first word."""
        lines = self._place.log("publisher").read_text(errors="replace").splitlines(keepends=True)
        said = [line for line in lines if line.startswith("{") and line.endswith("}\n")]
        found: dict[str, int] | None = json.loads(said[-1]) if said else None
        return found

    def _tell_progress(self) -> None:
        published = self._published()
        if published is None:
            self._tell("the first files land")
            return
        self._tell(
            f"published {published['flights']:,} flights, {published['weather_files']} weather files · "
            f"bronze {self._rows(_EVENTS):,} · silver {self._rows('silver.flights'):,} · "
            f"with weather {self._rows('silver.flights_weather'):,}"
        )

    def _tell(self, text: str) -> None:
        self._told_s = time.monotonic()
        self._console.print(
            f"{self._told_s - self._started_s:5.1f} s  {text}", soft_wrap=True, markup=False, highlight=False
        )
