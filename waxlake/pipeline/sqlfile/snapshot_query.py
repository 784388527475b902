"""``FROM SNAPSHOT (q) WITH VERSION (v)``: two queries over files as a function that hands over snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from waxlake.pipeline.sql import run_query

__all__ = ["SnapshotQuery"]


@dataclass(frozen=True, slots=True)
class SnapshotQuery:
    """Asked for the next snapshot, as ``create_auto_cdc_from_snapshot_flow`` asks a function.

    Both queries see ``last_snapshot_version()``, NULL at first, and ``list_files(path)``. They read files by functions of DuckDB,
    in a database of their own: other queries have no files.

    Args:
        rows: Query of the rows of the next snapshot.
        version: Query of its version: one value, NULL or no row if there is none.
    """

    rows: str
    version: str

    def __call__(self, last: int | None) -> tuple[Any, int] | None:
        """Return rows and version of the snapshot after ``last``; None if there is none."""
        import duckdb

        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(
                f"CREATE TEMP MACRO last_snapshot_version() AS ({'NULL' if last is None else last})::BIGINT"
            )
            connection.execute(_LIST_FILES)
            # Not fetched as Python rows: DuckDB asks for pytz there when a time with a zone is among them.
            found = connection.sql(self.version).to_arrow_table()
            version = found.column(0)[0].as_py() if found.num_rows else None
            return None if version is None else (run_query(connection, self.rows), version)


_LIST_FILES = """
CREATE TEMP MACRO list_files(path) AS TABLE
SELECT file AS path, parse_filename(file) AS name FROM glob(path)
"""
