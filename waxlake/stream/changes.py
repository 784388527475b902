"""Change rows: what every source of database changes emits, and what AUTO CDC reads. One shape for all of them.

A change row holds the columns of its table after the change (before it, for a delete), and these metadata columns, which
are there when selected and stay out of ``*``.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

__all__ = [
    "CHANGE_COLUMNS",
    "CHANGE_INDEX",
    "CHANGE_TABLE",
    "CHANGE_TYPE",
    "COMMIT_POSITION",
    "COMMIT_TIMESTAMP",
    "DELETE",
    "INSERT",
    "READ",
    "TRUNCATE",
    "UNCHANGED_COLUMNS",
    "UPDATE",
]

INSERT: Final = "insert"
UPDATE: Final = "update"
DELETE: Final = "delete"
READ: Final = "read"
TRUNCATE: Final = "truncate"
"""Values of ``_change_type``. ``read``: a row of the first load. ``truncate``: all other columns of the row are NULL. A change
of a key is a ``delete`` of the old one and an ``insert`` of the new one, next to each other."""

CHANGE_TYPE: Final = "_change_type"
COMMIT_POSITION: Final = "_commit_position"
CHANGE_INDEX: Final = "_change_index"
COMMIT_TIMESTAMP: Final = "_commit_timestamp"
CHANGE_TABLE: Final = "_table"
UNCHANGED_COLUMNS: Final = "_unchanged"

CHANGE_COLUMNS: Final = pa.schema(
    [
        pa.field(CHANGE_TYPE, pa.string(), metadata={"comment": "insert, update, delete, read or truncate"}),
        pa.field(COMMIT_POSITION, pa.int64(), metadata={"comment": "Grows with each commit of the source"}),
        pa.field(CHANGE_INDEX, pa.int64(), metadata={"comment": "Order of the change within its commit, from 0"}),
        pa.field(COMMIT_TIMESTAMP, pa.timestamp("us", tz="UTC"), metadata={"comment": "When the source committed it"}),
        pa.field(CHANGE_TABLE, pa.string(), metadata={"comment": "Table of the source, schema.table"}),
        pa.field(
            UNCHANGED_COLUMNS,
            pa.list_(pa.string()),
            metadata={"comment": "Columns that the source did not send because they did not change; NULL in the row"},
        ),
    ]
)
