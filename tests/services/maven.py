"""What tests need from Maven Central, fetched with Maven into the cache, once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.services import ServiceMissing

__all__ = ["fetched_jars"]


@contextmanager
def fetched_jars(
    what: str, directory: Path, goal: str, options: Sequence[str] = (), *, pom: str | None = None
) -> Iterator[Path]:
    """Yield a folder ``jars`` of what a goal of Maven's dependency plugin copies; its parent is removed afterwards.

    It lies in the same file system as ``directory``: what is wanted of it is renamed into place, whole or not at all.

    Args:
        what: What is fetched, for errors.
        directory: Where it is to be in the end.
        goal: Goal of the plugin, as ``copy``.
        options: Options of the goal.
        pom: Text of a ``pom.xml`` for the goal.

    Raises:
        ServiceMissing: No Maven, or it could not fetch them.
    """
    if shutil.which("mvn") is None:
        raise ServiceMissing(f"found no mvn (Maven), expected it to fetch {what}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        jars = Path(scratch, "jars")
        if pom is not None:
            Path(scratch, "pom.xml").write_text(pom)
        done = subprocess.run(
            ["mvn", "--batch-mode", "--quiet", f"dependency:{goal}", *options, f"-DoutputDirectory={jars}"],
            cwd=scratch,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise ServiceMissing(f"Maven could not fetch {what}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        yield jars
