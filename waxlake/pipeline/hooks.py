"""``@wl.on_event_hook``: a user's function that is told of every event of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from waxlake.pipeline.definitions import EventHook, calling_line
from waxlake.pipeline.registry import current_registry
from waxlake.stream.errors import DefinitionError

__all__ = ["on_event_hook"]

F = TypeVar("F", bound=Callable[[dict[str, Any]], Any])


@overload
def on_event_hook(function: F) -> F: ...
@overload
def on_event_hook(*, max_allowable_consecutive_failures: int | None = None) -> Callable[[F], F]: ...
def on_event_hook(
    function: F | None = None, *, max_allowable_consecutive_failures: int | None = None
) -> F | Callable[[F], F]:
    """Let a function be told of every event of an update, as a dict, on a thread of its own.

    It cannot fail or hold up the update: what it raises is logged, and the process waits for it for a bounded time at the end.

    Args:
        function: Takes one event: ``event_type``, ``level``, ``message``, ``dataset``, ``flow``, ``details``, ``error`` and more.
        max_allowable_consecutive_failures: After more failures in a row it is not called again in that update; None for ever.

    Raises:
        DefinitionError: A negative number, or no function. Not retryable.
    """
    line, limit = calling_line(), max_allowable_consecutive_failures
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise DefinitionError(
            "on_event_hook(max_allowable_consecutive_failures=)",
            where=line,
            code="ARGUMENT_INVALID",
            found=repr(limit),
            expected="a number from 0, or None",
        )

    def hooked(given: F) -> F:
        if not callable(given):
            raise DefinitionError(
                "on_event_hook decorates a function", where=line, code="ARGUMENT_INVALID", found=type(given).__name__
            )
        registry = current_registry()
        if registry is not None:
            name = getattr(given, "__name__", "hook")
            registry.event_hooks.append(EventHook(name=name, function=given, max_failures=limit, where=line))
        return given

    return hooked if function is None else hooked(function)
