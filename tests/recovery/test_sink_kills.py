"""Kill the real process at every named point of every kind of sink, and compare what went out with what came in."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.conftest import LakeStorage
from tests.recovery.sinks_lake import SinksLake
from waxlake.stream.failpoints import SINK_FAILPOINTS

pytestmark = pytest.mark.timeout(1200)
_LATER = ("batch-decided:2", "batch-sent:3", "batch-delivered:4", "quarantine-pending")


def _lake(request: pytest.FixtureRequest, folder: Path, broker: str, *, is_remote: bool) -> SinksLake:
    storage = LakeStorage(uri=str(folder / "lake"))
    if is_remote:
        store, bucket = request.getfixturevalue("s3_store"), f"sinks-{uuid.uuid4().hex[:12]}"
        store.create_bucket(bucket)
        storage = LakeStorage(uri=f"s3://{bucket}/lake", storage_options=store.storage_options)
    lake = SinksLake(folder / "project", storage, request.getfixturevalue(broker))
    lake.make()
    return lake


@pytest.mark.parametrize(
    ("mode", "broker", "is_remote"),
    [
        pytest.param("triggered", "apache_kafka", False, id="triggered"),
        pytest.param("continuous", "apache_kafka", False, id="continuous"),
        pytest.param("two-processes", "apache_kafka", True, id="two-processes-s3"),
    ],
)
def test_every_failpoint_of_every_sink(
    mode: str, broker: str, is_remote: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    lake = _lake(request, tmp_path, broker, is_remote=is_remote)
    for failpoint in (*SINK_FAILPOINTS, *(_LATER if mode == "triggered" else ())):
        lake.publish(300)
        lake.run_to_failpoint(mode, failpoint)
    lake.publish(300)
    lake.finish(mode)
    lake.check()
