"""From definition files to a graph of datasets and flows: names resolved, views inlined, cycles and misuse found.

No data and no source is touched here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from waxlake.pipeline.definitions import (
    DatabaseRead,
    DatasetDefinition,
    EventHook,
    Expectation,
    FilesRead,
    KafkaRead,
    Read,
    TableRead,
)
from waxlake.pipeline.stream import Branch
from waxlake.stream.delta_table import TableLocation, is_remote
from waxlake.stream.position import FENCE_APP_ID

if TYPE_CHECKING:
    from sinks.cdc import ChangeRules
    from waxlake.pipeline.spec import Spec

__all__ = ["QUARANTINE_SUFFIX", "Dataset", "Flow", "Graph", "is_external", "read_name", "resolve_path"]

QUARANTINE_SUFFIX = "_quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One flow into a dataset, with its reads resolved.

    Attributes:
        name: Identity of its positions.
        target: Dataset it feeds.
        branches: Reads and steps; temporary views are inlined. A materialized view has its query here, too.
        inputs: Names of what it reads as a stream: datasets, or sources such as ``kafka:orders``.
        statics: Datasets it reads at their latest version.
        where: ``file:line``.
        changes: What its rows mean if they are changes to be merged, or None.
        once: Whether it ends for good when it has read what its source holds.
        pinned: Those of ``statics`` that it reads at one version for a whole update.
    """

    name: str
    target: str
    branches: tuple[Branch, ...]
    inputs: tuple[str, ...]
    statics: tuple[str, ...]
    where: str
    changes: ChangeRules | None = None
    once: bool = False
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A table, view or quarantine table of the pipeline.

    Attributes:
        name: Its name.
        kind: ``table``, ``materialized_view``, ``temporary_view``, ``sink`` or ``quarantine``.
        definition: What the user wrote; a quarantine table has that of its table.
        location: Where it is stored; None for a temporary view. For a sink, the Delta table that holds its positions.
        quarantine: Its quarantine table, if a rule asks for one.
        flows: What feeds it.
        fence_app: App id of its fence.
    """

    name: str
    kind: str
    definition: DatasetDefinition
    location: TableLocation | None
    quarantine: TableLocation | None
    flows: tuple[Flow, ...]
    fence_app: str = FENCE_APP_ID

    @property
    def has_ledger(self) -> bool:
        """Whether ``location`` holds positions and no rows."""
        return self.definition.sink is not None and self.definition.sink.has_ledger and self.kind == "sink"

    @property
    def is_shared(self) -> bool:
        """Whether ``location`` is a table that is not this pipeline's alone: others may append to it, too."""
        return self.kind == "sink" and not self.has_ledger

    @property
    def where(self) -> str:
        """``file:line`` of the definition."""
        return self.definition.where

    @property
    def comment(self) -> str | None:
        """Table comment."""
        return self.definition.comment

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """Rules, in the order written."""
        return self.definition.expectations


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """All datasets of a pipeline.

    Attributes:
        spec: The pipeline's spec.
        datasets: Name to dataset.
        order: Names so that each comes after what it reads.
        event_hooks: Functions that are told of every event of an update.
    """

    spec: Spec
    datasets: Mapping[str, Dataset]
    order: tuple[str, ...]
    event_hooks: tuple[EventHook, ...] = ()

    def upstream(self, name: str) -> tuple[str, ...]:
        """Return the datasets that ``name`` reads, as a stream or not."""
        dataset = self.datasets[name]
        if dataset.kind == "quarantine":
            return (dataset.definition.name,)
        read = [*(i for f in dataset.flows for i in f.inputs), *(s for f in dataset.flows for s in f.statics)]
        return tuple(dict.fromkeys(n for n in read if n in self.datasets))


def is_external(name: str) -> bool:
    """Return whether a table is named by its URI or path rather than by a dataset's name."""
    return "://" in name or name.startswith(("/", "./", "../"))


def resolve_path(spec: Spec, path: str) -> str:
    """Return a path as it is meant in a spec or definition: relative ones start at the spec's folder."""
    if is_remote(path) or "::" in path:
        return path
    return os.path.normpath(spec.folder / Path(path.removeprefix("file://")).expanduser())


def read_name(read: Read) -> str:
    """Return what users call a read: a dataset's name, or the source's."""
    if isinstance(read, TableRead):
        return read.name
    if isinstance(read, KafkaRead):
        return f"kafka:{read.settings.topic}"
    if isinstance(read, FilesRead):
        glob = read.settings.path_glob_filter
        return f"files:{read.settings.path}" + (f":{glob}" if glob else "")
    if isinstance(read, DatabaseRead):
        return read.settings.label
    return "query"
