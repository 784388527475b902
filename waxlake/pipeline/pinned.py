"""Static tables that a flow reads at one version for a whole update: found when it is planned, shared by all of its processes.

An update that is planned anew (a retry, another run that moved its tables) keeps them; what begins after a crash is another
update. Tables of the pipeline in a triggered update are left out: flows wait until it is done with them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.sql import StaticTables
from waxlake.pipeline.tables import PinnedTables
from waxlake.stream.delta_table import TableLocation

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.graph import Flow

__all__ = ["flow_tables", "pinned_versions"]


def pinned_versions(checked: CheckedGraph, *, is_bounded: bool) -> dict[str, int]:
    """Return the versions at which flows read the tables that they pin, as these are now.

    Raises:
        ExternalError: A table cannot be read.
    """
    names = dict.fromkeys(name for part in checked.selected_flows for name in _pinned(checked, part.flow))
    own = checked.graph.datasets
    return {n: _location(checked, n).open().version() for n in names if not (is_bounded and n in own)}


def flow_tables(checked: CheckedGraph, flow: Flow, versions: Mapping[str, int], latest: StaticTables) -> StaticTables:
    """Return what finds the static tables of a flow."""
    held = {name: versions[name] for name in _pinned(checked, flow) if name in versions}
    return _FlowTables(checked, flow, held, latest) if held else latest


class _FlowTables:
    def __init__(self, checked: CheckedGraph, flow: Flow, versions: Mapping[str, int], latest: StaticTables) -> None:
        self._checked, self._pinned, self._versions, self._latest = checked, frozenset(flow.pinned), versions, latest
        self._tables: PinnedTables | None = None
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Any:
        """Return an Arrow table, or a dataset where the table is large."""
        if name not in self._pinned:
            return self._latest(name)
        with self._lock:
            if self._tables is None:
                handles = {n: _location(self._checked, n).open(version) for n, version in self._versions.items()}
                self._tables = PinnedTables(self._checked, handles, others=self._latest)
            return self._tables(name)


def _pinned(checked: CheckedGraph, flow: Flow) -> tuple[str, ...]:
    from waxlake.pipeline.check import stored_tables_of

    return stored_tables_of(checked, flow.pinned)


def _location(checked: CheckedGraph, name: str) -> TableLocation:
    dataset = checked.graph.datasets.get(name)
    location = checked.external(name) if dataset is None else dataset.location
    assert location is not None
    return location
