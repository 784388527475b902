"""Files that may not be whole yet are left for a later look: growing ones, and empty ones that may be about to be written.

Called with what a listing found, before any of it gets a number: so a file that is written for hours holds up nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from connectors.files.store import FileGone, FoundFile, Store

__all__ = ["EMPTY_STAYS_S", "settled"]

EMPTY_STAYS_S: Final = 3600.0
_LONGEST_WAIT_S: Final = 2.0


def settled(found: Iterable[FoundFile], store: Store, settle_s: float, *, waits: bool) -> list[FoundFile]:
    """Return the files that are whole, as far as can be seen.

    An object of a store appears whole; a local file counts as whole once it was left alone for a while. One without a byte
    is a file without rows when it has stayed so for an hour.

    Args:
        found: What was listed.
        store: Where the files are.
        settle_s: Time for which a local file must have been left alone.
        waits: Look again at fresh files after that time, if it is short (a triggered run takes files that were just written).
    """
    now_us = time.time_ns() // 1000
    whole, fresh = [], []
    for file in found:
        if not file.size_bytes:
            if now_us - file.modified_us >= EMPTY_STAYS_S * 1e6:
                whole.append(file)
        elif store.is_local and abs(now_us - file.modified_us) < settle_s * 1e6:
            fresh.append(file)
        else:
            whole.append(file)
    if fresh and waits and settle_s <= _LONGEST_WAIT_S:
        time.sleep(settle_s)
        whole += [file for file in fresh if _is_unchanged(file, store)]
    return whole


def _is_unchanged(file: FoundFile, store: Store) -> bool:
    try:
        return store.stat(file.path).is_same_content(file)
    except FileGone:
        return False
