"""AUTO CDC as a user meets it: change rows in files, tables declared, runs in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import Project

DEFINITIONS = """
COLUMNS = "id BIGINT, name STRING, city STRING, op STRING, seq BIGINT"

@wl.temporary_view
def changes():
    return wl.read_files("inbox", format="json", schema=COLUMNS).drop("_rescued_data")

wl.create_streaming_table("customers", expect_all_or_drop={"named": "name IS NOT NULL"})
wl.create_auto_cdc_flow(
    "customers", "changes", keys=["id"], sequence_by="seq", apply_as_deletes="op = 'delete'",
    except_column_list=["op", "seq"],
)
wl.create_streaming_table("history")
wl.create_auto_cdc_flow(
    "history", "changes", keys=["id"], sequence_by="seq", apply_as_deletes="op = 'delete'",
    column_list=["id", "city"], stored_as_scd_type=2, name="keep_history",
)

@wl.materialized_view
def cities():
    return wl.sql("SELECT city, count(*) AS n FROM customers GROUP BY city")
"""


def change(id: int | None, name: str | None, city: str | None, op: str, seq: int | None) -> dict[str, Any]:
    return {"id": id, "name": name, "city": city, "op": op, "seq": seq}


def test_c17_p40_p41_p52_current_rows_and_a_history_from_one_stream_of_changes(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.define(DEFINITIONS)
    project.land(
        "1.json",
        change(1, "Ann", "Oslo", "insert", 1),
        change(2, "Ben", "Rome", "insert", 2),
        change(1, "Ann", "Bern", "update", 5),
        change(None, "Nobody", "Rome", "insert", 6),
        change(3, "Cy", "Rome", "insert", None),
        change(4, None, "Rome", "insert", 4),
    )
    project.run()
    assert project.rows("customers", "id", "name", "city") == [(1, "Ann", "Bern"), (2, "Ben", "Rome")]
    assert [row["_failed_rules"] for row in project.rows("customers_quarantine")] == [
        ["auto_cdc_sequence_not_null"],
        ["auto_cdc_key_not_null"],
    ]
    project.land(
        "2.json",
        change(1, "Ann", "Paris", "update", 3),  # late: it is in the history only
        change(2, None, None, "delete", 7),  # a delete has no name, and is not judged by the rule
        change(2, "Ben", "Lima", "update", 6),  # late, below the delete: it resurrects nothing
    )
    project.run()
    assert project.rows("customers", "id", "name", "city") == [(1, "Ann", "Bern")]
    assert project.rows("history", "id", "city", "__START_AT", "__END_AT") == [
        (1, "Bern", 5, None),
        (1, "Oslo", 1, 3),
        (1, "Paris", 3, 5),
        (2, "Lima", 6, 7),
        (2, "Rome", 2, 6),
        (4, "Rome", 4, None),
    ]
    assert project.rows("cities", "city", "n") == [("Bern", 1)]
    metrics = [e["details"]["flow_progress"].get("metrics") for e in project.events("flow_progress")]
    counts = [(m["num_upserted_rows"], m["num_deleted_rows"]) for m in metrics if m and "num_upserted_rows" in m]
    assert sorted(counts) == [(0, 1), (2, 0), (2, 1), (4, 0)]
    version = project.handle("customers").version()
    assert "nothing new" in project.run().out
    assert project.handle("customers").version() == version


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("'customers', 'changes', keys=['idd'], sequence_by='seq'", "UNKNOWN_COLUMN", "idd"),
        ("'customers', 'changes', keys=['id'], sequence_by='seqq'", "UNKNOWN_COLUMN", "seqq"),
        ("'customers', 'changes', keys=['id'], sequence_by='[seq]'", "AUTO_CDC_SEQUENCE_NOT_ORDERABLE", "int64"),
        ("'customers', 'changes', keys=[], sequence_by='seq'", "ARGUMENT_INVALID", "keys"),
        ("'customers', 'changes', keys=['id'], sequence_by='seq', stored_as_scd_type=3", "ARGUMENT_INVALID", "1 or 2"),
        ("'customers', 'changess', keys=['id'], sequence_by='seq'", "UNKNOWN_DATASET", "changess"),
        ("'customerss', 'changes', keys=['id'], sequence_by='seq'", "UNKNOWN_DATASET", "customerss"),
        (
            "'customers', 'changes', keys=['id'], sequence_by='seq', except_column_list=['id']",
            "AUTO_CDC_KEY_LEFT_OUT",
            "'id'",
        ),
        ("'customers', 'changes', keys=['id'], sequence_by='seq', apply_as_deletes='opp = 1'", "UNKNOWN_COLUMN", "opp"),
    ],
)
def test_what_a_dry_run_finds(tmp_path: Path, call: str, code: str, said: str) -> None:
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.resolve import load_graph
    from waxlake.pipeline.spec import load_spec
    from waxlake.stream.errors import DefinitionError

    project = Project(tmp_path)
    view = DEFINITIONS.split("wl.create_streaming_table")[0]
    project.define(f"{view}wl.create_streaming_table('customers')\nwl.create_auto_cdc_flow({call})\n")
    lines = (tmp_path / "flows/definitions.py").read_text().splitlines()
    with pytest.raises(DefinitionError, match=said) as refused:
        check_graph(load_graph(load_spec(tmp_path / "waxlake.yml")))
    assert refused.value.code == code
    assert refused.value.where == f"{tmp_path}/flows/definitions.py:{len(lines)}"


def test_a_merged_table_is_no_stream(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.define(DEFINITIONS + "\n@wl.table\ndef copy():\n    return wl.read_stream('customers')\n")
    project.waxlake("dry-run").refused("STREAM_OF_MERGED_TABLE", "'customers'")


def test_p50_snapshots_become_current_rows_and_a_history(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    project = Project(tmp_path)
    source = str(tmp_path / "exports")
    project.define(f"""
wl.create_streaming_table("current")
wl.create_auto_cdc_from_snapshot_flow("current", {source!r}, keys=["id"])
wl.create_streaming_table("history")
wl.create_auto_cdc_from_snapshot_flow("history", {source!r}, keys=["id"], stored_as_scd_type=2)
""")

    def export(*rows: tuple[int, str]) -> None:
        write_deltalake(source, pa.table({"id": [r[0] for r in rows], "v": [r[1] for r in rows]}), mode="overwrite")

    export((1, "a"), (2, "b"), (3, "c"))
    project.run()
    assert project.rows("current", "id", "v") == [(1, "a"), (2, "b"), (3, "c")]
    export((1, "a"), (2, "x"), (4, "d"))  # two versions between runs: both are applied, in order
    export((1, "a"), (2, "y"), (3, "c"))
    project.run()
    assert project.rows("current", "id", "v") == [(1, "a"), (2, "y"), (3, "c")]
    assert project.rows("history", "id", "v", "__START_AT", "__END_AT") == [
        (1, "a", 0, None),
        (2, "b", 0, 1),
        (2, "x", 1, 2),
        (2, "y", 2, None),
        (3, "c", 0, 1),
        (3, "c", 2, None),
        (4, "d", 1, 2),
    ]
