"""Options that several commands have, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waxlake.stream.errors import UsageError

if TYPE_CHECKING:
    from waxlake.pipeline.graph import Graph
    from waxlake.pipeline.spec import Spec
__all__ = ["JsonOption", "ParamOption", "SpecOption", "app", "names_of", "pairs_of", "read_graph", "read_spec"]

app = typer.Typer(
    name="waxlake",
    help="Streams, databases and files into Delta tables, exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="Spec file or its folder; else WAXLAKE_SPEC, else waxlake.yml here or above."),
]
ParamOption = Annotated[
    list[str] | None, typer.Option("--param", help="key=value; takes precedence over `configuration`. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")]


def names_of(option: str, values: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of comma lists, each once; an option that names nothing does not stand for everything."""
    names = tuple(dict.fromkeys(name.strip() for value in values or () for name in value.split(",") if name.strip()))
    if values and not names:
        raise UsageError(f"option {option}", code="OPTION_INVALID", found=repr(values[0]), expected="names: a,b")
    return names


def pairs_of(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Return the pairs of a repeatable option ``key=value``."""
    values = {}
    for text in texts or ():
        key, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not key or not value:
            raise UsageError(f"option {option}", code="OPTION_INVALID", found=repr(text), expected="name=value")
        values[key] = value
    return values


def read_spec(path: Path | None, params: Sequence[str] | None) -> Spec:
    """Return the spec that a command is about, with its parameters."""
    from waxlake.pipeline.spec import load_spec

    values = {}
    for text in params or ():
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError("option --param", code="PARAM_INVALID", found=repr(key), expected="key=value")
        values[key] = value
    return load_spec(path, params=values)


def read_graph(path: Path | None, params: Sequence[str] | None) -> Graph:
    """Return the pipeline that a command is about."""
    spec = read_spec(path, params)
    from waxlake.pipeline.resolve import load_graph

    return load_graph(spec)
