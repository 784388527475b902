"""Text in other encodings, as UTF-8, and further changes to bytes on their way to a parser; used by the formats of text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

__all__ = ["Chained", "ChunkStream", "chunks", "peek", "to_utf8", "utf8_stream"]

_CHUNK_BYTES = 1 << 20


class ChunkStream(io.RawIOBase):
    """Chunks of bytes as a stream."""

    def __init__(self, source: Iterable[bytes]) -> None:
        self._source, self._head = iter(source), b""

    def readable(self) -> bool:
        """Return True, for Arrow."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes; fewer at the end only."""
        parts, got = [self._head], len(self._head)
        while size < 0 or got < size:
            chunk = next(self._source, None)
            if chunk is None:
                break
            parts.append(chunk)
            got += len(chunk)
        data = b"".join(parts)
        self._head = data[size:] if 0 <= size < got else b""
        return data[:size] if 0 <= size < got else data


class Chained(io.RawIOBase):
    """What was read already, then the rest of the stream."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head, self._stream = head, stream

    def readable(self) -> bool:
        """Return True, for Arrow."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes."""
        if self._head:
            head = self._head if size < 0 else self._head[:size]
            self._head = self._head[len(head) :]
            return head
        return bytes(self._stream.read(size))


def chunks(stream: Any) -> Iterator[bytes]:
    """Yield what a stream holds."""
    while chunk := stream.read(_CHUNK_BYTES):
        yield bytes(chunk)


def peek(stream: Any, size: int) -> bytes:
    """Return the first ``size`` bytes of a stream, however small the pieces it comes in."""
    parts, got = [], 0
    while got < size and (part := bytes(stream.read(size - got))):
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def to_utf8(content: bytes, encoding: str) -> bytes:
    """Return text as UTF-8; a byte that is none in ``encoding`` is written out in hex."""
    return content.decode(encoding, "backslashreplace").encode("utf-8", "backslashreplace")


def utf8_stream(stream: BinaryIO, encoding: str) -> Any:
    """Return a stream of UTF-8 over one in ``encoding``."""
    return ChunkStream(_utf8_chunks(stream, encoding))


def _utf8_chunks(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("backslashreplace")
    for chunk in chunks(stream):
        if text := decoder.decode(chunk):
            yield text.encode("utf-8", "backslashreplace")
    if text := decoder.decode(b"", final=True):
        yield text.encode("utf-8", "backslashreplace")
