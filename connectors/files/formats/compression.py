"""Files that are compressed as a whole, known by their names; used by the reader and by inference."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Final

import pyarrow as pa

__all__ = ["decompressed", "is_compressed"]

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
_AS_THEY_ARE: Final = ("parquet", "orc", "avro", "binaryfile")


def is_compressed(path: str, format: str) -> bool:
    """Return whether the name says that the file is compressed as a whole, and the format is one of text."""
    return format not in _AS_THEY_ARE and (path.endswith(_SUFFIXES) or path.lower().endswith(_SUFFIXES))


def decompressed(stream: BinaryIO, path: str, format: str) -> Any:
    """Return the stream of what the file holds, uncompressed where its name says that it is compressed."""
    if not is_compressed(path, format):
        return stream
    codec = next(codec for suffix, codec in _CODECS.items() if path.lower().endswith(suffix))
    return pa.CompressedInputStream(pa.PythonFile(_Borrowed(stream), mode="r"), codec)


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
