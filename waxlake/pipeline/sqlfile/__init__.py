"""Definitions written in SQL: `.sql` files beside the `.py` files of a pipeline, read into the same definitions."""

from waxlake.pipeline.sqlfile.load import load_sql_file, streaming_sql

__all__ = ["load_sql_file", "streaming_sql"]
