"""The pages about options and about Auto Loader say what the code does."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from connectors.files.option_docs import options_reference

ROOT = Path(__file__).parents[2]


def test_the_reference_of_options_is_current() -> None:
    page = (ROOT / "docs/files-options.md").read_text()
    assert page == options_reference(), "run: python -m connectors.files.option_docs > docs/files-options.md"


def rows_of(page: Path) -> dict[str, list[str]]:
    """Return the cells of each row of a page's tables that begins with an id."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]
    return {row[0]: row[1:] for row in cells if re.fullmatch(r"[A-Z]+-\d+[a-z]?", row[0])}


def _rows() -> dict[str, list[str]]:
    return rows_of(ROOT / "docs/auto-loader.md")


@cache
def names_of_tests() -> set[str]:
    """Return the name of every test, and of every file of tests."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
        found.add(path.stem)
    return found


def test_every_test_that_the_page_about_auto_loader_names_exists() -> None:
    tests = names_of_tests()
    for id, row in _rows().items():
        for name in re.findall(r"test_\w+", row[-1]):
            assert name in tests, f"{id} names {name}, which does not exist"


def test_the_page_about_auto_loader_has_every_row() -> None:
    wanted = {f"AL-{n:02}" for n in range(1, 39)} | {"C-01", "C-04", "C-05", "W-21"}
    assert set(_rows()) == wanted


def test_every_row_says_how_it_is_and_a_test_carries_its_id() -> None:
    tests = names_of_tests()
    for id, row in _rows().items():
        assert all(row[:3]), f"{id} is not filled in"
        if "not applicable" not in row[1][:20]:
            label = id.lower().replace("-", "_")
            assert any(re.search(rf"_{label}(_|$)", name) for name in tests), f"no test is named after {id}"
