"""Find rows by key among the keys of a batch, for keys of any number of columns; vectorised, without a join."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["KeyIndex", "row_numbers"]

_SPARSE = 4  # whole numbers that span more than this times their count are found by hash


class KeyIndex:
    """Numbers the distinct keys of a table and finds them again in others.

    Args:
        keys: Key columns, none of them NULL, shape (n_rows, n_key_columns).

    Attributes:
        ids: Number of each row's key, from 0; equal keys have equal numbers.
        count: Number of distinct keys.
    """

    def __init__(self, keys: pa.Table) -> None:
        self._names = keys.column_names
        self._values: list[pa.Array] = []
        self._pairs: list[pa.Array] = []
        self._ascending: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        ids: pa.Array | None = None
        for name in self._names:
            column = _flat(keys.column(name))
            values = column.unique()
            self._values.append(values)
            codes = pc.index_in(column, value_set=values).cast(pa.int64())
            if ids is None:
                ids = codes
                continue
            pairs = _paired(ids, codes, len(values))
            self._pairs.append(pairs.unique())
            ids = pc.index_in(pairs, value_set=self._pairs[-1]).cast(pa.int64())
        assert ids is not None
        self.ids = ids
        self.count = len(self._pairs[-1]) if self._pairs else len(self._values[0])

    def find(self, table: pa.Table) -> pa.Array:
        """Return, for each row, the number of its key; NULL where the key is not among ours."""
        ids: pa.Array | None = None
        for position, name in enumerate(self._names):
            codes = pc.index_in(_flat(table.column(name)), value_set=self._values[position]).cast(pa.int64())
            if ids is None:
                ids = codes
                continue
            pairs = _paired(ids, codes, len(self._values[position]))
            ids = pc.index_in(pairs, value_set=self._pairs[position - 1]).cast(pa.int64())
        assert ids is not None
        return ids

    def rows_in(self, keys: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Return (row numbers, key numbers) of the rows of ``keys`` that are among ours."""
        found = self._looked_up(_flat(keys.column(0))) if len(self._names) == 1 else None
        if found is not None:
            return found
        ids = self.find(keys)
        is_found = pc.is_valid(ids)
        return pc.indices_nonzero(is_found).cast(pa.int64()), ids.filter(is_found)

    def _looked_up(self, column: pa.Array) -> tuple[pa.Array, pa.Array] | None:
        """Find whole numbers by a table of all between their least and their greatest; None if that is too large."""
        values = self._values[0]
        is_whole = pa.types.is_signed_integer(values.type) and column.type == values.type
        if not is_whole or column.null_count or not len(column):
            return None
        numbers = column.to_numpy().astype(np.int64, copy=False)
        low, high = int(numbers.min()), int(numbers.max())
        if high - low >= _SPARSE * len(numbers):
            return None
        if self._ascending is None:
            ours = values.to_numpy().astype(np.int64, copy=False)
            order = np.argsort(ours)
            self._ascending = (ours[order], order)
        ours, order = self._ascending
        first, last = np.searchsorted(ours, low), np.searchsorted(ours, high, side="right")
        known = np.full(high - low + 1, -1, np.int64)
        known[ours[first:last] - low] = order[first:last]
        ids = known[numbers - low]
        rows = np.flatnonzero(ids >= 0)
        return pa.array(rows, pa.int64()), pa.array(ids[rows], pa.int64())

    def bounds(self) -> list[pa.Array]:
        """Return the distinct values of each key column in ascending order."""
        return [values.take(pc.array_sort_indices(values)) for values in self._values]


def _paired(ids: pa.Array, codes: pa.Array, count: int) -> pa.Array:
    return pc.add(pc.multiply(ids, pa.scalar(count, pa.int64())), codes)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) and combined.num_chunks else combined


def row_numbers(count: int, start: int = 0) -> pa.Array:
    """Return ``start``, ``start + 1``, … for ``count`` rows."""
    ones = pa.repeat(pa.scalar(1, pa.int64()), count)
    return pc.add(pc.cumulative_sum(ones), pa.scalar(start - 1, pa.int64()))
