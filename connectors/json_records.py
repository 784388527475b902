"""JSON records to Arrow columns: one row per record, and nothing of a record lost.

The decoder of every source that carries JSON, Kafka and files alike. What the schema cannot hold goes to
``_rescued_data``, a JSON text. Three ways, each only for the rows that the one before cannot vouch for:

1. pyarrow's JSON reader over the whole batch, strict: clean records;
2. DuckDB (``json_verify``): undeclared fields, values of another type, malformed neighbours;
3. Python (``json_exact``): malformed text, digits that a double would lose, anything rare. It defines what is right.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from connectors.json_exact import MAX_DEPTH, ExactDecoder, is_deep
from connectors.json_verify import SUSPECT, JsonEngine
from waxlake.stream.errors import SchemaError
from waxlake.stream.schema import delta_schema

__all__ = ["RESCUED", "JsonDecoder"]

RESCUED = "_rescued_data"

_SLICE_BYTES = 32 << 20
_FEW_ROWS = 64  # fewer are decoded in Python sooner than an engine starts
_SHAPES = 3  # kinds of records in a batch that are worth a query each
_PIECES = 4  # into which refused rows are cut to find the bad ones
_SPACE = " \t\r\n"
_OPEN, _CLOSE, _OPEN_LIST = ord("{"), ord("}"), ord("[")
_NOT_MALFORMED = ("unexpected field", "changed from", "Failed to convert", "specified twice", "decimal128")
_THREAD_BLOCK_BYTES = 4 << 20
_READ_AS_TEXT = (pa.timestamp("us"), pa.date32(), pa.binary())  # the reader would take a zone, a number, plain text


class _Refused(Exception):
    """The strict parser does not vouch for this block.

    Args:
        is_malformed: Whether a record seems to be no JSON: a guess from the parser's words, which chooses the next attempt.
    """

    def __init__(self, *, is_malformed: bool = False) -> None:
        self.is_malformed = is_malformed


@dataclass(frozen=True, slots=True)
class _Part:
    """Decoded rows and where they belong in the batch, in ascending order."""

    rows: np.ndarray
    columns: list[pa.Array]


class JsonDecoder:
    """Decode JSON records into the columns of a schema, exactly one row per record.

    Used by one thread; each source partition has its own. A value of another type than declared becomes NULL and is
    rescued: ``"12"`` is no BIGINT, 1.7 is none, 12.0 is one. Any JSON value fits STRING, as its JSON text. A TIMESTAMP is
    ISO 8601, in UTC unless it names an offset; digits below a microsecond are refused, not cut. FLOAT and DOUBLE round.
    BINARY is base64. Names match case and all. A value that does not fit inside a STRUCT is rescued under its path, one
    inside an ARRAY or MAP takes the whole column with it. Of a declared key given twice the last value wins.

    ``_rescued_data`` is NULL, or a JSON object: undeclared fields and values that did not fit, in the record's order, with
    all their digits; ``{"_raw": text}`` for a record that is no JSON object, that gives a declared key twice or nests
    deeper than ``MAX_DEPTH``; ``{"_raw_base64": ...}`` for one that is not UTF-8.

    Args:
        schema: Columns; types as ``delta_schema`` makes them. NOT NULL is not enforced here: a sink does that.
        with_rescued: Whether the result ends with ``_rescued_data``; without it, what does not fit is dropped.
        threads: 1 keeps to one core and leaves the others to other partitions; more let the strict parser use them.

    Raises:
        SchemaError: A type no Delta table holds, or a column named like the rescued one. Not retryable.
    """

    def __init__(self, schema: pa.Schema, *, with_rescued: bool = True, threads: int = 1) -> None:
        columns = pa.schema([_nullable(field) for field in delta_schema(schema)])
        if with_rescued and RESCUED in columns.names:
            raise SchemaError(
                "cannot decode JSON records",
                code="SCHEMA_DUPLICATE",
                found=f"a declared column {RESCUED!r}",
                expected="another name: that column holds what the schema cannot",
                remedy="Take it out of the schema",
            )
        rescued = pa.field(RESCUED, pa.string())
        self.schema = pa.schema([*columns, rescued]) if with_rescued else columns
        self._columns = columns
        self._parser = _StrictParser(columns, use_threads=threads > 1)
        self._engine = JsonEngine(columns)
        self._exact = ExactDecoder(columns)
        # The parser can ignore undeclared fields, but then it does so inside a STRUCT as well, where nobody rescues them.
        self._is_flat = not any(field.type.num_fields for field in columns)

    def decode(self, values: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Decode one record per value, in order.

        Args:
            values: Binary or text, shape (n,); NULL (a Kafka tombstone) gives a row of NULLs.

        Returns:
            Table of shape (n, n_columns), schema ``self.schema``.
        """
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        tables = [self._decode_slice(piece) for chunk in chunks for piece in _slices(_as_binary(chunk))]
        return pa.concat_tables(tables) if tables else self.schema.empty_table()

    def _decode_slice(self, values: pa.Array) -> pa.Table:
        if values.null_count == len(values):
            return self._table([pa.nulls(len(values), field.type) for field in self._columns], len(values))
        rows = np.arange(len(values))
        if values.null_count:
            rows = np.flatnonzero(pc.is_valid(values).to_numpy(zero_copy_only=False))
            values, length = values.drop_null(), len(values)
        else:
            length = len(values)
        texts, is_odd = _texts(values)
        if not is_odd.any():
            try:
                columns = self._parser.parse(texts)
            except _Refused as refused:
                return self._assemble(self._decode_rows(texts, values, rows, is_malformed=refused.is_malformed), length)
            part = _Part(rows, [*columns, pa.nulls(len(rows), pa.string())])
            return self._assemble([part], length)
        odd, even = pa.array(is_odd), ~is_odd
        parts = [_Part(rows[is_odd], self._exact.decode(values.filter(odd).to_pylist()))]
        if even.any():
            mask = pa.array(even)
            parts += self._decode_rows(texts.filter(mask), values.filter(mask), rows[even])
        return self._assemble(parts, length)

    def _table(self, columns: list[pa.Array], length: int) -> pa.Table:
        if len(columns) < len(self.schema):
            columns = [*columns, pa.nulls(length, pa.string())]
        columns = columns[: len(self.schema)]
        if not columns:  # Arrow counts the rows of a table by its columns
            return pa.table({"_": pa.nulls(length)}).select([])
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _assemble(self, parts: list[_Part], length: int) -> pa.Table:
        kinds = [*(field.type for field in self._columns), pa.string()]
        placed = np.concatenate([part.rows for part in parts])
        if len(placed) < length:  # NULL values
            missing = np.setdiff1d(np.arange(length), placed, assume_unique=True)
            parts = [*parts, _Part(missing, [pa.nulls(len(missing), kind) for kind in kinds])]
            placed = np.concatenate([placed, missing])
        if len(parts) == 1:
            return self._table(parts[0].columns, length)
        order = pa.array(np.argsort(placed, kind="stable"))
        columns = [pa.chunked_array([part.columns[i] for part in parts], type=kind) for i, kind in enumerate(kinds)]
        return self._table([column.combine_chunks().take(order) for column in columns], length)

    def _decode_rows(
        self, texts: pa.Array, values: pa.Array, rows: np.ndarray, *, is_malformed: bool = True
    ) -> list[_Part]:
        """Decode rows that begin and end like objects, and of which some may be anything."""
        parts: list[_Part] = []
        first = self._by_validity if is_malformed else self._by_extra
        for decode in (first, *(self._engine.by_shape,) * _SHAPES):
            found = decode(texts) if len(rows) >= _FEW_ROWS else None
            if found is None:
                continue
            mask, columns = found
            taken, others = mask.to_numpy(zero_copy_only=False), pc.invert(mask)
            parts.append(_Part(rows[taken], columns))
            rows, texts, values = rows[~taken], texts.filter(others), values.filter(others)
        return [*parts, *self._decode_sorted(texts, values, rows)]

    def _by_validity(self, texts: pa.Array) -> tuple[pa.Array, list[pa.Array]] | None:
        """Decode the rows that are JSON, if malformed ones are all that is wrong with the batch."""
        mask = self._engine.valid(texts)
        if not pc.any(mask).as_py():
            return None
        some = texts.filter(mask)
        try:
            return mask, [*self._parser.parse(some), pa.nulls(len(some), pa.string())]
        except _Refused:
            return None

    def _by_extra(self, texts: pa.Array) -> tuple[pa.Array, list[pa.Array]] | None:
        """Decode the rows that hold, beside declared fields, the one undeclared field of the first row.

        The commonest case, and the strict parser still vouches for all else. A NULL is left to others: the field may be
        missing there, or null.
        """
        extra = self._engine.single_extra(texts)
        if extra is None:
            return None
        try:
            *columns, values = self._parser.parse(texts, extra=extra)
        except _Refused:
            return None
        mask = pc.is_valid(values)
        if values.null_count == len(values):
            return None
        if values.null_count:
            columns, values = [column.filter(mask) for column in columns], values.drop_null()
        return mask, [*columns, self._engine.as_object(extra.name, values)]

    def _decode_sorted(self, texts: pa.Array, values: pa.Array, rows: np.ndarray) -> list[_Part]:
        """Decode rows of many shapes: those that fail alike together, the rest one by one."""
        if len(rows) < _FEW_ROWS:
            return [_Part(rows, self._exact.decode(values.to_pylist()))] if len(rows) else []
        fine = "." * len(self._columns)
        if self._is_flat:
            try:
                done, rest = self._decode_block(texts, np.arange(len(rows)), fine)
                return self._joined(done, rest, values, rows)
            except _Refused:
                pass
        signatures = self._engine.sort(texts).signature.dictionary_encode()
        codes = signatures.indices.to_numpy(zero_copy_only=False)
        parts: list[_Part] = []
        left = []
        for code, signature in enumerate(signatures.dictionary.to_pylist()):
            group = np.flatnonzero(codes == code)
            is_able = self._parser.is_able and (self._is_flat or signature == fine)
            if SUSPECT in signature or len(group) < _FEW_ROWS or not is_able:
                left.append(group)
                continue
            done, rest = self._decode_alike(texts, group, signature)
            parts += done
            left.append(rest)
        return self._joined(parts, np.concatenate(left), values, rows)

    def _joined(self, done: list[_Part], left: np.ndarray, values: pa.Array, rows: np.ndarray) -> list[_Part]:
        """Return the parts, their row numbers as ``rows`` has them, and the rows ``left`` decoded one by one."""
        parts = [_Part(rows[part.rows], part.columns) for part in done]
        if len(left):
            left = np.sort(left)
            parts.append(_Part(rows[left], self._exact.decode(values.take(pa.array(left)).to_pylist())))
        return parts

    def _decode_alike(self, texts: pa.Array, rows: np.ndarray, signature: str) -> tuple[list[_Part], np.ndarray]:
        """Decode rows whose columns fit alike; return them and the rows that did not work out."""
        parts, failed, todo = [], [], [rows]
        while todo:
            some = todo.pop()
            try:
                done, rest = self._decode_block(texts.take(pa.array(some)), some, signature)
                parts += done
                failed.append(rest)
            except _Refused:
                if len(some) < 2 * _FEW_ROWS:
                    failed.append(some)
                else:
                    todo += np.array_split(some, _PIECES)
        return parts, np.concatenate(failed)

    def _decode_block(self, texts: pa.Array, rows: np.ndarray, signature: str) -> tuple[list[_Part], np.ndarray]:
        """Decode rows whose columns fit alike, all or none; return them and the rows with digits to be kept exactly."""
        signs = dict(zip(self._columns.names, signature, strict=True))
        fits = [name for name, sign in signs.items() if sign == "."]
        as_text = [name for name, sign in signs.items() if sign == "t"]
        parsed = dict(zip(fits, self._parser.parse(texts, names=fits, is_strict=not self._is_flat), strict=True))
        is_exotic, rest, text_columns = self._engine.rest(texts, kept=[*fits, *as_text], as_text=as_text)
        parsed.update(zip(as_text, text_columns, strict=True))
        nulls = {field.name: pa.nulls(len(rows), field.type) for field in self._columns if signs[field.name] == "x"}
        columns = [{**parsed, **nulls}[name] for name in signs] + [rest]
        if not pc.any(is_exotic).as_py():
            return [_Part(rows, columns)], rows[:0]
        keep = pc.invert(is_exotic)
        kept = keep.to_numpy(zero_copy_only=False)
        return [_Part(rows[kept], [column.filter(keep) for column in columns])], rows[~kept]


class _StrictParser:
    """pyarrow's JSON reader over a block of records, trusted only where it proves one row per record."""

    def __init__(self, schema: pa.Schema, *, use_threads: bool) -> None:
        self._types = {field.name: field.type for field in schema}
        self._use_threads = use_threads
        self.is_able = all(_reader_type(kind) is not None for kind in self._types.values())

    def parse(
        self, texts: pa.Array, *, names: list[str] | None = None, extra: pa.Field | None = None, is_strict: bool = True
    ) -> list[pa.Array]:
        """Return one array per column (of ``names``, or all), and one for ``extra``.

        Args:
            texts: Valid UTF-8, each beginning with ``{`` and ending with ``}``.
            names: Columns to read; all by default.
            extra: A further field to read.
            is_strict: Refuse undeclared fields; else they are skipped.

        Raises:
            _Refused: Some record is malformed, holds another type, or does not convert exactly.
        """
        if not self.is_able:
            raise _Refused
        kinds = {name: self._types[name] for name in (self._types if names is None else names)}
        if extra is not None:
            kinds[extra.name] = extra.type
        block = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), "\n")[
            0
        ].as_buffer()
        try:
            table = arrow_json.read_json(
                pa.BufferReader(block),
                read_options=arrow_json.ReadOptions(
                    use_threads=self._use_threads,
                    block_size=_THREAD_BLOCK_BYTES if self._use_threads else len(block) + 1,
                ),
                parse_options=arrow_json.ParseOptions(
                    explicit_schema=pa.schema([(name, _reader_type(kind)) for name, kind in kinds.items()]),
                    unexpected_field_behavior="error" if is_strict else "ignore",
                ),
            )
            # One row per record, proved: a record begins with "{", so it yields at least one row of its own unless it
            # continues the record before. That one would have to be open at its end: inside a text, where the parser
            # refuses the line feed that follows, or behind a value, where it refuses the "{" that follows (its last sign
            # is "}", never a comma or a colon). So each record yields one row or more, and as many rows as records means one.
            if len(table) != len(texts):
                raise _Refused
            return [_converted(table.column(name).combine_chunks(), kind) for name, kind in kinds.items()]
        except pa.ArrowInvalid as exc:
            is_typed = any(words in str(exc) for words in _NOT_MALFORMED)
            raise _Refused(is_malformed=not is_typed) from exc


def _reader_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type to read a column as before it is converted; None if the reader cannot."""
    if kind in _READ_AS_TEXT:
        return pa.string()
    if pa.types.is_struct(kind):
        children = [(field.name, _reader_type(field.type)) for field in kind]
        return None if not children or any(child is None for _, child in children) else pa.struct(children)
    if pa.types.is_list(kind):
        element = _reader_type(kind.value_type)
        return None if element is None else pa.list_(pa.field("element", element))
    return None if pa.types.is_map(kind) else kind


def _converted(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert what the reader gave to the declared type, exactly; raise ``ArrowInvalid`` or ``_Refused``."""
    if pa.types.is_floating(kind):
        if pc.all(pc.is_finite(values)).as_py() is False:  # the reader takes NaN and Infinity, which are not JSON
            raise _Refused
        return values
    if pa.types.is_struct(kind):
        children = [_converted(values.field(i), field.type) for i, field in enumerate(kind)]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())
    if pa.types.is_list(kind):
        elements = _converted(values.values, kind.value_type)
        return pa.ListArray.from_arrays(values.offsets, elements, type=kind, mask=values.is_null())
    if pa.types.is_binary(kind):
        try:
            texts = values.to_pylist()
            return pa.array([None if text is None else b64decode(text, validate=True) for text in texts], kind)
        except ValueError as exc:
            raise _Refused from exc
    if pa.types.is_decimal(kind):
        values.validate(full=True)  # the reader checks the scale, not the precision
        return values
    return values if values.type == kind else values.cast(kind)


def _as_binary(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values if values.type == pa.binary() else values.cast(pa.binary())


def _slices(values: pa.Array) -> list[pa.Array]:
    """Cut into slices of about ``_SLICE_BYTES``: the parsers need some times that much memory."""
    offsets = _offsets(values)
    if int(offsets[-1]) - int(offsets[0]) <= _SLICE_BYTES:
        return [values] if len(values) else []
    marks = np.searchsorted(offsets, np.arange(int(offsets[0]), int(offsets[-1]), _SLICE_BYTES))
    edges = np.unique(np.concatenate([[0], marks, [len(values)]]))
    return [values.slice(int(lo), int(hi - lo)) for lo, hi in pairwise(edges)]


def _offsets(values: pa.Array) -> np.ndarray:
    buffer = values.buffers()[1]
    if buffer is None or not len(values):
        return np.zeros(len(values) + 1, np.int32)
    return np.frombuffer(buffer, np.int32)[values.offset : values.offset + len(values) + 1]


def _bytes(values: pa.Array) -> np.ndarray:
    buffer = values.buffers()[2]
    return np.zeros(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)


def _texts(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the values as text without surrounding space, and a mask of those that are surely no record to parse."""
    try:
        texts, is_odd = values.cast(pa.string()), np.zeros(len(values), dtype=bool)
    except pa.ArrowInvalid:
        is_odd = np.array([not _is_utf8(value) for value in values.to_pylist()], dtype=bool)
        texts = pc.if_else(pa.array(is_odd), pa.scalar(b"", pa.binary()), values).cast(pa.string())
    is_braced = _is_braced(texts)
    if not is_braced.all():
        texts = pc.utf8_trim(texts, _SPACE)
        is_braced = _is_braced(texts)
    return texts, is_odd | ~is_braced | _is_deep(texts)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_braced(texts: pa.Array) -> np.ndarray:
    offsets, data = _offsets(texts), _bytes(texts)
    if not len(data):
        return np.zeros(len(texts), dtype=bool)
    last = len(data) - 1  # an empty text points past the end
    first_sign, last_sign = data[np.minimum(offsets[:-1], last)], data[np.maximum(offsets[1:], 1) - 1]
    return np.asarray((first_sign == _OPEN) & (last_sign == _CLOSE) & (offsets[1:] > offsets[:-1]))


def _is_deep(texts: pa.Array) -> np.ndarray:
    offsets = _offsets(texts)
    found = np.zeros(len(texts), dtype=bool)
    lengths = offsets[1:] - offsets[:-1]
    if not len(lengths) or lengths.max() <= 2 * MAX_DEPTH:
        return found
    data = _bytes(texts)[offsets[0] : offsets[-1]]
    brackets = np.flatnonzero((data == _OPEN) | (data == _OPEN_LIST))
    counts = np.diff(np.searchsorted(brackets, offsets - offsets[0]))
    for row in np.flatnonzero(counts > MAX_DEPTH):
        found[row] = is_deep(texts[int(row)].as_buffer().to_pybytes())
    return found


def _nullable(field: pa.Field) -> pa.Field:
    return field.with_type(_nullable_type(field.type)).with_nullable(True)


def _nullable_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_nullable(field) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_nullable(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(_nullable_type(kind.key_type), _nullable(kind.item_field))
    return kind
