"""Names that a ledger knows, held as 128-bit keys in numpy arrays: 16 bytes a name instead of the name; used by the listing.

A key is two keyed 64-bit hashes of the interpreter (SipHash, a secret of the process), so names that share a key cannot be
made up, and do not happen: among 100 million names one pair is expected once in 10**22 processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["KnownNames"]

_Keys = npt.NDArray[np.int64]
_MERGE_ABOVE: Final = 1 << 16
_SALT: Final = "\x00waxlake\x00"


def _key_columns(names: Sequence[str]) -> tuple[_Keys, _Keys]:
    count = len(names)
    high = np.fromiter(map(hash, names), np.int64, count)
    return high, np.fromiter((hash(_SALT + name) for name in names), np.int64, count)


class KnownNames:
    """A set of names that answers for many of them at once. Not thread-safe while it is added to.

    Args:
        keys: Returns the two halves of the keys of names; another one is for tests.
    """

    def __init__(self, keys: Callable[[Sequence[str]], tuple[_Keys, _Keys]] = _key_columns) -> None:
        self._keys = keys
        nothing = np.empty(0, np.int64)
        self._layers: list[tuple[_Keys, _Keys]] = [(nothing, nothing), (nothing, nothing)]

    def __len__(self) -> int:
        return sum(len(high) for high, _ in self._layers)

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return sum(high.nbytes + low.nbytes for high, low in self._layers)

    def unknown(self, names: Sequence[str]) -> list[int]:
        """Return the indices of the names that are not in the set."""
        if not len(self):
            return list(range(len(names)))
        indices: list[int] = np.flatnonzero(~self._contains(*self._keys(names))).tolist()
        return indices

    def add(self, names: Sequence[str]) -> None:
        """Add names. A small layer takes them, so that adding a few to millions costs little."""
        high, low = self._keys(names)
        is_new = ~self._contains(high, low)
        if not is_new.any():
            return
        main, recent = self._layers
        recent = _merged(recent, (high[is_new], low[is_new]))
        if len(recent[0]) > max(_MERGE_ABOVE, len(main[0]) // 8):
            main, recent = _merged(main, recent), (recent[0][:0], recent[1][:0])
        self._layers = [main, recent]

    def _contains(self, high: _Keys, low: _Keys) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(high), np.bool_)
        for known_high, known_low in self._layers:
            if not len(known_high):
                continue
            at = np.searchsorted(known_high, high)
            at[at == len(known_high)] = 0
            is_equal = known_high[at] == high
            hit = is_equal & (known_low[at] == low)
            for index in np.flatnonzero(is_equal & ~hit):  # the same first half: look at its neighbours
                end = np.searchsorted(known_high, high[index], side="right")
                hit[index] = bool((known_low[at[index] : end] == low[index]).any())
            found |= hit
        return found


def _merged(one: tuple[_Keys, _Keys], other: tuple[_Keys, _Keys]) -> tuple[_Keys, _Keys]:
    high, low = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.argsort(high, kind="stable")
    return high[order], low[order]
