"""A small pipeline over a folder, run in this process: what tests of files sources are written with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from waxlake.pipeline.event import Event
from waxlake.pipeline.prepared import UpdateResult
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import Spec, load_spec


@dataclass(slots=True)
class Lake:
    """A pipeline in a folder.

    Args:
        folder: Where the spec lies.
        storage: `storage` of the spec.
        storage_options: `storage_options` of the spec.
    """

    folder: Path
    storage: str = "./lake"
    storage_options: Mapping[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def define(self, text: str) -> None:
        """Write the spec and the definitions; ``{inbox}`` in them is the folder of files."""
        spec = {"name": "shop", "storage": self.storage, "storage_options": dict(self.storage_options)}
        (self.folder / "waxlake.yml").write_text(json.dumps({**spec, "trigger_interval": "100ms"}))
        (self.folder / "flows").mkdir(exist_ok=True)
        text = "import waxlake as wl\n" + text.replace("{inbox}", str(self.inbox))
        (self.folder / "flows" / "definitions.py").write_text(text)

    @property
    def inbox(self) -> Path:
        """Folder of files."""
        path = self.folder / "inbox"
        path.mkdir(exist_ok=True)
        return path

    def land(self, name: str, content: str | bytes | Iterable[Mapping[str, Any]]) -> Path:
        """Let a whole, settled file arrive: bytes, text, or rows as JSON lines."""
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row) + "\n" for row in content)
        hidden = (self.inbox / name).with_name(".landing.tmp")
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)
        settled_s = time.time() - 60
        os.utime(hidden, (settled_s, settled_s))
        return hidden.rename(self.inbox / name)

    def spec(self) -> Spec:
        """Return the spec."""
        return load_spec(self.folder)

    def run(self, **options: Any) -> UpdateResult:
        """Run an update to its end; ``events`` are those of the last one."""
        self.events.clear()
        return run_update(self.spec(), RunOptions(**options), [_Collector(self.events)])

    def path(self, table: str) -> str:
        """Return the path or URI of a table."""
        root = self.storage if "://" in self.storage else str((self.folder / self.storage).resolve())
        return f"{root}/tables/default/{table}"

    def handle(self, table: str, version: int | None = None) -> DeltaTable:
        """Return a table."""
        return DeltaTable(self.path(table), version=version, storage_options=dict(self.storage_options))

    def columns(self, table: str) -> dict[str, str]:
        """Return a table's columns and their Delta types."""
        schema = pa.schema(self.handle(table).schema().to_arrow())
        return {field.name: str(field.type) for field in schema}

    def rows(self, table: str, *columns: str) -> list[Any]:
        """Return a table's rows, sorted: values if one column is named, else tuples or whole rows."""
        rows = self.handle(table).to_pyarrow_table().to_pylist()
        if len(columns) == 1:
            return sorted((row[columns[0]] for row in rows), key=repr)
        if columns:
            return sorted((tuple(row[name] for name in columns) for row in rows), key=repr)
        return sorted(rows, key=repr)

    def log(self, table: str) -> list[list[str]]:
        """Return the kinds of actions of each commit of a local table, oldest first."""
        files = sorted((Path(self.path(table)) / "_delta_log").glob("*.json"))
        return [[next(iter(json.loads(line))) for line in file.read_text().splitlines()] for file in files]


class _Collector:
    """Keeps events."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def on_event(self, event: Event) -> None:
        self._events.append(event)

    def close(self) -> None:
        """There is nothing to close."""
