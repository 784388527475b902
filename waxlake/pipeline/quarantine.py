"""The columns of a quarantine table: those of its table, and why, when and whence a row came."""

from __future__ import annotations

import pyarrow as pa

from waxlake.pipeline.expectations import FAILED_RULES
from waxlake.stream.batch import MicroBatch
from waxlake.stream.clock import utc_now

__all__ = ["QUARANTINE_COLUMNS", "quarantine_schema", "with_provenance"]

QUARANTINE_COLUMNS = (
    pa.field(FAILED_RULES, pa.list_(pa.string())),
    pa.field("_quarantined_at", pa.timestamp("us", "UTC")),
    pa.field("_source", pa.string()),
    pa.field("_source_partition", pa.string()),
    pa.field("_batch_start", pa.int64()),
    pa.field("_batch_end", pa.int64()),
)


def quarantine_schema(table: pa.Schema) -> pa.Schema:
    """Return the columns of a quarantine table: those of its table, and why and whence a row came."""
    own = {f.name for f in QUARANTINE_COLUMNS}
    return pa.schema([*(f.with_nullable(True) for f in table if f.name not in own), *QUARANTINE_COLUMNS])


def with_provenance(rejected: pa.Table, batch: MicroBatch) -> pa.Table:
    """Add when and whence to rejected rows."""
    values = {
        "_quarantined_at": utc_now(),
        "_source": batch.source,
        "_source_partition": batch.partition,
        "_batch_start": batch.start,
        "_batch_end": batch.end,
    }
    rejected = rejected.drop_columns([name for name in values if name in rejected.column_names])
    for item in QUARANTINE_COLUMNS:
        if item.name in values:
            column = pa.repeat(pa.scalar(values[item.name], item.type), rejected.num_rows)
            rejected = rejected.append_column(item, column)
    return rejected
