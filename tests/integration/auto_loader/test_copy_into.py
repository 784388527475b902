"""COPY INTO: files once, columns, rejected rows, two copies at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.auto_loader.lake import Lake
from waxlake.pipeline.copy_into import CopyOptions, CopyResult, copy_into, parse_copy
from waxlake.stream.errors import TerminalError, UsageError, UserError


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return an empty project."""
    lake = Lake(tmp_path)
    lake.define("")
    return lake


def copy(lake: Lake, format: str = "csv", **options: Any) -> CopyResult:
    """Copy the inbox into table t."""
    return copy_into(lake.spec(), "t", str(lake.inbox), CopyOptions(format=format, **options))


def test_c_04_files_are_loaded_once_and_again_when_forced(lake: Lake) -> None:
    lake.land("1.csv", "id\n1\n")
    lake.land("2.csv", "id\n2\n")
    assert copy(lake) == CopyResult(rows=2, commits=1)
    assert copy(lake) == CopyResult(rows=0, commits=0)
    lake.land("3.csv", "id\n3\n")
    assert copy(lake) == CopyResult(rows=1, commits=1)
    assert lake.rows("t", "id") == [1, 2, 3]
    lake.land("4.csv", "id\n4\n")
    assert copy(lake, is_forced=True).rows == 4
    assert lake.rows("t", "id") == [1, 1, 2, 2, 3, 3, 4]
    assert copy(lake).rows == 0


def test_c_04_columns_are_added_only_when_asked(lake: Lake) -> None:
    lake.land("1.json", [{"id": 1}])
    copy(lake, "json")
    lake.land("2.json", [{"id": 2, "b": {"c": 1}}])
    with pytest.raises(TerminalError, match=r"2\.json.*NEW_COLUMN"):
        copy(lake, "json")
    assert lake.rows("t") == [{"id": 1}]
    assert copy(lake, "json", merges_schema=True).rows == 1
    assert lake.rows("t", "id", "b") == [(1, None), (2, {"c": 1})]


def test_c_04_rows_that_do_not_fit_stop_the_whole_copy(lake: Lake) -> None:
    lake.land("1.csv", "id\n1\n")
    copy(lake)
    lake.land("2.csv", "id\n2\n")
    bad = lake.land("3.csv", "id\n3\nx\n")
    with pytest.raises(UserError, match=r'1 of 3 rows.*"id":"x".*COPY_ROWS_REJECTED'):
        copy(lake)
    assert lake.rows("t", "id") == [1]
    bad.unlink()
    assert copy(lake, options={"ignore_missing_files": True}).rows == 1
    assert lake.rows("t", "id") == [1, 2]


def test_c_04_copies_at_once_load_each_file_once(lake: Lake) -> None:
    for number in range(20):
        lake.land(f"{number:02d}.csv", f"id\n{number}\n")
    copy(lake)
    for number in range(20, 30):
        lake.land(f"{number}.csv", f"id\n{number}\n")
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: copy(lake), range(3)))
    assert sum(result.rows for result in done) == 10
    assert sorted(lake.rows("t", "id")) == list(range(30))


def test_c_04_the_statement_is_read(lake: Lake) -> None:
    text = """
        COPY INTO s.t FROM 'in/it''s' FILEFORMAT = CSV PATTERN = '*.csv'
        FORMAT_OPTIONS ('header' = 'false', 'nullValue' = 'NA', 'mergeSchema' = 'true') COPY_OPTIONS ('force' = 'true');
    """
    table, path, options = parse_copy(text) or ("", "", CopyOptions(format=""))
    assert (table, path) == ("s.t", "in/it's")
    assert options == CopyOptions(
        format="csv",
        options={"header": False, "null_value": "NA", "path_glob_filter": "*.csv"},
        merges_schema=True,
        is_forced=True,
    )
    assert parse_copy("SELECT 1") is None
    for wrong in ("COPY INTO t FROM x", "COPY INTO t FROM 'x' FILEFORMAT = CSV COPY_OPTIONS ('no' = 'true')"):
        with pytest.raises(UsageError):
            parse_copy(wrong)
