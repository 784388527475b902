"""XML: each element ``row_tag`` of a file is a row, cut out of the bytes as they stream by and parsed by itself.

Neither the document type nor anything outside of rows is parsed, so entities cannot be declared, let alone grow; a malformed
row is one row. Texts become values by the same exact rules as those of csv.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files.formats.encoded import to_utf8, utf8_stream
from connectors.files.formats.malformed import CorruptRecords
from connectors.files.formats.text_types import TextTypes
from connectors.files.formats.xml_columns import XmlColumns
from connectors.files.formats.xml_elements import MalformedXml, parse_row
from connectors.files.options import XmlOptions
from connectors.files.rescued import CORRUPT_KEY, json_quote, objects

__all__ = ["XmlRows"]

_BLOCK_BYTES: Final = 1 << 20
_MAX_ROW_BYTES: Final = 256 << 20
_TAIL_BYTES: Final = 1024  # longer than the beginning of any tag up to the end of its name


class XmlRows:
    """The xml format of one source.

    Args:
        options: How the files are written.
        schema: Columns to make.
        has_rescued: Whether ``_rescued_data`` is made too.
    """

    def __init__(self, options: XmlOptions, schema: pa.Schema, *, has_rescued: bool) -> None:
        self._options, self._schema, self._has_rescued = options, schema, has_rescued
        self._corrupt = CorruptRecords(options, schema)
        types, is_case_sensitive = TextTypes.of(options), options.reader_case_sensitive
        self._columns = XmlColumns(schema, types, options.value_tag, is_case_sensitive=is_case_sensitive)
        name = re.escape(options.row_tag.encode())
        prefix = rb"(?:[^\s<>/:]+:)?" if options.ignore_namespace else b""
        attributes = rb"""(?:[^>"']|"[^"]*"|'[^']*')*?"""
        self._mark = re.compile(
            rb"<!--.*?(?:-->|(?P<cut_1>\Z))|<!\[CDATA\[.*?(?:\]\]>|(?P<cut_2>\Z))|<\?.*?(?:\?>|(?P<cut_3>\Z))"
            + rb"|(?P<open><"
            + prefix
            + name
            + rb"(?:\s"
            + attributes
            + rb")?(?P<empty>/)?>)"
            + rb"|(?P<close></"
            + prefix
            + name
            + rb"\s*>)",
            re.S,
        )
        self._start = re.compile(rb"<" + prefix + name + rb"(?=[\s/>])")

    def split(self, contents: Sequence[bytes]) -> list[pa.Array]:
        """Return the rows of each whole file."""
        result = []
        for content in contents:
            text = content if self._options.is_utf8 else to_utf8(content, self._options.encoding)
            blocks = list(self._blocks(io.BytesIO(text), 0))
            result.append(pa.concat_arrays(blocks) if blocks else pa.nulls(0, pa.binary()))
        return result

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Array]:
        """Yield the rows of one file in blocks, from row ``skip_rows`` on; a row is held at a time, and a MiB beside.

        Raises:
            ValueError: A row of more than 256 MiB.
            EOFError: The file holds fewer than ``skip_rows`` rows; the argument is how many.
        """
        text = stream if self._options.is_utf8 else utf8_stream(stream, self._options.encoding)
        return self._blocks(text, skip_rows)

    def _blocks(self, stream: Any, skip_rows: int) -> Iterator[pa.Array]:
        seen, rest = 0, b""
        while True:
            block = bytes(stream.read(max(_BLOCK_BYTES, len(rest))))
            rows, rest = self._cut(rest + block, is_end=not block)
            if seen + len(rows) > skip_rows:
                yield pa.array(rows[max(0, skip_rows - seen) :], pa.binary())
            seen += len(rows)
            if not block:
                break
            if len(rest) > _MAX_ROW_BYTES:
                raise ValueError(f"a row, or a comment, of more than {_MAX_ROW_BYTES} bytes")
        if seen < skip_rows:
            raise EOFError(seen)

    def _cut(self, data: bytes, *, is_end: bool) -> tuple[list[bytes], bytes]:
        """Return the whole rows, and what may be the beginning of another one."""
        rows: list[bytes] = []
        depth = begin = at = 0
        for match in self._mark.finditer(data):
            if (match.lastgroup or "").startswith("cut"):  # it goes on behind this block
                begin = begin if depth else match.start()
                return (rows, data[begin:]) if not is_end else ([*rows, data[begin:]] if depth else rows, b"")
            if match["open"]:
                begin = begin if depth else match.start()
                depth += not match["empty"]
            elif match["close"] and depth:
                depth -= 1
            elif not depth:
                at = match.end()
                continue
            if not depth and (match["open"] or match["close"]):
                at = match.end()
                rows.append(data[begin:at])
        if depth:
            return ([*rows, data[begin:]], b"") if is_end else (rows, data[begin:])
        opened = self._start.search(data, at)
        if is_end:
            return ([*rows, data[opened.start() :]] if opened else rows), b""
        tail = max(at, len(data) - _TAIL_BYTES)
        return rows, data[min(tail, opened.start()) if opened else tail :]

    def decode(self, raws: Sequence[pa.Array]) -> pa.Table:
        """Return typed rows."""
        values = pa.concat_arrays(raws).to_pylist()
        rows: list[dict[str, Any] | None] = []
        for value in values:
            try:
                rows.append(parse_row(value, self._options))
            except MalformedXml:
                rows.append(None)
        texts = [
            v.decode("utf-8", "backslashreplace") if row is None else None for v, row in zip(values, rows, strict=True)
        ]
        return self._finished([row or {} for row in rows], pa.array(texts, pa.string()))

    def _finished(self, rows: list[dict[str, Any]], malformed: pa.Array) -> pa.Table:
        variant = self._options.single_variant_column
        rescued: list[dict[str, Any] | None] = [None] * len(rows)
        if variant is not None:
            there = malformed.is_null().to_numpy(zero_copy_only=False)
            documents = [_json(row) if is_there else None for row, is_there in zip(rows, there, strict=True)]
            table = self._document_table(documents)
        else:
            table, rescued = self._columns.table(rows)
        if self._has_rescued:
            texts = pa.array([None if rest is None else _json(rest) for rest in rescued], pa.string())
            if self._corrupt.column is None and malformed.null_count < len(malformed):
                texts = pc.coalesce(texts, objects({CORRUPT_KEY: json_quote(malformed)}, len(rows)))
            table = table.append_column(pa.field("_rescued_data", pa.string()), texts)
        return self._corrupt.place(table, malformed) if self._corrupt.is_wanted else table

    def _document_table(self, documents: list[str | None]) -> pa.Table:
        name = self._options.single_variant_column
        columns = [pa.array(documents if f.name == name else [None] * len(documents), f.type) for f in self._schema]
        return pa.table(columns, schema=self._schema)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
