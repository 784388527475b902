"""Avro: rows of container files, decoded by fastavro a few blocks at a time; the extra ``avro`` installs it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa

from connectors.avro_types import AvroTypes, avro_library, parse_avro_schema, without_times
from connectors.files.formats.avro_container import AvroContainer, Block
from connectors.files.formats.columns import ColumnFitter
from connectors.files.options import AvroOptions
from waxlake.stream.errors import UsageError

__all__ = ["AvroRows", "avro_columns"]

_TABLE_ROWS: Final = 8192
_TABLE_BYTES: Final = 4 << 20
_SYNC: Final = b"\0" * 16


class AvroRows:
    """The avro format of one source.

    Args:
        options: How the files are read.
        fitter: Fits rows to the source's columns.

    Raises:
        UsageError: The extra is not installed, or the reader schema is none. Not retryable.
    """

    def __init__(self, options: AvroOptions, fitter: ColumnFitter) -> None:
        self._fitter = fitter
        self._reader_schema = _parsed_option(options)

    def split(self, contents: Sequence[bytes]) -> list[pa.Table]:
        """Return the rows of each whole file."""
        result = []
        for content in contents:
            blocks = list(self.blocks(io.BytesIO(content), 0))
            result.append(pa.concat_tables(blocks) if blocks else pa.table({}))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Table]:
        """Yield the rows of one file in blocks, from row ``skip_rows`` on.

        Raises:
            ValueError: The file is cut off or damaged, or its schema does not resolve into the reader schema.
            EOFError: The file holds fewer than ``skip_rows`` rows; the argument is how many.
        """
        container = AvroContainer(stream)
        decoder = _BlockDecoder(container.schema, self._reader_schema)
        waiting: list[Block] = []
        first = total = 0
        for row, block in container.blocks(skip_rows):
            total = row
            if block is not None:
                first = first if waiting else row
                waiting.append(block)
                rows, size_bytes = sum(b.count for b in waiting), sum(len(b.data) for b in waiting)
                if rows < _TABLE_ROWS and size_bytes < _TABLE_BYTES:
                    continue
            if waiting:
                table = decoder.table(waiting)
                yield self._fitter.named(table.slice(max(0, skip_rows - first)))
                waiting = []
        if total < skip_rows:
            raise EOFError(total)

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return rows fitted to the schema, with ``_rescued_data``."""
        return self._fitter.decode(tables)


def avro_columns(stream: BinaryIO, options: AvroOptions) -> pa.Schema:
    """Return the columns of a file: those of the reader schema if one is given."""
    container = AvroContainer(stream)
    return _BlockDecoder(container.schema, _parsed_option(options)).types.fields


class _BlockDecoder:
    """Decodes the blocks of one file."""

    def __init__(self, writer_schema: Any, reader_schema: Any) -> None:
        parsed = parse_avro_schema(writer_schema)
        self.types = AvroTypes(parsed if reader_schema is None else reader_schema)
        self._reader_schema = None if reader_schema is None else without_times(reader_schema)
        text = json.dumps(without_times(parsed)).encode()
        entries = b"".join([_text(b"avro.schema"), _text(text), _text(b"avro.codec"), _text(b"null")])
        self._head = b"Obj\x01" + _long(2) + entries + _long(0) + _SYNC

    def table(self, blocks: Sequence[Block]) -> pa.Table:
        """Return the rows of blocks: fastavro reads them as a container file of their own, without codec."""
        import fastavro

        parts = [self._head]
        for block in blocks:
            parts += [_long(block.count), _long(len(block.data)), block.data, _SYNC]
        try:
            rows = list(fastavro.reader(io.BytesIO(b"".join(parts)), reader_schema=self._reader_schema))
            table = self.types.table(rows)  # type: ignore[arg-type]
        except (TypeError, KeyError, IndexError, EOFError, OverflowError, ArithmeticError) as exc:
            raise ValueError(f"rows that are not what their Avro schema says: {type(exc).__name__}: {exc}") from exc
        except fastavro.read.SchemaResolutionError as exc:
            raise ValueError(f"an Avro schema that does not resolve into the reader schema: {exc}") from exc
        if len(table) != sum(block.count for block in blocks):
            raise ValueError("a block of Avro that holds another number of rows than it says")
        return table


def _parsed_option(options: AvroOptions) -> Any:
    if options.avro_schema is None:
        avro_library()
        return None
    try:
        schema = parse_avro_schema(json.loads(options.avro_schema))
        AvroTypes(schema)
    except ValueError as exc:
        raise UsageError(
            "option 'avro_schema' is no Avro schema of a record",
            code="OPTION_INVALID",
            found=str(exc),
            remedy='Give one as JSON, as in {"type":"record","name":"r","fields":[{"name":"id","type":"long"}]}',
        ) from exc
    return schema


def _long(value: int) -> bytes:
    """Return a zig-zag integer."""
    value <<= 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _text(value: bytes) -> bytes:
    return _long(len(value)) + value
