"""Values at the edges of their types as partition values and bounds of data files: each row is stored once, and found again."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from sinks.delta.parquet import DataFileWriter
from sinks.delta.protocol import Committer, Move
from waxlake.stream.delta_table import TableLocation

NAN, INFINITY = float("nan"), float("inf")
_FAR = 300_000_000_000_000_000  # microseconds since the epoch: the year 11476


def stored(folder: Path, values: pa.Array, partition_by: tuple[str, ...] = ()) -> DeltaTable:
    """Commit a table of ``key`` and a row number, in two data files, and return it."""
    table = pa.table({"key": values, "row": range(len(values))})
    location = TableLocation(str(folder / "t"), name="t")
    location.create(table.schema, partition_by=partition_by)
    committer = Committer(location, "writer", run_number=1)
    writer = DataFileWriter(location, partition_by)
    writer.append(table.slice(0, 2))
    writer.end_files()
    writer.append(table.slice(2))
    committer.commit(writer.finish(), {"p": Move(start=None, end=1)}, rows=table.num_rows)
    return location.open()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.float64(), [NAN, 1.5, NAN, 0.0, -0.0, INFINITY, -INFINITY, None]),
        (pa.float32(), [NAN, 1.5, 0.0, -0.0, None]),
        (pa.decimal128(20, 10), [Decimal("0E-10"), Decimal("1000"), None, Decimal("0.0000000001")]),
        (
            pa.timestamp("us", "UTC"),
            [datetime(1, 1, 1, tzinfo=timezone.utc), datetime(999, 5, 1, tzinfo=timezone.utc), None],
        ),
        (pa.date32(), [date(1, 1, 1), date(9999, 12, 31), None]),
        (pa.string(), ["a", "A", "a/b", "a%2Fb", "é", "x" * 300, "..", None]),
    ],
)
def test_each_row_of_a_partitioned_table_is_stored_once(kind: pa.DataType, values: list[Any], tmp_path: Path) -> None:
    values = values * 2
    rows = stored(tmp_path, pa.array(values, kind), ("key",)).to_pyarrow_table().sort_by("row")
    assert rows.column("row").to_pylist() == list(range(len(values)))
    assert repr(rows.column("key").cast(kind).to_pylist()) == repr(pa.array(values, kind).to_pylist())


def test_several_partition_columns_keep_each_row_once(tmp_path: Path) -> None:
    table = pa.table({"a": [NAN, NAN, 0.0, -0.0], "b": ["x", None, None, None], "row": range(4)})
    location = TableLocation(str(tmp_path / "t"), name="t")
    location.create(table.schema, partition_by=("a", "b"))
    writer = DataFileWriter(location, ("a", "b"))
    writer.append(table)
    Committer(location, "writer", run_number=1).commit(writer.finish(), {"p": Move(start=None, end=1)}, rows=4)
    rows = location.open().to_pyarrow_table().sort_by("row")
    assert repr(rows.select(["a", "b", "row"]).to_pylist()) == repr(table.to_pylist())


def test_times_that_python_does_not_have_are_stored(tmp_path: Path) -> None:
    micros = [_FAR, -_FAR, 0, None]
    rows = stored(tmp_path, pa.array(micros, pa.timestamp("us", "UTC"))).to_pyarrow_table().sort_by("row")
    assert rows.column("key").cast(pa.int64()).to_pylist() == micros


def test_early_years_are_found_by_the_bounds_of_their_files(tmp_path: Path) -> None:
    first = datetime(1, 1, 1, tzinfo=timezone.utc)
    later = datetime(2024, 1, 1, tzinfo=timezone.utc)
    table = stored(
        tmp_path, pa.array([first, datetime(900, 1, 1, tzinfo=timezone.utc), later], pa.timestamp("us", "UTC"))
    )
    assert table.to_pyarrow_table(filters=[("key", "=", first)]).column("row").to_pylist() == [0]
    bounds = pa.table(table.get_add_actions(flatten=True)).column("min.key").to_pylist()
    assert sorted(bounds) == [first, later]
