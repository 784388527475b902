"""How a sink is declared: a Kafka topic or a Delta table anywhere, or a function that takes batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, overload

from waxlake.pipeline.declare import function_line
from waxlake.pipeline.declare_expectations import Rules, rules_of
from waxlake.pipeline.definitions import DatasetDefinition, calling_line, located
from waxlake.pipeline.registry import current_registry, register_dataset
from waxlake.stream.errors import DefinitionError

__all__ = ["create_sink", "foreach_batch_sink", "sink_from"]

F = TypeVar("F", bound=Callable[..., Any])
_ON_FULL_REFRESH = ("refuse", "resend", "skip")


def create_sink(
    name: str,
    format: str,
    options: Mapping[str, Any] | None = None,
    *,
    comment: str | None = None,
    expect_all: Rules | None = None,
    expect_all_or_drop: Rules | None = None,
    expect_all_or_fail: Rules | None = None,
    expect_all_or_quarantine: Rules | None = None,
) -> None:
    """Declare a sink that ``append_flow`` functions feed.

    Args:
        name: Its name among the datasets of the pipeline.
        format: ``kafka`` or ``delta``.
        options: Settings of that kind of sink (docs/sinks.md).
        comment: What it is for.
        expect_all: Rules that are counted: name to SQL.
        expect_all_or_drop: Rules whose offenders are left out.
        expect_all_or_fail: Rules whose first offender stops the flow.
        expect_all_or_quarantine: Rules whose offenders go to ``<name>_quarantine``.

    Raises:
        DefinitionError: An unknown format or option, a value out of bounds. Not retryable.
    """
    line = calling_line()
    definition = sink_from(name, format, options, line, comment)
    rules = rules_of(
        warn=expect_all,
        drop=expect_all_or_drop,
        fail=expect_all_or_fail,
        quarantine=expect_all_or_quarantine,
    )
    registry = current_registry()
    if registry is not None:
        registry.add_dataset(replace(definition, expectations=rules))


def sink_from(
    name: str, format: str, options: Mapping[str, Any] | None, where: str, comment: str | None
) -> DatasetDefinition:
    """Return the definition of a sink to Kafka or to a Delta table; its rules are left out.

    Raises:
        DefinitionError: An unknown format or option, a value out of bounds. Not retryable.
    """
    from waxlake.pipeline.sink_targets import sink_target

    with located(where):
        target = sink_target(name, format, options)
    return DatasetDefinition(name=name, kind="sink", function=None, where=where, comment=comment, sink=target)


@overload
def foreach_batch_sink(name: F) -> F: ...
@overload
def foreach_batch_sink(
    name: str | None = None,
    *,
    comment: str | None = None,
    on_full_refresh: str = "refuse",
    max_rows_per_batch: int = 500_000,
) -> Callable[[F], F]: ...
def foreach_batch_sink(
    name: Any = None,
    *,
    comment: str | None = None,
    on_full_refresh: str = "refuse",
    max_rows_per_batch: int = 500_000,
) -> Any:
    """Declare a sink that is a function of ``(table: pa.Table, batch: wl.BatchInfo)``, called with one batch at a time.

    A batch that may not have been stored, because of a crash or an error, comes again with the same ``batch.batch_id`` and the
    same rows, before any other. ``ConnectionError`` and ``TimeoutError`` are tried again at once; any other error stops the sink.

    Args:
        name: Its name among the datasets of the pipeline; None takes the function's.
        comment: What it is for.
        on_full_refresh: What a full refresh of it, or of a table that it streams from, does: ``refuse``, ``resend`` (everything
            comes again, in new batches) or ``skip`` (only what comes after it).
        max_rows_per_batch: Rows after which a batch is closed.

    Raises:
        DefinitionError: A value out of bounds. Not retryable.
    """
    if callable(name):
        return foreach_batch_sink()(name)
    line = calling_line()
    for argument, is_valid, found, expected in (
        ("on_full_refresh", on_full_refresh in _ON_FULL_REFRESH, on_full_refresh, ", ".join(_ON_FULL_REFRESH)),
        ("max_rows_per_batch", max_rows_per_batch >= 1, max_rows_per_batch, "at least 1"),
    ):
        if not is_valid:
            raise DefinitionError(
                f"foreach_batch_sink: argument {argument!r}",
                where=line,
                code="ARGUMENT_INVALID",
                found=repr(found),
                expected=expected,
            )

    def decorate(function: F) -> F:
        from waxlake.pipeline.sink_targets import FunctionTarget

        where = function_line(function, line)
        target = FunctionTarget(
            function=function, where=where, on_full_refresh=on_full_refresh, max_rows_per_batch=max_rows_per_batch
        )
        given = function.__name__ if name is None else name
        definition = DatasetDefinition(
            name=given, kind="sink", function=None, where=where, comment=comment, sink=target
        )
        register_dataset(function, definition)
        return function

    return decorate
