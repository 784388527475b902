"""CSV: records as text columns by Arrow's parser, then typed column by column by our own exact rules.

A record is what the parser sees as one, blank lines left out; its row number is its place among them, records of the wrong
width included. Those come back from the parser's handler with their number and are put in their place again.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from connectors.files.formats.text_values import convert_text, has_text_form
from connectors.files.options import CsvOptions
from connectors.files.rescued import CORRUPT_KEY, json_quote, objects
from waxlake.stream.errors import SchemaError

__all__ = ["CsvRecords", "unique_names"]

_PEEK_BYTES: Final = 1 << 20
_CORRUPT: Final = "\0corrupt"  # no header can hold it


def unique_names(names: Sequence[str]) -> list[str]:
    """Return column names, the second ``b`` as ``b#2``, a nameless one as ``_c`` and its index."""
    seen: dict[str, int] = {}
    result = []
    for index, given in enumerate(names):
        name = given or f"_c{index}"
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


@dataclass(frozen=True, slots=True)
class CsvRecords:
    """The csv format of one source.

    Attributes:
        options: How the files are written.
        schema: Columns to make, in order; every one a plain type.
        has_rescued: Whether ``_rescued_data`` is made too.
        block_bytes: How much is parsed at a time; a record must fit.
    """

    options: CsvOptions
    schema: pa.Schema
    has_rescued: bool = True
    block_bytes: int = 8 << 20

    def __post_init__(self) -> None:
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
        peeked = stream.read(_PEEK_BYTES)
        first = self._first_record(peeked)
        row = -1 if self.options.header else 0
        for table in self._records(_Chained(peeked, stream), first) if first else ():
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
            return unique_names(first)
        declared = self.schema.names
        return unique_names([declared[i] if i < len(declared) else "" for i in range(len(first))])

    def _records(self, stream: Any, first: Sequence[str]) -> Iterator[pa.Table]:
        """Yield every record of the file, its header included, in order."""
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
        for column in self.schema:
            if column.name not in columns:
                columns[column.name] = pa.nulls(len(table), column.type)
        arrays = [columns[column.name] for column in self.schema]
        if not self.has_rescued:
            return pa.table(arrays, schema=self.schema)
        corrupt, _ = _text(_one(table.column(_CORRUPT)))
        if corrupt.null_count < len(corrupt):
            problems[CORRUPT_KEY] = json_quote(corrupt)
        fields = [*self.schema, pa.field("_rescued_data", pa.string())]
        return pa.table([*arrays, objects(problems, len(table))], schema=pa.schema(fields))

    def _convert(self, name: str, raw: pa.Array, columns: dict[str, pa.Array], problems: dict[str, pa.Array]) -> None:
        """Convert one column of the file; add it to ``columns``, and what it lost to ``problems``."""
        texts, broken = _text(raw)
        index = self.schema.get_field_index(name)
        if index < 0:
            lost = texts.is_valid()
        else:
            kind = self.schema.field(index).type
            if broken is None or not pa.types.is_binary(kind):
                whole = texts if broken is None else pc.if_else(broken, pa.scalar(None, pa.string()), texts)
                columns[name], lost = convert_text(whole, kind)
                lost = lost if broken is None else pc.or_(lost, broken)
            else:
                columns[name], lost = raw, pa.repeat(False, len(raw))
        if self.has_rescued and pc.any(lost).as_py():
            problems[name] = json_quote(pc.if_else(lost, texts, pa.scalar(None, pa.string())))


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


class _Chained(io.RawIOBase):
    """What was read already, then the rest of the stream."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
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
        return self._stream.read(size)
