"""CSV: records as text columns by Arrow's parser, then typed column by column by our own exact rules.

A record is what the parser sees as one, blank lines left out; its row number is its place among them, records of the wrong
width included. Those come back from the parser's handler with their number and are put in their place again.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from connectors.files.formats.columns import matched_names, unique_names
from connectors.files.formats.csv_lines import kept_lines
from connectors.files.formats.encoded import Chained, peek, utf8_stream
from connectors.files.formats.malformed import CorruptRecords
from connectors.files.formats.text_types import TextTypes
from connectors.files.formats.text_values import has_text_form
from connectors.files.options import CsvOptions
from connectors.files.rescued import CORRUPT_KEY, json_quote, objects
from waxlake.stream.errors import SchemaError

__all__ = ["CsvRecords"]

_PEEK_BYTES: Final = 1 << 20
_CORRUPT: Final = "\0corrupt"  # no header can hold it


@dataclass(frozen=True, slots=True)
class CsvRecords:
    """The csv format of one source.

    Attributes:
        options: How the files are written.
        schema: Columns to make, in order; every one a plain type.
        has_rescued: Whether ``_rescued_data`` is made too.
        block_bytes: How much is parsed at a time; a record must fit.
        types: How text becomes values.
    """

    options: CsvOptions
    schema: pa.Schema
    has_rescued: bool = True
    block_bytes: int = 8 << 20
    types: TextTypes = field(init=False)
    _corrupt: CorruptRecords = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", TextTypes.of(self.options, _number_names(self.options)))
        object.__setattr__(self, "_corrupt", CorruptRecords(self.options, self.schema))
        for column in self.schema:
            if not has_text_form(column.type):
                raise SchemaError(
                    f"cannot read csv files with column {column.name!r}",
                    code="SCHEMA_TYPE",
                    found=f"type {column.type}",
                    expected="a plain type",
                    remedy="Declare it STRING and take it apart in the query",
                )

    def split(self, contents: Sequence[bytes]) -> list[pa.Table]:
        """Return the records of each whole file as text columns."""
        return [self._whole(content) for content in contents]

    def _whole(self, content: bytes) -> pa.Table:
        tables = list(self.blocks(io.BytesIO(content), 0))
        return pa.concat_tables(tables) if tables else pa.table({_CORRUPT: pa.nulls(0, pa.binary())})

    def blocks(self, stream: BinaryIO, skip_rows: int) -> Iterator[pa.Table]:
        """Yield the records of one file in blocks, from record ``skip_rows`` on, as text columns.

        Raises:
            ValueError: The parser gave up. The file cannot be read.
            EOFError: The file holds fewer than ``skip_rows`` records; the argument is how many.
        """
        text = self._prepared(stream)
        peeked = peek(text, _PEEK_BYTES)
        first = self._first_record(peeked)
        row = -1 if self.options.header else 0
        for table in self._records(Chained(peeked, text), first) if first else ():
            drop = min(len(table), max(0, skip_rows - row) if row >= 0 else 1 + skip_rows)
            row += len(table)
            if drop < len(table):
                yield table.slice(drop)
        if max(row, 0) < skip_rows:
            raise EOFError(max(row, 0))

    def decode(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Return typed rows: the columns of the schema and ``_rescued_data``."""
        groups: list[list[pa.Table]] = []
        for table in tables:
            if groups and groups[-1][0].column_names == table.column_names:
                groups[-1].append(table)
            else:
                groups.append([table])
        return pa.concat_tables([self._typed(pa.concat_tables(group).combine_chunks()) for group in groups])

    def _prepared(self, stream: BinaryIO) -> Any:
        """Return the stream in UTF-8, without the lines that are to be left out."""
        options = self.options
        text = stream if options.is_utf8 else utf8_stream(stream, options.encoding)
        return kept_lines(text, options) if options.skip_rows or options.comment else text

    def _first_record(self, peeked: bytes) -> list[str]:
        text = peeked.decode("utf-8-sig", errors="replace")
        return next((record for record in csv.reader(io.StringIO(text, newline=""), **self._dialect()) if record), [])

    def _dialect(self) -> dict[str, Any]:
        options = self.options
        quoting = csv.QUOTE_MINIMAL if options.quote else csv.QUOTE_NONE
        return {
            "delimiter": options.sep,
            "quotechar": options.quote or None,
            "escapechar": options.escape or None,
            "quoting": quoting,
        }

    def _names(self, first: Sequence[str]) -> list[str]:
        if self.options.header:
            return matched_names(first, self.schema, is_case_sensitive=self.options.reader_case_sensitive)
        declared = [name for name in self.schema.names if name != self._corrupt.column]
        return unique_names([declared[i] if i < len(declared) else "" for i in range(len(first))])

    def _records(self, stream: Any, first: Sequence[str]) -> Iterator[pa.Table]:
        """Yield every record of the file, its header included, in order."""
        if len(first) > self.options.max_columns:
            raise ValueError(f"{len(first)} columns, and max_columns is {self.options.max_columns}")
        names = self._names(first)
        wrong: deque[pa_csv.InvalidRow] = deque()
        number = 1
        for batch in self._parse(stream, len(names), wrong):
            placed, end = [], number + len(batch)
            while wrong and wrong[0].number < end:
                placed.append(wrong.popleft())
                end += 1
            if end > number:
                yield self._merged(list(batch.columns), placed, names, number)
            number = end
        if wrong:
            yield self._merged([pa.nulls(0, pa.binary()) for _ in names], list(wrong), names, number)

    def _parse(self, stream: Any, width: int, wrong: deque[pa_csv.InvalidRow]) -> Iterator[pa.RecordBatch]:
        def keep(row: pa_csv.InvalidRow) -> str:
            wrong.append(row)
            return "skip"

        options = self.options
        columns = [str(i) for i in range(width)]
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(use_threads=False, column_names=columns, block_size=self.block_bytes),
            parse_options=pa_csv.ParseOptions(
                delimiter=options.sep,
                quote_char=options.quote or False,
                escape_char=options.escape or False,
                newlines_in_values=True,
                invalid_row_handler=keep,
            ),
            convert_options=pa_csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(columns, pa.binary()),
                null_values=[options.null_value],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from reader

    def _merged(
        self, columns: list[pa.Array], wrong: Sequence[pa_csv.InvalidRow], names: Sequence[str], number: int
    ) -> pa.Table:
        """Return text columns with the records of the wrong width put in their places."""
        count = len(columns[0])
        corrupt = pa.nulls(count, pa.binary())
        if wrong:
            texts = [
                row.text if isinstance(row.text, bytes) else row.text.encode("utf-8", "surrogateescape")
                for row in wrong
            ]
            fields = [self._fields(text) for text in texts]
            places = {row.number - number: count + i for i, row in enumerate(wrong)}
            rest = iter(range(count))
            order = pa.array([places[i] if i in places else next(rest) for i in range(count + len(wrong))])
            added = [pa.array([f[j] if j < len(f) else None for f in fields], pa.binary()) for j in range(len(names))]
            columns = [pa.concat_arrays([a, b]).take(order) for a, b in zip(columns, added, strict=True)]
            corrupt = pa.concat_arrays([corrupt, pa.array(texts, pa.binary())]).take(order)
        return pa.table([*columns, corrupt], names=[*names, _CORRUPT])

    def _fields(self, text: bytes) -> list[bytes | None]:
        source = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")
        record = next(csv.reader(source, **self._dialect()), [])
        null = self.options.null_value
        return [None if f == null else f.encode("utf-8", "surrogateescape") for f in record]

    def _typed(self, table: pa.Table) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        problems: dict[str, pa.Array] = {}
        for name in table.column_names:
            if name != _CORRUPT:
                self._convert(name, _one(table.column(name)), columns, problems)
        arrays = [columns.get(f.name) for f in self.schema]
        arrays = [pa.nulls(len(table), f.type) if a is None else a for a, f in zip(arrays, self.schema, strict=True)]
        result = pa.table(arrays, schema=self.schema)
        corrupt, _ = _text(_one(table.column(_CORRUPT)))
        if self.has_rescued:
            if corrupt.null_count < len(corrupt) and self._corrupt.column is None:
                problems[CORRUPT_KEY] = json_quote(corrupt)
            result = result.append_column(pa.field("_rescued_data", pa.string()), objects(problems, len(table)))
        return self._corrupt.place(result, corrupt) if self._corrupt.is_wanted else result

    def _convert(self, name: str, raw: pa.Array, columns: dict[str, pa.Array], problems: dict[str, pa.Array]) -> None:
        """Convert one column of the file; add it to ``columns``, and what it lost to ``problems``."""
        texts, broken = _text(raw)
        texts = self._trimmed(texts)
        index = -1 if name == self._corrupt.column else self.schema.get_field_index(name)
        if index < 0:
            lost = texts.is_valid()
        else:
            kind = self.schema.field(index).type
            if broken is None or not pa.types.is_binary(kind):
                whole = texts if broken is None else pc.if_else(broken, pa.scalar(None, pa.string()), texts)
                columns[name], lost = self._typed_column(whole, kind)
                lost = lost if broken is None else pc.or_(lost, broken)
            else:
                columns[name], lost = raw, pa.repeat(False, len(raw))
        if self.has_rescued and pc.any(lost).as_py():
            problems[name] = json_quote(pc.if_else(lost, texts, pa.scalar(None, pa.string())))

    def _trimmed(self, texts: pa.Array) -> pa.Array:
        if self.options.ignore_leading_white_space:
            texts = pc.utf8_ltrim_whitespace(texts)
        return pc.utf8_rtrim_whitespace(texts) if self.options.ignore_trailing_white_space else texts

    def _typed_column(self, texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
        most = self.options.max_chars_per_column
        is_long = None
        if most >= 0:
            is_long = pc.fill_null(pc.greater(pc.utf8_length(texts), most), False)
            texts = pc.if_else(is_long, pa.scalar(None, pa.string()), texts)
        if self.options.empty_value and pa.types.is_string(kind):
            texts = pc.if_else(pc.equal(texts, ""), self.options.empty_value, texts)
        values, lost = self.types.convert(texts, kind)
        return values, lost if is_long is None else pc.or_(pc.fill_null(lost, False), is_long)


def _number_names(options: CsvOptions) -> dict[str, str]:
    """Return the names of numbers that are none, where they are not the usual ones."""
    given = {options.nan_value: "nan", options.positive_inf: "inf", options.negative_inf: "-inf"}
    return {} if given == {"NaN": "nan", "Inf": "inf", "-Inf": "-inf"} else given


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _text(raw: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Return bytes as text, and which rows are no UTF-8 (broken bytes written out in hex); None if all are."""
    try:
        return raw.cast(pa.string()), None
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        texts = [None if value is None else value.decode("utf-8", "backslashreplace") for value in values]
        broken = [value is not None and not _is_utf8(value) for value in values]
        return pa.array(texts, pa.string()), pa.array(broken, pa.bool_())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
