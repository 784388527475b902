"""The last bid of each person for each auction: changes applied in the order of time."""

import waxlake as wl
from benchmarks.nexmark.streams import bids


@wl.temporary_view
def q18_bids() -> wl.Stream:
    return bids()


wl.create_streaming_table("q18")
wl.create_auto_cdc_flow("q18", "q18_bids", keys=["bidder", "auction"], sequence_by=["dateTime", "price", "extra"])
