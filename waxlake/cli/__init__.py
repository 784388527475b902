"""The command `waxlake`. Each command imports what it needs when it runs, so that help and mistakes answer at once."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from waxlake.cli.options import app
from waxlake.pipeline.signals import note_signals
from waxlake.stream.errors import InternalError, WaxlakeError

# In the order in which help lists their commands.
from waxlake.cli import updating  # isort: skip
from waxlake.cli import looking  # isort: skip
from waxlake.cli import loading  # isort: skip

__all__ = ["app", "loading", "looking", "main", "updating"]


def main() -> None:
    """Run the command line; errors become a message on standard error and an exit code."""
    if sys.argv[1:2] == ["run"]:
        note_signals()
    try:
        app()
    except SystemExit as done:
        if isinstance(done.code, int | None):
            _leave(done.code or 0)
        raise
    except Exception as exc:  # the boundary of the process
        error = _waxlake_error(exc)
        if os.environ.get("WAXLAKE_DEBUG") == "1":
            raise
        error = error or InternalError.of(exc, "cannot go on")
        typer.echo(str(error), err=True)
        _leave(error.exit_code)


def _leave(code: int) -> NoReturn:
    """End the process at once: all is committed and written, and native threads still running at exit may abort it.

    A thread of Arrow's pool that reads through a Python file system asks for the interpreter when it lets go of a file;
    while the interpreter ends, that unwinds through C++ code and aborts the process after its work was done.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def _waxlake_error(exc: BaseException) -> WaxlakeError | None:
    """Return the error of ours behind an exception; what Bytewax wraps is its cause."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, WaxlakeError):
        cause = cause.__cause__
    return cause


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    from waxlake.pipeline.guard import guard_packages

    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(f"waxlake {installed('waxlake')}")
        except PackageNotFoundError:
            typer.echo("waxlake, run from its sources")
        raise typer.Exit
    guard_packages()


@app.command()
def init(name: Annotated[str, typer.Argument(help="Folder to create; its last part names the pipeline.")]) -> None:
    """Create a new project that runs."""
    from waxlake.pipeline.scaffold import create_project

    for path in create_project(Path(name)):
        typer.echo(f"created {path}")
    typer.echo(f"\nNow: cd {name} && waxlake run")


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Two weeks of the data instead of the year.")] = False,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to work; ./waxlake-demo if not given.")] = None,
) -> None:
    """Run the main job on real data, with embedded services."""
    from waxlake.demo.run import main as run_demo

    run_demo(fast=fast, folder=folder)
