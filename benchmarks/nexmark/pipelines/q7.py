"""The highest bids of each ten seconds: the highest price of each window, joined with the bids that offered it."""

import waxlake as wl
from benchmarks.nexmark.streams import bids


@wl.table
def q7_highest() -> wl.Stream:
    return bids().group_by(window=wl.tumbling("dateTime", "10 seconds")).agg(price="max(price)")


@wl.table
def q7() -> wl.Stream:
    highest = wl.read_stream("q7_highest").with_watermark("window_end", "0 seconds", idle="1 day")
    return (
        bids()
        .select("auction", "bidder", "price", '"dateTime"', "extra")
        .join(highest, on="price", within="10 seconds")
        .where('"dateTime" BETWEEN window_end - INTERVAL 10 SECONDS AND window_end')
        .drop("window_start")
    )
