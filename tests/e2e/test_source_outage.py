"""A continuous run one of whose sources goes away: the tables of the others go on, also when it is planned again meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.project import Project
from tests.services.postgres import PostgresServer

DEFINITIONS = """
import os

def read(table):
    return wl.read_postgres(os.environ["SHOP_DSN"], [table], slot="shop").select("id")

@wl.table
def orders():
    return read("orders")

@wl.table
def items():
    return read("items")

@wl.table
def landed():
    return wl.read_files("inbox", format="json", poll_interval_s=0.1)

@wl.table
def copied():
    return wl.read_stream("landed").select("id")
"""


@pytest.mark.services
def test_other_sources_are_read_on_while_one_is_away_when_the_run_is_planned_again(
    project: Project, make_postgres: Callable[..., PostgresServer]
) -> None:
    server = make_postgres()
    server.execute("CREATE TABLE orders (id bigint PRIMARY KEY); CREATE TABLE items (id bigint PRIMARY KEY)")
    server.execute("INSERT INTO orders VALUES (1); INSERT INTO items VALUES (1)")
    project.environ["SHOP_DSN"] = server.dsn()
    project.spec(retry_wait="300ms", retry_max_wait="1s")
    project.define(DEFINITIONS)
    project.land("1.json", {"id": 1})
    project.run()
    project.land("2.json", {"id": 2})

    with project.continuous() as run:
        run.await_rows("copied", 1)
        server.stop()
        run.await_status("RETRYING", "orders")
        project.land("3.json", {"id": 3, "extra": "which no plan knows"})
        run.await_rows("copied", 1)
        project.land("4.json", {"id": 4, "extra": "known"})
        run.await_rows("copied", 1)
        server.start()
        server.execute("INSERT INTO orders VALUES (2); INSERT INTO items VALUES (2)")
        run.await_rows("items", 1)
        run.terminate().succeeded()

    for _ in range(2):
        project.run()
        assert project.rows("orders", "id") == project.rows("items", "id") == [1, 2]
        assert project.rows("landed", "id") == project.rows("copied", "id") == [1, 2, 3, 4]
