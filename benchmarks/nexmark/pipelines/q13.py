"""Bids with what a table says about them."""

import waxlake as wl
from benchmarks.nexmark.streams import bids, read


@wl.table
def side_input() -> wl.Stream:
    return read("side_input")


@wl.table
def q13() -> wl.Stream:
    return bids().sql(
        'SELECT s.auction, s.bidder, s.price, s."dateTime", i.value FROM stream s JOIN side_input i ON s.auction % 10000 = i.key'
    )
