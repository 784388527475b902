"""Values and names that engines disagree about, through a whole pipeline in process: each row is somewhere, once, and can be
shown."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import waxlake as wl
from waxlake.pipeline.transform import Transform
from waxlake.stream.errors import DefinitionError, ExpectationFailed, InternalError
from waxlake.stream.python_rows import value_rows


def define(folder: Path, text: str) -> Path:
    file = folder / "definitions.py"
    file.write_text(f"import waxlake as wl\n{text}")
    return file


def test_times_beyond_python_stop_nothing(tmp_path: Path) -> None:
    file = define(
        tmp_path,
        """
@wl.table
@wl.expect("recent", "seen_at > '1900-01-01'")
@wl.expect_or_quarantine("near", "year(seen_at) < 9000")
def seen():
    return wl.read_kafka("t", "b:1", schema="id BIGINT, seen_at TIMESTAMP")

@wl.materialized_view
def bounds():
    return wl.sql("SELECT min(seen_at) AS first FROM seen")
""",
    )
    records = [
        {"id": 1, "seen_at": "0000-01-01T00:00:00Z"},
        {"id": 2, "seen_at": "9999-12-31T23:59:59-05:00"},
        {"id": 3, "seen_at": "2026-01-01T00:00:00Z"},
    ]
    result = wl.testing.run(file, {"kafka:t": records})
    assert sorted(result["seen"].column("id").to_pylist()) == [1, 3]
    assert result.quarantine("seen").column("id").to_pylist() == [2]
    assert list(value_rows(result["bounds"])) == [("0000-01-01 00:00:00.000000Z",)]


def test_a_row_that_fails_a_rule_is_shown_without_its_secrets(tmp_path: Path) -> None:
    file = define(
        tmp_path,
        """
@wl.table
@wl.expect_or_fail("recent", "seen_at > '1900-01-01'")
def seen():
    return wl.read_kafka("t", "b:1", schema="password STRING, seen_at TIMESTAMP")
""",
    )
    with pytest.raises(ExpectationFailed, match="0000-01-01") as raised:
        wl.testing.run(file, {"kafka:t": [{"password": "hunter2", "seen_at": "0000-01-01T00:00:00Z"}]})
    assert "hunter2" not in str(raised.value)


def test_a_defect_fails_its_flow_alone_and_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = define(
        tmp_path,
        """
@wl.table
def good():
    return wl.read_kafka("t", "b:1", schema="id BIGINT")

@wl.table
def bad():
    return wl.read_kafka("t", "b:1", schema="id BIGINT")
""",
    )
    apply = Transform.apply

    def broken(self: Transform, table: pa.Table, *rest: object, **named: object) -> object:
        if self.dataset == "bad" and table.num_rows:
            raise RuntimeError("an engine gave up on postgres://ada:hunter2@db")
        return apply(self, table, *rest, **named)

    monkeypatch.setattr(Transform, "apply", broken)
    pipeline = wl.testing.Pipeline(file)
    with pytest.raises(InternalError, match=r"flow 'bad'.*an engine gave up") as raised:
        pipeline.run({"kafka:t": [{"id": 1}]})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("name", ["ORDERS", "Orders_Quarantine"])
def test_names_that_differ_in_case_only_are_refused(name: str, tmp_path: Path) -> None:
    file = define(
        tmp_path,
        f"""
@wl.table
@wl.expect_or_quarantine("known", "id > 0")
def orders():
    return wl.read_kafka("t", "b:1", schema="id BIGINT")

@wl.table(name={name!r})
def other():
    return wl.read_kafka("u", "b:1", schema="id BIGINT")
""",
    )
    with pytest.raises(DefinitionError, match=rf"dataset '{name}' .*DUPLICATE_DATASET"):
        wl.testing.run(file, {"kafka:t": [], "kafka:u": []})


def test_a_table_that_flows_feed_takes_the_options_of_a_table(tmp_path: Path) -> None:
    file = define(
        tmp_path,
        """
wl.create_streaming_table("all", schema="id BIGINT", cluster_by=["nothing"])

@wl.append_flow(target="all")
def some():
    return wl.read_kafka("t", "b:1", schema="id BIGINT").select("id")
""",
    )
    with pytest.raises(DefinitionError, match="clustered by an unknown column 'nothing'"):
        wl.testing.run(file, {"kafka:t": []})


def test_changes_at_times_beyond_python_are_merged(tmp_path: Path) -> None:
    file = define(
        tmp_path,
        """
@wl.temporary_view
def changes():
    return wl.read_kafka("t", "b:1", schema="id TIMESTAMP, v INT, seq TIMESTAMP")

for n in (1, 2):
    wl.create_streaming_table(f"type_{n}")
    wl.create_auto_cdc_flow(f"type_{n}", "changes", ["id"], "seq", stored_as_scd_type=n, name=f"flow_{n}")
""",
    )
    early, late = "0000-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
    pipeline = wl.testing.Pipeline(file)
    pipeline.run({"kafka:t": [{"id": early, "v": 1, "seq": early}, {"id": late, "v": 2, "seq": early}]})
    result = pipeline.run({"kafka:t": [{"id": early, "v": 3, "seq": late}, {"id": late, "v": 0, "seq": early}]})
    assert sorted(result["type_1"].column("v").to_pylist()) == [2, 3]
    assert sorted(result["type_2"].column("v").to_pylist()) == [1, 2, 3]


@pytest.mark.parametrize("options", ["", "(partition_cols=['k'])"])
def test_keys_that_are_no_numbers_are_unique_across_batches(options: str, tmp_path: Path) -> None:
    file = define(
        tmp_path,
        f"""
@wl.table{options}
@wl.expect_or_quarantine("once", wl.unique("k"))
def keyed():
    return wl.read_kafka("t", "b:1", schema="k DOUBLE, v INT").with_columns(k="CASE WHEN k = 1 THEN 'nan'::DOUBLE ELSE k END")
""",
    )
    pipeline = wl.testing.Pipeline(file)
    pipeline.run({"kafka:t": [{"k": 1.0, "v": 1}, {"k": 0.0, "v": 2}]})
    result = pipeline.run({"kafka:t": [{"k": 1.0, "v": 3}, {"k": -0.0, "v": 4}]})
    assert sorted(result["keyed"].column("v").to_pylist()) == [1, 2]
    assert sorted(result.quarantine("keyed").column("v").to_pylist()) == [3, 4]
