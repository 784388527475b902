"""Bids of a person in ten seconds of processing time, which is written down with each bid, once: windows can be told again."""

import waxlake as wl
from benchmarks.nexmark.streams import bids


@wl.table
def q12_seen() -> wl.Stream:
    return bids().select("bidder", "now() AS seen_at")


@wl.table
def q12() -> wl.Stream:
    seen = wl.read_stream("q12_seen").with_watermark("seen_at", "1 minute", idle="1 day")
    return seen.group_by("bidder", window=wl.tumbling("seen_at", "10 seconds"), mode="update").agg(bid_count="count(*)")
