"""Avro's container files, block by block: header, counts, codecs and sync markers. Rows are decoded by ``avro_rows``.

A block tells its number of rows, so rows are skipped without decoding them, and no more than a few blocks are held.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pyarrow as pa

__all__ = ["AvroContainer", "Block"]

_MAGIC: Final = b"Obj\x01"
_SYNC_BYTES: Final = 16
_MAX_BLOCK_BYTES: Final = 1 << 30
_CODECS: Final = ("null", "deflate", "snappy", "zstandard", "bzip2", "xz")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of rows.

    Attributes:
        count: Number of rows.
        data: Their encoding, uncompressed.
    """

    count: int
    data: bytes


class AvroContainer:
    """A container file that is read from its beginning.

    Args:
        stream: Its bytes.

    Raises:
        ValueError: It is no such file, or has an unknown codec.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        if self._exactly(len(_MAGIC)) != _MAGIC:
            raise ValueError("no Avro container file: it does not begin with 'Obj' and 1")
        meta = self._meta()
        self._sync = self._exactly(_SYNC_BYTES)
        self.schema: Any = json.loads(meta.get("avro.schema", b"null"))
        self._codec = meta.get("avro.codec", b"null").decode()
        if self._codec not in _CODECS:
            raise ValueError(f"codec {self._codec!r}, expected one of {', '.join(_CODECS)}")

    def blocks(self, skip_rows: int) -> Iterator[tuple[int, Block | None]]:
        """Yield (number of the first row, block); None for one that ends before row ``skip_rows``.

        Raises:
            ValueError: The file is cut off, or its bytes are not those that were written.
        """
        row = 0
        while (count := self._long(is_end_fine=True)) is not None:
            data = self._exactly(self._long() or 0)
            if self._exactly(_SYNC_BYTES) != self._sync:
                raise ValueError(f"a block of Avro, at row {row}, does not end with the file's sync marker")
            yield row, Block(count, _decompressed(data, self._codec)) if row + count > skip_rows else None
            row += count
        yield row, None

    def _meta(self) -> dict[str, bytes]:
        meta: dict[str, bytes] = {}
        while count := self._long():
            if count < 0:
                count = -count
                self._long()
            for _ in range(count):
                key = self._exactly(self._long() or 0).decode("utf-8", "replace")
                meta[key] = self._exactly(self._long() or 0)
        return meta

    def _exactly(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_BLOCK_BYTES:
            raise ValueError(f"an Avro length of {size} bytes")
        parts = []
        while size:
            part = bytes(self._stream.read(size))
            if not part:
                raise ValueError("the Avro file ends in the middle of a block")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _long(self, *, is_end_fine: bool = False) -> int | None:
        """Read a zig-zag integer; None at the end of the file where that is fine."""
        value = shift = 0
        while shift < 70:
            byte = bytes(self._stream.read(1))
            if not byte:
                if is_end_fine and not shift:
                    return None
                raise ValueError("the Avro file ends in the middle of a block")
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise ValueError("an Avro integer of more than 64 bits")


def _decompressed(data: bytes, codec: str) -> bytes:
    try:
        if codec == "deflate":
            return zlib.decompress(data, wbits=-15)
        if codec == "snappy":
            return _from_snappy(data)
        if codec == "zstandard":
            return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())
        if codec == "bzip2":
            return bz2.decompress(data)
        return lzma.decompress(data) if codec == "xz" else data
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as exc:
        raise ValueError(f"a block of Avro that is no {codec}: {exc}") from exc


def _from_snappy(data: bytes) -> bytes:
    """Return the content of a snappy block, which Avro ends with a CRC of it."""
    size = shift = 0
    for byte in data[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > _MAX_BLOCK_BYTES:
        raise ValueError(f"a block of Avro of {size} bytes")
    content: bytes = pa.decompress(data[:-4], decompressed_size=size, codec="snappy", asbytes=True)
    if zlib.crc32(content) != int.from_bytes(data[-4:], "big"):
        raise ValueError("a block of Avro that does not have its checksum")
    return content
