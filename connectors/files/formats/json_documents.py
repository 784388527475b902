"""JSON over any number of lines: a file is documents one after another, or arrays of them; each document is a row.

Brackets outside of text are counted by numpy, a block of bytes at a time; what is open at the end of a block waits for the
next. What stands between documents and is none is a row too: nothing of a file is lost.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from connectors.files.formats.encoded import to_utf8, utf8_stream
from connectors.files.formats.json_lenient import masked
from connectors.files.formats.json_values import JsonValues
from connectors.files.options import JsonOptions

__all__ = ["JsonDocuments", "document_blocks"]

_BLOCK_BYTES: Final = 4 << 20
_MAX_DOCUMENT_BYTES: Final = 1 << 30
_BOM: Final = b"\xef\xbb\xbf"
_QUOTE, _BACKSLASH, _COMMA, _OPEN_ARRAY = 34, 92, 44, 91
_STEPS = np.zeros(256, np.int8)
_STEPS[[91, 123]], _STEPS[[93, 125]] = 1, -1
_IS_MARK = _STEPS != 0
_IS_MARK[_COMMA] = True
_SPACE: Final = b" \t\r\n"


class JsonDocuments:
    """The json format with ``multi_line``.

    Args:
        options: How the files are written.
        values: Decodes documents.
    """

    def __init__(self, options: JsonOptions, values: JsonValues) -> None:
        self._options, self._values = options, values

    def split(self, contents: Sequence[bytes]) -> list[pa.Array]:
        """Return the documents of each whole file."""
        result = []
        for content in contents:
            text = content if self._options.is_utf8 else to_utf8(content, self._options.encoding)
            blocks = list(document_blocks(io.BytesIO(text), 0, self._options))
            result.append(pa.concat_arrays(blocks) if blocks else pa.nulls(0, pa.binary()))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the documents of one file in blocks."""
        text = stream if self._options.is_utf8 else utf8_stream(stream, self._options.encoding)
        return document_blocks(text, skip_rows, self._options)

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return typed rows."""
        return self._values.decode(pa.concat_arrays(raws))


@dataclass(frozen=True, slots=True)
class _Cut:
    """What was found in a piece of a file.

    Attributes:
        documents: Whole ones.
        rest: Index of the first byte that belongs to none of them.
        in_array: Whether ``rest`` lies inside a top-level array.
    """

    documents: list[bytes]
    rest: int
    in_array: bool


def document_blocks(stream: Any, skip_rows: int, options: JsonOptions) -> Iterator[pa.Array]:
    """Yield the documents of one file in blocks, from document ``skip_rows`` on.

    Raises:
        ValueError: A document longer than 1 GiB.
        EOFError: The file holds fewer than ``skip_rows`` documents; the argument is how many.
    """
    seen, rest, in_array, is_first = 0, b"", False, True
    while True:
        block = bytes(stream.read(max(_BLOCK_BYTES, len(rest))))  # a document that is long is not scanned often
        data = rest + block
        if is_first and (len(data) >= len(_BOM) or not block):
            data, is_first = data.removeprefix(_BOM), False
        found = _cut(data, masked(data, options), in_array=in_array)
        documents, rest, in_array = found.documents, data[found.rest :], found.in_array
        if not block and rest.strip(_SPACE):
            documents.append(rest.strip(_SPACE))
        if seen + len(documents) > skip_rows:
            yield pa.array(documents[max(0, skip_rows - seen) :], pa.binary())
        seen += len(documents)
        if not block:
            break
        if len(rest) > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"a document of more than {_MAX_DOCUMENT_BYTES} bytes")
    if seen < skip_rows:
        raise EOFError(seen)


def _cut(data: bytes, plain: bytes, *, in_array: bool) -> _Cut:
    """Cut whole documents; ``plain`` is ``data`` without what could be taken for brackets."""
    documents: list[bytes] = []
    at = 0
    while True:
        found, stray = _cut_balanced(data, plain, at, in_array=in_array)
        documents += found.documents
        if stray is None:
            return _Cut(documents, found.rest, found.in_array)
        junk = data[found.rest : stray + 1].strip(_SPACE)  # a bracket that closes nothing
        documents.append(junk)
        at, in_array = stray + 1, False


def _cut_balanced(data: bytes, plain: bytes, start: int, *, in_array: bool) -> tuple[_Cut, int | None]:
    """Cut whole documents up to a bracket that closes nothing, and return its index."""
    buffer = np.frombuffer(plain, np.uint8)[start:]
    marks = _marks(buffer)
    signs = buffer[marks]
    depths = np.cumsum(_STEPS[signs], dtype=np.int64) + in_array
    below = np.flatnonzero(depths < 0)
    stray = None
    if len(below):
        stray = int(marks[below[0]]) + start
        marks, signs, depths = marks[: below[0]], signs[: below[0]], depths[: below[0]]
    steps = _STEPS[signs]
    is_open, is_close = (steps > 0) & (depths == 1), (steps < 0) & (depths == 0)
    is_comma = (signs == _COMMA) & (depths == 1)
    opened = np.maximum.accumulate(np.where(is_open, np.arange(len(marks)), -1)) if len(marks) else marks
    is_of_array = np.where(opened >= 0, signs[opened] == _OPEN_ARRAY, in_array) if len(marks) else np.zeros(0, bool)
    # A document ends at a comma of an array, at the bracket of the array, with its own bracket, or before that of another.
    is_edge = is_open | (is_comma & is_of_array) | is_close
    edges = np.flatnonzero(is_edge)
    ends = marks[edges] + start + (is_close & ~is_of_array)[edges]
    nexts = marks[edges] + start + ~(is_open & ~is_of_array)[edges]
    documents = []
    at = start
    for end, after in zip(ends.tolist(), nexts.tolist(), strict=True):
        document = data[at:end].strip(_SPACE)
        if document:
            documents.append(document)
        at = after
    is_inside = bool((is_of_array & ~is_close)[edges[-1]]) if len(edges) else in_array
    return _Cut(documents, at, is_inside), stray


def _marks(buffer: np.ndarray) -> np.ndarray:
    """Return the places of brackets and commas outside of texts."""
    quotes = np.flatnonzero(buffer == _QUOTE)
    if len(quotes):
        before = buffer[np.maximum(quotes - 1, 0)] == _BACKSLASH
        if before.any():
            quotes = quotes[~_is_escaped(buffer, quotes)]
    marks = np.flatnonzero(_IS_MARK[buffer])
    return np.asarray(marks[np.searchsorted(quotes, marks) % 2 == 0])


def _is_escaped(buffer: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Return which quotes follow an odd number of backslashes."""
    others = np.where(buffer != _BACKSLASH, np.arange(len(buffer)), -1)
    last = np.maximum.accumulate(others)
    before = np.where(quotes > 0, last[np.maximum(quotes - 1, 0)], -1)
    return np.asarray((quotes - 1 - before) % 2 == 1)
