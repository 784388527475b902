"""Who came and opened an auction in the same ten seconds: two windowed streams, joined."""

import waxlake as wl
from benchmarks.nexmark.streams import auctions, people

WINDOW = "10 seconds"


@wl.table
def q8_people() -> wl.Stream:
    return people().group_by("id", "name", window=wl.tumbling("dateTime", WINDOW)).agg(n="count(*)").drop("n")


@wl.table
def q8_sellers() -> wl.Stream:
    return auctions().group_by("seller", window=wl.tumbling("dateTime", WINDOW)).agg(n="count(*)").drop("n")


@wl.table
def q8() -> wl.Stream:
    came = wl.read_stream("q8_people").with_watermark("window_start", "0 seconds", idle="1 day")
    sold = (
        wl.read_stream("q8_sellers")
        .select("seller AS id", "window_start")
        .with_watermark("window_start", "0 seconds", idle="1 day")
    )
    return came.join(sold, on=["id", "window_start"], within="0 seconds")
