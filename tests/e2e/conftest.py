"""An empty project for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a spec and no definitions."""
    return Project(tmp_path / "shop")
