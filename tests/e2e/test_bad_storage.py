"""Storage that refuses, fills up or is away, and tables that someone else dropped, replaced or rewrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.e2e.orders import ORDERS, assert_exact
from tests.e2e.project import Project
from waxlake.pipeline.event_table import EVENT_SCHEMA, EventTable
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TransientError

OTHER = 'read_files("elsewhere", format="json", schema="id BIGINT, amount DOUBLE", poll_interval_s=0.1)'


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount something at a folder while the block runs; skip the test where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


# -- not writable


def test_storage_below_a_file(orders: Project) -> None:
    orders.write("lake", "a file")

    orders.waxlake("run").refused(
        "STORAGE_NOT_WRITABLE", "'updates of shop'", "a file where a folder should be", "lake"
    )

    (orders.folder / "lake").unlink()
    orders.run()
    assert_exact(orders, 1)


def test_storage_on_a_read_only_file_system(orders: Project) -> None:
    needs_root()
    lake = orders.folder / "lake"
    with mounted(lake, "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"):
        orders.waxlake("run").refused("STORAGE_NOT_WRITABLE", "of shop'", "Mount it for writing")
    orders.run()
    assert_exact(orders, 1)


def test_storage_that_became_read_only(orders: Project) -> None:
    needs_root()
    with mounted(orders.folder / "lake", "-t", "tmpfs", "-o", "size=32m", "tmpfs") as lake:
        orders.run()
        orders.land("2.json", {"id": 2, "amount": 1.0})
        subprocess.run(["mount", "-o", "remount,ro", str(lake)], check=True)
        done = orders.waxlake("run")
        done.refused("STORAGE_NOT_WRITABLE", "Mount it for writing")
        subprocess.run(["mount", "-o", "remount,rw", str(lake)], check=True)
        orders.run()
        assert_exact(orders, 2)


def test_tables_that_may_not_be_changed(orders: Project) -> None:
    """The log of one table refuses new files; the others go on as far as they can."""
    needs_root()
    orders.run()
    orders.land("2.json", {"id": 2, "amount": 1.0})
    log = Path(orders.path("paid")) / "_delta_log"
    if subprocess.run(["chattr", "+i", str(log)], capture_output=True).returncode != 0:
        pytest.skip("chattr +i is not available on this file system")
    try:
        done = orders.waxlake("run")
    finally:
        subprocess.run(["chattr", "-i", str(log)], check=True)

    done.refused("STORAGE_NOT_WRITABLE", "'paid'")
    assert orders.rows("orders", "id") == [1, 2]
    assert orders.rows("paid", "id") == [1]
    orders.run()
    assert_exact(orders, 2)


# -- full


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return ballast


def test_disk_full_at_commit(orders: Project) -> None:
    needs_root()
    with mounted(orders.folder / "lake", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as lake:
        orders.run()
        orders.land("2.json", *({"id": n, "amount": n / 7} for n in range(2, 5001)))
        ballast = fill(lake)

        orders.waxlake("run").refused("STORAGE_FULL", "Free some space and run again")
        assert orders.rows("orders", "id") == [1]

        ballast.unlink()
        orders.run()
        assert_exact(orders, 5000)


def test_continuous_run_outlives_a_disk_that_is_full_or_read_only_for_a_while(orders: Project) -> None:
    needs_root()
    orders.spec(retry_wait="100ms")
    with mounted(orders.folder / "lake", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as lake:
        with orders.continuous() as run:
            run.await_rows("paid", 1)
            ballast = fill(lake)
            orders.land("2.json", *({"id": n, "amount": n / 7} for n in range(2, 2501)))
            failure = run.await_event(is_failure)
            assert failure["error"]["code"] == "STORAGE_FULL"
            assert "Free some space" in failure["message"]
            ballast.unlink()
            run.await_rows("paid", 2499)

            remount(lake, "ro")
            orders.land("3.json", *({"id": n, "amount": n / 7} for n in range(2501, 5001)))
            failure = run.await_event(is_failure)
            assert failure["error"]["code"] == "STORAGE_NOT_WRITABLE"
            assert "Mount it for writing" in failure["message"]
            remount(lake, "rw")
            run.await_rows("paid", 2500)
            assert run.terminate().code == 0

        orders.run()
        assert_exact(orders, 5000)


def test_event_log_on_a_full_disk_says_so_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs_root()
    with mounted(tmp_path / "lake", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as lake:
        table = EventTable(TableLocation(str(lake / "events")))
        row = dict.fromkeys(EVENT_SCHEMA.names, "x") | {"sequence": 1, "timestamp": datetime.now(timezone.utc)}
        table.append([row], {"orders": 1})
        ballast = fill(lake)
        with pytest.raises(TransientError) as failure:
            table.append([row] * 10_000, {"orders": 2})
        assert failure.value.code == "STORAGE_FULL"
        ballast.unlink()
        table.append([row], {"orders": 3})
        assert len(table.rows()) == 2
        assert table.completed_version("orders") == 3
    assert capfd.readouterr().err == ""


def is_failure(event: dict[str, Any]) -> bool:
    """Return whether a table or its source cannot go on for now."""
    return event["dataset"] is not None and event["error"] is not None


def remount(place: Path, how: str) -> None:
    """Mount a file system another way, once nobody is in the middle of writing a file there."""
    deadline_s = time.monotonic() + 30
    while (done := subprocess.run(["mount", "-o", f"remount,{how}", str(place)], capture_output=True)).returncode != 0:
        assert time.monotonic() < deadline_s, done.stderr
        time.sleep(0.01)


# -- tables that someone else changed between two runs


def dropped(project: Project) -> None:
    shutil.rmtree(project.path("orders"))


def replaced(project: Project) -> None:
    shutil.rmtree(project.path("orders"))
    rows = pa.table({"id": pa.array([77]), "amount": [7.0], "_rescued_data": pa.array([None], pa.string())})
    write_deltalake(project.path("orders"), rows)


def retyped(project: Project) -> None:
    rows = pa.table({"id": ["one"], "amount": [7.0], "_rescued_data": pa.array([None], pa.string())})
    write_deltalake(project.path("orders"), rows, mode="overwrite", schema_mode="overwrite")


def rewritten(project: Project) -> None:
    project.handle("orders").update({"amount": "amount + 1"})


def shortened(project: Project) -> None:
    project.handle("orders").delete("id = 1")


def compacted(project: Project) -> None:
    handle = project.handle("orders")
    handle.optimize.compact()
    handle.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)


def appended(project: Project) -> None:
    rows = pa.table({"id": [3], "amount": [7.0], "_rescued_data": pa.array([None], pa.string())})
    write_deltalake(project.path("orders"), rows, mode="append")


def ran_twice(project: Project) -> None:
    """Run, and let a second file arrive in a version of its own, which is read too."""
    project.run()
    project.land("2.json", {"id": 2, "amount": 2.0})
    project.run()


@pytest.mark.parametrize("change", [rewritten, shortened])
def test_upstream_table_that_was_rewritten(orders: Project, change: Callable[[Project], None]) -> None:
    ran_twice(orders)
    change(orders)
    before = orders.rows("orders")
    orders.land("3.json", {"id": 3, "amount": 3.0})

    orders.waxlake("run").refused("SOURCE_NOT_APPEND_ONLY", "delta:orders", "version 3", "delete both tables")

    assert [row for row in orders.rows("orders") if row["id"] != 3] == before  # it took the new file itself
    assert len(orders.rows("orders")) == len(before) + 1
    assert orders.rows("paid", "id") == [1, 2]
    shutil.rmtree(orders.path("orders"))
    shutil.rmtree(orders.path("paid"))
    orders.run()
    assert_exact(orders, 3)


def test_table_that_was_compacted(orders: Project) -> None:
    ran_twice(orders)
    compacted(orders)
    orders.land("3.json", {"id": 3, "amount": 3.0})

    orders.run()

    assert_exact(orders, 3)


def test_table_that_somebody_restored(orders: Project) -> None:
    """Its rows went back and its positions did not: it would silently miss rows for ever."""
    ran_twice(orders)
    before = orders.handle("orders").version()
    orders.handle("orders").restore(before - 1)
    orders.land("3.json", {"id": 3, "amount": 3.0})

    orders.waxlake("run").refused("TABLE_RESTORED", "'orders'", f"version {before + 1}", "--full-refresh")

    assert orders.rows("orders", "id") == [1]
    orders.handle("orders").restore(before)
    orders.waxlake("run").refused("TABLE_RESTORED", "'orders'")
    orders.waxlake("run", "--full-refresh", "orders,paid,total").succeeded()
    assert_exact(orders, 3)


def test_w17_event_log_that_was_deleted(orders: Project) -> None:
    ran_twice(orders)
    shutil.rmtree(orders.folder / "lake/events")
    orders.land("3.json", {"id": 3, "amount": 3.0})

    orders.run()

    assert_exact(orders, 3)
    events = orders.events("flow_progress")
    versions = {e["details"]["flow_progress"].get("table_version") for e in events if e["dataset"] == "orders"}
    assert {1, 2, 3} <= versions  # taken from the table's own commits


def test_table_that_somebody_appended_to(orders: Project) -> None:
    ran_twice(orders)
    appended(orders)
    orders.land("4.json", {"id": 4, "amount": 4.0})

    orders.run()

    assert_exact(orders, 4)


def test_table_that_changed_its_type(orders: Project) -> None:
    ran_twice(orders)
    retyped(orders)
    version = orders.handle("orders").version()
    orders.land("3.json", {"id": 3, "amount": 3.0})

    orders.waxlake("run").refused("SCHEMA_CHANGED", "'id'", "'orders'", "int64", "string")

    assert orders.handle("orders").version() == version
    assert orders.rows("orders", "id") == ["one"]


@pytest.mark.parametrize("change", [dropped, replaced])
def test_table_that_was_dropped_or_replaced(orders: Project, change: Callable[[Project], None]) -> None:
    """The table has no positions any more: it is filled anew, and whoever reads it must be told that it is another one."""
    ran_twice(orders)
    change(orders)
    orders.land("3.json", {"id": 3, "amount": 3.0})

    text = orders.waxlake("run").refused("SOURCE_RECREATED", "'paid'", "delta:orders", "Delete the table")

    assert "on_data_loss" not in text  # a table has no such option
    assert orders.rows("paid", "id") == [1, 2]
    shutil.rmtree(orders.path("paid"))
    orders.run()
    found = [1, 2, 3] if change is dropped else [1, 2, 3, 77]
    for _ in range(2):
        assert orders.rows("orders", "id") == orders.rows("paid", "id") == found
        assert orders.rows("total", "n") == [len(found)]
        orders.run()


def test_last_table_that_was_dropped_is_filled_again(orders: Project) -> None:
    ran_twice(orders)
    shutil.rmtree(orders.path("paid"))

    orders.run()

    assert_exact(orders, 2)


# -- the same during a continuous run


@pytest.mark.parametrize(
    ("change", "code"),
    [(dropped, "TABLE_NOT_FOUND"), (replaced, "TABLE_REPLACED"), (retyped, "SCHEMA_CHANGED")],
)
def test_table_that_is_destroyed_during_a_continuous_run(
    orders: Project, change: Callable[[Project], None], code: str
) -> None:
    orders.define(ORDERS.replace("paid", "other").replace('read_stream("orders")', OTHER))
    orders.land("1.json", {"id": 1, "amount": 1.0}, folder="elsewhere")
    with orders.continuous() as run:
        run.await_rows("orders", 1)
        change(orders)
        orders.land("2.json", {"id": 2, "amount": 2.0})
        failed = run.await_status("FAILED", "orders")
        assert failed["error"]["code"] == code
        orders.land("2.json", {"id": 2, "amount": 2.0}, folder="elsewhere")
        run.await_rows("other", 1)  # an independent flow goes on
        run.terminate().refused(code, "'orders'")

    if change is not dropped:  # nothing was written into the table that took its place
        assert orders.rows("orders", "id") == ([77] if change is replaced else ["one"])
        shutil.rmtree(orders.path("orders"))
    orders.run()
    assert orders.rows("orders", "id") == orders.rows("other", "id") == [1, 2]


def test_continuous_run_that_has_nothing_left_to_do_ends(orders: Project) -> None:
    orders.define(ORDERS.partition("@wl.table\ndef paid")[0])
    with orders.continuous() as run:
        run.await_rows("orders", 1)
        dropped(orders)
        orders.land("2.json", {"id": 2, "amount": 2.0})

        run.ended().refused("TABLE_NOT_FOUND", "'orders'")

    orders.run()
    assert orders.rows("orders", "id") == [1, 2]


@pytest.mark.parametrize("change", [rewritten, shortened])
def test_table_that_is_rewritten_during_a_continuous_run(orders: Project, change: Callable[[Project], None]) -> None:
    with orders.continuous() as run:
        run.await_rows("paid", 1)
        change(orders)
        run.await_status("FAILED", "paid")
        run.terminate().refused("SOURCE_NOT_APPEND_ONLY", "delta:orders", "version 2")

    assert orders.rows("paid", "id") == [1]


@pytest.mark.parametrize(("change", "count"), [(compacted, 2), (appended, 3)])
def test_table_that_is_changed_harmlessly_during_a_continuous_run(
    orders: Project, change: Callable[[Project], None], count: int
) -> None:
    with orders.continuous() as run:
        run.await_rows("paid", 1)
        change(orders)
        orders.land("2.json", {"id": 2, "amount": 2.0})
        run.await_rows("paid", count - 1)
        run.stop()

    orders.run()
    assert_exact(orders, count)


# -- places and logs


def test_hostile_storage_paths(orders: Project) -> None:
    """Relative, with spaces and signs that mean something to a shell or in a URI: one folder, no other."""
    for name in ("with space", "100% wax", "hash#query?", "ünï", "semi;colon", "$(touch owned)", "`id`"):
        orders.storage = f"./lakes/{name}"
        orders.spec()
        orders.run()
        assert orders.rows("orders", "id") == [1]
        assert orders.rows("total", "n") == [1]
    assert len(list((orders.folder / "lakes").iterdir())) == 7
    assert not (orders.folder / "owned").exists()
    orders.spec(storage="ftp://server/lake")
    orders.waxlake("run").refused("SPEC_INVALID", "'ftp'", exit_code=2)
    for name in ("per%20cent", "[a]", "back\\slash", "new\nline"):
        orders.spec(storage=f"./more/{name}")
        orders.waxlake("run").refused("SPEC_INVALID", "'storage'", exit_code=2)
        assert not (orders.folder / "more").exists()


def test_table_that_is_no_delta_table(orders: Project) -> None:
    """A folder with other files in it is made a table; those files are left alone."""
    other = Path(orders.path("orders")) / "notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")

    orders.run()

    assert other.read_text() == "mine"
    assert_exact(orders, 1)


def test_log_that_is_damaged(orders: Project) -> None:
    orders.run()
    log = Path(orders.path("orders")) / "_delta_log" / f"{0:020d}.json"
    whole = log.read_bytes()
    log.write_bytes(b'{"broken')
    orders.land("2.json", {"id": 2, "amount": 2.0})

    orders.waxlake("run").refused("STORAGE_ERROR", "'orders'")

    log.write_bytes(whole)
    orders.run()
    assert_exact(orders, 2)
    assert DeltaTable(orders.path("orders")).version() == 2
