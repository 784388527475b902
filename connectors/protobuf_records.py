"""Protobuf messages to Arrow columns: one row per record, and nothing of a record lost.

A descriptor set (``protoc --descriptor_set_out=x.desc --include_imports x.proto``) says what a message is. A field without
presence that is not in a record has its default, as everywhere in Protobuf; one with presence is NULL. A record that cannot be
read, or that has fields that its descriptor does not know, goes to ``_rescued_data`` as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa

from connectors.avro_records import RESCUED, raw_record
from waxlake.stream.errors import UsageError

__all__ = ["ProtobufDecoder", "confluent_frame", "message_class"]

_Get: TypeAlias = Callable[[Any], Any]
_SCALARS: Final = {
    1: pa.float64(),  # double
    2: pa.float32(),
    3: pa.int64(),
    4: pa.decimal128(20, 0),  # uint64
    5: pa.int32(),
    6: pa.decimal128(20, 0),  # fixed64
    7: pa.int64(),  # fixed32
    8: pa.bool_(),
    9: pa.string(),
    12: pa.binary(),
    13: pa.int64(),  # uint32
    15: pa.int32(),  # sfixed32
    16: pa.int64(),  # sfixed64
    17: pa.int32(),  # sint32
    18: pa.int64(),  # sint64
}
_MESSAGE, _GROUP, _ENUM = 11, 10, 14
_UNFIT: Final = (ValueError, OverflowError, pa.ArrowInvalid)
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_AS_JSON: Final = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "Any", "FieldMask"))


def message_class(descriptor_file: str, message: str) -> Any:
    """Return the class of a message.

    Args:
        descriptor_file: A ``FileDescriptorSet``, imports included.
        message: Full name, such as ``shop.v1.Order``.

    Raises:
        UsageError: The extra is missing, the file cannot be read, or it does not hold the message. Not retryable.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
        from google.protobuf.message import DecodeError
    except ImportError as exc:
        raise UsageError(
            "format 'protobuf' needs a package that is not installed",
            code="EXTRA_MISSING",
            found=str(exc),
            remedy="Install it: pip install 'waxlake[protobuf]'",
        ) from exc
    found = descriptor_pb2.FileDescriptorSet()
    pool = descriptor_pool.DescriptorPool()
    try:
        found.ParseFromString(Path(descriptor_file).read_bytes())
        for file in found.file:
            pool.Add(file)
        known = [f"{file.package}.{kind.name}".lstrip(".") for file in found.file for kind in file.message_type]
        descriptor = pool.FindMessageTypeByName(message)
    except (OSError, DecodeError, TypeError) as exc:
        raise UsageError(
            f"cannot read the descriptors in {descriptor_file}",
            code="PROTOBUF_DESCRIPTOR",
            found=f"{type(exc).__name__}: {exc}",
            remedy="Make it with protoc --include_imports --descriptor_set_out=FILE",
        ) from exc
    except KeyError as exc:
        raise UsageError(
            f"no message {message!r} in {descriptor_file}",
            code="PROTOBUF_DESCRIPTOR",
            expected=f"one of {', '.join(known)}",
        ) from exc
    return message_factory.GetMessageClass(descriptor)


class ProtobufDecoder:
    """Decode Protobuf messages into columns, exactly one row per record. Used by one thread.

    Args:
        kind: The message's class.
        frame: Returns the first byte of the message in a record, None if it has no such frame; None where records are bare.
        with_rescued: Whether the result ends with ``_rescued_data``.
    """

    def __init__(
        self, kind: Any, *, frame: Callable[[bytes], int | None] | None = None, with_rescued: bool = True
    ) -> None:
        from google.protobuf.message import DecodeError

        self._kind, self._frame, self._with_rescued = kind, frame, with_rescued
        self._broken = DecodeError
        found = [
            (field.name, *_field(field, frozenset({kind.DESCRIPTOR.full_name}))) for field in kind.DESCRIPTOR.fields
        ]
        self._gets: list[tuple[str, pa.DataType, _Get]] = found
        fields = [pa.field(name, type) for name, type, _ in found]
        self.schema = pa.schema([*fields, *([pa.field(RESCUED, pa.string())] if with_rescued else [])])

    def decode(self, values: pa.Array) -> pa.Table:
        """Decode one record per value, in order; NULL (a tombstone) gives a row of NULLs.

        Args:
            values: Binary, shape (n,).
        """
        messages: list[Any] = []
        rescued: list[str | None] = []
        for value in values.to_pylist():
            message, rest = (None, None) if value is None else self._message(value)
            messages.append(message)
            rescued.append(rest)
        try:
            columns = self._columns(messages)
        except _UNFIT:
            for number, message in enumerate(messages):
                try:
                    self._columns([message])
                except _UNFIT:
                    messages[number], rescued[number] = None, raw_record(values[number].as_py())
            columns = self._columns(messages)
        if self._with_rescued:
            columns.append(pa.array(rescued, pa.string()))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _columns(self, messages: Sequence[Any]) -> list[pa.Array]:
        return [pa.array([None if m is None else get(m) for m in messages], kind) for _, kind, get in self._gets]

    def _message(self, value: bytes) -> tuple[Any, str | None]:
        start = 0 if self._frame is None else self._frame(value)
        if start is None:
            return None, raw_record(value)
        try:
            message = self._kind.FromString(value[start:] if start else value)
            size = message.ByteSize()
            message.DiscardUnknownFields()
            return message, raw_record(value) if message.ByteSize() != size else None
        except self._broken:
            return None, raw_record(value)


def confluent_frame(kind: Any) -> Callable[[bytes], int | None]:
    """Return what finds the first byte of a message of a class behind a schema registry's id, if the record holds such a one.

    Source: Confluent wire format: 0, the schema's id in 4 bytes, the message's place in its file as zig-zag integers.
    """
    place = _place(kind.DESCRIPTOR)

    def frame(value: bytes) -> int | None:
        if len(value) < 6 or value[0] != 0:
            return None
        numbers, at = [], 5
        count, at = _zigzag(value, at)
        for _ in range(max(count, 0)):
            number, at = _zigzag(value, at)
            numbers.append(number)
            if at < 0 or len(numbers) > len(place):
                return None
        return at if at >= 0 and (numbers or [0]) == place else None

    return frame


def _place(descriptor: Any) -> list[int]:
    holder = descriptor.containing_type
    if holder is None:
        return [list(descriptor.file.message_types_by_name).index(descriptor.name)]
    return [*_place(holder), list(holder.nested_types_by_name).index(descriptor.name)]


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    """Return a zig-zag integer and the place after it; -1 as the place where there is none."""
    number = shift = 0
    while 0 <= at < len(value) and shift < 35:
        byte = value[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    return 0, -1


def _field(field: Any, inside: frozenset[str]) -> tuple[pa.DataType, _Get]:
    """Return the type of a field's column, and what gets its value from a message."""
    name = field.name
    if _is_map(field):
        return _map(field, inside)
    kind, convert = _value(field, inside)
    if _is_repeated(field):
        return pa.list_(kind), lambda message: [convert(value) for value in getattr(message, name)]
    if field.has_presence:
        return kind, lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return kind, lambda message: convert(getattr(message, name))


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _is_map(field: Any) -> bool:
    return bool(field.type == _MESSAGE and field.message_type.GetOptions().map_entry)


def _map(field: Any, inside: frozenset[str]) -> tuple[pa.DataType, _Get]:
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    key_type, of_key = _value(key, inside)
    value_type, of_value = _value(value, inside)
    name = field.name
    return (
        pa.map_(key_type, value_type),
        lambda message: [(of_key(k), of_value(v)) for k, v in sorted(getattr(message, name).items())],
    )


def _value(field: Any, inside: frozenset[str]) -> tuple[pa.DataType, _Get]:
    """Return the type of one value of a field, and what makes it of Protobuf's."""
    if field.type == _ENUM:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return pa.string(), lambda number: names.get(number, str(number))
    if field.type not in (_MESSAGE, _GROUP):
        return _SCALARS[field.type], _as_is
    kind = field.message_type
    if kind.full_name == "google.protobuf.Timestamp":
        return pa.timestamp("us", "UTC"), _micros
    if kind.full_name == "google.protobuf.Duration":
        return pa.int64(), _micros
    if kind.full_name in _WRAPPERS:
        return _SCALARS[kind.fields_by_name["value"].type], lambda value: value.value
    if kind.full_name in _AS_JSON or kind.full_name in inside or not kind.fields:
        return pa.string(), _as_json
    members = [(member.name, *_field(member, inside | {kind.full_name})) for member in kind.fields]
    return pa.struct([(name, type) for name, type, _ in members]), partial(_struct, members)


def _micros(value: Any) -> int:
    """Return a time in microseconds.

    Raises:
        ValueError: It has digits below them.
    """
    if value.nanos % 1000:
        raise ValueError(f"{value.nanos} nanoseconds")
    return int(value.seconds) * 1_000_000 + int(value.nanos) // 1000


def _struct(members: list[tuple[str, pa.DataType, _Get]], message: Any) -> dict[str, Any]:
    return {name: get(message) for name, _, get in members}


def _as_is(value: Any) -> Any:
    return value


def _as_json(message: Any) -> str:
    from google.protobuf import json_format

    return json.dumps(json_format.MessageToDict(message), ensure_ascii=False, separators=(",", ":"))
