"""Object stores that refuse or are away, of tables and of files: told at once, and no secret with it."""

from __future__ import annotations

import pytest

from tests.e2e.orders import ORDERS, assert_exact
from tests.e2e.project import Outcome, Project
from tests.services.s3 import ObjectStore
from waxlake.demo.process import free_port


def on_s3(orders: Project, storage: str, options: dict[str, str]) -> None:
    orders.storage, orders.storage_options = storage, options
    orders.spec()


def bounded(done: Outcome, seconds: float = 45) -> Outcome:
    assert done.seconds < seconds
    return done


SECRET = "hunter2-" + "x" * 32


@pytest.mark.services
def test_s3_with_wrong_credentials(orders: Project, s3_store: ObjectStore, bucket: str) -> None:
    if "moto" in s3_store.name:
        pytest.skip("moto takes any credentials")
    options = {**s3_store.storage_options, "AWS_SECRET_ACCESS_KEY": SECRET}
    on_s3(orders, f"s3://{bucket}/lake", options)

    done = bounded(orders.waxlake("run"))

    done.refused("STORAGE_ACCESS_DENIED", "'orders'", "`storage_options`")
    assert SECRET not in done.out + done.err
    on_s3(orders, f"s3://{bucket}/lake", s3_store.storage_options)
    orders.run()
    assert_exact(orders, 1)


@pytest.mark.services
def test_s3_with_a_missing_bucket(orders: Project, s3_store: ObjectStore, bucket: str) -> None:
    on_s3(orders, f"s3://{bucket}-missing/lake", s3_store.storage_options)

    done = bounded(orders.waxlake("run"))

    done.refused("STORAGE_NOT_FOUND", "'orders'", f"{bucket}-missing", "Create the bucket first")
    assert s3_store.storage_options["AWS_SECRET_ACCESS_KEY"] not in done.out + done.err


def test_s3_that_is_unreachable(orders: Project) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "wax",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    on_s3(orders, "s3://bucket/lake", options)

    done = bounded(orders.waxlake("run"))

    done.refused("STORAGE_UNREACHABLE", "'orders'", endpoint, "Check the endpoint")
    assert SECRET not in done.out + done.err


@pytest.mark.services
def test_files_on_s3_with_wrong_credentials(orders: Project, s3_store: ObjectStore, bucket: str) -> None:
    if "moto" in s3_store.name:
        pytest.skip("moto takes any credentials")
    options = {**s3_store.storage_options, "AWS_SECRET_ACCESS_KEY": SECRET}
    orders.define(
        ORDERS.replace('"inbox"', f'"s3://{bucket}/inbox"').replace("schema=", f"storage_options={options!r}, schema=")
    )

    done = bounded(orders.waxlake("run"))

    done.refused("FILES_ACCESS_DENIED", f"s3://{bucket}/inbox")
    assert SECRET not in done.out + done.err


def test_files_on_an_unreachable_s3(orders: Project) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "wax", "AWS_SECRET_ACCESS_KEY": SECRET}
    orders.define(
        ORDERS.replace('"inbox"', '"s3://bucket/inbox"').replace("schema=", f"storage_options={options!r}, schema=")
    )

    done = bounded(orders.waxlake("run"))

    done.refused("FILES_UNREACHABLE", "s3://bucket/inbox", endpoint)
    assert SECRET not in done.out + done.err
