"""A continuous run whose store goes away for a while: it goes on by itself, and nothing is lost or doubled."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.orders import ORDERS
from tests.e2e.project import Project
from tests.services.s3 import MinIO

HELD = """
import pathlib, time

FOLDER = pathlib.Path(__file__).parents[1]

def held(rows):
    if len(rows):
        (FOLDER / "reached").touch()
        while not (FOLDER / "let_go").exists():
            time.sleep(0.01)
    return rows
"""


@pytest.fixture
def orders(project: Project, minio: MinIO) -> Project:
    """Two tables and a view over files, on a store of their own; one file is there."""
    bucket = f"wax-{uuid.uuid4().hex[:16]}"
    minio.create_bucket(bucket)
    project.storage, project.storage_options = f"s3://{bucket}/lake", minio.storage_options
    project.spec(retry_wait="200ms")
    project.define(ORDERS)
    project.land("1.json", {"id": 1, "amount": 1.0})
    return project


def assert_exact(project: Project) -> None:
    """Assert that each of two orders is in each table once, also after one more run."""
    for _ in range(2):
        project.run()
        assert project.rows("orders", "id") == [1, 2]
        assert project.rows("paid", "id") == [1, 2]
        assert project.rows("total", "n") == [2]


def await_file(path: Path) -> None:
    """Wait until a file is there."""
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline_s, f"no file {path.name}"
        time.sleep(0.01)


@pytest.mark.services
def test_continuous_run_outlives_a_store_that_goes_away(orders: Project, minio: MinIO) -> None:
    with orders.continuous() as run:
        run.await_rows("paid", 1)
        minio.stop()
        try:
            retry = run.await_event(is_retry)
        finally:
            minio.start()
        assert retry["error"]["code"] == "STORAGE_UNREACHABLE"
        assert "Trying again in" in retry["message"]
        orders.land("2.json", {"id": 2, "amount": 2.0})
        run.await_rows("paid", 1)
        assert run.terminate().code == 0

    assert_exact(orders)


@pytest.mark.services
def test_continuous_run_writes_again_to_a_store_that_comes_back(orders: Project, minio: MinIO) -> None:
    """The batch is read already when its table cannot be written; nobody starts anything anew."""
    orders.define(HELD + ORDERS.replace("0.1)", "0.1).map_batches(held)"))

    with orders.continuous() as run:
        await_file(orders.folder / "reached")
        minio.stop()
        try:
            (orders.folder / "let_go").touch()
            failure = run.await_event(lambda event: event["dataset"] == "orders" and event["error"] is not None)
            assert failure["error"]["code"] == "STORAGE_UNREACHABLE"
        finally:
            minio.start()
        run.await_rows("paid", 1)
        orders.land("2.json", {"id": 2, "amount": 2.0})
        run.await_rows("paid", 1)
        assert run.terminate().code == 0

    assert_exact(orders)


def is_retry(event: dict[str, Any]) -> bool:
    """Return whether a source is tried again."""
    return bool(event["details"].get("flow_progress", {}).get("status") == "RETRYING")
