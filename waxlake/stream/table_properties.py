"""Table properties that mean something to Waxlake and that both definitions and sinks have to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ORDER_PROPERTY", "order_columns"]

ORDER_PROPERTY: Final = "pipelines.autoOptimize.zOrderCols"
"""Names the columns by which rows of a data file are sorted."""


def order_columns(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns by which a table's properties say that rows are sorted."""
    return tuple(name.strip() for name in properties.get(ORDER_PROPERTY, "").split(",") if name.strip())
