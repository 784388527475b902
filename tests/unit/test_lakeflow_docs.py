"""The page that compares row by row names tests that exist, and each row that is answered has one that carries its id."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_files_option_docs import names_of_tests, rows_of

PAGE = Path(__file__).parents[2] / "docs/lakeflow.md"


@pytest.mark.parametrize(("id", "cells"), rows_of(PAGE).items())
def test_a_row_says_how_it_is_and_a_test_carries_its_id(id: str, cells: list[str]) -> None:
    what, how, tests = cells
    assert what
    assert how
    if how.startswith(("not applicable", "not there")):
        return
    known = names_of_tests()
    named = re.findall(r"test_\w+", tests)
    assert named, f"{id} names no test"
    assert set(named) <= known
    label = id.lower().replace("-", "")
    assert any(f"_{label}_" in name for name in named), f"no test of {id} is named after it"


def test_rows_are_in_order_and_there_once() -> None:
    ids = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]+-\d", line)]
    assert ids == sorted(set(ids), key=lambda id: (id[0], int(re.findall(r"\d+", id)[0]), id))
