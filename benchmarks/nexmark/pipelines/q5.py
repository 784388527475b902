"""The auctions with the most bids of the last ten seconds, every two seconds: windows, and the best of each."""

import waxlake as wl
from benchmarks.nexmark.streams import bids


@wl.table
def q5_counts() -> wl.Stream:
    return (
        bids().group_by("auction", window=wl.sliding("dateTime", "10 seconds", every="2 seconds")).agg(num="count(*)")
    )


@wl.materialized_view(refresh_policy="incremental")
def q5() -> wl.Batch:
    return wl.sql("SELECT * FROM q5_counts QUALIFY num = max(num) OVER (PARTITION BY window_start)")
