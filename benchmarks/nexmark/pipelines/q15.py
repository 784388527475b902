"""How many bids, persons and auctions there are a day, by levels of price: distinct counts, kept up to date."""

import waxlake as wl
from benchmarks.nexmark.streams import RANKED, bids


@wl.table
def q15() -> wl.Stream:
    return bids().with_columns(day="strftime(\"dateTime\", '%Y-%m-%d')").group_by("day").agg(**RANKED)
