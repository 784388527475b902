"""How often a table is committed to, or a view is refreshed, in a continuous run: a property of its own before the spec's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waxlake.stream.errors import DefinitionError
from waxlake.stream.settings import parse_duration

if TYPE_CHECKING:
    from waxlake.pipeline.graph import Dataset

__all__ = ["TRIGGER_INTERVAL", "VIEW_INTERVAL_S", "own_interval_s"]

VIEW_INTERVAL_S: Final = 5.0
"""Shortest time between two refreshes of a view that asks for none."""

TRIGGER_INTERVAL: Final = "pipelines.trigger.interval"
"""Table property; a time such as ``10 seconds`` or ``1 minute``."""


def own_interval_s(dataset: Dataset) -> float | None:
    """Return the seconds between two commits that a dataset asks for; None if it does not.

    Raises:
        DefinitionError: ``TRIGGER_INTERVAL_INVALID``. Not retryable.
    """
    text = dataset.definition.properties.get(TRIGGER_INTERVAL)
    if text is None:
        return None
    try:
        seconds = parse_duration(str(text))
    except ValueError:
        seconds = None
    if not isinstance(seconds, int | float) or seconds <= 0:
        raise DefinitionError(
            f"table property {TRIGGER_INTERVAL} of '{dataset.name}'",
            where=dataset.where,
            code="TRIGGER_INTERVAL_INVALID",
            found=repr(text),
            expected="a time of at least 1 ms, such as 10 seconds or 1 minute",
        )
    return float(seconds)
