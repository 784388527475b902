"""JSON, one document per line: blocks of bytes into an Arrow array of lines, without a Python loop over lines.

A record is a line that holds more than white space, malformed ones included; its row number is its place among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa

from connectors.files.formats.encoded import to_utf8, utf8_stream
from connectors.files.formats.json_values import JsonValues
from connectors.files.formats.protocol import RowsOfFiles
from connectors.files.options import JsonOptions

__all__ = ["MAX_LINE_BYTES", "JsonLines", "line_blocks", "split_files", "split_lines"]

MAX_LINE_BYTES: Final = 1 << 30
_BLOCK_BYTES: Final = 8 << 20
_BOM: Final = b"\xef\xbb\xbf"
_NEWLINE, _RETURN = 10, 13
_IS_INK = np.ones(256, dtype=np.uint8)
_IS_INK[[9, 10, 11, 12, 13, 32]] = 0


class JsonLines:
    """The json format: one document per line.

    Args:
        options: How the files are written.
        values: Decodes documents.
    """

    def __init__(self, options: JsonOptions, values: JsonValues) -> None:
        self._options, self._values = options, values

    def split(self, contents: Sequence[bytes]) -> RowsOfFiles:
        """Return the lines of each whole file."""
        if not self._options.is_utf8:
            contents = [to_utf8(content, self._options.encoding) for content in contents]
        return RowsOfFiles(*split_files(contents))

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the lines of one file in blocks."""
        text = stream if self._options.is_utf8 else utf8_stream(stream, self._options.encoding)
        return line_blocks(text, skip_rows)

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return typed rows."""
        return self._values.decode(raws[0] if len(raws) == 1 else pa.concat_arrays(raws))


def split_lines(data: bytes) -> pa.Array:
    """Return the records of ``data``, whole lines from inside a file."""
    return split_files([data], has_marks=False)[0]


def split_files(contents: Sequence[bytes], *, has_marks: bool = True) -> tuple[pa.Array, np.ndarray]:
    """Return the records of several whole files, and how many each file holds.

    Args:
        contents: Bytes of each file, together less than 2 GiB.
        has_marks: Whether each may begin with a byte order mark, which is stepped over.

    Returns:
        Lines as binary, shape (n_rows,), and counts, shape (n_files,), int64.
    """
    data = contents[0] if len(contents) == 1 else b"\n".join(contents)
    buffer = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero(buffer == _NEWLINE)
    starts = np.concatenate([[0], breaks + 1])
    ends = np.append(breaks, len(data))
    file_starts = np.concatenate([[0], np.cumsum([len(content) + 1 for content in contents[:-1]], dtype=np.int64)])
    if has_marks:
        _skip_marks(starts, file_starts, contents)
    last_bytes = buffer[np.maximum(ends - 1, 0)] if len(data) else np.zeros(len(ends), np.uint8)
    ends = ends - ((ends > starts) & (last_bytes == _RETURN))
    is_record = _has_ink(buffer, starts, ends)
    before = np.searchsorted(starts[is_record], file_starts)  # records of the files before each
    return _lines(data, starts, ends, is_record), np.diff(before, append=np.count_nonzero(is_record))


def _skip_marks(starts: np.ndarray, file_starts: np.ndarray, contents: Sequence[bytes]) -> None:
    """Step over a byte order mark at the start of a file, in place."""
    marked = [index for index, content in enumerate(contents) if content.startswith(_BOM)]
    if marked:
        starts[np.searchsorted(starts, file_starts[marked])] += len(_BOM)


def _has_ink(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which lines hold more than white space."""
    is_record = ends > starts
    suspects = np.flatnonzero(is_record)
    suspects = suspects[_IS_INK[buffer[starts[suspects]]] == 0]
    if len(suspects):
        edges = np.stack([starts[suspects], ends[suspects]], axis=1).ravel()
        ink = np.maximum.reduceat(np.append(_IS_INK[buffer], 0), edges)[::2]
        is_record[suspects] = ink > 0
    return is_record


def _lines(data: bytes, starts: np.ndarray, ends: np.ndarray, is_record: np.ndarray) -> pa.Array:
    offsets = np.empty(2 * len(starts) + 1, np.int32)  # line, gap, line, gap, ...
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, ends, len(data)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    pieces = pa.Array.from_buffers(pa.binary(), 2 * len(starts), buffers)
    return pieces.take(pa.array(2 * np.flatnonzero(is_record)))


def line_blocks(stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
    """Yield the records of one file in blocks, from record ``skip_rows`` on.

    Raises:
        ValueError: A line longer than ``MAX_LINE_BYTES``.
        EOFError: The file holds fewer than ``skip_rows`` records; the argument is how many.
    """
    seen, rest, is_first = 0, b"", True
    while True:
        block = _read_to_break(stream, rest)
        is_end = block[1] is None
        whole, rest = block[0], block[1] or b""
        if is_first:
            whole, is_first = whole.removeprefix(_BOM), False
        lines = split_lines(whole)
        if seen + len(lines) > skip_rows:
            yield lines.slice(max(0, skip_rows - seen))
        seen += len(lines)
        if is_end:
            break
    if seen < skip_rows:
        raise EOFError(seen)


def _read_to_break(stream: BinaryIO, rest: bytes) -> tuple[bytes, bytes | None]:
    """Return whole lines and the start of the next one; None for the latter at the end of the file."""
    parts, size = [rest], len(rest)
    while True:
        block = stream.read(_BLOCK_BYTES)
        if not block:
            return b"".join(parts), None
        cut = block.rfind(b"\n") + 1
        if cut:
            return b"".join([*parts, block[:cut]]), bytes(block[cut:])
        parts.append(block)
        size += len(block)
        if size > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
