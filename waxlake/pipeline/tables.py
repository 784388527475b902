"""Datasets as DuckDB sees them: the latest version of a table, small ones held in memory, views computed on demand."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import DeltaTable

from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.growth import added_fields, merge_schemas
from waxlake.stream.schema import no_rows

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.sql import StaticTables

__all__ = ["EmptyTables", "LatestTables", "PinnedTables"]

_IN_MEMORY_BYTES = 256 << 20


@dataclass(slots=True)
class _Held:
    handle: DeltaTable
    version: int
    rows: Any
    checked_at_s: float


class LatestTables:
    """Finds datasets by name, at their latest version.

    Args:
        checked: The pipeline.
        max_age_s: How long a version is taken for the latest before the log is looked at again.
    """

    def __init__(self, checked: CheckedGraph, *, max_age_s: float = 1.0) -> None:
        self._checked, self._max_age_s = checked, max_age_s
        self._held: dict[str, _Held] = {}
        self._clock = Clock()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Any:
        """Return an Arrow table, or a dataset where the table is large.

        Raises:
            TerminalError: The table is not there. Not retryable.
        """
        dataset = self._checked.graph.datasets.get(name)
        if dataset is not None and dataset.kind == "temporary_view":
            return self._checked.queries[name].run(self)
        location = dataset.location if dataset is not None else self._checked.external(name)
        assert location is not None
        with self._lock:
            return self._rows(name, location, None if dataset is None else self._checked.schema_of(name))

    def version(self, name: str) -> int:
        """Return the version that ``name`` was last returned at."""
        return self._held[name].version

    def _rows(self, name: str, location: TableLocation, schema: pa.Schema | None) -> Any:
        now_s = self._clock.now_s()
        held = self._held.get(name)
        if held is not None and now_s - held.checked_at_s < self._max_age_s:
            return held.rows
        if held is None:
            handle = location.open()
            held = self._held[name] = _Held(handle, handle.version(), _load(handle, location, schema), now_s)
            return held.rows
        with delta_errors(f"read table '{location.label}'"):
            held.handle.update_incremental()
        if held.handle.version() != held.version:
            held.version, held.rows = held.handle.version(), _load(held.handle, location, schema)
        held.checked_at_s = now_s
        return held.rows


class PinnedTables:
    """Finds datasets by name, at given versions.

    Args:
        checked: The pipeline.
        handles: Stored tables by name; views are computed over them.
        others: Finds the stored tables that are not among them.
    """

    def __init__(
        self, checked: CheckedGraph, handles: Mapping[str, DeltaTable], others: StaticTables | None = None
    ) -> None:
        self._checked, self._handles, self._others = checked, handles, others
        self._rows: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        """Return an Arrow table, or a dataset where the table is large.

        Raises:
            ExternalError: The table cannot be read.
        """
        dataset = self._checked.graph.datasets.get(name)
        if dataset is not None and dataset.kind == "temporary_view":
            return self._checked.queries[name].run(self)
        if self._others is not None and name not in self._handles:
            return self._others(name)
        if name not in self._rows:
            location = dataset.location if dataset is not None else self._checked.external(name)
            assert location is not None
            schema = None if dataset is None else self._checked.schema_of(name)
            self._rows[name] = _load(self._handles[name], location, schema)
        return self._rows[name]


class EmptyTables:
    """Finds datasets by name as tables without rows, for checking a pipeline without reading data."""

    def __init__(self, checked: CheckedGraph) -> None:
        self._checked = checked

    def __call__(self, name: str) -> pa.Table:
        """Return no rows, with the dataset's columns."""
        return no_rows(self._checked.schema_of(name))


def _load(handle: DeltaTable, location: TableLocation, schema: pa.Schema | None) -> Any:
    """Return the rows; a column that the table is to have, but got no row with yet, is NULL."""
    with delta_errors(f"read table '{location.label}'"):
        sizes = pa.table(handle.get_add_actions(flatten=False)).column("size_bytes").to_pylist()
        dataset = handle.to_pyarrow_dataset()
        if schema is not None and added_fields(dataset.schema, schema):
            dataset = dataset.replace_schema(merge_schemas(dataset.schema, schema))
        return dataset.to_table() if sum(sizes) <= _IN_MEMORY_BYTES else dataset
