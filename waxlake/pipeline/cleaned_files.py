"""Files that a flow deletes or moves once every table has them must not be those that a view reads anew each time.

Called by the check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from waxlake.pipeline.definitions import FilesRead
from waxlake.pipeline.graph import Graph
from waxlake.stream.errors import DefinitionError

__all__ = ["check_cleaned_files"]


def check_cleaned_files(graph: Graph, settings_of: Callable[[FilesRead], Any]) -> None:
    """Stop if a materialized view reads files that ``clean_source`` of another read takes away: its rows would leave with them.

    Args:
        graph: The pipeline.
        settings_of: From a read to its settings with the path as the spec means it.

    Raises:
        DefinitionError: ``CLEAN_SOURCE_READ_BY_VIEW``. Not retryable.
    """
    cleaned = [(settings_of(read), read) for _, read in _reads(graph, "table") if read.settings.clean_source != "OFF"]
    for name, read in _reads(graph, "materialized_view") if cleaned else ():
        path = _folder(settings_of(read).path)
        for settings, cleaning in cleaned:
            other = _folder(settings.path)
            if path.startswith(other) or other.startswith(path):
                raise DefinitionError(
                    f"files that view '{name}' reads are taken away",
                    where=cleaning.where,
                    code="CLEAN_SOURCE_READ_BY_VIEW",
                    found=f"clean_source={settings.clean_source!r} of {settings.path}",
                    expected="files that stay, because a view reads all of them at each refresh",
                    remedy="Let the view read the table that takes the files, or set clean_source='OFF'",
                )


def _reads(graph: Graph, kind: str) -> Iterator[tuple[str, FilesRead]]:
    for dataset in graph.datasets.values():
        if dataset.kind == kind:
            for flow in dataset.flows:
                for branch in flow.branches:
                    if isinstance(branch.read, FilesRead):
                        yield dataset.name, branch.read


def _folder(path: str) -> str:
    """Return the part of a path before its first pattern, with a slash at its end."""
    before = path.split("*", 1)[0].split("[", 1)[0].split("{", 1)[0].split("?", 1)[0]
    return (before if before == path else before.rsplit("/", 1)[0]).rstrip("/") + "/"
