"""Definition files, run so that they declare: each under a name of its own, always anew, its errors told as that file's.

The resolver loads every file of a spec with it.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waxlake.pipeline.registry import Registry
from waxlake.stream.errors import DefinitionError, WaxlakeError

__all__ = ["import_path", "line_in", "load_file"]


_SLOW_S = 15.0


def load_file(path: Path, registry: Registry) -> None:
    """Let a file of Python or SQL declare what it has to, while ``registry`` listens.

    Raises:
        DefinitionError: It fails, with the line. Not retryable.
    """
    if path.suffix == ".sql":
        from waxlake.pipeline.sqlfile import load_sql_file

        load_sql_file(path, registry)
    else:
        with _told_if_slow(path):
            _import_file(path)


@contextmanager
def import_path(folder: Path) -> Iterator[None]:
    """Let modules of a project's folder be imported by its definitions."""
    added = str(folder)
    sys.path.insert(0, added)
    try:
        yield
    finally:
        if added in sys.path:
            sys.path.remove(added)


@contextmanager
def _told_if_slow(path: Path) -> Iterator[None]:
    """Say so if a definitions file does not come to its end: it loops, or waits for something."""
    text = (
        f"{path} has been running for {_SLOW_S:.0f} s: definitions are to declare, not to work. Ctrl-C twice stops it"
    )
    timer = threading.Timer(_SLOW_S, lambda: sys.stderr.write(f"{text}\n"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import_file(path: Path) -> None:
    """Import one definitions file under a name of its own, always anew."""
    name = f"_waxlake_definitions.{path.stem}_{abs(hash(str(path)))}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # Compiled here: bytecode of a file edited twice within a second would be that of its former text.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except WaxlakeError:
        raise
    except (Exception, SystemExit) as exc:  # whatever a user's file raises is reported as that file's error
        raise DefinitionError(
            f"cannot import the definitions: {type(exc).__name__}: {exc}",
            where=line_in(path, exc),
            code="DEFINITIONS_FAILED",
            remedy="Run the file with python to see the whole traceback",
        ) from exc


def line_in(path: Path, exc: BaseException) -> str:
    """Return ``file:line`` of the innermost line of a file that an error passed through."""
    line = getattr(exc, "lineno", 0) if isinstance(exc, SyntaxError) else 0
    trace = exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}:{line or 1}"
