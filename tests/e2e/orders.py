"""A pipeline of two tables and a view over files, and what is true of it however it was disturbed."""

from __future__ import annotations

from tests.e2e.project import Project

ORDERS = """
@wl.table
def orders():
    return wl.read_files("inbox", format="json", schema="id BIGINT, amount DOUBLE", poll_interval_s=0.1)

@wl.table
def paid():
    return wl.read_stream("orders").where("amount > 0")

@wl.materialized_view
def total():
    return wl.sql("SELECT count(*) AS n FROM paid")
"""


def assert_exact(project: Project, count: int) -> None:
    """Assert that every order from 1 to ``count`` is in each table once, also after one more run."""
    for _ in range(2):
        assert project.rows("orders", "id") == list(range(1, count + 1))
        assert project.rows("paid", "id") == list(range(1, count + 1))
        assert project.rows("total", "n") == [count]
        project.run()
