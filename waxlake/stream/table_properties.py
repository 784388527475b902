"""Table properties that mean something to Waxlake and that both definitions and sinks have to know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from waxlake.stream.errors import UsageError

__all__ = ["ORDER_PROPERTY", "check_properties", "order_columns"]

ORDER_PROPERTY: Final = "pipelines.autoOptimize.zOrderCols"
"""Names the columns by which rows of a data file are sorted."""


def order_columns(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns by which a table's properties say that rows are sorted."""
    return tuple(name.strip() for name in properties.get(ORDER_PROPERTY, "").split(",") if name.strip())


_KNOWN: Final = (
    ORDER_PROPERTY,
    "pipelines.autoOptimize.managed",
    "pipelines.reset.allowed",
    "pipelines.trigger.interval",
    "waxlake.compaction.minFiles",
    "waxlake.vacuum.interval",
)


def check_properties(properties: Mapping[str, Any]) -> None:
    """Refuse a property that is all but one of ours: a table would lose its protection by a typing mistake.

    Raises:
        UsageError: ``PROPERTY_UNKNOWN``, ``PROPERTY_INVALID``. Not retryable.
    """
    folded = {name.casefold(): name for name in _KNOWN}
    for name in properties:
        near = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.9)
        if name not in _KNOWN and near:
            raise UsageError(
                f"unknown table property '{name}'", code="PROPERTY_UNKNOWN", remedy=f"Did you mean '{folded[near[0]]}'?"
            )
    for name in ("pipelines.reset.allowed", "pipelines.autoOptimize.managed"):
        if str(properties.get(name, "true")).lower() not in ("true", "false"):
            raise UsageError(
                f"table property '{name}'", code="PROPERTY_INVALID", found=properties[name], expected="true or false"
            )
