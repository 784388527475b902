"""A materialized view as a source: when an input has a new version, one batch brings the view's table to it.

The batch is what changed (``incremental``) or, where that cannot be told, all rows of the query.

The position is one plus the sum of the input versions plus one each: it grows with every new version of any input. The identity
holds the inputs' table ids and the query's fingerprint, so a changed query or a recreated input is a new source, which
recomputes the view. A view that reads files has no version that grows: its position is a count of refreshes above a hash of what
it has read, files and versions, so that it is up to date where the hash is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from waxlake.pipeline.incremental.baseline import view_fingerprint
from waxlake.pipeline.incremental.reasons import NotIncremental
from waxlake.pipeline.tables import PinnedTables
from waxlake.stream.batch import MicroBatch, Refresh
from waxlake.stream.clock import Clock
from waxlake.stream.delta_table import stored_position
from waxlake.stream.position import app_id, identity_version
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState, spread

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.file_rows import FileRows
    from waxlake.pipeline.incremental.refresh import Refresher

__all__ = ["ViewConnector"]

_PARTITION = "inputs"
_DIGEST_BITS = 40
_DIGEST_MASK = (1 << _DIGEST_BITS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class ViewConnector:
    """The query of a materialized view.

    Args:
        checked: The pipeline.
        view: Its name.
        inputs: The stored tables it depends on.
        files: The files that it reads.
        min_interval_s: Shortest time between two refreshes of a continuous run.
    """

    checked: CheckedGraph
    view: str
    inputs: tuple[str, ...]
    files: tuple[FileRows, ...] = ()
    min_interval_s: float = 5.0

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"view:{self.view}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def on_data_loss(self) -> str:
        """A view has no history to lose."""
        return "skip"

    def empty(self) -> pa.Table:
        """Return no rows, in the view's schema."""
        return no_rows(self.checked.schemas[self.view])

    def inspect(self) -> SourceState:
        """Return the inputs' versions as one position."""
        versions, ids = self.versions()
        identity = self._identity(ids)
        return SourceState(
            identity=identity,
            name="",
            partitions={_PARTITION: SourceRange(low=0, high=self.position(versions, self._stored(identity)))},
            begin={_PARTITION: 0},
        )

    def _identity(self, ids: Sequence[str]) -> str:
        return f"view:{identity_version('/'.join([view_fingerprint(self.checked, self.view), *ids])):x}"

    def stored(self, target: DeltaTable, inputs: Mapping[str, DeltaTable]) -> int | None:
        """Return the position that the view's table holds; None if it holds none of this query over these inputs."""
        flow = self.checked.graph.datasets[self.view].flows[0].name
        identity = self._identity([str(handle.metadata().id) for handle in inputs.values()])
        return stored_position(target, app_id(flow, identity, _PARTITION))

    def _stored(self, identity: str) -> int:
        """Return the position that the view's table holds, where it counts; else 0."""
        dataset = self.checked.graph.datasets[self.view]
        if not self.files or dataset.location is None or not dataset.location.exists():
            return 0
        app = app_id(dataset.flows[0].name, identity, _PARTITION)
        return int(dataset.location.open().transaction_version(app) or 0)

    def position(self, versions: Sequence[int], before: int) -> int:
        """Return the position that stands for the inputs as they are now.

        Args:
            versions: Versions of the input tables.
            before: Position of the last refresh, 0 for none; returned if nothing has changed since.
        """
        if not self.files:
            return _position(versions)
        seen = repr((list(versions), [files.fingerprint() for files in self.files]))
        digest = int.from_bytes(hashlib.sha256(seen.encode("utf-8", "surrogateescape")).digest()[:5], "big") | 1
        is_same = before & _DIGEST_MASK == digest
        return before if is_same else (before >> _DIGEST_BITS) + 1 << _DIGEST_BITS | digest

    def look(self) -> list[str]:
        """Return what the files are now, for every process of a run to take as given (``settle``)."""
        return [files.fingerprint() for files in self.files]

    def settle(self, seen: Sequence[str]) -> None:
        """Take the files for what another process has seen, until the run ends."""
        for files, text in zip(self.files, seen, strict=True):
            files.seen = text

    @property
    def refresher(self) -> Refresher:
        """What refreshes the view."""
        from waxlake.pipeline.incremental.refresh import refresher_of

        return refresher_of(self.checked, self.view)

    def handles(self) -> dict[str, DeltaTable]:
        """Return each input at its latest version."""
        found = {}
        for name in self.inputs:
            dataset = self.checked.graph.datasets.get(name)
            location = dataset.location if dataset is not None else self.checked.external(name)
            assert location is not None
            found[name] = location.open()
        return found

    def versions(self) -> tuple[list[int], list[str]]:
        """Return the latest version and the table id of each input."""
        handles = self.handles().values()
        return [h.version() for h in handles], [str(h.metadata().id) for h in handles]

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return the one group."""
        return spread(list(plan.partitions), 1)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return what refreshes the view; a bounded one does it at most once, over the versions it is opened at."""
        return _ViewReader(self, plan)


def _position(versions: Sequence[int]) -> int:
    """Return the position that stands for these versions; above 0, so that a view of constants is computed once too."""
    return 1 + sum(version + 1 for version in versions)


class _ViewReader:
    """Refreshes the view when its inputs have moved."""

    def __init__(self, connector: ViewConnector, plan: SourcePlan) -> None:
        self._connector, self._plan = connector, plan
        part = plan.partitions[_PARTITION]
        self._position, self._is_bounded = part.start, part.mark is not None
        self._is_done = False
        self._clock = Clock()
        self._refreshed_at_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether a bounded refresh has happened."""
        return self._is_done

    def positions(self) -> Mapping[str, int]:
        """Return the position of the last refresh."""
        return {_PARTITION: self._position}

    def close(self) -> None:
        """There is nothing to free."""

    def read(self) -> Sequence[MicroBatch]:
        """Return what brings the view to its inputs as one batch, if they have moved."""
        now_s = self._clock.now_s()
        if self._refreshed_at_s is not None and now_s - self._refreshed_at_s < self._connector.min_interval_s:
            return []
        self._refreshed_at_s = now_s
        handles = self._connector.handles()
        end = self._connector.position([h.version() for h in handles.values()], self._position)
        if end <= self._position:
            self._is_done = self._is_bounded
            return []
        target = self._target()
        stored = self._connector.stored(target, handles)
        if (stored or 0) < self._position:  # what comes next is worked out from what the table holds
            self._refreshed_at_s = None
            return []
        self._is_done = self._is_bounded
        rows, refresh = self._refreshed(target, handles, is_reset=stored is None)
        start, self._position = self._position, end
        return [
            MicroBatch(
                table=rows,
                source=self._plan.identity,
                partition=_PARTITION,
                start=start,
                end=end,
                read=rows.num_rows,
                refresh=refresh,
            )
        ]

    def _target(self) -> DeltaTable:
        location = self._connector.checked.graph.datasets[self._connector.view].location
        assert location is not None
        return location.open()

    def _refreshed(
        self, target: DeltaTable, handles: Mapping[str, DeltaTable], *, is_reset: bool
    ) -> tuple[pa.Table, Refresh]:
        """Return the rows of the refresh, and what they do to those that the table holds."""
        refresher = self._connector.refresher
        versions = refresher.baseline.versions(handles)
        decision = refresher.decide(target, handles, is_reset=is_reset)
        if decision.is_incremental:
            try:
                outcome = refresher.refresh(target, handles, decision)
                return outcome.rows, outcome.refresh(versions, decision.facts())
            except NotIncremental as reason:
                decision = decision.refused(reason)
        refresher.require_allowed(decision)
        checked = self._connector.checked
        rows = checked.queries[self._connector.view].run(PinnedTables(checked, handles))
        facts = {**decision.facts(), "technique": "COMPLETE_RECOMPUTE", "rows_added": rows.num_rows}
        return rows, Refresh(drops=None, versions=versions, facts=facts)
