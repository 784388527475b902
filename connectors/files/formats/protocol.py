"""What a format of a files source is: bytes to raw rows (cheap, sliceable), raw rows to typed tables (many files at once)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Format", "Raw", "RowsOfFiles"]

Raw: TypeAlias = Any  # a pa.Array of records or a pa.Table: both have a length, nbytes and slice


class RowsOfFiles(Sequence[Raw]):
    """Raw rows of several whole files in one, with how many each file has; a sequence of the rows of each.

    Args:
        rows: The rows of all files.
        counts: Rows of each file, shape (n_files,), int64.
    """

    def __init__(self, rows: Raw, counts: npt.NDArray[np.int64]) -> None:
        self.rows, self.counts = rows, counts
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        count = int(self.counts[index])
        return self.rows.slice(int(self._ends[index]) - count, count)


class Format(Protocol):
    """Turns files into rows. Row numbers depend on a file's bytes and on nothing else."""

    def split(self, contents: Sequence[bytes]) -> Sequence[Raw]:
        """Return the raw rows of each whole file; as ``RowsOfFiles`` where they are made together."""
        ...

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[Raw]:
        """Yield the raw rows of one file in blocks, from row ``skip_rows`` on; ``EOFError(n)`` if it has only ``n``."""
        ...

    def decode(self, raws: Sequence[Raw]) -> pa.Table:
        """Return typed rows, one for each raw row, in order; ``_rescued_data`` last if it was asked for."""
        ...
