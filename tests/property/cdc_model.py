"""AUTO CDC in memory: what a target must hold, as a plain function of the set of its changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

COLUMNS = ("a", "b")
LEFT = "left as it is"


@dataclass(frozen=True, slots=True)
class Change:
    key: tuple[Any, ...]
    at: int
    kind: str  # upsert, delete, truncate
    values: tuple[Any, ...] = ()


def _greatest(rows: Iterable[tuple[Any, ...]], *, is_partial: bool) -> tuple[Any, ...]:
    def rank(value: Any) -> tuple[Any, ...]:
        return (value != LEFT, value is not None, 0 if value in (None, LEFT) else value)

    rows = list(rows)
    if is_partial:
        return tuple(max(column, key=rank) for column in zip(*rows, strict=True))
    return max(rows, key=lambda row: tuple(map(rank, row)))


def versions(
    changes: Iterable[Change], tracked: Iterable[str], *, is_partial: bool
) -> dict[tuple[Any, ...], list[list[Any]]]:
    """Return the versions of every key: [start, end, values]; the last one of a key that is there has no end."""
    changes, history = list(changes), {}
    watched = [i for i, name in enumerate(COLUMNS) if name in tracked]
    for key in {c.key for c in changes if c.kind != "truncate"}:
        mine = [c for c in changes if c.key == key or c.kind == "truncate"]
        rows: list[list[Any]] = []
        for at in sorted({c.at for c in mine}):
            now = [c for c in mine if c.at == at]
            is_open = bool(rows) and rows[-1][1] is None
            if any(c.kind != "upsert" for c in now):
                if is_open:
                    rows[-1][1] = at
                continue
            values = _greatest((c.values for c in now), is_partial=is_partial)
            before = rows[-1][2] if is_open else (None,) * len(COLUMNS)
            values = tuple(old if new == LEFT else new for new, old in zip(values, before, strict=True))
            if is_open and all(values[i] == before[i] for i in watched):
                rows[-1][2] = values
                continue
            if is_open:
                rows[-1][1] = at
            rows.append([at, None, values])
        history[key] = rows
    return history
