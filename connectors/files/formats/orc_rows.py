"""ORC: rows of a file in its own schema, a stripe at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from connectors.files.formats.columns import ColumnFitter

__all__ = ["OrcRows", "orc_schema"]


@dataclass(frozen=True, slots=True)
class OrcRows:
    """The orc format of one source.

    Attributes:
        fitter: Fits rows to the source's columns; without rescued data only those columns are read.
    """

    fitter: ColumnFitter

    def split(self, contents: Sequence[bytes]) -> list[pa.Table]:
        """Return the rows of each whole file."""
        result = []
        for content in contents:
            blocks = list(self.blocks(io.BytesIO(content), 0))
            result.append(pa.concat_tables(blocks) if blocks else pa.table({}))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Table]:
        """Yield the rows of one file in blocks, from row ``skip_rows`` on; a stripe is held at a time.

        Raises:
            EOFError: The file holds fewer than ``skip_rows`` rows; the argument is how many.
        """
        file = _open(stream)
        if file.nrows < skip_rows:
            raise EOFError(file.nrows)
        wanted, skip = self.fitter.wanted(file.schema), skip_rows
        for index in range(file.nstripes):
            stripe = file.read_stripe(index, columns=wanted)
            drop = min(skip, len(stripe))
            skip -= drop
            if drop < len(stripe):
                yield self.fitter.named(pa.Table.from_batches([stripe.slice(drop)]))

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return rows fitted to the schema, with ``_rescued_data``."""
        return self.fitter.decode(tables)


def orc_schema(stream: BinaryIO) -> pa.Schema:
    """Return the columns of a file, from its footer."""
    return _open(stream).schema


def _open(stream: BinaryIO) -> Any:
    from pyarrow import orc

    return orc.ORCFile(pa.PythonFile(stream, mode="r"))
