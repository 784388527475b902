"""Where the recovery tests run: the embedded broker with a local lake, and Apache Kafka with a lake on S3."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import LakeStorage
from tests.recovery.lake import RecoveryLake


@pytest.fixture(params=["tansu-local", "kafka-s3"])
def make_lake(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., RecoveryLake]:
    """Return a function that makes a pipeline over a topic and a lake of its own."""
    if request.param == "tansu-local":
        cluster = request.getfixturevalue("tansu")
        storage = LakeStorage(uri=str(tmp_path / "lake"))
    else:
        cluster = request.getfixturevalue("apache_kafka")
        store = request.getfixturevalue("s3_store")
        bucket = f"recovery-{uuid.uuid4().hex[:12]}"
        store.create_bucket(bucket)
        storage = LakeStorage(uri=f"s3://{bucket}/lake", storage_options=store.storage_options)

    def make(properties: Mapping[str, str] | None = None) -> RecoveryLake:
        folder = tmp_path / "project"
        folder.mkdir()
        lake = RecoveryLake(folder, storage, cluster, properties=dict(properties or {}))
        lake.make()
        return lake

    return make
