"""A folder of files and a connector over it, as ``lab``; tests of databases have one of their own under that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.files_lab import FilesLab


@pytest.fixture
def lab(tmp_path: Path) -> FilesLab:
    return FilesLab(tmp_path)
