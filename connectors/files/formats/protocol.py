"""What a format of a files source is: bytes to raw rows (cheap, sliceable), raw rows to typed tables (many files at once)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Protocol, TypeAlias

import pyarrow as pa

__all__ = ["Format", "Raw"]

Raw: TypeAlias = Any  # a pa.Array of records or a pa.Table: both have a length, nbytes and slice


class Format(Protocol):
    """Turns files into rows. Row numbers depend on a file's bytes and on nothing else."""

    def split(self, contents: Sequence[bytes]) -> Sequence[Raw]:
        """Return the raw rows of each whole file."""
        ...

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[Raw]:
        """Yield the raw rows of one file in blocks, from row ``skip_rows`` on; ``EOFError(n)`` if it has only ``n``."""
        ...

    def decode(self, raws: Sequence[Raw]) -> pa.Table:
        """Return typed rows, one for each raw row, in order; ``_rescued_data`` last if it was asked for."""
        ...
