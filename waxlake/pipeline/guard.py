"""A check that `connectors` and `sinks` are ours: common names, which a folder of the user's may shadow.

Called by every command and whenever a spec is loaded, before anything is imported from them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from waxlake.stream.errors import UsageError

__all__ = ["guard_packages"]

_OURS = ("connectors", "sinks")


def guard_packages() -> None:
    """Check that our sibling packages would be imported from beside ``waxlake``.

    Raises:
        UsageError: Another package of the same name comes first on the path, or none is installed. Not retryable.
    """
    home = Path(__file__).resolve().parents[2]
    for name in _OURS:
        found = _folder_of(name)
        if found is None:
            raise UsageError(
                f"cannot import package {name!r} of Waxlake",
                code="PACKAGE_MISSING",
                expected=str(home / name),
                remedy="The installation is incomplete: install waxlake again",
            )
        if found != home / name:
            raise UsageError(
                f"package {name!r} is not Waxlake's own",
                code="PACKAGE_SHADOWED",
                found=str(found),
                expected=str(home / name),
                remedy=f"Rename that folder or file, or keep {found.parent} off the Python path",
            )


def _folder_of(name: str) -> Path | None:
    """Return where a top-level package would come from, without importing it; the file itself for a plain module."""
    if name not in sys.modules:
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    place = places[0] if places else spec.origin
    return Path(place).resolve() if place else None
