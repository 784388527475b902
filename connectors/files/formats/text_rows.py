"""Text: one STRING column ``value``, a row a line or a file; a line break at the end of a file begins no row."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa

from connectors.files.formats.encoded import chunks, utf8_stream
from connectors.files.options import TextOptions
from connectors.files.rescued import json_quote, objects
from waxlake.stream.errors import SchemaError

__all__ = ["TEXT_SCHEMA", "TextRows"]

TEXT_SCHEMA: Final = pa.schema([("value", pa.string())])
_MAX_BYTES: Final = 1 << 30
_BLOCK_BYTES: Final = 4 << 20
_BOM: Final = b"\xef\xbb\xbf"


class TextRows:
    """The text format of one source.

    Args:
        options: How the files are written.
        schema: Columns to make: ``value``, and others that stay NULL.
        has_rescued: Whether ``_rescued_data`` is made too: the bytes, in hex, of a line that is no UTF-8.

    Raises:
        SchemaError: ``value`` is neither STRING nor BINARY. Not retryable.
    """

    def __init__(self, options: TextOptions, schema: pa.Schema, *, has_rescued: bool) -> None:
        self._options, self._schema, self._has_rescued = options, schema, has_rescued
        separator = options.line_sep
        self._separator = None if separator is None else separator.encode()
        for field in schema:
            if field.name == "value" and not (pa.types.is_string(field.type) or pa.types.is_binary(field.type)):
                raise SchemaError(
                    "cannot read text files with column 'value'",
                    code="SCHEMA_TYPE",
                    found=f"type {field.type}",
                    expected="STRING",
                    remedy="Declare it STRING and take it apart in the query",
                )

    def split(self, contents: Sequence[bytes]) -> list[pa.Array]:
        """Return the lines of each whole file."""
        return [_joined(list(self.blocks(io.BytesIO(content), 0))) for content in contents]

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the lines of one file in blocks, from line ``skip_rows`` on.

        Raises:
            ValueError: A line, or a file that is one row, of more than 1 GiB.
            EOFError: The file holds fewer than ``skip_rows`` lines; the argument is how many.
        """
        seen = 0
        for lines in self._lines(stream if self._options.is_utf8 else utf8_stream(stream, self._options.encoding)):
            if seen + len(lines) > skip_rows:
                yield pa.array(lines[max(0, skip_rows - seen) :], pa.binary())
            seen += len(lines)
        if seen < skip_rows:
            raise EOFError(seen)

    def _lines(self, stream: Any) -> Iterator[list[bytes]]:
        if self._options.whole_text:
            yield [_whole(stream)]
            return
        rest, is_first = b"", True
        while block := stream.read(_BLOCK_BYTES):
            block = bytes(block)
            if is_first:
                while len(block) < len(_BOM) and (more := stream.read(_BLOCK_BYTES)):
                    block += bytes(more)
                block, is_first = block.removeprefix(_BOM), False
            lines, rest = self._cut(rest + block)
            if len(rest) > _MAX_BYTES:
                raise ValueError(f"a line of more than {_MAX_BYTES} bytes")
            if lines:
                yield lines
        if rest:
            yield [rest.removesuffix(b"\r") if self._separator is None else rest]

    def _cut(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the whole lines, and the start of the next one."""
        if self._separator is not None:
            *lines, rest = data.split(self._separator)
            return lines, rest
        end = len(data) - data.endswith(b"\r")  # the line feed may follow
        cut = max(data.rfind(b"\n", 0, end), data.rfind(b"\r", 0, end)) + 1
        return data[:cut].splitlines() if cut else [], data[cut:]

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return the rows."""
        raw = pa.concat_arrays(raws)
        problems = {}
        try:
            texts = raw.cast(pa.string())
        except pa.ArrowInvalid:
            values = raw.to_pylist()
            texts = pa.array([_text(value) for value in values], pa.string())
            hexed = [
                None if text is not None else v.decode("utf-8", "backslashreplace")
                for v, text in zip(values, texts.to_pylist(), strict=True)
            ]
            problems["value"] = json_quote(pa.array(hexed, pa.string()))
        columns = [self._column(field, raw, texts) for field in self._schema]
        if not self._has_rescued:
            return pa.table(columns, schema=self._schema)
        if pa.types.is_binary(self._schema.field("value").type if "value" in self._schema.names else pa.null()):
            problems = {}
        fields = [*self._schema, pa.field("_rescued_data", pa.string())]
        return pa.table([*columns, objects(problems, len(raw))], schema=pa.schema(fields))

    @staticmethod
    def _column(field: pa.Field, raw: pa.Array, texts: pa.Array) -> pa.Array:
        if field.name != "value":
            return pa.nulls(len(raw), field.type)
        return raw if pa.types.is_binary(field.type) else texts


def _whole(stream: Any) -> bytes:
    content = b"".join(chunks(stream)).removeprefix(_BOM)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"a file of more than {_MAX_BYTES} bytes as one text")
    return content


def _joined(blocks: list[pa.Array]) -> pa.Array:
    return pa.concat_arrays(blocks) if blocks else pa.nulls(0, pa.binary())


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None
