"""Run a pipeline in a unit test: in process, on temporary local storage, with rows in place of its sources.

``run`` is one update; a ``Pipeline`` takes rows again and again, as a pipeline does. Nothing here needs pytest, a broker or a
network, and every error is the one that a user of the pipeline would see.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.doubles import Doubles
    from waxlake.pipeline.event import Event
    from waxlake.pipeline.replay import ReplayResult
    from waxlake.pipeline.spec import Spec

__all__ = ["Metrics", "Pipeline", "Result", "RuleMetrics", "assert_rows", "rows", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMetrics:
    """What one expectation counted in one run.

    Attributes:
        passed: Rows that kept it.
        failed: Rows that broke it.
        action: ``warn``, ``drop``, ``fail`` or ``quarantine``.
    """

    passed: int
    failed: int
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What one run did to one table.

    Attributes:
        written: Rows added; 0 for a table that changes are merged into.
        upserted: Rows that a merge wrote.
        deleted: Rows that a merge deleted.
        dropped: Rows that rules left out.
        quarantined: Rows that rules sent to quarantine.
        expectations: Rule to its counts, rules of temporary views that it reads included.
    """

    written: int = 0
    upserted: int = 0
    deleted: int = 0
    dropped: int = 0
    quarantined: int = 0
    expectations: Mapping[str, RuleMetrics] = field(default_factory=dict)


class Result(Mapping[str, "pa.Table"]):
    """The tables of a pipeline after a run, by name: ``result["orders"]`` is an Arrow table.

    Quarantine tables are there as ``<table>_quarantine``. A later run of the same pipeline does not change it.
    """

    def __init__(self, pipeline: Pipeline, checked: CheckedGraph, events: Sequence[Event]) -> None:
        self._pipeline, self._checked = pipeline, checked
        self.events = tuple(events)
        self._versions: dict[str, int] = {}
        for name, dataset in checked.graph.datasets.items():
            if dataset.location is not None and dataset.location.exists():
                self._versions[name] = dataset.location.open().version()

    def __getitem__(self, name: str) -> pa.Table:
        location = self._checked.graph.datasets[name].location
        assert location is not None
        return location.open(version=self._versions[name]).to_pyarrow_table()

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def __repr__(self) -> str:
        return f"Result({', '.join(self._versions)})"

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of a table as dicts."""
        found: list[dict[str, Any]] = self[table].to_pylist()
        return found

    def quarantine(self, table: str) -> pa.Table:
        """Return the rows of a table that broke a rule of quarantine: its columns, ``_failed_rules`` and whence they came."""
        return self[f"{table}_quarantine"]

    def metrics(self, table: str) -> Metrics:
        """Return what this run did to a table, as its commits say."""
        counts = {"output": 0, "upserted": 0, "deleted": 0, "quarantined": 0}
        dropped = 0
        rules: dict[str, RuleMetrics] = {}
        for event in self.events:
            if not event.is_commit or event.dataset != table:
                continue
            for kind in counts:
                counts[kind] += event.progress["metrics"].get(f"num_{kind}_rows", 0)
            quality = event.progress["data_quality"]
            dropped += quality["dropped_records"]
            for rule in quality["expectations"]:
                before = rules.get(rule["name"], RuleMetrics(passed=0, failed=0, action=rule["action"]))
                rules[rule["name"]] = RuleMetrics(
                    passed=before.passed + rule["passed_records"],
                    failed=before.failed + rule["failed_records"],
                    action=rule["action"],
                )
        return Metrics(
            written=counts["output"],
            upserted=counts["upserted"],
            deleted=counts["deleted"],
            quarantined=counts["quarantined"],
            dropped=dropped,
            expectations=rules,
        )

    def events_of(self, event_type: str) -> list[Event]:
        """Return the events of one type, such as ``flow_progress``."""
        return [event for event in self.events if event.event_type == event_type]


class Pipeline:
    """A pipeline under test, on storage of its own.

    Args:
        definitions: A project's folder or its spec file, a folder, a ``.py`` or ``.sql`` file, or an imported module. A single
            file is run with the spec of its project, if there is one.
        configuration: Values for ``wl.conf`` and ``${key}``; they take precedence over the spec's.
        environ: What ``${env:NAME}`` in the spec sees; None for the process's environment.
        now: The time that ``now()``, ``current_timestamp`` and ``current_date`` tell in SQL, until it is set again.
        rows_per_batch: Most rows of one micro-batch of a source.
        folder: Where tables lie; None for a temporary folder that is removed with this object.
    """

    def __init__(
        self,
        definitions: Any,
        *,
        configuration: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        now: datetime | str | None = None,
        rows_per_batch: int = 10_000,
        folder: str | Path | None = None,
    ) -> None:
        from waxlake.pipeline.doubles import Doubles

        if folder is None:
            folder = tempfile.mkdtemp(prefix="waxlake-test-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        spec = _spec(definitions, os.environ if environ is None else environ, dict(configuration or {}))
        self.now = now
        self._spec = _isolated(spec, Path(folder))
        self._doubles: Doubles = Doubles(self._spec, rows_per_batch)

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        until: str | Sequence[str] | None = None,
        now: datetime | str | None = None,
    ) -> Result:
        """Run one triggered update over what is new.

        Args:
            inputs: Dataset or source to further rows of it: an Arrow table, or a list of dicts. A dataset *is* those rows, its
                query and rules are not run; a source, as ``kafka:orders`` or ``orders``, delivers them. Each new list for a
                view replaces the one before.
            until: Datasets that are needed; others, unless these read them, are not run and need no input.
            now: The time, from here on.

        Raises:
            WaxlakeError: What the pipeline's own run would raise; ``TEST_INPUT_MISSING`` where a source has no rows.
        """
        from waxlake.pipeline.check import check_graph
        from waxlake.pipeline.resolve import load_graph
        from waxlake.pipeline.run import RunOptions, run_update
        from waxlake.stream.clock import holding_time

        self.now = now if now is not None else self.now
        wanted = (until,) if isinstance(until, str) else tuple(until or ())
        self._doubles.give(inputs or {})
        heard = _Listener()
        checked: list[CheckedGraph] = []

        def check() -> CheckedGraph:
            graph = self._doubles.pruned(load_graph(self._spec, self._doubles.adapt), wanted)
            checked.append(check_graph(graph))
            return checked[-1]

        with holding_time(_instant(self.now)):
            run_update(self._spec, RunOptions(), [heard], check=check)
        return Result(self, checked[-1], heard.events)

    def replay(self, table: str, *, where: str | None = None, sets: Mapping[str, str] | None = None) -> ReplayResult:
        """Put the rejected rows of a table through its rules as they are now, as ``waxlake replay`` does.

        Args:
            table: Table name.
            where: Condition over the quarantine table; None for all rows.
            sets: Column to SQL: how the rows are corrected first.
        """
        from waxlake.pipeline.replay import ReplayOptions, run_replay
        from waxlake.pipeline.resolve import load_graph
        from waxlake.stream.clock import holding_time

        graph = load_graph(self._spec, self._doubles.adapt)
        with holding_time(_instant(self.now)):
            return run_replay(graph, table, ReplayOptions(where=where, sets=sets or {}))


def run(
    definitions: Any,
    inputs: Mapping[str, Any] | None = None,
    until: str | Sequence[str] | None = None,
    **options: Any,
) -> Result:
    """Run a pipeline once and return its tables; ``options`` are those of ``Pipeline``.

    Raises:
        WaxlakeError: What the pipeline's own run would raise.
    """
    return Pipeline(definitions, **options).run(inputs, until=until)


def rows(schema: str | pa.Schema, values: Sequence[Mapping[str, Any]] = ()) -> pa.Table:
    """Return rows as a table of declared types.

    Args:
        schema: DDL, as ``id BIGINT, at TIMESTAMP``.
        values: Rows; a text stands for a time, as in JSON; a missing column is NULL.

    Raises:
        UsageError: ``TEST_ROWS_INVALID``. Not retryable.
    """
    from waxlake.pipeline.given_rows import typed_rows
    from waxlake.stream.ddl import parse_ddl
    from waxlake.stream.schema import delta_schema

    return typed_rows(list(values), delta_schema(parse_ddl(schema)), "rows()")


def assert_rows(table: pa.Table, expected: Sequence[Mapping[str, Any]]) -> None:
    """Assert that a table holds exactly these rows, in any order; columns that ``expected`` does not name do not count.

    Raises:
        AssertionError: Names the rows that are missing and those too many.
    """
    names = list(dict.fromkeys(name for row in expected for name in row))
    lacking = [name for name in names if name not in table.column_names]
    if lacking:
        raise AssertionError(f"no column {', '.join(lacking)} in {', '.join(table.column_names)}")
    found = table.select(names).to_pylist() if expected else table.to_pylist()
    missing = [{name: row.get(name) for name in names} for row in expected]
    extra = []
    for row in found:
        if row in missing:
            missing.remove(row)
        else:
            extra.append(row)
    if missing or extra:
        told = [f"  missing: {row}" for row in missing[:10]] + [f"  too many: {row}" for row in extra[:10]]
        raise AssertionError(f"{len(missing)} rows missing, {len(extra)} too many\n" + "\n".join(told))


class _Listener:
    """Keeps the events of a run."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        """There is nothing to free."""


def _instant(at: datetime | str | None) -> datetime | None:
    if at is None:
        return None
    moment = datetime.fromisoformat(at.replace("Z", "+00:00")) if isinstance(at, str) else at
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _spec(definitions: Any, environ: Mapping[str, str], params: dict[str, str]) -> Spec:
    """Return the spec behind what a test names; without one in the project, one that names just the definitions."""
    from waxlake.pipeline.spec import Glob, Library, Spec, load_spec

    named = getattr(definitions, "__file__", None) or definitions
    path = Path(os.path.abspath(named))
    if path.suffix in (".yml", ".yaml") or _has_spec(path):
        return load_spec(path, environ=environ, params=params)
    above = next((folder for folder in path.parents if _has_spec(folder)), None)
    include = f"{path}/**" if path.is_dir() else str(path)
    library = Library(glob=Glob(include=include))
    if above is not None:
        return load_spec(above, environ=environ, params=params).model_copy(update={"libraries": (library,)})
    folder = path if path.is_dir() else path.parent
    return Spec(name="test", storage=".", configuration=params, libraries=(library,), path=folder / "waxlake.yml")


def _has_spec(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("waxlake.yml", "waxlake.yaml"))


def _isolated(spec: Spec, folder: Path) -> Spec:
    from waxlake.stream.settings import StorageOptions

    return spec.model_copy(
        update={
            "storage": str((folder / "lake").absolute()),
            "storage_options": StorageOptions(),
            "trigger_interval": None,
            "mode": "triggered",
        }
    )
