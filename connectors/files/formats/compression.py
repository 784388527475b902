"""Files that are compressed as a whole, known by their names; used by the reader and by inference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["are_compressed", "decompressed", "is_compressed"]

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
_ANY_SUFFIX: Final = r"\.(?:[gG][zZ](?:[iI][pP])?|[bB][zZ]2|[zZ][sS][tT][dD]?|[lL][zZ]4|[bB][rR])\z"
_AS_THEY_ARE: Final = ("parquet", "orc", "avro", "binaryfile")


def is_compressed(path: str, format: str) -> bool:
    """Return whether the name says that the file is compressed as a whole, and the format is one of text."""
    return format not in _AS_THEY_ARE and (path.endswith(_SUFFIXES) or path.lower().endswith(_SUFFIXES))


def are_compressed(paths: Sequence[str], format: str) -> npt.NDArray[np.bool_]:
    """Return ``is_compressed`` of each path, shape (n_paths,)."""
    if format in _AS_THEY_ARE or not paths:
        return np.zeros(len(paths), np.bool_)
    found = pc.match_substring_regex(pa.array(paths, pa.string()), _ANY_SUFFIX)
    return np.asarray(found.to_numpy(zero_copy_only=False))


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
