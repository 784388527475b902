"""A folder of files and one flow over it, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.files_lab import FilesLab


@pytest.fixture
def lab(tmp_path: Path) -> FilesLab:
    return FilesLab(tmp_path)
