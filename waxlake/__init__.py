"""Waxlake: streams, databases and files into Delta tables, exactly once, in plain Python."""

from waxlake.pipeline.declare import (
    append_flow,
    conf,
    create_streaming_table,
    expect,
    expect_all,
    expect_all_or_drop,
    expect_all_or_fail,
    expect_all_or_quarantine,
    expect_or_drop,
    expect_or_fail,
    expect_or_quarantine,
    materialized_view,
    table,
    temporary_view,
)
from waxlake.pipeline.stream import Batch, Stream, read, read_debezium, read_files, read_kafka, read_stream, sql

__all__ = [
    "Batch",
    "Stream",
    "append_flow",
    "conf",
    "create_streaming_table",
    "expect",
    "expect_all",
    "expect_all_or_drop",
    "expect_all_or_fail",
    "expect_all_or_quarantine",
    "expect_or_drop",
    "expect_or_fail",
    "expect_or_quarantine",
    "materialized_view",
    "read",
    "read_debezium",
    "read_files",
    "read_kafka",
    "read_stream",
    "sql",
    "table",
    "temporary_view",
]
