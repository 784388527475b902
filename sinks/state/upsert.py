"""Take out the rows of a table that newer ones replace: data files that hold some are rewritten without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from sinks.cdc.keys import row_numbers
from sinks.delta.files import StoredFile, stored_files
from sinks.delta.stored import FileReader, may_hold
from sinks.state.rows import ROW, same_keys
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.engine import open_session

__all__ = ["rewritten_without"]


def rewritten_without(
    location: TableLocation, handle: DeltaTable, schema: pa.Schema, keys: pa.Table, keep: Callable[[pa.Table], None]
) -> Sequence[StoredFile]:
    """Return the stored files that hold one of some keys; the rows of them that stay are handed over, a row group at a time.

    Args:
        location: The table.
        handle: Its snapshot.
        schema: Its columns.
        keys: Keys of rows that leave, NULLs equal to each other.
        keep: Takes rows that stay.
    """
    names = keys.column_names
    values = [_bounds(keys.column(name)) for name in names]
    prunable = [i for i, name in enumerate(names) if keys.column(name).null_count == 0]
    reader = FileReader(location, schema)
    removes = []
    session = open_session()
    try:
        session.register("leaving", keys)
        for file in stored_files(handle):
            if not may_hold(file, [names[i] for i in prunable], [values[i] for i in prunable]):
                continue
            held = reader.columns(file, names)
            session.register("held", held.append_column(ROW, row_numbers(len(held))))
            found = session.sql(
                f"SELECT {ROW} FROM held h ANTI JOIN leaving l ON {same_keys(names, 'h', 'l')} ORDER BY {ROW}"
            ).to_arrow_table()
            if len(found) == len(held):
                continue
            removes.append(file)
            start, stays = 0, found.column(0).combine_chunks()
            for rows in reader.groups(file) if len(found) else ():
                keep(rows.filter(pc.is_in(row_numbers(len(rows), start), value_set=stays)).cast(schema))
                start += len(rows)
    finally:
        session.close()
    return removes


def _bounds(column: pa.ChunkedArray) -> pa.Array:
    values = column.unique()
    return values.take(pc.array_sort_indices(values))
