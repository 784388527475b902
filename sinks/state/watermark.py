"""How far event time has come: the highest time of each source partition, and the watermark that follows from them.

The watermark is that below which no more rows are expected: the smallest, over the partitions that are not idle, of the highest
event time less the delay. It moves with a commit and never goes back. Times are microseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from waxlake.stream.batch import MicroBatch
from waxlake.stream.errors import UserError

__all__ = ["EventTime", "Watermark", "micros", "require_time"]

MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTime:
    """The event time of one input of an operator.

    Attributes:
        column: Column of a time.
        delay_us: How much later than the latest a row may come, in microseconds.
        idle_s: Seconds without rows after which a partition no longer holds the watermark back.
        ahead_us: How far beyond the clock a time may lie and still move the watermark, in microseconds.
        keeps_late: Whether late rows go to the quarantine table rather than nowhere.
        holds_first_load: Whether the watermark begins only when every partition was read to its end once.
    """

    column: str
    delay_us: int
    idle_s: float = 60.0
    ahead_us: int = 24 * 3600 * MICROS
    keeps_late: bool = False
    holds_first_load: bool = False


def require_time(schema: pa.Schema, column: str, *, what: str) -> None:
    """Stop unless a column is there and holds times.

    Raises:
        UserError: It is not, or does not. Not retryable.
    """
    if column not in schema.names:
        raise UserError(
            f"{what} names an unknown column '{column}'",
            code="UNKNOWN_COLUMN",
            expected=", ".join(schema.names),
            remedy="Select it before, under this name",
        )
    kind = schema.field(column).type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise UserError(
            f"{what} needs a column of times",
            code="EVENT_TIME_TYPE",
            found=f"{column} {kind}",
            expected="TIMESTAMP or DATE",
            remedy="Convert it with with_columns",
        )


def micros(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as microseconds since 1970."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    return column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())


@dataclass(slots=True)
class _Partition:
    """What is known of one source partition."""

    high: int | None = None
    moved_at_s: float | None = None
    last_rows_s: float | None = None
    delay_us: int = 0
    idle_s: float = 60.0
    has_ended: bool = False
    is_seen: bool = False
    is_loading: bool = False
    empty_batches: int = 0


@dataclass(slots=True)
class Watermark:
    """The watermark of one operator.

    Args:
        sources: Number of sources that feed it; until all have shown, it stays.
        value: Where it is; None before it was ever set.
    """

    sources: int = 1
    value: int | None = None
    future: int = 0
    _partitions: dict[tuple[str, str], _Partition] = field(default_factory=dict)
    _expected: dict[str, int] = field(default_factory=dict)

    def note(self, batch: MicroBatch, time: EventTime, *, now_s: float, clock_s: float) -> None:
        """Take notice of a batch.

        Args:
            batch: It.
            time: Its event time.
            now_s: Seconds since 1970.
            clock_s: Seconds of a monotonic clock.
        """
        key = (batch.source, batch.partition)
        seen = self._partitions.setdefault(key, _Partition())
        seen.delay_us, seen.idle_s = time.delay_us, time.idle_s
        if not seen.is_seen:
            seen.is_seen, seen.last_rows_s = True, clock_s
            seen.is_loading = time.holds_first_load and self.value is None
        self._expected[batch.source] = max(batch.partition_count, self._expected.get(batch.source, 0))
        seen.has_ended = seen.has_ended or batch.is_end
        # the first empty batch says where reading begins; further ones come only when there is nothing to read
        seen.empty_batches += not batch.read and not batch.table.num_rows
        if seen.has_ended or seen.empty_batches > 1:
            seen.is_loading = False
        if not batch.table.num_rows:
            return
        seen.last_rows_s, seen.moved_at_s = clock_s, now_s
        values = micros(batch.table.column(time.column))
        limit = pa.scalar(int(now_s * MICROS) + time.ahead_us, pa.int64())
        is_near = pc.less_equal(values, limit)
        self.future += pc.sum(pc.invert(is_near)).as_py() or 0
        high = pc.max(values.filter(is_near)).as_py()
        if high is not None:
            seen.high = high if seen.high is None else max(high, seen.high)

    def advance(self, *, now_s: float, clock_s: float) -> int | None:
        """Move the watermark as far as the partitions allow, and return it."""
        seen = {key: p for key, p in self._partitions.items() if p.is_seen}
        counts: dict[str, int] = {}
        for source, _ in seen:
            counts[source] = counts.get(source, 0) + 1
        if len(counts) < self.sources or any(counts[s] < self._expected.get(s, 0) for s in counts):
            return self.value
        self._partitions = seen  # others belong to a source that is no longer read
        if any(p.is_loading for p in seen.values()):
            return self.value
        active = [p for p in seen.values() if not _is_idle(p, now_s, clock_s)]
        if active and all(p.high is not None for p in active):
            found = min(p.high - p.delay_us for p in active if p.high is not None)
            self.value = found if self.value is None else max(found, self.value)
        return self.value

    def to_json(self) -> dict[str, Any]:
        """Return what has to be stored."""
        partitions = [
            {"source": source, "partition": partition, "high": p.high, "moved_at": p.moved_at_s}
            for (source, partition), p in sorted(self._partitions.items())
        ]
        return {"watermark": self.value, "partitions": partitions}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take back what was stored; what was noted since stays."""
        self.value = stored.get("watermark")
        entries: Sequence[Mapping[str, Any]] = stored.get("partitions") or ()
        for entry in entries:
            seen = self._partitions.setdefault((entry["source"], entry["partition"]), _Partition())
            highs = [high for high in (seen.high, entry["high"]) if high is not None]
            seen.high = max(highs) if highs else None
            seen.moved_at_s = seen.moved_at_s or entry["moved_at"]


def _is_idle(p: _Partition, now_s: float, clock_s: float) -> bool:
    """Return whether a partition has been silent so long that it holds nothing back.

    One that a bounded run has read to its end is silent since its last rows, in whatever run they came.
    """
    if p.has_ended and (p.moved_at_s is None or now_s - p.moved_at_s >= p.idle_s):
        return True
    return p.last_rows_s is not None and clock_s - p.last_rows_s >= p.idle_s
