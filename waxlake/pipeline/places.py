"""Where datasets lie: each in a place of its own. Called when a graph is checked, before anything is read or written.

Two tables in one folder would be one Delta table with two fences and two sets of positions, and a table within another
one's folder is a set of unnamed files there, which that one's vacuum deletes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.graph import is_external, resolve_path
from waxlake.stream.delta_table import is_remote
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    from waxlake.pipeline.graph import Dataset, Graph

__all__ = ["check_places"]

_OWN_FOLDERS: Final = ("events", "inputs", "ledgers", "quality", "refresh", "sinks", "tables", "updates")


def check_places(graph: Graph) -> None:
    """Refuse datasets that lie in one place, or one within the other, or among what Waxlake keeps.

    Raises:
        DefinitionError: ``PATH_TAKEN``, ``SINK_IS_A_TABLE``, ``CYCLE``. Not retryable.
    """
    storage = _place(graph.spec.storage_uri)
    taken: dict[str, Dataset] = {}
    for dataset in sorted(graph.datasets.values(), key=lambda dataset: dataset.kind == "sink"):
        if dataset.location is None:
            continue
        place = _place(dataset.location.uri)
        if place in taken:
            raise _taken(dataset, taken[place], place)
        taken[place] = dataset
        if dataset.is_shared or dataset.definition.path:
            _refuse_own_folders(dataset, place, storage)
        _refuse_circle(graph, dataset, place)
    for place, dataset in taken.items():
        for folder in _folders_above(place):
            if folder in taken:
                raise _taken(dataset, taken[folder], f"{place} in {folder}")


def _taken(dataset: Dataset, other: Dataset, found: str) -> DefinitionError:
    if dataset.kind == "sink" and " in " not in found:
        return DefinitionError(
            f"sink '{dataset.name}' writes where '{other.name}' lies",
            where=dataset.where,
            code="SINK_IS_A_TABLE",
            found=found,
            remedy=f"Feed '{other.name}' with wl.append_flow(target='{other.name}')",
        )
    return DefinitionError(
        f"'{dataset.name}' cannot lie where '{other.name}' lies",
        where=dataset.where,
        code="PATH_TAKEN",
        found=found,
        expected="a folder for each, none within another",
        remedy="Give one of them another path, or feed one table with wl.append_flow",
    )


def _refuse_own_folders(dataset: Dataset, place: str, storage: str) -> None:
    own = [f"{storage}/{name}" for name in _OWN_FOLDERS]
    is_ours = any(_is_within(place, folder) for folder in own if not folder.endswith("/tables"))
    if is_ours or _is_within(storage, place) or place == f"{storage}/tables":
        raise DefinitionError(
            f"'{dataset.name}' cannot lie there",
            where=dataset.where,
            code="PATH_TAKEN",
            found=f"{place}, where Waxlake keeps what belongs to the storage {storage}",
            expected="a folder of its own",
        )


def _refuse_circle(graph: Graph, dataset: Dataset, place: str) -> None:
    reads = [branch.read for flow in dataset.flows for branch in flow.branches if flow.inputs]
    for read in reads:
        if (
            isinstance(read, TableRead)
            and is_external(read.name)
            and _place(resolve_path(graph.spec, read.name)) == place
        ):
            raise DefinitionError(
                f"'{dataset.name}' streams from itself",
                where=read.where,
                code="CYCLE",
                found=place,
                remedy="Let one of them read or write another table",
            )


def _place(uri: str) -> str:
    return uri.rstrip("/") if is_remote(uri) else os.path.realpath(uri.removeprefix("file://"))


def _folders_above(place: str) -> Iterator[str]:
    while (cut := place.rfind("/")) > 0:
        place = place[:cut]
        yield place


def _is_within(place: str, folder: str) -> bool:
    return place == folder or place.startswith(f"{folder}/")
