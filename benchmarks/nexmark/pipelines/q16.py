"""The same for each channel, with the latest minute."""

import waxlake as wl
from benchmarks.nexmark.streams import RANKED, bids


@wl.table
def q16() -> wl.Stream:
    timed = bids().with_columns(day="strftime(\"dateTime\", '%Y-%m-%d')", hm="strftime(\"dateTime\", '%H:%M')")
    return timed.group_by("channel", "day").agg(minute="max(hm)", **RANKED)
