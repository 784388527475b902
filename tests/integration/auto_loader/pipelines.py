"""A pipeline in a folder that runs in this process: for tests of what many short runs do to files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from waxlake.pipeline.events import read_events
from waxlake.pipeline.file_states import file_states
from waxlake.pipeline.prepared import UpdateResult
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import Spec, load_spec


@dataclass(slots=True)
class FilesPipeline:
    """Tables fed by files.

    Attributes:
        folder: Where it lies; files land in ``inbox`` below.
        storage: `storage` of the spec.
        storage_options: `storage_options` of the spec.
    """

    folder: Path
    storage: str = "./lake"
    storage_options: Mapping[str, str] = field(default_factory=dict)

    def define(self, *tables: str, source: str = "inbox", **options: Any) -> None:
        """Define tables that read the same source, each with these options."""
        given = ", ".join(f"{name}={value!r}" for name, value in {"schema": "id BIGINT", **options}.items())
        self.write_definitions(*(f"{name} = wl.read_files({source!r}, format='json', {given})" for name in tables))

    def write_definitions(self, *tables: str) -> None:
        """Define tables, each as ``name = expression``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "inbox").mkdir(exist_ok=True)
        spec = {"name": "files", "storage": self.storage, "storage_options": dict(self.storage_options)}
        (self.folder / "waxlake.yml").write_text(json.dumps({**spec, "trigger_interval": "100ms"}))
        functions = []
        for table in tables:
            name, _, body = table.partition(" = ")
            functions.append(f"@wl.table\ndef {name}():\n    return {body}\n")
        (self.folder / "flows").mkdir(exist_ok=True)
        (self.folder / "flows" / "definitions.py").write_text("import waxlake as wl\n" + "\n".join(functions))

    @property
    def spec(self) -> Spec:
        """The spec."""
        return load_spec(self.folder)

    def land(self, name: str, *ids: object, content: bytes | None = None, age_s: float = 60) -> Path:
        """Let a whole file arrive that was modified a while ago."""
        path = self.folder / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(content if content is not None else lines(*ids))
        modified_s = time.time() - age_s
        os.utime(hidden, (modified_s, modified_s))
        return hidden.rename(path)

    def run(self) -> UpdateResult:
        """Run a triggered update."""
        return run_update(self.spec, RunOptions(), [])

    def ids(self, table: str = "t") -> list[Any]:
        """Return a table's ids, sorted."""
        return sorted(self.rows(table).column("id").to_pylist(), key=lambda v: (v is None, v))

    def rows(self, table: str = "t") -> pa.Table:
        """Return a table's rows."""
        path = f"{self.spec.storage_uri}/tables/default/{table}"
        return DeltaTable(path, storage_options=dict(self.storage_options)).to_pyarrow_table()

    def states(self, table: str = "t") -> list[dict[str, Any]]:
        """Return what became of each file of a table."""
        return file_states(load_graph(self.spec), table).to_pylist()

    def warnings(self) -> list[str]:
        """Return what the event log warns of."""
        return [event.message for event in read_events(self.spec.events_location()) if event.level == "WARN"]

    def names(self, folder: str = "inbox") -> list[str]:
        """Return the names of the files that are in a folder, sorted."""
        root = self.folder / folder
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def lines(*ids: object) -> bytes:
    """Return a file of JSON lines."""
    return b"".join(json.dumps({"id": i}).encode() + b"\n" for i in ids)
