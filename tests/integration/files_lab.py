"""What the tests of the files source share: a folder with files, a connector over it, and runs that read it."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.files import FilesConnector, FilesSettings
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.source import PartitionPlan, SourcePlan, SourceState, plan_partitions

PARTITION = "files"


def write(path: Path, content: str | bytes | Iterable[Mapping[str, Any]], *, age_s: float = 60) -> Path:
    """Write a file: bytes, text, or documents one per line; last modified ``age_s`` seconds ago. It appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = "".join(json.dumps(row) + "\n" for row in content)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    modified_s = time.time() - age_s
    os.utime(unfinished, (modified_s, modified_s))
    return unfinished.replace(path)


def parquet(**columns: Any) -> bytes:
    """Return a Parquet file of these columns, three rows a row group."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=3)
    return sink.getvalue()


def numbered_rows(first: int, count: int) -> list[dict[str, Any]]:
    """Return rows of an id and a name, the ids one after the other."""
    return [{"id": i, "name": f"n{i}"} for i in range(first, first + count)]


@dataclass(slots=True)
class FilesLab:
    """A source under test."""

    root: Path
    format: str = "json"
    schema: str | pa.Schema | None = "id BIGINT, name STRING"
    path: str = ""
    ledger: TableLocation | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def inbox(self) -> Path:
        """The folder with files."""
        return self.root / "in"

    @property
    def location(self) -> TableLocation:
        """The ledger's place."""
        return self.ledger or TableLocation(str(self.root / "ledger"))

    def connector(self, **options: Any) -> FilesConnector:
        """Return a fresh connector, as a new run has one."""
        self.inbox.mkdir(parents=True, exist_ok=True)
        given = {"settle_s": 0, "poll_interval_s": 0.05, **self.options, **options}
        settings = FilesSettings.of(self.path or str(self.inbox), format=self.format, schema=self.schema, **given)
        return FilesConnector(settings, self.location)

    def ledger_rows(self) -> list[dict[str, Any]]:
        """Return the ledger's rows in order of their numbers."""
        return (
            self.location.open()
            .to_pyarrow_table()
            .sort_by([("number", "ascending"), ("edition", "ascending")])
            .to_pylist()
        )

    def write(self, name: str, content: str | bytes | Iterable[Mapping[str, Any]], **rest: Any) -> Path:
        """Write a file into the folder."""
        return write(self.inbox / name, content, **rest)


@dataclass(slots=True)
class Flow:
    """A flow that stores what it gets, and where it is, as a table does."""

    position: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    batches: list[MicroBatch] = field(default_factory=list)

    @property
    def stored(self) -> dict[str, int]:
        """Stored positions."""
        return {} if self.position is None else {PARTITION: self.position}

    def store(self, batch: MicroBatch) -> None:
        """Store a batch; a gap or an overlap is a failure of the source."""
        if self.position is not None:
            if batch.end <= self.position and batch.end > batch.start:
                return
            assert batch.start == self.position, (batch.start, self.position)
        self.position = batch.end
        self.rows += batch.table.to_pylist()
        self.batches.append(batch)


def run(
    connector: FilesConnector,
    flow: Flow,
    *,
    columns: Iterable[str] = (),
    max_batches: int | None = None,
    others: Iterable[Flow] = (),
) -> SourceState:
    """Run a bounded read to its end, or for some batches."""
    state = connector.inspect()
    flows = [flow, *others]
    plan = plan_partitions(state, [f.stored for f in flows], on_data_loss=connector.on_data_loss, is_bounded=True)
    for each in flows:
        if each.position is None:
            each.position = state.begin[PARTITION]
    read(connector, plan, flows, columns=columns, max_batches=max_batches)
    return state


def read(
    connector: FilesConnector,
    plan: SourcePlan,
    flows: Iterable[Flow],
    *,
    columns: Iterable[str] = (),
    max_batches: int | None = None,
    timeout_s: float = 20,
) -> None:
    """Read to the mark, or for some batches, into flows."""
    reader = connector.reader(plan, (PARTITION,), frozenset(columns))
    deadline_s, count = time.monotonic() + timeout_s, 0
    try:
        while not reader.is_done and (max_batches is None or count < max_batches):
            assert time.monotonic() < deadline_s, "the reader does not get to its end"
            batches = reader.read()
            for batch in batches:
                count += 1
                for flow in flows:
                    flow.store(batch)
            if batches:
                assert reader.positions() == {PARTITION: batches[-1].end}
            else:
                time.sleep(0.005)
    finally:
        reader.close()


def unbounded(state: SourceState, start: int = 0) -> SourcePlan:
    """Return a plan that reads on for ever."""
    return SourcePlan(identity=state.identity, name=state.name, partitions={PARTITION: PartitionPlan(start=start)})


def ids(flow: Flow) -> list[Any]:
    """Return the ids of a flow's rows, in order."""
    return [row["id"] for row in flow.rows]
