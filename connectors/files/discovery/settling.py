"""Files that may not be whole yet are left for a later look: growing ones, and empty ones that may be about to be written.

Called with what a listing found, before any of it gets a number: so a file that is written for hours holds up nothing.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from connectors.files.store import FileGone, FoundFile, FoundFiles, Store

__all__ = ["EMPTY_STAYS_S", "settled"]

EMPTY_STAYS_S: Final = 3600.0
_LONGEST_WAIT_S: Final = 2.0


def settled(found: FoundFiles, store: Store, settle_s: float, *, waits: bool) -> FoundFiles:
    """Return the files that are whole, as far as can be seen.

    An object of a store appears whole; a local file counts as whole once it was left alone for a while. One without a byte
    is a file without rows when it has stayed so for an hour.

    Args:
        found: What was listed.
        store: Where the files are.
        settle_s: Time for which a local file must have been left alone.
        waits: Look again at fresh files after that time, if it is short (a triggered run takes files that were just written).
    """
    age_us = time.time_ns() // 1000 - found.modified_us
    is_empty = found.size_bytes == 0
    is_fresh = ~is_empty & (abs(age_us) < settle_s * 1e6) & store.is_local
    is_whole = np.where(is_empty, age_us >= EMPTY_STAYS_S * 1e6, ~is_fresh)
    if is_fresh.any() and waits and settle_s <= _LONGEST_WAIT_S:
        time.sleep(settle_s)
        fresh = np.flatnonzero(is_fresh)
        is_whole[fresh] = [_is_unchanged(found[int(index)], store) for index in fresh]
    return found.where(is_whole)


def _is_unchanged(file: FoundFile, store: Store) -> bool:
    try:
        return store.stat(file.path).is_same_content(file)
    except FileGone:
        return False
