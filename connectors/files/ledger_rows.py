"""The rows of a ledger, and files from and to them; used by the ledger."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.found import FoundFiles
from waxlake.stream.clock import utc_now

__all__ = ["LEDGER_SCHEMA", "found_files", "ledger_rows"]

LEDGER_SCHEMA = pa.schema(
    [
        pa.field(
            "number", pa.int64(), metadata={"comment": "Order in which files are read; the major part of a position"}
        ),
        pa.field("path", pa.string(), metadata={"comment": "Absolute path or URI"}),
        pa.field("size_bytes", pa.int64(), metadata={"comment": "Size when it was found"}),
        pa.field(
            "modified_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "Modification time when it was found"}
        ),
        pa.field("etag", pa.string(), metadata={"comment": "Content tag of an object store, or NULL"}),
        pa.field("discovered_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "When it was found"}),
        pa.field("edition", pa.int32(), metadata={"comment": "0; more for a file that changed before anyone read it"}),
    ]
)


def found_files(rows: pa.Table | pa.RecordBatch) -> FoundFiles:
    """Return the files that rows of the ledger tell of."""
    etags = rows.column("etag")
    has_tags = etags.null_count < len(etags)
    return FoundFiles(
        rows.column("path").to_pylist(),
        rows.column("modified_at").cast(pa.int64()).to_numpy(),
        rows.column("size_bytes").to_numpy(),
        pc.fill_null(etags, "").to_pylist() if has_tags else None,
    )


def ledger_rows(files: FoundFiles, first: int, edition: int = 0) -> pa.Table:
    """Return the rows of files that get the numbers from ``first`` on."""
    count, etags = len(files), files.etags
    columns = {
        "number": pa.array(np.arange(first, first + count, dtype=np.int64)),
        "path": pa.array(files.paths, pa.string()),
        "size_bytes": pa.array(files.size_bytes),
        "modified_at": pa.array(files.modified_us).cast(LEDGER_SCHEMA.field("modified_at").type),
        "etag": pa.nulls(count, pa.string()) if etags is None else pa.array([e or None for e in etags], pa.string()),
        "discovered_at": pa.repeat(pa.scalar(utc_now(), LEDGER_SCHEMA.field("discovered_at").type), count),
        "edition": pa.repeat(pa.scalar(edition, pa.int32()), count),
    }
    return pa.table(columns, schema=LEDGER_SCHEMA)
