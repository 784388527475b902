"""What a sink is told: which table it writes, when it commits, and who watches it.

A user of the plain sink sets the first two; the run of a pipeline sets all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deltalake import DeltaTable

from sinks.delta.maintenance import MaintenanceReport, NeededVersions
from sinks.delta.protocol import CommitReceipt, new_run_number
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import WaxlakeError
from waxlake.stream.position import FENCE_APP_ID

__all__ = ["DeltaTarget", "FlushPolicy", "SinkControl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushPolicy:
    """When a sink commits: at the first of these.

    Attributes:
        max_rows: Rows buffered.
        max_bytes: Arrow bytes buffered.
        max_age_s: Seconds since the first buffered row.
        is_prompt: Rows do not wait for their age where the last commit is as old as that already, and some times as old as it
            took: one commit in ``max_age_s`` at most, none later than it has to be, and on a slow store not one a batch.
        max_idle_s: Seconds since positions moved without any row surviving.
        max_files: Files of which the commit's metadata tells; keeps that small.
    """

    max_rows: int = 2_000_000
    max_bytes: int = 256 << 20
    max_age_s: float = 10.0
    is_prompt: bool = False
    max_idle_s: float = 60.0
    max_files: int = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaTarget:
    """A table to write.

    Attributes:
        location: Where it lies; created from the first batch if it is not there.
        partition_by: Partition columns if it has to be created.
        replaces: Each batch replaces the whole content (a materialized view) instead of being appended.
        quarantine: Table for rejected rows; it must exist if any batch has some.
        shares_source: Other tables are fed by the same read.
        fence_app: App id of the fence.
        is_maintained: It is kept in shape; False for a table that is not the pipeline's own.
    """

    location: TableLocation
    partition_by: tuple[str, ...] = ()
    replaces: bool = False
    quarantine: TableLocation | None = None
    shares_source: bool = False
    fence_app: str = FENCE_APP_ID
    is_maintained: bool = True


@dataclass(slots=True)
class SinkControl:
    """How the rest of a run watches one sink.

    Attributes:
        run_id: Identity of the run, unique.
        run_number: Order of this run among others: the fence.
        on_commit: Told of every commit, after it is durable.
        on_error: Told of an error that stops the table; returns whether it was taken care of (else it is raised).
        identities: Flow name to app ids that are stored with each of its commits, to recognise a source that was
            recreated or exchanged.
        endings: Flow name and source identity to app ids that are stored when the flow has read all of the source.
        needed: Returns, for a table's name, what readers of it have not read, or None.
        on_maintenance: Told of what was done to keep the table in shape.
        judge: Takes rows out of a batch that is about to be stored, from what the table holds (the held snapshot); None for none.
        maintains: Whether tables are kept in shape between two commits.
    """

    run_id: str = "plain"
    run_number: int = field(default_factory=new_run_number)
    on_commit: Callable[[CommitReceipt], None] = lambda receipt: None
    on_error: Callable[[WaxlakeError], bool] = lambda error: False
    identities: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    endings: Mapping[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)
    needed: Callable[[str], NeededVersions | None] = lambda table: None
    on_maintenance: Callable[[MaintenanceReport], None] = lambda report: None
    judge: Callable[[MicroBatch, DeltaTable], MicroBatch] | None = None
    maintains: bool = True
