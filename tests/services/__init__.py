"""Real services for tests: taken from the environment, else started here, each only when a test first asks for it.

A service that can be neither reached nor started skips the test; where `WAXLAKE_REQUIRE` (names, comma between) lists
it, it fails the test instead. `python -m tests.services prepare` makes ready what can be started on this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["REQUIRABLE", "ServiceMissing", "cache_directory", "missing", "note_use", "required", "uses"]

REQUIRABLE = ("tansu", "kafka", "minio", "moto", "postgres", "pgserver", "mariadb", "mysql")

_uses: dict[str, str] = {}


class ServiceMissing(Exception):
    """A service can be neither reached nor started here; the text says why and what makes it ready."""


def required() -> frozenset[str]:
    """Return the services that must not be missing.

    Raises:
        pytest.UsageError: `WAXLAKE_REQUIRE` holds a name that is none.
    """
    names = frozenset(filter(None, (name.strip() for name in os.environ.get("WAXLAKE_REQUIRE", "").split(","))))
    if unknown := sorted(names - set(REQUIRABLE)):
        raise pytest.UsageError(
            f"WAXLAKE_REQUIRE: found {', '.join(unknown)}, expected some of {', '.join(REQUIRABLE)}"
        )
    return names


def missing(name: str, reason: object) -> None:
    """Skip the test that asked for a missing service, or fail it where the service is required."""
    if name in required():
        pytest.fail(f"{name} is required (WAXLAKE_REQUIRE) and missing: {reason}", pytrace=False)
    pytest.skip(f"{name} is missing: {reason}")


def note_use(name: str, description: str) -> None:
    """Remember, for the end of the run, which real service stood behind a name."""
    _uses[name] = description


def uses() -> dict[str, str]:
    """Return what `note_use` remembered."""
    return dict(_uses)


def cache_directory() -> Path:
    """Return the folder for programs that services are started from; outside the clone, so that clones share it."""
    return Path(os.environ.get("WAXLAKE_CACHE") or Path.home() / ".cache" / "waxlake")
