"""An empty project for each test, and one that reads orders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.orders import ORDERS
from tests.e2e.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a spec and no definitions."""
    return Project(tmp_path / "shop")


@pytest.fixture
def orders(project: Project) -> Project:
    """Two tables and a view over files; one file is there."""
    project.define(ORDERS)
    project.land("1.json", {"id": 1, "amount": 1.0})
    return project
