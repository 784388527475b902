"""Which files hold a pipeline's definitions: the patterns under `libraries` of a spec. Called by ``Spec``."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from waxlake.stream.errors import UsageError

__all__ = ["KINDS", "matching_files"]

KINDS = (".py", ".sql")


def matching_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the definition files that a pattern names, relative to ``folder``.

    A pattern is a file, a folder ending in ``/**``, or a glob.

    Raises:
        UsageError: A kind of file that holds no definitions. Not retryable.
    """
    file = folder / pattern
    if file.is_file():
        if file.suffix not in KINDS:
            raise UsageError(
                f"cannot read definitions from {file}",
                code="SPEC_LIBRARY_KIND",
                found=file.suffix or "no suffix",
                expected=" or ".join(KINDS),
            )
        yield Path(os.path.normpath(file))
        return
    root, wanted = (folder, pattern) if not Path(pattern).is_absolute() else (Path("/"), pattern.lstrip("/"))
    if wanted.endswith("/**"):
        wanted += "/*"
    for path in root.glob(wanted):
        parts = path.relative_to(root).parts
        if (
            any(part == "__pycache__" or (part.startswith(".") and part != "..") for part in parts)
            or not path.is_file()
        ):
            continue
        if path.suffix in KINDS and path.name != "__init__.py" and not _is_deployment(path):
            yield Path(os.path.normpath(path))


def _is_deployment(path: Path) -> bool:
    """Return whether a file is a ``main.py`` that defines ``flow`` for `python -m bytewax.run`."""
    if path.name != "main.py":
        return False
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return False
    for node in body:
        names: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        elif isinstance(node, ast.FunctionDef):
            names = [node.name]
        if "flow" in names:
            return True
    return False
