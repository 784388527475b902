"""Whole files: one row a file, with its path, modification time, length and content, under the names that Spark gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

import pyarrow as pa

__all__ = ["BINARY_FILE_SCHEMA", "MAX_CONTENT_BYTES", "BinaryFile"]

BINARY_FILE_SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("modificationTime", pa.timestamp("us", tz="UTC")),
        ("length", pa.int64()),
        ("content", pa.binary()),
    ]
)
MAX_CONTENT_BYTES: Final = (1 << 31) - 1


class BinaryFile:
    """The binaryfile format of one source; what only the store knows of a file is added by ``Provenance``.

    Args:
        schema: Columns to make.
        has_rescued: Whether ``_rescued_data`` is made too; it stays NULL.
    """

    def __init__(self, schema: pa.Schema, *, has_rescued: bool) -> None:
        rescued = [pa.field("_rescued_data", pa.string())] if has_rescued else []
        self._schema = pa.schema([*schema, *rescued])
        self._has_content = "content" in schema.names

    def split(self, contents: Sequence[bytes]) -> list[pa.Array]:
        """Return one row for each file."""
        return [pa.array([content if self._has_content else b""], pa.binary()) for content in contents]

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the one row of a file.

        Raises:
            ValueError: The file is larger than Arrow's 2 GiB.
            EOFError: ``skip_rows`` is above 1.
        """
        if skip_rows > 1:
            raise EOFError(1)
        if skip_rows == 0:
            content = stream.read(MAX_CONTENT_BYTES + 1) if self._has_content else b""
            if len(content) > MAX_CONTENT_BYTES:
                raise ValueError(f"a file of more than {MAX_CONTENT_BYTES} bytes")
            yield pa.array([content], pa.binary())

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return the rows, but for what only the store knows."""
        content = pa.concat_arrays(raws)
        columns = [content if f.name == "content" else pa.nulls(len(content), f.type) for f in self._schema]
        return pa.table(columns, schema=self._schema)
