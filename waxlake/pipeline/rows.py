"""Rows as text: a table for people, aligned or drawn, and JSON lines for machines. Called by the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

__all__ = ["aligned", "json_line", "size_text", "text_of"]

_CELL_WIDTH = 80


def json_line(value: Any) -> str:
    """Return one line of JSON. Times are ISO 8601, decimals text, bytes hexadecimal; NaN and infinities are null."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return _special(value)


def _special(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return str(value)


def text_of(value: Any) -> str:
    """Return a cell for people, on one line; long ones are cut in the middle."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ").replace("+00:00", "Z")
    if isinstance(value, float):
        return repr(value)
    text = value if isinstance(value, str) else json_line(value).strip('"')
    text = " ".join(text.split("\n"))
    half = _CELL_WIDTH // 2
    return text if len(text) <= _CELL_WIDTH else f"{text[: half - 1]}…{text[-half:]}"


def size_text(size_bytes: int | None) -> str:
    """Return bytes in the unit that fits."""
    if size_bytes is None:
        return ""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def aligned(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> Iterator[str]:
    """Yield lines of columns as wide as their widest cell; ``right`` names the columns that are aligned to the right."""
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    flush_right = set(right)
    for row in cells:
        parts = [
            c.rjust(w) if i in flush_right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(parts).rstrip()
