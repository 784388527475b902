"""A pipeline that uses everything that can lose or double rows, its real processes, and the check that nothing did.

One Kafka read feeds two tables, one of them with a quarantine; a third table streams from the first; a fourth takes files
through a ledger; a view counts the third. Each record is known by (partition, offset), each file row by its number.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from confluent_kafka import Producer
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tests.conftest import LakeStorage
from tests.recovery.project import Project, wait
from tests.services.kafka import KafkaCluster, create_topic

PARTITIONS = 3
_DEFINITIONS = """
import waxlake as wl

COLUMNS = "n BIGINT, s STRING"

def read():
    return wl.read_kafka({topic!r}, {bootstrap!r}, schema=COLUMNS, max_rows_per_batch=200)

@wl.table(table_properties={properties!r})
@wl.expect("short", "length(s) < 40")
@wl.expect_or_quarantine("not negative", "n >= 0")
def events():
    return read().select("*", "_partition AS p", "_offset AS o")

@wl.table
def audit():
    return read().select("_partition AS p", "_offset AS o")

@wl.table
def clean():
    return wl.read_stream("events").where("_rescued_data IS NULL")

@wl.table
def landed():
    return wl.read_files({inbox!r}, format="json", schema="f BIGINT")

@wl.materialized_view
def per_partition():
    return wl.sql("SELECT p, count(*) AS rows, sum(n) AS total FROM clean GROUP BY p")
"""
_SPEC = """
name: recovery
storage: {storage}
libraries: [{{glob: {{include: "flows/definitions.py"}}}}]
trigger_interval: 200ms
lease_time: 4s
storage_options: {options}
"""


@dataclass(slots=True)
class RecoveryLake(Project):
    """One pipeline over one topic and one folder."""

    storage: LakeStorage
    cluster: KafkaCluster
    properties: dict[str, str] = field(default_factory=dict)
    topic: str = field(default_factory=lambda: f"recovery-{uuid.uuid4().hex[:12]}")
    published: int = 0
    bad: int = 0
    malformed: int = 0
    total: int = 0
    file_rows: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(7))
    _producer: Producer | None = None

    def make(self) -> None:
        """Create the topic and the project."""
        create_topic(self.cluster, self.topic, partitions=PARTITIONS)
        self.inbox.mkdir()
        (self.folder / "flows").mkdir()
        (self.folder / "flows" / "__init__.py").touch()
        (self.folder / "flows" / "main.py").write_text("from waxlake.pipeline.deploy import flow\n")
        definitions = _DEFINITIONS.format(
            topic=self.topic,
            bootstrap=self.cluster.bootstrap_servers,
            inbox=str(self.inbox),
            properties=self.properties,
        )
        (self.folder / "flows" / "definitions.py").write_text(definitions)
        spec = _SPEC.format(storage=self.storage.uri, options=json.dumps(self.storage.storage_options))
        (self.folder / "waxlake.yml").write_text(spec)

    @property
    def inbox(self) -> Path:
        """Folder where files land."""
        return self.folder / "inbox"

    def publish(self, count: int) -> None:
        """Send records to all partitions, some of them bad, some malformed, and let one file land."""
        if self._producer is None:
            self._producer = Producer({"bootstrap.servers": self.cluster.bootstrap_servers, "linger.ms": 5})
        for _ in range(count):
            value = self._record()
            self._producer.produce(self.topic, value=value, partition=self.random.randrange(PARTITIONS))
            self.published += 1
        assert self._producer.flush(60) == 0
        rows = [json.dumps({"f": self.file_rows + i}) for i in range(50)]
        self.file_rows += 50
        hidden = self.folder / "landing.tmp"
        hidden.write_text("\n".join(rows) + "\n")
        hidden.rename(self.inbox / f"{uuid.uuid4().hex}.json")

    def _record(self) -> bytes:
        kind = self.random.random()
        if kind < 0.05:
            self.malformed += 1
            self.bad += 1  # n is NULL, which breaks the rule
            return b"{not json"
        number = self.random.randrange(-10, 100)
        self.bad += number < 0
        self.total += max(0, number)
        return json.dumps({"n": number, "s": "x" * self.random.randrange(60)}).encode()

    def finish(self, mode: str) -> None:
        """Run to the end without a kill; a continuous run is asked to stop once it has everything."""
        process = self.start(mode)
        if mode == "continuous":
            self.await_everything(process)
            process.send_signal(signal.SIGTERM)
        assert wait(process) == 0, self.log(mode)

    def await_everything(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and process.poll() is None:
            if self._has_everything():
                return
            time.sleep(0.1)
        raise AssertionError(f"the continuous run did not catch up:\n{self.log('continuous')}")

    def _has_everything(self) -> bool:
        try:
            counts = {
                name: self.table(name).num_rows for name in ("events", "events_quarantine", "audit", "clean", "landed")
            }
            seen = sum(row["rows"] for row in self.table("per_partition").to_pylist())
        except DeltaError:  # a table may not be there yet
            return False
        good = self.published - self.bad
        return (
            counts
            == {
                "events": good,
                "events_quarantine": self.bad,
                "audit": self.published,
                "clean": good,
                "landed": self.file_rows,
            }
            and seen == good
        )

    def table(self, name: str) -> pa.Table:
        """Return a table's rows."""
        return self.handle(name).to_pyarrow_table()

    def handle(self, name: str) -> DeltaTable:
        """Return a table."""
        return DeltaTable(f"{self.storage.uri}/tables/default/{name}", storage_options=self.storage.storage_options)

    def check(self) -> None:
        """Compare every table with what was published, record by record: none missing, none twice."""
        offsets = {row["p"]: row["o"] for row in _ends(self.table("audit"))}
        everything = Counter((p, o) for p, end in offsets.items() for o in range(end + 1))
        assert sum(everything.values()) == self.published
        assert _keys(self.table("audit")) == everything
        events, rejected = self.table("events"), self.table("events_quarantine")
        assert _keys(events) + _keys(rejected) == everything
        assert rejected.num_rows == self.bad
        assert {tuple(r) for r in rejected.column("_failed_rules").to_pylist()} <= {
            ("not negative",),
            ("short", "not negative"),
        }
        assert sum(v is not None for v in rejected.column("_rescued_data").to_pylist()) == self.malformed
        assert _keys(self.table("clean")) == _keys(events)
        assert sum(v for v in self.table("clean").column("n").to_pylist()) == self.total
        assert sorted(self.table("landed").column("f").to_pylist()) == list(range(self.file_rows))
        view = self.table("per_partition").to_pylist()
        assert {row["p"]: row["rows"] for row in view} == dict(Counter(p for p, _ in _keys(events).elements()))
        assert sum(row["total"] for row in view) == self.total
        self._check_log()

    def _check_log(self) -> None:
        """The log itself must tell the same: positions only grow, and each commit starts where the one before ended."""
        for name in ("events", "audit", "clean", "landed"):
            position: dict[tuple[str, str], int] = {}
            for entry in reversed(self.handle(name).history()):
                for facts in ((entry.get("waxlake") or {}).get("flows") or {}).values():
                    for source in facts["sources"]:
                        key = (source["source"], source["partition"])
                        assert position.get(key, source["start"]) == source["start"], (name, entry["version"])
                        position[key] = source["end"]


def _keys(table: pa.Table) -> Counter[tuple[int, int]]:
    return Counter(zip(table.column("p").to_pylist(), table.column("o").to_pylist(), strict=True))


def _ends(table: pa.Table) -> list[dict[str, int]]:
    ends = table.group_by("p").aggregate([("o", "max")])
    return [{"p": row["p"], "o": row["o_max"]} for row in ends.to_pylist()]
