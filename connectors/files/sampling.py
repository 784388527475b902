"""A sample of files without types of their own, json, csv and xml, and the columns that it shows; called by inference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import pyarrow as pa

from connectors.files.formats.csv_records import CsvRecords
from connectors.files.formats.encoded import ChunkStream, peek, utf8_stream
from connectors.files.formats.json_documents import document_blocks
from connectors.files.formats.json_lenient import strict_json
from connectors.files.formats.json_lines import line_blocks
from connectors.files.formats.text_types import TextTypes
from connectors.files.formats.value_types import Fraction, TypeChoice, ValueTypes
from connectors.files.formats.xml_elements import MalformedXml, parse_row
from connectors.files.formats.xml_rows import XmlRows
from connectors.files.options import CsvOptions, JsonOptions, XmlOptions
from connectors.files.settings import FilesSettings

__all__ = ["Sample", "record_schema"]

_MAX_ROWS: Final = 20_000
_FIRST_ROWS: Final = 500


class Sample:
    """Takes the first records of files.

    Args:
        settings: How the files are written.
        share: Bytes to take of each; of a file whose first record is longer, all that the sample may have.
    """

    def __init__(self, settings: FilesSettings, share: int) -> None:
        self._options = settings.options
        self._sizes = (share, settings.schema_inference_bytes)
        self._rows = 0

    def of(self, stream: Any) -> list[Any]:
        """Return the first records of a file as raw rows; a last one that is cut off does not count."""
        head = b""
        for size in self._sizes:
            head += peek(stream, size + 1 - len(head))
            is_cut = len(head) > size
            blocks = list(self._split(ChunkStream([head[:size]])))
            if is_cut and blocks:
                blocks[-1] = blocks[-1].slice(0, len(blocks[-1]) - 1)
            if not is_cut or any(len(block) for block in blocks):
                break
        most = max(_FIRST_ROWS, _MAX_ROWS - self._rows)
        blocks = [block.slice(0, most) for block in blocks]
        self._rows += sum(len(block) for block in blocks)
        return blocks

    def _split(self, stream: Any) -> Iterator[Any]:
        options = self._options
        if isinstance(options, CsvOptions):
            return CsvRecords(options, pa.schema([])).blocks(stream, 0)
        if isinstance(options, XmlOptions):
            return XmlRows(options, pa.schema([]), has_rescued=False).blocks(stream, 0)
        assert isinstance(options, JsonOptions)
        text = stream if options.is_utf8 else utf8_stream(stream, options.encoding)
        return document_blocks(text, 0, options) if options.multi_line else line_blocks(text, 0)


def record_schema(settings: FilesSettings, samples: Iterator[list[Any]]) -> pa.Schema | None:
    """Return the columns of sampled records."""
    options = settings.options
    if isinstance(options, CsvOptions):
        return _csv(settings, options, samples)
    if isinstance(options, XmlOptions):
        return _xml(settings, options, samples)
    assert isinstance(options, JsonOptions)
    return _json(settings, options, samples)


def _csv(settings: FilesSettings, options: CsvOptions, samples: Iterator[list[pa.Table]]) -> pa.Schema | None:
    texts: dict[str, list[pa.Array]] = {}
    for tables in samples:
        for table in tables:
            for name in table.column_names:
                if not name.startswith("\0"):
                    texts.setdefault(name, []).extend(table.column(name).chunks)
    if not settings.infer_column_types:
        return pa.schema([(name, pa.string()) for name in texts])
    types = CsvRecords(options, pa.schema([])).types
    return pa.schema([(name, _text_type(pa.concat_arrays(chunks), types, options)) for name, chunks in texts.items()])


def _text_type(values: pa.Array, types: TextTypes, options: CsvOptions | XmlOptions) -> pa.DataType:
    try:
        return types.infer(values.cast(pa.string()), prefer_date=options.prefer_date)
    except pa.ArrowInvalid:
        return pa.string()


def _json(settings: FilesSettings, options: JsonOptions, samples: Iterator[list[pa.Array]]) -> pa.Schema | None:
    seen = ValueTypes()
    for blocks in samples:
        for block in blocks:
            for value in block.to_pylist():
                record = _parsed(value, options)
                if isinstance(record, dict):
                    seen.see(record)
    choice = TypeChoice(
        has_primitives=not options.primitives_as_string,
        prefers_decimal=options.prefers_decimal,
        drops_null=options.drop_field_if_all_null,
    )
    return _chosen(settings, seen, choice)


def _xml(settings: FilesSettings, options: XmlOptions, samples: Iterator[list[pa.Array]]) -> pa.Schema | None:
    seen = ValueTypes()
    types = TextTypes.of(options)
    for blocks in samples:
        for block in blocks:
            for value in block.to_pylist():
                try:
                    seen.see_element(parse_row(value, options))
                except MalformedXml:
                    continue

    def text_type(texts: list[str]) -> pa.DataType:
        return _text_type(pa.array(texts, pa.string()), types, options) if options.infer_schema else pa.string()

    return _chosen(settings, seen, TypeChoice(texts=text_type, value_tag=options.value_tag))


def _chosen(settings: FilesSettings, seen: ValueTypes, choice: TypeChoice) -> pa.Schema | None:
    if seen.members is None:
        return None
    fields = seen.fields(choice)
    if not settings.infer_column_types:
        fields = [field.with_type(pa.string()) for field in fields]
    return pa.schema(fields)


def _parsed(value: bytes, options: JsonOptions) -> Any:
    for text in (value, strict_json(value, options) if options.is_lenient else None):
        try:
            return None if text is None else json.loads(text, parse_float=Fraction, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
    return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
