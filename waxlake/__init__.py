"""Waxlake: streams, databases and files into Delta tables, exactly once, in plain Python."""

from waxlake import testing
from waxlake.pipeline.auto_cdc import create_auto_cdc_flow, create_auto_cdc_from_snapshot_flow
from waxlake.pipeline.declare import append_flow, conf, create_streaming_table, materialized_view, table, temporary_view
from waxlake.pipeline.declare_expectations import (
    expect,
    expect_all,
    expect_all_or_drop,
    expect_all_or_fail,
    expect_all_or_quarantine,
    expect_or_drop,
    expect_or_fail,
    expect_or_quarantine,
)
from waxlake.pipeline.declare_sinks import create_sink, foreach_batch_sink
from waxlake.pipeline.hooks import on_event_hook
from waxlake.pipeline.ingest import ingest_database
from waxlake.pipeline.rules import freshness, overall, references, row_count, rules_from, unique
from waxlake.pipeline.stateful_methods import session, sliding, tumbling
from waxlake.pipeline.stream import (
    Batch,
    Stream,
    read,
    read_debezium,
    read_files,
    read_kafka,
    read_mysql,
    read_postgres,
    read_query,
    read_stream,
    sql,
)
from waxlake.stream.batch import BatchInfo

__all__ = [
    "Batch",
    "BatchInfo",
    "Stream",
    "append_flow",
    "conf",
    "create_auto_cdc_flow",
    "create_auto_cdc_from_snapshot_flow",
    "create_sink",
    "create_streaming_table",
    "expect",
    "expect_all",
    "expect_all_or_drop",
    "expect_all_or_fail",
    "expect_all_or_quarantine",
    "expect_or_drop",
    "expect_or_fail",
    "expect_or_quarantine",
    "foreach_batch_sink",
    "freshness",
    "ingest_database",
    "materialized_view",
    "on_event_hook",
    "overall",
    "read",
    "read_debezium",
    "read_files",
    "read_kafka",
    "read_mysql",
    "read_postgres",
    "read_query",
    "read_stream",
    "references",
    "row_count",
    "rules_from",
    "session",
    "sliding",
    "sql",
    "table",
    "temporary_view",
    "testing",
    "tumbling",
    "unique",
]
