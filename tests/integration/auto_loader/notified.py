"""What the tests of notifications share: a bucket that is read, and events about it, real or made up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from confluent_kafka import Producer

from tests.integration.files_lab import FilesLab
from tests.services.s3 import ObjectStore
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.settings import StorageOptions

_CHILD = """
import json, sys
from pathlib import Path
from tests.integration.auto_loader.notified import Notified
from tests.integration.files_lab import Flow, run
given = json.loads(sys.argv[1])
run(Notified.again(given).connector(), Flow())
"""


@dataclass(slots=True)
class Notified:
    """A source below ``in/`` of a bucket; the ledger is local."""

    root: Path
    store: ObjectStore | None
    bucket: str
    options: dict[str, Any]
    storage_options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.store is not None:
            self.storage_options = self.store.storage_options

    @classmethod
    def again(cls, given: dict[str, Any]) -> FilesLab:
        """Return the source of `kill`, in its process."""
        return cls(Path(given["root"]), None, given["bucket"], given["options"], given["storage_options"]).lab

    @property
    def lab(self) -> FilesLab:
        """The source."""
        return FilesLab(
            self.root,
            path=f"s3://{self.bucket}/in",
            ledger=TableLocation(str(self.root / "ledger"), StorageOptions({})),
            options={"storage_options": self.storage_options, "use_notifications": True, **self.options},
        )

    def put(self, key: str, number: int, bucket: str = "") -> None:
        """Put an object of one row."""
        assert self.store is not None
        with contextlib.closing(self.store.client("s3")) as client:
            client.put_object(Bucket=bucket or self.bucket, Key=key, Body=json.dumps({"id": number}).encode())

    def delete(self, key: str) -> None:
        """Delete an object."""
        assert self.store is not None
        with contextlib.closing(self.store.client("s3")) as client:
            client.delete_object(Bucket=self.bucket, Key=key)

    def kill(self, failpoint: str) -> None:
        """Run the source in a process that is killed at a failpoint."""
        given = {"root": str(self.root), "bucket": self.bucket, "options": self.options}
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps({**given, "storage_options": self.storage_options})],
            env={**os.environ, "WAXLAKE_FAILPOINT": failpoint},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr

    def event(self, key: str, name: str = "ObjectCreated:Put", bucket: str = "") -> str:
        """Return an event as S3 makes it."""
        stored = {"bucket": {"name": bucket or self.bucket}, "object": {"key": quote_plus(key, safe=""), "size": 1}}
        return json.dumps({"Records": [{"eventName": name, "s3": stored}]})

    def strange_events(self) -> list[str]:
        """Return messages that tell of no file of the source, and two of other shapes that tell of one."""
        bridge = {"bucket": {"name": self.bucket}, "object": {"key": "in/bridge 1+1.json"}}
        return [
            "no json",
            "[]",
            '{"Records": [{}]}',
            json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": self.bucket}),
            self.event("in/deleted.json", "ObjectRemoved:Delete"),
            self.event("in/never-there.json"),
            self.event("elsewhere/x.json"),
            self.event("in.json"),
            self.event("in/../in/x.json"),
            self.event("in/_hidden/x.json"),
            self.event("in/x.json", bucket="another-bucket"),
            json.dumps({"Type": "Notification", "Message": self.event("in/sns.json")}),
            json.dumps({"detail-type": "Object Created", "detail": bridge}),
            json.dumps({"detail-type": "Object Deleted", "detail": bridge}),
        ]


def send(bootstrap_servers: str, topic: str, messages: list[str]) -> None:
    """Publish messages and wait until they are there."""
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for message in messages:
        producer.produce(topic, message.encode())
    assert producer.flush(20) == 0


def told(caplog: Any) -> str:
    """Return what the source has warned of, and forget it."""
    text = "\n".join(
        r.getMessage() for r in caplog.records if r.name == "waxlake.files" and r.levelno == logging.WARNING
    )
    caplog.clear()
    return text
