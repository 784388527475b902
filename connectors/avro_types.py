"""Avro schemas as Arrow types: logical types exactly, and what Arrow has no type for as JSON text.

Called by whoever decodes Avro, in files and in records. fastavro, which the extra ``avro`` installs, reads schemas and values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeAlias

import pyarrow as pa

from waxlake.stream.errors import UsageError

__all__ = ["AvroTypes", "avro_library", "parse_avro_schema", "without_times"]

_Convert: TypeAlias = Callable[[Any], Any]
_UTC: Final = "UTC"
_PRIMITIVE: Final = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
# Read as the integers they are stored as: exact, and in any year.
_TIMES: Final = {
    "date": pa.date32(),
    "timestamp-millis": pa.timestamp("ms", _UTC),
    "timestamp-micros": pa.timestamp("us", _UTC),
    "timestamp-nanos": pa.timestamp("ns", _UTC),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
}
_AS_STORED: Final = frozenset({*_TIMES, "time-millis", "time-micros", "uuid", "duration"})
_MAX_PRECISION: Final = 38


def parse_avro_schema(schema: Any) -> Any:
    """Return a schema as fastavro takes it.

    Raises:
        ValueError: It is none.
        UsageError: The extra is not installed. Not retryable.
    """
    fastavro = avro_library()
    try:
        return fastavro.parse_schema(schema)
    except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, KeyError, TypeError) as exc:
        raise ValueError(f"no Avro schema: {type(exc).__name__}: {exc}") from exc


def avro_library() -> Any:
    """Return the module fastavro.

    Raises:
        UsageError: ``EXTRA_MISSING``. Not retryable.
    """
    try:
        import fastavro
    except ImportError as exc:
        raise UsageError(
            "format 'avro' needs a package that is not installed",
            code="EXTRA_MISSING",
            found=str(exc),
            remedy="Install it: pip install 'waxlake[avro]'",
        ) from exc
    return fastavro


def without_times(schema: Any) -> Any:
    """Return a schema without the logical types that are not to be converted value by value."""
    if isinstance(schema, list):
        return [without_times(branch) for branch in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: value for key, value in schema.items() if not key.startswith("__")}
    if result.get("logicalType") in _AS_STORED:
        del result["logicalType"]
    for key in ("type", "items", "values"):
        if key in result:
            result[key] = without_times(result[key])
    if "fields" in result:
        result["fields"] = [{**field, "type": without_times(field["type"])} for field in result["fields"]]
    return result


class AvroTypes:
    """The Arrow types of one Avro schema of a record.

    Args:
        schema: A schema that ``fastavro.parse_schema`` returned: names are full names.

    Attributes:
        fields: Top-level columns.

    Raises:
        ValueError: The schema is not one of a record.
    """

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, Mapping) or schema.get("type") != "record":
            raise ValueError("an Avro schema that is not one of a record")
        self._named: dict[str, Mapping[str, Any]] = {}
        self._open: list[str] = [str(schema.get("name"))]
        self._named[self._open[0]] = schema
        found = [(field["name"], *self._kind(field["type"])) for field in schema["fields"]]
        self.fields = pa.schema([(name, kind) for name, kind, _ in found])
        self._converts: list[tuple[str, pa.DataType, _Convert | None]] = found

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Return rows, as fastavro gives them, as columns."""
        columns = []
        for name, kind, convert in self._converts:
            values = [row.get(name) for row in rows]
            if convert is not None:
                values = [None if value is None else convert(value) for value in values]
            columns.append(pa.array(values, kind))
        return pa.Table.from_arrays(columns, schema=self.fields)

    def _kind(self, schema: Any) -> tuple[pa.DataType, _Convert | None]:
        if isinstance(schema, list):
            return self._union(schema)
        if isinstance(schema, str):
            if schema in _PRIMITIVE:
                return _PRIMITIVE[schema], None
            if schema in self._open or schema not in self._named:
                return pa.string(), _as_json  # a type inside itself
            return self._kind(self._named[schema])
        if "name" in schema:
            self._named[schema["name"]] = schema
        logical = schema.get("logicalType")
        if logical in _TIMES:
            return _TIMES[logical], None
        if logical == "decimal":
            return _decimal(schema)
        return self._complex(schema)

    def _complex(self, schema: Mapping[str, Any]) -> tuple[pa.DataType, _Convert | None]:
        kind = schema["type"]
        if kind in ("record", "error"):
            return self._record(schema)
        if kind == "array":
            item, convert = self._kind(schema["items"])
            return pa.list_(pa.field("element", item)), None if convert is None else partial(_each, convert)
        if kind == "map":
            item, convert = self._kind(schema["values"])
            return pa.map_(pa.string(), item), partial(_pairs, convert)
        if kind == "enum":
            return pa.string(), None
        return (pa.binary(), None) if kind == "fixed" else self._kind(kind)

    def _record(self, schema: Mapping[str, Any]) -> tuple[pa.DataType, _Convert | None]:
        self._open.append(schema["name"])
        children = [(field["name"], *self._kind(field["type"])) for field in schema["fields"]]
        self._open.pop()
        if not children:
            return pa.string(), _as_json
        converts = {name: convert for name, _, convert in children if convert is not None}
        kind = pa.struct([(name, child) for name, child, _ in children])
        return kind, partial(_members, converts) if converts else None

    def _union(self, branches: list[Any]) -> tuple[pa.DataType, _Convert | None]:
        real = [branch for branch in branches if branch != "null"]
        if len(real) == 1:
            return self._kind(real[0])
        if not real:
            return pa.null(), None
        for pair, kind in (({"int", "long"}, pa.int64()), ({"float", "double"}, pa.float64())):
            if all(isinstance(branch, str) for branch in real) and set(real) == pair:
                return kind, None
        for branch in real:  # names that are defined here may be used elsewhere
            self._kind(branch)
        return pa.string(), _as_json


def _decimal(schema: Mapping[str, Any]) -> tuple[pa.DataType, _Convert | None]:
    precision, scale = int(schema["precision"]), int(schema.get("scale", 0))
    if precision > _MAX_PRECISION:
        return pa.string(), str
    return pa.decimal128(precision, scale), None


def _each(convert: _Convert, values: list[Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _pairs(convert: _Convert | None, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if convert is None:
        return list(values.items())
    return [(key, None if value is None else convert(value)) for key, value in values.items()]


def _members(converts: Mapping[str, _Convert], values: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for name, convert in converts.items():
        if result.get(name) is not None:
            result[name] = convert(result[name])
    return result


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: object) -> str:
    return (
        value.decode("latin-1")
        if isinstance(value, bytes)
        else str(value)
        if isinstance(value, Decimal)
        else repr(value)
    )
