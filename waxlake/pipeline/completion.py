"""How far the tables of a run are, read from their Delta logs: what a source may forget, and what is up to date.

Asked while a run goes on, in each of its processes, and once more at its end.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltalake import DeltaTable

from sinks.delta.quarantine import is_quarantine_whole
from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.pipeline.definitions import TableRead
from waxlake.pipeline.graph import Dataset
from waxlake.pipeline.source_groups import SourceGroup, is_view
from waxlake.stream.delta_table import REPLAYED_APP_ID, delta_errors, stored_position
from waxlake.stream.position import RowPosition, app_id, once_app_id
from waxlake.stream.source import SourcePlan

__all__ = ["Completion", "DurablePositions", "has_run_once", "reads_dataset"]


class DurablePositions:
    """Tells how far every table that is fed from a source holds it: what the source may forget.

    Used by one thread at a time. The tables are the only evidence, so it holds for every process of a run.

    Args:
        checked: The pipeline.
        group: A read of the source; other reads of the same source count too.
        source: What the run reads of it.
    """

    def __init__(self, checked: CheckedGraph, group: SourceGroup, source: SourcePlan) -> None:
        name = group.connector.name
        self._checked, self._source = checked, source
        self._flows = [part for part in checked.flows if part.connector.name == name]
        self._handles: dict[str, DeltaTable] = {}

    def __call__(self) -> Mapping[str, int]:
        """Return the smallest stored position of each source partition; none for one that a table has none of."""
        for handle in self._handles.values():
            with delta_errors(f"read table '{handle.table_uri}'"):
                handle.update_incremental()
        smallest: dict[str, int] = {}
        for partition in self._source.partitions:
            stored = [self._stored(part, partition) for part in self._flows if part.takes(partition)]
            known = [position for position in stored if position is not None]
            if known and len(known) == len(stored):
                smallest[partition] = min(known)
        return smallest

    def _stored(self, part: CheckedFlow, partition: str) -> int | None:
        target = part.flow.target
        if target not in self._handles:
            location = self._checked.graph.datasets[target].location
            assert location is not None
            self._handles[target] = location.open()
        return stored_position(self._handles[target], app_id(part.flow.name, self._source.identity, partition))


class Completion:
    """Tells whether a dataset holds everything its sources held when the run began. The tables are the only evidence.

    A table fed from outside is complete when its positions have reached the marks. A table fed by another table is
    complete when it has read a version of that table that was complete. So every process of a run comes to the same
    answer without talking to the others.

    Args:
        checked: The pipeline.
        marks: Flow name to app id to (where it begins without a position, the mark), as in the plan.
    """

    def __init__(self, checked: CheckedGraph, marks: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        self._checked, self._marks = checked, marks
        self._handles: dict[str, DeltaTable] = {}
        self._complete_versions: set[tuple[str, int]] = set()

    def is_complete(self, name: str) -> bool:
        """Return whether the dataset is complete now."""
        dataset = self._checked.graph.datasets[name]
        if dataset.location is None:
            return all(self.is_complete(upstream) for upstream in self._checked.graph.upstream(name))
        if not self._is_written(dataset):
            return True  # as it is, it is what this update reads
        return self._is_complete_at(dataset, self._latest(dataset))

    def _is_written(self, dataset: Dataset) -> bool:
        """Return whether this update writes a stored dataset; a quarantine table is written with the table it belongs to."""
        return self._checked.is_selected(dataset.definition.name)

    def _latest(self, dataset: Dataset) -> DeltaTable:
        assert dataset.location is not None
        handle = self._handles.get(dataset.name)
        if handle is None:
            handle = self._handles[dataset.name] = dataset.location.open()
            return handle
        with delta_errors(f"read table '{dataset.name}'"):
            handle.update_incremental()
        return handle

    def _is_complete_at(self, dataset: Dataset, handle: DeltaTable) -> bool:
        key = (dataset.name, handle.version())
        if key in self._complete_versions:
            return True
        if not self._holds_everything(dataset, handle):
            return False
        self._complete_versions.add(key)
        return True

    def _holds_everything(self, dataset: Dataset, handle: DeltaTable) -> bool:
        if dataset.kind == "quarantine":  # its table commits first, and says what it has put aside
            name = dataset.definition.name
            table = self._checked.graph.datasets[name]
            return self.is_complete(name) and is_quarantine_whole(self._latest(table), handle)
        return all(self._has_read_all(part, handle) for part in self._checked.flows if part.flow.target == dataset.name)

    def _has_read_all(self, part: CheckedFlow, handle: DeltaTable) -> bool:
        if is_view(part):
            return self._is_view_fresh(part, handle)
        if part.flow.once:
            return has_run_once(self._checked, part, handle)
        if not reads_dataset(self._checked, part):
            return all(
                _reached(stored_position(handle, app), begin, mark)
                for app, (begin, mark) in self._marks.get(part.flow.name, {}).items()
            )
        assert isinstance(part.read, TableRead)
        upstream = self._checked.graph.datasets[part.read.name]
        source = f"delta:{self._latest(upstream).metadata().id}"
        stored = stored_position(handle, app_id(part.flow.name, source, "log"))
        if stored is None:
            return False
        position = RowPosition.unpack(stored)
        return position.minor == 0 and position.major > 0 and self._was_complete(upstream, position.major - 1)

    def _was_complete(self, dataset: Dataset, version: int) -> bool:
        latest = self._latest(dataset)
        if not self._is_written(dataset):
            return version >= latest.version()
        if dataset.kind != "quarantine" and version < (latest.transaction_version(REPLAYED_APP_ID) or 0):
            return False
        if version >= latest.version():
            return self._is_complete_at(dataset, latest)
        if (dataset.name, version) in self._complete_versions:
            return True
        assert dataset.location is not None
        return self._is_complete_at(dataset, dataset.location.open(version=version))

    def _is_view_fresh(self, part: CheckedFlow, handle: DeltaTable) -> bool:
        if not all(self.is_complete(name) for name in part.gates):
            return False
        state = part.connector.inspect()
        return all(
            (stored_position(handle, app_id(part.flow.name, state.identity, p)) or -1) >= held.high
            for p, held in state.partitions.items()
        )


def _reached(stored: int | None, begin: int, mark: int) -> bool:
    return stored >= mark if stored is not None else mark <= begin


def has_run_once(checked: CheckedGraph, part: CheckedFlow, handle: DeltaTable | None = None) -> bool:
    """Return whether a flow that runs once has read its source; what came there since is not its business."""
    location = checked.graph.datasets[part.flow.target].location
    assert location is not None
    return stored_position(handle or location.open(), once_app_id(part.flow.name, part.connector.name)) is not None


def reads_dataset(checked: CheckedGraph, part: CheckedFlow) -> bool:
    """Return whether a flow is fed by a dataset of the pipeline."""
    return isinstance(part.read, TableRead) and part.read.name in checked.graph.datasets
