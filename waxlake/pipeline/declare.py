"""The decorators of datasets and flows: they attach a definition to the user's function and return it unchanged.

While a pipeline is being loaded, a registry listens; anywhere else a definitions file is just a Python module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, overload

import pyarrow as pa

from waxlake.pipeline.declare_expectations import Rules, rules_of
from waxlake.pipeline.definitions import (
    DatasetDefinition,
    DatasetKind,
    FlowDefinition,
    calling_line,
    located,
)
from waxlake.pipeline.registry import current_registry, register_dataset, register_flow
from waxlake.stream.ddl import CONSTRAINTS, parse_ddl
from waxlake.stream.errors import DefinitionError, UsageError
from waxlake.stream.table_properties import ORDER_PROPERTY, check_properties

__all__ = [
    "append_flow",
    "check_options",
    "conf",
    "create_streaming_table",
    "definition_from",
    "function_line",
    "materialized_view",
    "table",
    "temporary_view",
]

F = TypeVar("F", bound=Callable[..., Any])


def conf(key: str, default: str | None = None) -> str:
    """Return a value of the spec's ``configuration``.

    Args:
        key: Name of the value.
        default: Returned when the key is not set; None makes that an error.

    Raises:
        UsageError: The key is not set and has no default. Not retryable.
    """
    registry = current_registry()
    if registry is None:
        from waxlake.pipeline.spec import load_spec

        configuration: Mapping[str, str] = load_spec().configuration
    else:
        configuration = registry.configuration
    if key in configuration:
        return configuration[key]
    if default is not None:
        return default
    raise UsageError(
        f"{calling_line()}: configuration value {key!r} is not set",
        code="CONFIGURATION_MISSING",
        found=f"keys {', '.join(sorted(configuration)) or '(none)'}",
        remedy=f"Set it under `configuration:` in the spec, or with --param {key}=…",
    )


@overload
def table(name: F) -> F: ...
@overload
def table(
    name: str | None = None,
    *,
    comment: str | None = None,
    schema: str | pa.Schema | None = None,
    partition_cols: Sequence[str] | None = None,
    cluster_by: Sequence[str] | None = None,
    table_properties: Mapping[str, str] | None = None,
    path: str | None = None,
) -> Callable[[F], F]: ...
def table(name: Any = None, **options: Any) -> Any:  # noqa: D417 - the options are those of the overload
    """Declare a streaming table: the function returns a Stream, each of its rows is appended exactly once.

    Args:
        name: Table name, ``table`` or ``schema.table``; None takes the function's.
        comment: Table comment.
        schema: Columns, as DDL or Arrow schema; None takes those of the query.
        partition_cols: Partition columns.
        cluster_by: Columns to sort data files by, along a Z-order curve if there are several.
        table_properties: Delta table properties.
        path: Place of the table if not the usual one.
    """
    return _dataset("table", name, options)


@overload
def materialized_view(name: F) -> F: ...
@overload
def materialized_view(
    name: str | None = None,
    *,
    comment: str | None = None,
    schema: str | pa.Schema | None = None,
    partition_cols: Sequence[str] | None = None,
    cluster_by: Sequence[str] | None = None,
    table_properties: Mapping[str, str] | None = None,
    path: str | None = None,
    refresh_policy: str = "auto",
) -> Callable[[F], F]: ...
def materialized_view(name: Any = None, **options: Any) -> Any:
    """Declare a materialized view: the function returns a Batch, and the table always equals it.

    When an input has changed, it is refreshed for the price of what changed, where its query allows that. Arguments as for
    ``table``; ``refresh_policy`` is ``auto`` (by cost), ``incremental`` (a query that does not allow it is refused),
    ``incremental_strict`` (so is a refresh that would have to be a full one) or ``full``.
    """
    return _dataset("materialized_view", name, options)


@overload
def temporary_view(name: F) -> F: ...
@overload
def temporary_view(name: str | None = None, *, comment: str | None = None) -> Callable[[F], F]: ...
def temporary_view(name: Any = None, **options: Any) -> Any:
    """Declare a view that is not stored: whoever reads it runs its query."""
    return _dataset("temporary_view", name, options)


REFRESH_POLICIES: Final = ("auto", "incremental", "incremental_strict", "full")

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "table": ("comment", "schema", "partition_cols", "cluster_by", "table_properties", "path"),
    "materialized_view": (
        "comment",
        "schema",
        "partition_cols",
        "cluster_by",
        "table_properties",
        "path",
        "refresh_policy",
    ),
    "temporary_view": ("comment",),
}


def _dataset(kind: DatasetKind, name: Any, options: dict[str, Any]) -> Any:
    if callable(name):
        return _dataset(kind, None, options)(name)
    line = calling_line()
    check_options(kind, options, line)

    def decorate(function: F) -> F:
        given = function.__name__ if name is None else name
        where = function_line(function, line)
        register_dataset(function, definition_from(kind, given, function, where, options))
        return function

    return decorate


def check_options(kind: str, options: Mapping[str, Any], line: str) -> None:
    """Refuse options that a kind of dataset does not have, or not yet.

    Raises:
        DefinitionError: Names the nearest valid one. Not retryable.
    """
    from waxlake.stream.settings import nearest

    for key in options:
        if key not in _OPTIONS[kind]:
            raise DefinitionError(
                f"unknown argument {key!r} of @{kind}",
                where=line,
                code="ARGUMENT_UNKNOWN",
                remedy=nearest(key, _OPTIONS[kind]),
            )
    if "AUTO" in (options.get("cluster_by") or ()):
        raise DefinitionError(
            "CLUSTER BY AUTO is not available", where=line, code="NOT_AVAILABLE", remedy="Name the columns"
        )
    policy = options.get("refresh_policy", "auto")
    if policy not in REFRESH_POLICIES:
        raise DefinitionError(
            f"refresh_policy {policy!r} is not available",
            where=line,
            code="NOT_AVAILABLE",
            expected=", ".join(map(repr, REFRESH_POLICIES)),
        )


def _names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


def definition_from(
    kind: DatasetKind, name: str, function: Callable[[], Any] | None, where: str, options: Mapping[str, Any]
) -> DatasetDefinition:
    """Return the definition of a dataset; ``options`` are the arguments of its decorator."""
    properties = dict(options.get("table_properties") or {})
    if options.get("cluster_by"):
        properties[ORDER_PROPERTY] = ", ".join(_names(options["cluster_by"]))
    schema = options.get("schema")
    with located(where):
        check_properties(properties)
        if isinstance(schema, str):
            schema = parse_ddl(schema, is_table=True)
    if not isinstance(schema, pa.Schema | None):
        raise DefinitionError(
            f"the schema of '{name}'",
            where=where,
            code="ARGUMENT_INVALID",
            found=repr(schema),
            expected="a text such as 'id BIGINT, at TIMESTAMP', or a pyarrow.Schema",
        )
    if schema is not None:
        checks = json.loads((schema.metadata or {}).get(CONSTRAINTS.encode(), b"{}"))
        properties |= {f"delta.constraints.{key}": text for key, text in checks.items()}
    return DatasetDefinition(
        name=name,
        kind=kind,
        function=function,
        where=where,
        schema=schema,
        partition_by=_names(options.get("partition_cols")),
        comment=options.get("comment"),
        properties=properties,
        path=options.get("path"),
        refresh_policy=options.get("refresh_policy", "auto"),
    )


def function_line(function: Callable[..., Any], fallback: str) -> str:
    """Return ``file:line`` of a function, or ``fallback`` for one that has none."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else fallback


def create_streaming_table(
    name: str,
    *,
    comment: str | None = None,
    schema: str | pa.Schema | None = None,
    partition_cols: Sequence[str] | None = None,
    cluster_by: Sequence[str] | None = None,
    table_properties: Mapping[str, str] | None = None,
    path: str | None = None,
    expect_all: Rules | None = None,
    expect_all_or_drop: Rules | None = None,
    expect_all_or_fail: Rules | None = None,
    expect_all_or_quarantine: Rules | None = None,
) -> None:
    """Declare a streaming table that ``append_flow`` functions feed. Arguments as for ``table``."""
    line = calling_line()
    rules = rules_of(
        warn=expect_all,
        drop=expect_all_or_drop,
        fail=expect_all_or_fail,
        quarantine=expect_all_or_quarantine,
    )
    options = {
        "comment": comment,
        "schema": schema,
        "partition_cols": partition_cols,
        "cluster_by": cluster_by,
        "table_properties": table_properties,
        "path": path,
    }
    check_options("table", options, line)
    registry = current_registry()
    if registry is not None:
        registry.add_dataset(replace(definition_from("table", name, None, line, options), expectations=rules))


def append_flow(*, target: str, name: str | None = None, once: bool = False) -> Callable[[F], F]:
    """Declare a flow that appends to a table another definition made; each flow keeps its own positions.

    Args:
        target: Table name.
        name: Flow name, the identity of its positions; None takes the function's.
        once: End for good when what the source holds is read, as for a back-fill. A full refresh runs it again.
    """

    def decorate(function: F) -> F:
        where = function_line(function, calling_line())
        register_flow(
            FlowDefinition(name=name or function.__name__, target=target, function=function, where=where, once=once)
        )
        return function

    return decorate
