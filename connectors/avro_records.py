"""Avro records to Arrow columns: one row per record, and nothing of a record lost.

Each record was written with a schema of its own (the writer's), which its id names or which is that of the source; rows are in
the reader's. Avro's rules of resolution bring one into the other (Avro specification, "Schema Resolution"); fields that only
the writer's has go to ``_rescued_data``, as does a record that cannot be read.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from connectors.avro_types import AvroTypes, avro_library, parse_avro_schema, without_times

__all__ = ["AvroDecoder", "raw_record"]

RESCUED: Final = "_rescued_data"
_BROKEN: Final = (
    ArithmeticError,
    EOFError,
    IndexError,
    KeyError,
    StopIteration,
    TypeError,
    UnicodeDecodeError,
    ValueError,
)


def raw_record(value: bytes) -> str:
    """Return what ``_rescued_data`` holds of a record that cannot be decoded."""
    return f'{{"_raw_base64":"{base64.b64encode(value).decode()}"}}'


class AvroDecoder:
    """Decode Avro records into the columns of a reader's schema, exactly one row per record. Used by one thread.

    Args:
        reader_schema: The schema of a record whose fields are the columns.
        writer_schema: Returns the schema that an id names, None if there is none; ids are those that ``frame`` finds.
        frame: Returns (id, first byte of the body) of a record, None if it has no such frame; None where records are bare and
            written with the reader's schema.
        with_rescued: Whether the result ends with ``_rescued_data``.

    Raises:
        ValueError: The schema is not one of a record.
    """

    def __init__(
        self,
        reader_schema: Any,
        *,
        writer_schema: Callable[[int], Any] = lambda number: None,
        frame: Callable[[bytes], tuple[int, int] | None] | None = None,
        with_rescued: bool = True,
    ) -> None:
        self._reader = parse_avro_schema(reader_schema)
        self._types = AvroTypes(self._reader)
        self._plain_reader = parse_avro_schema(without_times(self._reader))  # parsed: not again for each record
        self._writer_schema, self._frame, self._with_rescued = writer_schema, frame, with_rescued
        self._read = avro_library().schemaless_reader
        self._own = _Writer(self._plain_reader, None, frozenset())
        self._writers: dict[int, _Writer | None] = {}
        fields = [*self._types.fields, *([pa.field(RESCUED, pa.string())] if with_rescued else [])]
        self.schema = pa.schema(fields)

    def decode(self, values: pa.Array) -> pa.Table:
        """Decode one record per value, in order; NULL (a tombstone) gives a row of NULLs.

        Args:
            values: Binary, shape (n,).

        Raises:
            TransientError: What knows the writers' schemas does not answer. Retryable.
        """
        rows: list[dict[str, Any]] = []
        rescued: list[str | None] = []
        for value in values.to_pylist():
            row, rest = ({}, None) if value is None else self._row(value)
            rows.append(row)
            rescued.append(rest)
        table = self._table(rows, rescued, values)
        return (
            table.append_column(self.schema.field(RESCUED), pa.array(rescued, pa.string()))
            if self._with_rescued
            else table
        )

    def _table(self, rows: list[dict[str, Any]], rescued: list[str | None], values: pa.Array) -> pa.Table:
        """Return rows as columns; one that no column of its type holds is rescued, and its neighbours stay."""
        try:
            return self._types.table(rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError, *_BROKEN):
            for number, row in enumerate(rows):
                try:
                    self._types.table([row])
                except (pa.ArrowInvalid, pa.ArrowTypeError, *_BROKEN):
                    rows[number], rescued[number] = {}, raw_record(values[number].as_py())
            return self._types.table(rows)

    def _row(self, value: bytes) -> tuple[dict[str, Any], str | None]:
        writer, start = self._own, 0
        if self._frame is not None:
            found = self._frame(value)
            known = None if found is None else self._writer_of(found[0])
            if found is None or known is None:
                return {}, raw_record(value)
            writer, start = known, found[1]
        body = io.BytesIO(value)
        body.seek(start)
        try:
            row: Any = self._read(body, writer.schema, writer.reader)
            if body.tell() != len(value):
                return {}, raw_record(value)
            if writer.further:
                body.seek(start)
                everything: Any = self._read(body, writer.schema, None)
                return row, _as_json({name: everything[name] for name in everything if name in writer.further})
        except (*_BROKEN, self._mismatch):
            return {}, raw_record(value)
        return row, None

    @property
    def _mismatch(self) -> type[Exception]:
        error: type[Exception] = avro_library().read.SchemaResolutionError
        return error

    def _writer_of(self, number: int) -> _Writer | None:
        if number not in self._writers:
            schema = self._writer_schema(number)
            self._writers[number] = None if schema is None else _Writer.of(schema, self._plain_reader)
        return self._writers[number]


@dataclass(frozen=True, slots=True)
class _Writer:
    """A schema that records were written with.

    Attributes:
        schema: It, parsed.
        reader: The reader's, None where both are one.
        further: Its fields that the reader's lacks.
    """

    schema: Any
    reader: Any
    further: frozenset[str]

    @classmethod
    def of(cls, schema: Any, reader: Any) -> _Writer | None:
        """Return the writer; None if the schema is not one of a record."""
        try:
            parsed = parse_avro_schema(schema)
        except ValueError:
            return None
        if not isinstance(parsed, Mapping) or parsed.get("type") != "record":
            return None
        plain = parse_avro_schema(without_times(parsed))
        if plain == reader:
            return cls(plain, None, frozenset())
        names = {alias for field in reader["fields"] for alias in (field["name"], *field.get("aliases", ()))}
        return cls(plain, reader, frozenset({field["name"] for field in plain["fields"]} - names))


def _as_json(value: Any) -> str:
    def plain(item: object) -> str:
        return base64.b64encode(item).decode() if isinstance(item, bytes) else str(item)

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain)
