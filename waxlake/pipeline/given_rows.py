"""Rows that a test gives in place of a source or a dataset: typed as the source would type them, and read like any source.

Positions count the rows given so far, so that what is given later is read later, once. Called by ``doubles``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from waxlake.pipeline.definitions import DatabaseRead, FilesRead, KafkaRead, Read
from waxlake.stream.batch import MicroBatch
from waxlake.stream.changes import CHANGE_COLUMNS, CHANGE_TYPE, INSERT
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import UsageError, shorten
from waxlake.stream.growth import merge_schemas
from waxlake.stream.schema import cast_exact, delta_schema, no_rows
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState, spread

__all__ = ["GivenConnector", "GivenRows", "SourceShape", "shape_of", "typed_rows"]

_PARTITION = "rows"
_RESCUED = "_rescued_data"


def typed_rows(rows: Any, schema: pa.Schema | None, what: str) -> pa.Table:
    """Return rows of a test as a table.

    Args:
        rows: A table of any Arrow-compatible library, or mappings from column to value.
        schema: Its columns; None takes those of the rows. Texts stand for times, as in JSON.
        what: What they are for, in messages.

    Raises:
        UsageError: ``TEST_ROWS_INVALID``. Not retryable.
    """
    if isinstance(rows, pa.RecordBatch):
        rows = pa.Table.from_batches([rows])
    if not isinstance(rows, pa.Table) and hasattr(rows, "__arrow_c_stream__"):
        rows = pa.table(rows)
    if isinstance(rows, pa.Table):
        return rows if schema is None else cast_exact(rows, schema, what=what)
    listed = _mappings(rows, what)
    names = list(dict.fromkeys(name for row in listed for name in row))
    if schema is None:
        try:
            return pa.table({name: pa.array([row.get(name) for row in listed]) for name in names})
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as exc:
            raise _invalid(what, shorten(exc, 200), "values of one type in each column") from exc
    table = _decoded(listed, schema)
    bad = [text for text in table.column(_RESCUED).to_pylist() if text is not None]
    if bad:
        raise _invalid(what, shorten(bad[0]), ", ".join(f"{f.name} {f.type}" for f in schema))
    return cast_exact(table.drop_columns([_RESCUED]), schema, what=what)


def _mappings(rows: Any, what: str) -> list[Mapping[str, Any]]:
    listed = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping) else [rows]
    for row in listed:
        if not isinstance(row, Mapping):
            raise _invalid(what, f"{type(row).__name__} {shorten(repr(row), 60)}", "an Arrow table, or a list of dicts")
    return listed


def _invalid(what: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"cannot take the rows given for {what}",
        code="TEST_ROWS_INVALID",
        found=found,
        expected=expected,
        remedy="wl.testing.rows('id BIGINT, …', [...]) makes a table of declared types",
    )


def _decoded(rows: Sequence[Mapping[str, Any] | str | bytes], schema: pa.Schema) -> pa.Table:
    """Return the rows as a source of JSON would decode them; a text or bytes is a record as it is."""
    from connectors.json_records import JsonDecoder

    texts = [_record(row) if isinstance(row, Mapping) else row for row in rows]
    encoded = pa.array([text.encode() if isinstance(text, str) else text for text in texts], pa.binary())
    return JsonDecoder(schema).decode(encoded)


def _record(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), default=_json_value)


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return list(value) if isinstance(value, set | frozenset | tuple) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShape:
    """What the rows of a source look like.

    Attributes:
        label: Name of the source, as ``kafka:orders``.
        columns: Its declared columns; None takes those of the rows.
        decodes: Whether rows go through the source's own JSON decoder, which rescues what does not fit.
        metadata: Columns that are there when selected.
        defaults: Metadata column to its value from the number of a row.
    """

    label: str
    columns: pa.Schema | None = None
    decodes: bool = False
    metadata: pa.Schema = field(default_factory=lambda: pa.schema([]))
    defaults: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)


def shape_of(read: Read, label: str) -> SourceShape:
    """Return the shape of the rows that a read delivers, without asking the source."""
    if isinstance(read, KafkaRead):
        return _kafka_shape(read, label)
    if isinstance(read, FilesRead):
        return _files_shape(read, label)
    if isinstance(read, DatabaseRead):
        defaults: dict[str, Callable[[int], Any]] = {
            CHANGE_TYPE: lambda _: INSERT,
            "_commit_position": lambda number: number + 1,
            "_change_index": lambda _: 0,
            "_commit_timestamp": lambda _: utc_now(),
            "_table": lambda _: label.partition(":")[2],
        }
        return SourceShape(label=label, metadata=CHANGE_COLUMNS, defaults=defaults)
    return SourceShape(label=label)


def _kafka_shape(read: KafkaRead, label: str) -> SourceShape:
    from connectors.kafka import KafkaConnector

    connector = KafkaConnector(read.settings)
    schema = connector.empty().schema
    metadata = [name for name in connector.metadata_columns if name in schema.names]
    columns = pa.schema([f for f in schema if f.name not in (*metadata, _RESCUED)])
    return SourceShape(
        label=label,
        columns=columns,
        decodes=read.settings.format == "json",
        metadata=pa.schema([schema.field(name) for name in metadata]),
        defaults={
            "_topic": lambda _: read.settings.topic,
            "_partition": lambda _: 0,
            "_offset": lambda number: number,
            "_timestamp": lambda _: utc_now(),
        },
    )


def _files_shape(read: FilesRead, label: str) -> SourceShape:
    from connectors.files.connector import METADATA_COLUMN
    from connectors.files.provenance import METADATA_TYPE
    from waxlake.stream.ddl import parse_ddl

    declared = read.settings.declared_schema
    columns = None if declared is None else delta_schema(parse_ddl(declared))
    return SourceShape(
        label=label,
        columns=columns,
        decodes=columns is not None and read.settings.rescued_data_column == _RESCUED,
        metadata=pa.schema([pa.field(METADATA_COLUMN, METADATA_TYPE)]),
    )


@dataclass(slots=True, eq=False)
class GivenRows:
    """The rows that a test has given for one source, in the order given; it is the settings of a read of them.

    Args:
        shape: What they look like.
        rows_per_batch: Most rows of one micro-batch.
    """

    shape: SourceShape
    rows_per_batch: int
    table: pa.Table = field(default_factory=lambda: no_rows(pa.schema([])))
    count: int = 0

    @property
    def label(self) -> str:
        """Name of the source that they stand for."""
        return self.shape.label

    def add(self, rows: Any) -> None:
        """Take further rows.

        Raises:
            UsageError: ``TEST_ROWS_INVALID``. Not retryable.
        """
        more = self._shaped(rows)
        schema = merge_schemas(self.table.schema, more.schema) if self.table.num_columns else more.schema
        parts = [part for part in (self.table, more) if part.num_columns]
        self.table = pa.concat_tables([_widened(part, schema) for part in parts]) if parts else more
        self.count += more.num_rows

    def connector(self, ledger: Callable[[str], TableLocation]) -> GivenConnector:
        """Return the connector; it needs no ledger."""
        return GivenConnector(self)

    def _shaped(self, rows: Any) -> pa.Table:
        shape = self.shape
        is_arrow = isinstance(rows, pa.Table | pa.RecordBatch) or hasattr(rows, "__arrow_c_stream__")
        if is_arrow:
            table = typed_rows(rows, None, shape.label)
            listed: Sequence[Any] = ()
            values = table.drop_columns([name for name in shape.metadata.names if name in table.column_names])
        else:
            listed = rows if isinstance(rows, Sequence) else list(rows)
            values = self._values(listed)
            table = values
        for item in shape.metadata:
            given = table.column(item.name).to_pylist() if is_arrow and item.name in table.column_names else None
            values = values.append_column(item, self._metadata(item, listed, given, values.num_rows))
        return values

    def _values(self, rows: Sequence[Any]) -> pa.Table:
        shape = self.shape
        plain = [
            {name: value for name, value in row.items() if name not in shape.metadata.names}
            if isinstance(row, Mapping)
            else row
            for row in rows
        ]
        if shape.columns is None:
            return typed_rows(plain, None, shape.label)
        if shape.decodes:
            return _decoded(plain, shape.columns)
        listed = _mappings(plain, shape.label)
        try:
            return pa.Table.from_pylist([dict(row) for row in listed], schema=shape.columns)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            raise _invalid(shape.label, shorten(exc), str(shape.columns)) from exc

    def _metadata(self, item: pa.Field, rows: Sequence[Any], given: list[Any] | None, count: int) -> pa.Array:
        default = self.shape.defaults.get(item.name)
        values: list[Any] = []
        for index in range(count):
            row = rows[index] if index < len(rows) else None
            value = row.get(item.name) if isinstance(row, Mapping) else None if given is None else given[index]
            values.append(default(self.count + index) if value is None and default is not None else value)
        return pa.array(values, item.type)


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(f.name).cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


@dataclass(frozen=True, slots=True, eq=False)
class GivenConnector:
    """Rows that a test has given, as a source."""

    given: GivenRows

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return self.given.label

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Columns of the source that stay out of ``*``."""
        return tuple(self.given.shape.metadata.names)

    @property
    def on_data_loss(self) -> str:
        """Nothing is ever lost."""
        return "fail"

    def empty(self) -> pa.Table:
        """Return no rows, with every column that a batch has."""
        return no_rows(self.given.table.schema)

    def inspect(self) -> SourceState:
        """Return the rows given so far as positions."""
        held = SourceRange(low=0, high=self.given.count)
        return SourceState(
            identity=f"given:{self.given.label}",
            name=self.given.label,
            partitions={_PARTITION: held},
            begin={_PARTITION: 0},
        )

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return the one group."""
        return spread(list(plan.partitions), 1)

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader of the rows."""
        return _GivenReader(self.given, plan)


class _GivenReader:
    """Reads rows in micro-batches, cut at fences."""

    def __init__(self, given: GivenRows, plan: SourcePlan) -> None:
        part = plan.partitions[_PARTITION]
        self._given, self._plan = given, plan
        self._position = part.read_from
        self._end = given.count if part.mark is None else part.mark
        self._fences = part.fences

    @property
    def is_done(self) -> bool:
        """Whether every row was read."""
        return self._position >= self._end

    def positions(self) -> Mapping[str, int]:
        """Return the number of the next row."""
        return {_PARTITION: self._position}

    def close(self) -> None:
        """There is nothing to free."""

    def read(self) -> Sequence[MicroBatch]:
        """Return the next rows as one batch."""
        start = self._position
        if start >= self._end:
            return []
        ends = [self._end, start + self._given.rows_per_batch, *(f for f in self._fences if f > start)]
        self._position = min(ends)
        rows = self._given.table.slice(start, self._position - start)
        return [
            MicroBatch(
                table=rows,
                source=self._plan.identity,
                partition=_PARTITION,
                start=start,
                end=self._position,
                read=rows.num_rows,
            )
        ]
