"""What tables store beside positions, for sources that need more than a position to find their place again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from waxlake.pipeline.checked import CheckedFlow, CheckedGraph
from waxlake.stream.delta_table import stored_position
from waxlake.stream.position import app_id, note_app_id
from waxlake.stream.source import SourcePlan

__all__ = ["with_notes"]


def with_notes(
    checked: CheckedGraph, flows: Sequence[CheckedFlow], source: SourcePlan, names: Sequence[str]
) -> SourcePlan:
    """Return a plan with the notes of the positions that its flows' tables hold.

    Args:
        checked: The pipeline.
        flows: The flows that share the read.
        source: What is read.
        names: Names of the notes that there may be.
    """
    found: dict[str, dict[int, dict[str, int]]] = {partition: {} for partition in source.partitions}
    for part in flows:
        location = checked.graph.datasets[part.flow.target].location
        assert location is not None
        handle = location.open()
        for partition in filter(part.takes, source.partitions):
            app = app_id(part.flow.name, source.identity, partition)
            position = stored_position(handle, app)
            if position is None:
                continue
            stored = {name: handle.transaction_version(note_app_id(app, name)) for name in names}
            found[partition][position] = {name: value for name, value in stored.items() if value is not None}
    partitions = {key: replace(what, notes=found[key]) for key, what in source.partitions.items()}
    return replace(source, partitions=partitions)
