"""Rows as Python has them, for people and tests to read; called wherever rows are shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

__all__ = ["python_rows", "value_rows"]


def python_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows as dictionaries; see ``value_rows``. Of two columns of one name the last counts."""
    return [dict(zip(table.column_names, row, strict=True)) for row in value_rows(table)]


def value_rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield each row's values, in the order of the columns.

    A column that holds a time before the year 1 or after 9999, which Python does not have, comes as text.
    """
    columns = [_values(table.column(index)) for index in range(table.num_columns)]
    yield from zip(*columns, strict=True) if columns else iter([()] * table.num_rows)


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        if pa.types.is_nested(column.type):
            return [None if not value.is_valid else str(value) for value in column]
        found = column.cast(pa.string()).to_pylist()
    return found
