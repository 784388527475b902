"""The streams of events, as the pipelines in Python read them."""

from __future__ import annotations

from typing import Final

import waxlake as wl
from benchmarks.nexmark.generator import ddl

__all__ = ["RANKED", "auctions", "bids", "people", "read"]

DELAY: Final = "4 seconds"
_LEVELS: Final = {"rank1": "price < 10000", "rank2": "price >= 10000 AND price < 1000000", "rank3": "price >= 1000000"}
#: Aggregates of queries 15 and 16.
RANKED: Final = {
    f"{level}_{name}": sql + (f" FILTER ({condition})" if condition else "")
    for name, sql in (
        ("bids", "count(*)"),
        ("bidders", "count(DISTINCT bidder)"),
        ("auctions", "count(DISTINCT auction)"),
    )
    for level, condition in {"total": "", **_LEVELS}.items()
}


def read(kind: str) -> wl.Stream:
    """Return a kind of events."""
    return wl.read_files(f"{wl.conf('data')}/{kind}", format=wl.conf("format"), schema=ddl(kind)).drop("_rescued_data")


def bids() -> wl.Stream:
    """Return bids with their watermark."""
    return read("bid").with_watermark("dateTime", DELAY)


def auctions() -> wl.Stream:
    """Return auctions with their watermark."""
    return read("auction").with_watermark("dateTime", DELAY)


def people() -> wl.Stream:
    """Return persons with their watermark."""
    return read("person").with_watermark("dateTime", DELAY)
