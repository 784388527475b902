"""Rows per file of a batch, and of a commit: a files source counts them, a sink puts them into its commit's metadata.

So what is said about a file is in the same log entry as its rows, and can't disagree with them. Files have numbers without
gaps; a run of them is the first number and one count each.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np


__all__ = ["FILES_FACT", "FileCounts", "FileTally", "LeftOut", "decode_counts"]

FILES_FACT: Final = "files"
_PLAIN_LIMIT: Final = 64
_UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of which the rest is left out on request.

    Attributes:
        number: Its number.
        path: Where it was.
        state: ``skipped`` (cannot be read) or ``missing``.
        error: Why.
    """

    number: int
    path: str
    state: str
    error: str


@dataclass(frozen=True, slots=True)
class FileCounts:
    """What a batch holds of each file.

    Attributes:
        first: Number of the first file.
        rows: Rows read of it and of each file after it, shape (n_files,), int64.
        rescued: Those with rescued data, shape (n_files,); None where it was not looked at.
        left_out: Files of which the rest is left out.
    """

    first: int
    rows: np.ndarray
    rescued: np.ndarray | None = None
    left_out: tuple[LeftOut, ...] = ()


class FileTally:
    """Adds the counts of batches up between two commits."""

    def __init__(self) -> None:
        self._counts: list[FileCounts] = []
        self.files = 0

    def add(self, counts: FileCounts) -> None:
        """Add those of one batch."""
        self._counts.append(counts)
        self.files += len(counts.rows) + 8 * len(counts.left_out)  # an error's text weighs about as much

    def facts(self) -> dict[str, Any]:
        """Return JSON values: the first number, rows and rescued rows a file, and what was left out."""
        import numpy as np

        first = min(counts.first for counts in self._counts)
        size = max(counts.first + len(counts.rows) for counts in self._counts) - first
        rows, rescued, is_known = np.zeros(size, np.int64), np.zeros(size, np.int64), np.ones(size, bool)
        for counts in self._counts:
            span = slice(counts.first - first, counts.first - first + len(counts.rows))
            rows[span] += counts.rows
            if counts.rescued is None:
                is_known[span] &= counts.rows == 0
            else:
                rescued[span] += counts.rescued
        rescued[~is_known] = _UNKNOWN
        facts: dict[str, Any] = {"first": first, "count": size, "rows": _encode(rows), "rescued": _encode(rescued)}
        left_out = [lost for counts in self._counts for lost in counts.left_out]
        if left_out:
            facts["left_out"] = [[lost.number, lost.state, lost.error] for lost in left_out]
        return facts


def decode_counts(facts: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[LeftOut]]:
    """Return what ``FileTally.facts`` made: numbers, rows, rescued rows (-1 where unknown), and what was left out."""
    import numpy as np

    count = int(facts["count"])
    numbers = np.arange(int(facts["first"]), int(facts["first"]) + count, dtype=np.int64)
    left_out = [LeftOut(int(number), "", state, error) for number, state, error in facts.get("left_out") or ()]
    return numbers, _decode(facts["rows"], count), _decode(facts["rescued"], count), left_out


def _encode(values: np.ndarray) -> int | list[int] | str:
    """Return one number if all are equal, a list if it is short, else compressed bytes as text."""
    if len(values) and (values == values[0]).all():
        return int(values[0])
    if len(values) <= _PLAIN_LIMIT:
        plain: list[int] = values.tolist()
        return plain
    return base64.b64encode(zlib.compress(values.astype("<i8").tobytes(), 6)).decode()


def _decode(encoded: int | Sequence[int] | str, count: int) -> np.ndarray:
    import numpy as np

    if isinstance(encoded, int):
        return np.full(count, encoded, np.int64)
    if isinstance(encoded, str):
        return np.frombuffer(zlib.decompress(base64.b64decode(encoded)), "<i8")
    return np.array(encoded, np.int64)
