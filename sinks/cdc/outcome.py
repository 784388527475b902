"""What a merge decided: rows that go, rows that come, events to keep, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

__all__ = ["FILE", "KEY", "ROW", "Outcome", "counts_by_flow"]

FILE = "__waxlake_file"
ROW = "__waxlake_row"
KEY = "__waxlake_key"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The result of applying changes to the rows that have their keys.

    Attributes:
        drops: Stored rows that go: number of the file and of the row in it.
        rows: Rows that come, with the number of the file that they should lie in, NULL for any.
        events: Events to add to the state.
        upserted: Flow number to rows inserted or updated.
        deleted: Flow number to rows deleted, or closed in a history.
    """

    drops: pa.Table
    rows: pa.Table
    events: pa.Table
    upserted: Mapping[int, int] = field(default_factory=dict)
    deleted: Mapping[int, int] = field(default_factory=dict)


def counts_by_flow(flows: pa.ChunkedArray) -> dict[int, int]:
    """Return how often each flow number occurs; NULL counts for flow 0."""
    counts: dict[int, int] = {}
    for item in flows.value_counts().to_pylist():
        flow = item["values"] or 0
        counts[flow] = counts.get(flow, 0) + item["counts"]
    return counts
