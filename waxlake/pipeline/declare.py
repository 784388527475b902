"""The decorators: they attach a definition to the user's function and return it unchanged.

While a pipeline is being loaded, a registry listens; anywhere else a definitions file is just a Python module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

import pyarrow as pa

from waxlake.pipeline.definitions import (
    Action,
    DatasetDefinition,
    DatasetKind,
    EventHook,
    Expectation,
    FlowDefinition,
    calling_line,
    located,
)
from waxlake.pipeline.rules import Rule, limits
from waxlake.stream.ddl import CONSTRAINTS, parse_ddl
from waxlake.stream.errors import DefinitionError, UsageError
from waxlake.stream.table_properties import ORDER_PROPERTY

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = [
    "Registry",
    "append_flow",
    "check_options",
    "conf",
    "create_streaming_table",
    "current_registry",
    "definition_from",
    "definition_of",
    "expect",
    "expect_all",
    "expect_all_or_drop",
    "expect_all_or_fail",
    "expect_all_or_quarantine",
    "expect_or_drop",
    "expect_or_fail",
    "expect_or_quarantine",
    "materialized_view",
    "function_line",
    "register_dataset",
    "register_flow",
    "rules_of",
    "registering",
    "registry_dialect",
    "registry_spec",
    "table",
    "temporary_view",
]

F = TypeVar("F", bound=Callable[..., Any])
Rules = Mapping[str, "str | Rule"]
_ATTRIBUTE = "__waxlake__"


@dataclass(slots=True)
class _Draft:
    """What the decorators of one function said so far; expectations may come before or after the dataset."""

    function: Callable[..., Any]
    dataset: DatasetDefinition | None = None
    expectations: list[Expectation] = field(default_factory=list)


@dataclass(slots=True)
class Registry:
    """Collects the definitions of one pipeline while its files are imported.

    Attributes:
        configuration: Values that ``conf`` returns.
        dialect: Dialect of the SQL text in the definitions.
        spec: The pipeline's spec.
        event_hooks: Functions that are told of every event.
    """

    configuration: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "duckdb"
    spec: Spec | None = None
    event_hooks: list[EventHook] = field(default_factory=list)
    _drafts: list[_Draft] = field(default_factory=list)
    _datasets: list[DatasetDefinition] = field(default_factory=list)
    _flows: list[FlowDefinition] = field(default_factory=list)

    def datasets(self) -> list[DatasetDefinition]:
        """Return every dataset defined so far, with its expectations."""
        return [*(_finished(d) for d in self._drafts if d.dataset is not None), *self._datasets]

    def add_dataset(self, definition: DatasetDefinition) -> None:
        """Take a dataset that no decorated function stands for."""
        self._datasets.append(definition)

    def add_flow(self, definition: FlowDefinition) -> None:
        """Take an extra flow."""
        self._flows.append(definition)

    def flows(self) -> list[FlowDefinition]:
        """Return every extra flow defined so far."""
        return list(self._flows)


_registry: ContextVar[Registry | None] = ContextVar("waxlake_registry", default=None)


@contextmanager
def registering(registry: Registry) -> Iterator[Registry]:
    """Let ``registry`` collect what is defined inside the block."""
    token = _registry.set(registry)
    try:
        yield registry
    finally:
        _registry.reset(token)


def registry_spec() -> Spec | None:
    """Return the spec of the pipeline that is being loaded, if there is one."""
    registry = _registry.get()
    return None if registry is None else registry.spec


def registry_dialect() -> str:
    """Return the dialect of the SQL of the pipeline that is being loaded."""
    registry = _registry.get()
    return "duckdb" if registry is None else registry.dialect


def definition_of(function: Callable[..., Any]) -> DatasetDefinition | None:
    """Return the definition attached to a function, or None if it has none."""
    draft = getattr(function, _ATTRIBUTE, None)
    return _finished(draft) if draft is not None and draft.dataset is not None else None


def _finished(draft: _Draft) -> DatasetDefinition:
    assert draft.dataset is not None
    return replace(draft.dataset, expectations=tuple(draft.expectations))


def _draft_of(function: Callable[..., Any]) -> _Draft:
    draft = getattr(function, _ATTRIBUTE, None)
    if draft is None:
        draft = _Draft(function)
        setattr(function, _ATTRIBUTE, draft)
    return draft


def conf(key: str, default: str | None = None) -> str:
    """Return a value of the spec's ``configuration``.

    Args:
        key: Name of the value.
        default: Returned when the key is not set; None makes that an error.

    Raises:
        UsageError: The key is not set and has no default. Not retryable.
    """
    registry = _registry.get()
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
    if isinstance(schema, str):
        with located(where):
            schema = parse_ddl(schema, is_table=True)
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
    registry = _registry.get()
    if registry is not None:
        registry.add_dataset(replace(definition_from("table", name, None, line, options), expectations=rules))


def rules_of(**groups: Rules | None) -> tuple[Expectation, ...]:
    """Return the expectations of groups, each named by its action: rule name to SQL."""
    return tuple(rule for action, group in groups.items() for rule in _expectations(group or {}, cast(Action, action)))


def register_dataset(function: Callable[..., Any], definition: DatasetDefinition) -> None:
    """Attach a dataset to a function, for the pipeline that is being loaded, if any; decorators may add rules to it.

    Raises:
        DefinitionError: The function defines another. Not retryable.
    """
    draft = _draft_of(function)
    if draft.dataset is not None:
        raise DefinitionError(
            f"function {function.__name__!r} already defines {draft.dataset.name!r}",
            where=definition.where,
            code="DUPLICATE_DECORATOR",
        )
    draft.dataset = definition
    registry = _registry.get()
    if registry is not None:
        registry._drafts.append(draft)


def current_registry() -> Registry | None:
    """Return what collects definitions now, if a pipeline is being loaded."""
    return _registry.get()


def register_flow(definition: FlowDefinition) -> None:
    """Let the pipeline that is being loaded, if any, have an extra flow."""
    registry = _registry.get()
    if registry is not None:
        registry.add_flow(definition)


def append_flow(*, target: str, name: str | None = None, once: bool = False) -> Callable[[F], F]:
    """Declare a flow that appends to a table another definition made; each flow keeps its own positions.

    Args:
        target: Table name.
        name: Flow name, the identity of its positions; None takes the function's.
        once: End for good when what the source holds is read, as for a back-fill. A full refresh runs it again.
    """

    def decorate(function: F) -> F:
        registry = _registry.get()
        if registry is not None:
            where = function_line(function, calling_line())
            registry.add_flow(
                FlowDefinition(name=name or function.__name__, target=target, function=function, where=where, once=once)
            )
        return function

    return decorate


def _expectations(
    rules: Rules, action: Action, threshold: str | float | None = None, max_violations: int | None = None
) -> list[Expectation]:
    line = calling_line()
    bounds = limits(threshold, max_violations)
    made = []
    for name, rule in rules.items():
        rule = Rule(sql=rule) if isinstance(rule, str) else rule
        if not isinstance(name, str) or not isinstance(rule, Rule) or not name or not rule.sql.strip():
            raise DefinitionError(
                "an expectation is a name and a SQL condition, or a rule such as wl.unique('id')",
                where=line,
                code="ARGUMENT_INVALID",
                found=repr((name, rule)),
            )
        made.append(
            Expectation(
                name=name,
                sql=rule.sql,
                action=rule.action or action,
                where=line,
                scope=rule.scope,
                columns=rule.columns,
                tables=rule.tables,
                is_native=rule.is_native,
                **bounds,
            )
        )
    return made


def _expect(
    rules: Rules, action: Action, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    added = _expectations(rules, action, threshold, max_violations)

    def decorate(function: F) -> F:
        draft = _draft_of(function)
        draft.expectations[:0] = added  # decorators apply from the bottom up; users read from the top down
        return function

    return decorate


def expect(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Count the rows that break a rule, and keep them.

    Args:
        name: Name of the rule, unique within its dataset.
        sql: Condition over a row, or what ``unique``, ``references``, ``row_count``, ``freshness`` or ``overall`` returns.
        threshold: Share of a micro-batch, as ``"1%"``, that may break it; if more do, nothing of the batch is committed.
        max_violations: Rows of a micro-batch that may break it, likewise.
    """
    return _expect({name: sql}, "warn", threshold, max_violations)


def expect_or_drop(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Count the rows that break a rule, and leave them out. Arguments as for ``expect``."""
    return _expect({name: sql}, "drop", threshold, max_violations)


def expect_or_fail(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Stop the flow at a row that breaks a rule; nothing of its batch is committed. With a limit, at more of them than it allows.

    Arguments as for ``expect``.
    """
    return _expect({name: sql}, "fail", threshold, max_violations)


def expect_or_quarantine(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Send the rows that break a rule to ``<table>_quarantine``, with the names of the rules they broke.

    Arguments as for ``expect``.
    """
    return _expect({name: sql}, "quarantine", threshold, max_violations)


def expect_all(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "warn", threshold, max_violations)


def expect_all_or_drop(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_drop`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "drop", threshold, max_violations)


def expect_all_or_fail(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_fail`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "fail", threshold, max_violations)


def expect_all_or_quarantine(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_quarantine`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "quarantine", threshold, max_violations)
