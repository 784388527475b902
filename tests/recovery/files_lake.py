"""A pipeline over files that land meanwhile, its real processes, and the check that no row was lost or doubled.

Two tables read the same folder, one of them with a quarantine; a third takes it by a glob of its own; read files are moved
away. Each row is known by (file, line). Files are small, big, compressed and bad; local or on S3.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from tests.conftest import LakeStorage
from tests.recovery.project import Project, wait
from waxlake.pipeline.file_states import file_states
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec

_DEFINITIONS = """
import waxlake as wl

def read(path):
    return wl.read_files(path, format="json", schema="f BIGINT, l BIGINT", max_rows_per_batch=500, settle_s=0,
                         poll_interval_s=0.1, clean_source="MOVE", clean_source_retention=0,
                         clean_source_move_destination={archive!r}, ignore_corrupt_files=True)

@wl.table
@wl.expect_or_quarantine("line", "l % 10 <> 9")
def landed():
    return read({inbox!r})

@wl.table
def audit():
    return read({inbox!r}).select("*", "_metadata.file_path AS path")

@wl.table
def globbed():
    return wl.read_files({inbox!r} + "/*", format="json", schema="f BIGINT, l BIGINT", settle_s=0, poll_interval_s=0.1,
                         ignore_corrupt_files=True)
"""


@dataclass(slots=True)
class FilesLake(Project):
    """One pipeline over one folder or prefix.

    Args:
        storage: Where the lake lies; files land beside it.
    """

    storage: LakeStorage
    expected: Counter[tuple[int, int]] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    bad: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(11))
    _store: Any = None
    _landing: threading.Thread | None = None

    def make(self) -> None:
        """Create the project."""
        (self.folder / "flows").mkdir(parents=True)
        (self.folder / "flows" / "__init__.py").touch()
        (self.folder / "flows" / "main.py").write_text("from waxlake.pipeline.deploy import flow\n")
        text = _DEFINITIONS.format(inbox=self.inbox, archive=self.archive)
        (self.folder / "flows" / "definitions.py").write_text(text)
        spec = {
            "name": "recovery",
            "storage": f"{self.storage.uri}/lake",
            "libraries": [{"glob": {"include": "flows/definitions.py"}}],
            "trigger_interval": "200ms",
            "storage_options": self.storage.storage_options,
        }
        (self.folder / "waxlake.yml").write_text(json.dumps(spec))
        if self.is_local:
            Path(self.inbox).mkdir(parents=True)
        self.land(1)

    @property
    def is_local(self) -> bool:
        """Whether files are on this machine."""
        return "://" not in self.storage.uri

    @property
    def inbox(self) -> str:
        """Where files land."""
        return f"{self.storage.uri}/inbox"

    @property
    def archive(self) -> str:
        """Where files that were read are moved."""
        return f"{self.storage.uri}/archive"

    def land(self, count: int) -> None:
        """Let files arrive: small ones, big ones, compressed ones, and now and then one that cannot be read."""
        for _ in range(count):
            number, kind = len(self.names), self.random.random()
            lines = self.random.choice([1, 7, 40, 1300])
            content = b"".join(b'{"f": %d, "l": %d}\n' % (number, line) for line in range(lines))
            name = f"{number:05d}.json"
            if kind < 0.3:
                name, content = f"{name}.gz", gzip.compress(content)
            elif kind < 0.35:
                name, content, lines = f"{name}.gz", b"no gzip", 0
                self.bad += 1
            self._put(name, content)
            self.names.append(name)
            self.expected.update((number, line) for line in range(lines))

    def _put(self, name: str, content: bytes) -> None:
        if self.is_local:
            hidden = Path(self.inbox) / f".{name}.tmp"
            hidden.write_bytes(content)
            hidden.rename(Path(self.inbox) / name)
        else:
            self.filesystem.pipe_file(f"{self.inbox}/{name}", content)

    @property
    def filesystem(self) -> Any:
        """The S3 client of the tests."""
        if self._store is None:
            import s3fs

            options = self.storage.storage_options
            self._store = s3fs.S3FileSystem(
                key=options["AWS_ACCESS_KEY_ID"],
                secret=options["AWS_SECRET_ACCESS_KEY"],
                endpoint_url=options["AWS_ENDPOINT_URL"],
                use_listings_cache=False,
                skip_instance_cache=True,
            )
        return self._store

    def start(self, mode: str, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        """Start the pipeline's process after some files have landed; more land while it runs."""
        self.await_landing()
        self.land(6)
        process = Project.start(self, mode, failpoint)
        self._landing = threading.Thread(target=self._land_while, args=(process,))
        self._landing.start()
        return process

    def await_landing(self) -> None:
        """Wait until no more files land: the process they landed beside has ended."""
        if self._landing is not None:
            self._landing.join()

    def _land_while(self, process: subprocess.Popen[bytes]) -> None:
        last = len(self.names) + 12
        while process.poll() is None and len(self.names) < last:
            self.land(1)
            time.sleep(0.25)

    def finish(self, mode: str = "triggered") -> None:
        """Run to the end without a kill, until every file was read and moved."""
        self.await_landing()
        process = Project.start(self, mode)
        if mode == "continuous":
            deadline_s = time.monotonic() + 400
            while process.poll() is None and not self._has_everything():
                assert time.monotonic() < deadline_s, f"the continuous run did not catch up:\n{self.log(mode)}"
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
        assert wait(process) == 0, self.log(mode)

    def _has_everything(self) -> bool:
        try:
            counts = {self.table(name).num_rows for name in ("audit", "globbed")}
        except (DeltaError, TableNotFoundError):  # not there yet
            return False
        return counts == {sum(self.expected.values())} and len(self._left()) == self.bad

    def table(self, name: str) -> pa.Table:
        """Return a table's rows."""
        return self.handle(name).to_pyarrow_table()

    def handle(self, name: str) -> DeltaTable:
        """Return a table."""
        path = f"{self.storage.uri}/lake/tables/default/{name}"
        return DeltaTable(path, storage_options=self.storage.storage_options)

    def _left(self) -> list[str]:
        return self._list(self.inbox)

    def _list(self, folder: str) -> list[str]:
        if self.is_local:
            return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return sorted(path.rpartition("/")[2] for path in self.filesystem.find(folder))

    def check(self) -> None:
        """Compare every table with what landed, row by row, and what is told of each file with its rows."""
        good = Counter({key: n for key, n in self.expected.items() if key[1] % 10 != 9})
        assert _keys(self.table("landed")) == good
        assert _keys(self.table("landed_quarantine")) == self.expected - good
        for name in ("audit", "globbed"):
            assert _keys(self.table(name)) == self.expected, name
        graph = load_graph(load_spec(self.folder))
        rows_of = Counter(number for number, _ in self.expected)
        for name in ("landed", "audit", "globbed"):
            states = file_states(graph, name).to_pylist()
            assert len(states) == len(self.names)
            for state in states:
                number = int(state["path"].rpartition("/")[2][:5])
                assert state["state"] == ("committed" if rows_of[number] else "skipped"), state
                assert (state["rows"], state["rescued_rows"]) == (rows_of[number], 0), state
        moved = sorted(name for name in self.names if rows_of[int(name[:5])])
        assert self._list(self.archive) == moved
        assert self._left() == sorted(set(self.names) - set(moved))


def _keys(table: pa.Table) -> Counter[tuple[int, int]]:
    return Counter(zip(table.column("f").to_pylist(), table.column("l").to_pylist(), strict=True))


def new_lake(folder: Path, storage: LakeStorage) -> FilesLake:
    """Return a lake whose project is made."""
    lake = FilesLake(folder / f"project-{uuid.uuid4().hex[:8]}", storage)
    lake.make()
    return lake
