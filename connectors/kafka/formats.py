"""What the value of a record is, for each format: its columns, and what decodes it. Called by settings and by ``records``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from connectors.json_records import RESCUED, JsonDecoder
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import UsageError

if TYPE_CHECKING:
    from connectors.kafka.settings import KafkaSettings

__all__ = ["FORMATS", "check_format", "columns_of_values", "value_decoder"]

FORMATS: Final = ("json", "avro", "protobuf", "string", "binary")
_Decode = Callable[[pa.Array], pa.Table]
_OF_FORMATS: Final = {
    "schema_registry_url": ("avro", "protobuf"),
    "schema_registry_options": ("avro", "protobuf"),
    "descriptor_file": ("protobuf",),
    "message": ("protobuf",),
}


def check_format(settings: KafkaSettings) -> None:
    """Stop where a format lacks what it needs, or has what it cannot use.

    Raises:
        UsageError: It does. Not retryable.
    """
    format, what = settings.format, f"cannot read topic {settings.topic!r} as {settings.format}"
    for name, formats in _OF_FORMATS.items():
        if getattr(settings, name) and format not in formats:
            raise UsageError(f"{what} with {name}", code="OPTION_INVALID", expected=f"format {' or '.join(formats)}")
    has_schema = settings.declared_schema is not None
    if format == "json" and not has_schema:
        raise UsageError(
            f"cannot read topic {settings.topic!r} as json without a schema",
            code="KAFKA_SCHEMA_MISSING",
            remedy="Give schema='id BIGINT, amount DOUBLE, ...', or format='string' to get the text of each record",
        )
    if format == "avro":
        _check_avro(settings, what)
    elif has_schema and format != "json":
        raise UsageError(
            f"cannot give topic {settings.topic!r} of format {format!r} a schema",
            code="KAFKA_SCHEMA_UNUSED",
            remedy="Its columns are those of the message"
            if format == "protobuf"
            else "Such records have one column, `value`. Leave the schema out, or read format='json'",
        )
    if format == "protobuf" and not (settings.descriptor_file and settings.message):
        raise UsageError(
            f"{what} without its descriptors",
            code="KAFKA_SCHEMA_MISSING",
            remedy="Give descriptor_file= (protoc --include_imports --descriptor_set_out) and message='package.Name'",
        )


def _check_avro(settings: KafkaSettings, what: str) -> None:
    if settings.declared_schema is None:
        if settings.schema_registry_url is None:
            raise UsageError(
                f"{what} without a schema",
                code="KAFKA_SCHEMA_MISSING",
                remedy='Give schema=\'{"type": "record", …}\', or schema_registry_url=',
            )
        if not settings.is_single:
            raise UsageError(
                f"{what}: which subject has the columns of several topics?",
                code="KAFKA_SCHEMA_MISSING",
                remedy='Give the reader\'s schema as schema=\'{"type": "record", …}\'',
            )
        return
    from connectors.avro_records import AvroDecoder

    try:
        AvroDecoder(_declared_avro(settings))
    except (ValueError, TypeError) as exc:
        raise UsageError(
            f"{what}: its schema is no Avro schema of a record",
            code="KAFKA_SCHEMA_INVALID",
            found=str(exc),
            remedy='Give one as JSON, as in {"type":"record","name":"r","fields":[{"name":"id","type":"long"}]}',
        ) from exc


def _declared_avro(settings: KafkaSettings) -> Any:
    if not isinstance(settings.declared_schema, str):
        raise TypeError(f"{type(settings.declared_schema).__name__}, expected JSON text")
    return json.loads(settings.declared_schema)


def columns_of_values(settings: KafkaSettings) -> pa.Schema:
    """Return the columns of a source's values, without ``_rescued_data``.

    Raises:
        TransientError: The schema registry does not answer. Retryable.
    """
    if settings.format == "json":
        assert settings.declared_schema is not None
        return parse_ddl(settings.declared_schema)
    if settings.format == "string":
        return pa.schema([("value", pa.string())])
    if settings.format == "binary":
        return pa.schema([("value", pa.binary())])
    return _wide_columns(settings)


@lru_cache(maxsize=64)
def _wide_columns(settings: KafkaSettings) -> pa.Schema:
    schema = value_decoder(settings, pa.schema([]), with_rescued=False)(pa.array([], pa.binary())).schema
    settings.check_names(schema.names)
    return schema


def value_decoder(settings: KafkaSettings, schema: pa.Schema, *, with_rescued: bool) -> _Decode:
    """Return what decodes values, one row each, in their order.

    Args:
        settings: The source.
        schema: json: the columns that somebody uses.
        with_rescued: Whether ``_rescued_data`` is one of the columns.
    """
    if settings.format == "json":
        decode: _Decode = JsonDecoder(schema, with_rescued=with_rescued).decode
        return decode
    if settings.format == "avro":
        return _avro_decoder(settings, with_rescued=with_rescued)
    if settings.format == "protobuf":
        from connectors.protobuf_records import ProtobufDecoder, confluent_frame, message_class

        kind = message_class(str(settings.descriptor_file), str(settings.message))
        frame = confluent_frame(kind) if settings.schema_registry_url is not None else None
        return ProtobufDecoder(kind, frame=frame, with_rescued=with_rescued).decode
    if settings.format == "string":
        return lambda values: _strings(values, with_rescued=with_rescued)
    return lambda values: pa.table({"value": values})


def _avro_decoder(settings: KafkaSettings, *, with_rescued: bool) -> _Decode:
    from connectors.avro_records import AvroDecoder

    if settings.schema_registry_url is None:
        return AvroDecoder(_declared_avro(settings), with_rescued=with_rescued).decode
    from connectors.kafka.registry import framed_id, registry

    schemas = registry(settings.schema_registry_url, settings.schema_registry_options)
    reader = _declared_avro(settings) if settings.declared_schema is not None else _subject_schema(settings)
    return AvroDecoder(reader, writer_schema=schemas.schema, frame=framed_id, with_rescued=with_rescued).decode


@lru_cache(maxsize=64)
def _subject_schema(settings: KafkaSettings) -> Any:
    """Return what the topic's subject says now; it stays for the life of the process, so that a batch has the table's columns."""
    from connectors.kafka.registry import registry

    assert settings.schema_registry_url is not None
    return registry(settings.schema_registry_url, settings.schema_registry_options).latest(f"{settings.topic}-value")


def _strings(values: pa.Array, *, with_rescued: bool) -> pa.Table:
    """Return values as text; bytes that are no UTF-8 go to ``_rescued_data``, base64 in a JSON string."""
    rescued = pa.nulls(len(values), pa.string())
    try:
        texts = values.cast(pa.string())
    except pa.ArrowInvalid:
        texts, rescued = _valid_texts(values)
    columns: dict[str, Any] = {"value": texts}
    if with_rescued:
        columns[RESCUED] = rescued
    return pa.table(columns)


def _valid_texts(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the values that are UTF-8 as text, and base64 of those that are not; null elsewhere."""
    raw = values.to_pylist()
    is_text = [value is None or _is_utf8(value) for value in raw]
    texts = pc.if_else(pa.array(is_text), values, pa.scalar(None, pa.binary())).cast(pa.string())
    rescued = [
        None if ok else f'{{"_raw_base64": "{base64.b64encode(v).decode()}"}}'
        for v, ok in zip(raw, is_text, strict=True)
    ]
    return texts, pa.array(rescued, pa.string())


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
