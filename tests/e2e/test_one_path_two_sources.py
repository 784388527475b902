"""Sources that differ in more than their path."""

from __future__ import annotations

from tests.e2e.project import Project


def test_two_formats_under_one_path_are_two_sources(project: Project) -> None:
    project.land("1.json", {"id": 1}, {"id": 2})
    project.define(
        """
@wl.table
def parsed():
    return wl.read_files("inbox", format="json", schema="id BIGINT")

@wl.table
def lines():
    return wl.read_files("inbox", format="text")
"""
    )
    project.run()
    project.land("2.json", {"id": 3})
    project.run()

    assert project.rows("parsed", "id") == [1, 2, 3]
    assert project.rows("lines", "value") == ['{"id": 1}', '{"id": 2}', '{"id": 3}']

    both = 'wl.read_files("inbox", format="json", schema="id BIGINT").union(wl.read_files("inbox", format="text"))'
    project.define(f"\n@wl.table\ndef parsed():\n    return {both}\n")
    project.waxlake("dry-run").refused("DUPLICATE_SOURCE", "files:inbox")
