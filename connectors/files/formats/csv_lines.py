"""Lines of csv files that are left out before the parser sees them: the first ones, and comments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from connectors.files.formats.encoded import ChunkStream, chunks
from connectors.files.options import CsvOptions

__all__ = ["kept_lines"]

_BOM: Final = b"\xef\xbb\xbf"


def kept_lines(stream: Any, options: CsvOptions) -> ChunkStream:
    """Return a file without its first ``skip_rows`` lines and without comments; a line inside quotes is no comment."""
    return ChunkStream(_kept(stream, options))


def _kept(stream: Any, options: CsvOptions) -> Iterator[bytes]:
    comment, quote, escape = (sign.encode() for sign in (options.comment, options.quote, options.escape))
    skip, is_quoted = options.skip_rows, False
    for lines in _line_groups(stream):
        drop = min(skip, len(lines))
        skip -= drop
        if not comment:
            yield b"".join(lines[drop:])
            continue
        kept = []
        for line in lines[drop:]:
            if is_quoted or not line.startswith(comment):
                kept.append(line)
                quotes = line.count(quote) if quote else 0
                is_quoted ^= (quotes - (line.count(escape + quote) if escape else 0)) % 2 == 1
        yield b"".join(kept)


def _line_groups(stream: Any) -> Iterator[list[bytes]]:
    rest, is_first = b"", True
    for chunk in chunks(stream):
        data = rest + chunk
        if is_first and len(data) >= len(_BOM):
            data, is_first = data.removeprefix(_BOM), False
        end = len(data) - data.endswith(b"\r")  # the line feed may follow
        cut = max(data.rfind(b"\n", 0, end), data.rfind(b"\r", 0, end)) + 1
        yield data[:cut].splitlines(keepends=True)
        rest = data[cut:]
    yield rest.splitlines(keepends=True)
