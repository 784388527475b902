"""The stored rows of a view: which of them have some keys, and which have to leave because others take their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from sinks.cdc.keys import row_numbers
from sinks.delta.files import StoredFile, stored_files
from sinks.delta.stored import FileReader, may_hold
from waxlake.stream.batch import DROP_FILE, DROP_ROW
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.engine import quote_name, select_list

__all__ = ["StoredRows", "differences", "same"]

_PRUNING_COLUMNS = 4


@dataclass(slots=True)
class StoredRows:
    """The rows of a view's table at one version.

    Args:
        session: Where keys are compared.
        location: The table.
        handle: The version.
        schema: Its columns.
    """

    session: duckdb.DuckDBPyConnection
    location: TableLocation
    handle: DeltaTable
    schema: pa.Schema
    read_bytes: int = 0
    _reader: FileReader = field(init=False)
    _files: list[StoredFile] | None = None

    def __post_init__(self) -> None:
        self._reader = FileReader(self.location, self.schema)

    def matching(self, names: Sequence[str], keys: pa.Table) -> pa.Table:
        """Return the rows that have one of some keys, with ``DROP_FILE`` and ``DROP_ROW``; without key columns, all rows.

        Args:
            names: Key columns.
            keys: The keys, in columns of these names.
        """
        if self._files is None:
            self._files = stored_files(self.handle)
        bounds = _bounds(keys, names)
        parts = []
        for file in self._files:
            if not may_hold(file, list(bounds), list(bounds.values())):
                continue
            self.read_bytes += file.size_bytes
            rows = self._reader.columns(file, self.schema.names)
            found = self._found(rows, names, keys) if names else row_numbers(len(rows))
            if len(found):
                taken = rows.take(found) if len(found) < len(rows) else rows
                path = pa.repeat(pa.scalar(file.path, pa.string()), len(found))
                parts.append(taken.append_column(DROP_FILE, path).append_column(DROP_ROW, found))
        schema = pa.schema([*(f.with_nullable(True) for f in self.schema), *_PLACE])
        return pa.concat_tables(parts).cast(schema) if parts else pa.Table.from_batches([], schema)

    def _found(self, rows: pa.Table, names: Sequence[str], keys: pa.Table) -> pa.ChunkedArray:
        self.session.register("__rows", rows.select(names).append_column(DROP_ROW, row_numbers(len(rows))))
        self.session.register("__keys", keys)
        found = self.session.sql(
            f"SELECT r.{DROP_ROW} FROM __rows AS r SEMI JOIN __keys AS k ON {same(names, 'r', 'k')} ORDER BY 1"
        ).to_arrow_table()
        return found.column(0)


_PLACE = (pa.field(DROP_FILE, pa.string()), pa.field(DROP_ROW, pa.int64()))


def same(names: Sequence[str], one: str, other: str) -> str:
    """Return the condition that rows of two aliases are equal in some columns, NULL and NULL too."""
    parts = (f"{one}.{quote_name(n)} IS NOT DISTINCT FROM {other}.{quote_name(n)}" for n in names)
    return " AND ".join(parts) or "true"


def _bounds(keys: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
    """Return the values of key columns in ascending order, where they tell which files may hold them."""
    found: dict[str, pa.Array] = {}
    for name in names:
        column = keys.column(name)
        kind = column.type
        plain = pa.types.is_integer(kind) or pa.types.is_temporal(kind) or pa.types.is_string(kind)
        if not plain or column.null_count or len(found) == _PRUNING_COLUMNS:
            continue
        values = pc.unique(column)
        found[name] = values.take(pc.array_sort_indices(values))
    return found


def differences(
    session: duckdb.DuckDBPyConnection, made: pa.Table, held: pa.Table, *, is_unique: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Return what takes the place of what: rows that only ``made`` has, and places of rows that only ``held`` has.

    Args:
        session: Where rows are compared.
        made: Rows that the view is to have.
        held: Rows that it has, with their places.
        is_unique: Whether no two rows of either are equal.
    """
    names = made.column_names
    columns = select_list(names)
    session.register("__made", made)
    session.register("__held", held)
    for table in ("made", "held"):
        number = "1" if is_unique else f"row_number() OVER (PARTITION BY {columns})"
        numbered = f"SELECT *, {number} AS __n FROM __{table}"
        session.execute(f"CREATE OR REPLACE TEMP TABLE __numbered_{table} AS {numbered}")
    equal = f"{same(names, 'm', 'h')} AND m.__n = h.__n"
    comes = f"SELECT {columns} FROM __numbered_made AS m ANTI JOIN __numbered_held AS h ON {equal}"
    goes = f"SELECT {DROP_FILE}, {DROP_ROW} FROM __numbered_held AS h ANTI JOIN __numbered_made AS m ON {equal}"
    return session.sql(comes).to_arrow_table(), session.sql(goes).to_arrow_table()
