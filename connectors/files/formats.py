"""The formats of a files source: bytes to raw rows (cheap, sliceable), raw rows to typed tables (many files at once)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

import pyarrow as pa

from connectors.files.csv_records import CsvRecords
from connectors.files.json_lines import line_blocks, split_files
from connectors.files.parquet_rows import ParquetRows
from connectors.files.settings import FilesSettings
from connectors.json_records import JsonDecoder

__all__ = ["Format", "Raw", "decompressed", "is_compressed", "make_format"]

Raw: TypeAlias = Any  # a pa.Array of records or a pa.Table: both have a length, nbytes and slice
_CODECS: Final = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".bz2": "bz2",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".lz4": "lz4",
    ".br": "brotli",
}
_SUFFIXES: Final = tuple(_CODECS)


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


class JsonLines:
    """The json format: one document per line."""

    def __init__(self, schema: pa.Schema, *, has_rescued: bool) -> None:
        self._decoder = JsonDecoder(schema, with_rescued=has_rescued)

    def split(self, contents: Sequence[bytes]) -> Sequence[pa.Array]:
        """Return the lines of each whole file."""
        lines, counts = split_files(contents)
        result, start = [], 0
        for count in counts.tolist():
            result.append(lines.slice(start, count))
            start += count
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the lines of one file in blocks."""
        return line_blocks(stream, skip_rows)

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return typed rows."""
        return self._decoder.decode(pa.concat_arrays(raws))


def make_format(settings: FilesSettings, schema: pa.Schema, *, has_rescued: bool) -> Format:
    """Return the format of ``settings`` that makes the columns of ``schema``.

    Raises:
        SchemaError: A column that the format cannot hold. Not retryable.
    """
    if settings.format == "csv":
        return CsvRecords(settings, schema, has_rescued)
    if settings.format == "parquet":
        return ParquetRows(schema, has_rescued, settings.max_rows_per_batch, settings.max_bytes_per_batch)
    return JsonLines(schema, has_rescued=has_rescued)


def is_compressed(path: str) -> bool:
    """Return whether the name says that the file is compressed as a whole."""
    return path.endswith(_SUFFIXES) or path.lower().endswith(_SUFFIXES)


def decompressed(stream: BinaryIO, path: str, format: str) -> Any:
    """Return the stream of what the file holds, uncompressed where its name says that it is compressed."""
    codec = None if format == "parquet" else _codec(path)
    return stream if codec is None else pa.CompressedInputStream(pa.PythonFile(_Borrowed(stream), mode="r"), codec)


class _Borrowed(io.RawIOBase):
    """A stream that stays open when Arrow has read it to its end: the reader still asks whose bytes they were."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Return True, for Arrow."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        return self._stream.read(size)


def _codec(path: str) -> str | None:
    return next((codec for suffix, codec in _CODECS.items() if path.lower().endswith(suffix)), None)
