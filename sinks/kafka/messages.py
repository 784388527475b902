"""From rows to records: one query of DuckDB makes key, value, headers and the rest of all rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from sinks.kafka.settings import KafkaSinkSettings
from waxlake.stream.engine import open_session, quote_name, quote_text
from waxlake.stream.errors import UsageError, UserError
from waxlake.stream.schema import no_rows

if TYPE_CHECKING:
    import duckdb

__all__ = ["RecordMaker"]

_ROWS: Final = "sink_rows"
_PIECE_ROWS: Final = 10_000


class RecordMaker:
    """Makes the records of a sink's rows. Used by one thread; not before ``check`` has passed.

    Args:
        settings: The sink.
        schema: Columns of the rows.
    """

    def __init__(self, settings: KafkaSinkSettings, schema: pa.Schema) -> None:
        self._settings = settings
        self._session: duckdb.DuckDBPyConnection = open_session()
        self._text = self._query(schema)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def records(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield the arguments of ``Producer.produce`` for each row, in order.

        Raises:
            UserError: An expression fails on these rows, or names no topic. Not retryable.
        """
        for piece in rows.to_batches(max_chunksize=_PIECE_ROWS):
            made = self._run(self._text, pa.Table.from_batches([piece]))
            columns = [made.column(name).to_pylist() for name in ("topic", "value", "key", "partition", "timestamp")]
            headers = [(name, made.column(f"header_{i}").to_pylist()) for i, name in enumerate(self._settings.headers)]
            for index, (topic, value, key, partition, timestamp) in enumerate(zip(*columns, strict=True)):
                record = {"topic": topic, "value": value, "key": key}
                if partition is not None:
                    record["partition"] = partition
                if timestamp is not None:
                    record["timestamp"] = timestamp
                if headers:
                    record["headers"] = [(name, texts[index]) for name, texts in headers if texts[index] is not None]
                yield record

    def _query(self, schema: pa.Schema) -> str:
        """Return the query; each expression is tried alone, so that a mistake is named."""
        settings, empty = self._settings, no_rows(schema)
        types = {name: self._type_of(name, text, empty) for name, text in settings.expressions.items()}
        parts = [f"{self._value(schema, types.get('value'))} AS value"]
        parts.append(f"{_as_bytes(settings.key, types.get('key'))} AS key")
        topic = quote_text(settings.topic)
        if settings.topic_expression is not None:
            topic = f"coalesce(CAST(({settings.topic_expression}) AS VARCHAR), {topic})"
        parts.append(f"{topic} AS topic")
        partition = "NULL" if settings.partition is None else f"({settings.partition})"
        parts.append(f"CAST({partition} AS INTEGER) AS partition")
        parts.append(f"{_as_milliseconds(settings.timestamp, types.get('timestamp'))} AS timestamp")
        for index, (name, text) in enumerate(settings.headers.items()):
            parts.append(f"{_as_bytes(text, self._type_of(f'headers[{name}]', text, empty))} AS header_{index}")
        text = f"SELECT {', '.join(parts)} FROM {_ROWS}"
        self._run(text, empty)
        return text

    def _value(self, schema: pa.Schema, kind: pa.DataType | None) -> str:
        settings = self._settings
        if settings.value_format == "json":
            if settings.value is None:
                pairs = (f"{quote_text(f.name)}, {_json_ready(quote_name(f.name), f.type)}" for f in schema)
                return f"CAST(json_object({', '.join(pairs)}) AS VARCHAR)"
            assert kind is not None
            return f"CAST(to_json({_json_ready(f'({settings.value})', kind)}) AS VARCHAR)"
        text = settings.value
        if text is None:
            if "value" not in schema.names:
                raise UsageError(
                    f"sink to {settings.label} has no value to send",
                    code="SINK_VALUE_MISSING",
                    found=f"columns {', '.join(schema.names)}",
                    expected=f"a column 'value', or option 'value', for value_format={settings.value_format!r}",
                )
            text, kind = quote_name("value"), schema.field("value").type
        assert kind is not None
        return _as_bytes(text, kind)

    def _type_of(self, name: str, text: str, empty: pa.Table) -> pa.DataType:
        try:
            return self._run(f"SELECT ({text}) AS made FROM {_ROWS}", empty).schema.field("made").type
        except UserError as error:
            raise UsageError(
                f"sink to {self._settings.label}: option {name!r}",
                code="SINK_EXPRESSION_INVALID",
                found=error.found,
                expected=f"an expression over the columns {', '.join(empty.column_names)}",
            ) from error

    def _run(self, text: str, rows: pa.Table) -> pa.Table:
        import duckdb

        try:
            self._session.register(_ROWS, rows)
            return self._session.sql(text).to_arrow_table()
        except duckdb.Error as exc:
            raise UserError(
                f"cannot make records for {self._settings.label}",
                code="SINK_EXPRESSION_FAILED",
                found=str(exc).splitlines()[0],
                remedy="Correct the options of the sink and run again: the same rows are sent",
            ) from exc
        finally:
            self._session.unregister(_ROWS)


def _as_bytes(text: str | None, kind: pa.DataType | None) -> str:
    """Return an expression as bytes: those that it has, or its text in UTF-8."""
    if text is None or kind is None:
        return "CAST(NULL AS BLOB)"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return f"({text})"
    return f"CAST(({text}) AS VARCHAR)"


def _as_milliseconds(text: str | None, kind: pa.DataType | None) -> str:
    if text is None or kind is None:
        return "CAST(NULL AS BIGINT)"
    if pa.types.is_integer(kind):
        return f"CAST(({text}) AS BIGINT)"
    return f"epoch_ms(CAST(({text}) AS TIMESTAMP))"


def _json_ready(text: str, kind: pa.DataType) -> str:
    """Return an expression whose JSON is what we promise: times in ISO 8601, bytes in base64, NaN and infinities as null.

    Values stay values until the whole is made JSON: JSON inside JSON is parsed anew, and its decimals rounded.
    """
    if pa.types.is_timestamp(kind):
        zone = "Z" if kind.tz else ""
        return f"strftime(CAST({text} AS TIMESTAMP), '%Y-%m-%dT%H:%M:%S.%f{zone}')"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return f"base64({text})"
    if pa.types.is_float32(kind):
        text = f"CAST(CAST({text} AS VARCHAR) AS DOUBLE)"  # 1.1 and not 1.100000023841858
    if pa.types.is_floating(kind):
        return f"CASE WHEN isfinite({text}) THEN {text} END"
    if pa.types.is_decimal(kind):
        return f"CAST({text} AS DECIMAL(38, {kind.scale}))"  # DuckDB writes narrower ones as doubles
    if pa.types.is_struct(kind):
        members = (f"{quote_name(m.name)} := {_json_ready(f'{text}.{quote_name(m.name)}', m.type)}" for m in kind)
        return f"CASE WHEN {text} IS NOT NULL THEN struct_pack({', '.join(members)}) END"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list_transform({text}, lambda item: {_json_ready('item', kind.value_type)})"
    return text
