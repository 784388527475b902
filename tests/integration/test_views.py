"""Materialized views as their users meet them: what a refresh costs, what it says of itself, and when it is a full one."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.property.view_lab import A, B, ViewLab, counted
from waxlake.pipeline.incremental.explain import explain_create, explain_view
from waxlake.pipeline.incremental.reasons import REASONS
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError, UserError
from waxlake.testing import Pipeline

DOCS = Path(__file__).resolve().parents[2] / "docs" / "materialized-views.md"
GROUPED = "SELECT k, count(*) AS n, sum(x) AS sx FROM a GROUP BY k"


def rows_a(start: int, count: int) -> pa.Table:
    """Return rows of table ``a``."""
    ids = range(start, start + count)
    return pa.table([ids, [i % 7 for i in ids], ids, [i / 4 for i in ids], [f"s{i % 3}" for i in ids]], schema=A)


def lab_of(folder: Path, queries: dict[str, str], policy: str = "incremental", **options: Any) -> tuple[ViewLab, Any]:
    """Return views that were filled once."""
    lab = ViewLab(folder, queries, policy, **options)
    checked = lab.reset(rows_a(0, 500), pa.table([range(5), [f"n{i}" for i in range(5)]], schema=B))
    for view in queries:
        assert lab.refresh(checked, view)["reason"] == ("POLICY_FULL" if policy == "full" else "FIRST_RUN")
    return lab, checked


@pytest.mark.parametrize(
    ("query", "code", "named"),
    [
        ("SELECT id, now() AS at FROM a", "NON_DETERMINISTIC_FUNCTION", "now()"),
        ("SELECT id FROM a WHERE s < current_date::VARCHAR", "NON_DETERMINISTIC_FUNCTION", "current_date"),
        ("SELECT id FROM a ORDER BY x LIMIT 3", "UNSUPPORTED_OPERATOR", "LIMIT"),
        ("SELECT id FROM a WHERE k IN (SELECT k FROM b)", "UNSUPPORTED_OPERATOR", "subquery"),
        ("SELECT id, row_number() OVER (ORDER BY id) AS n FROM a", "WINDOW_WITHOUT_PARTITION", "window"),
        ("SELECT k FROM a EXCEPT SELECT k FROM b", "UNSUPPORTED_OPERATOR", "EXCEPT"),
        (
            "SELECT n, count(*) AS c FROM (SELECT k, sum(d) AS n FROM a GROUP BY k) GROUP BY n",
            "ORDER_DEPENDENT",
            "order of rows",
        ),
    ],
)
def test_p03_a_query_that_cannot_be_followed_is_refused_where_it_must_be(
    tmp_path: Path, query: str, code: str, named: str
) -> None:
    with pytest.raises(DefinitionError, match="MATERIALIZED_VIEW_NOT_INCREMENTALIZABLE") as refused:
        lab_of(tmp_path, {"v": query})
    assert code in str(refused.value)
    assert named in str(refused.value)
    assert "d.py:" in str(refused.value)
    lab = ViewLab(tmp_path, {"v": query}, "auto")
    plan = explain_view(lab.reset(rows_a(0, 9), B.empty_table()), "v")
    assert (plan.technique, plan.reason) == (None, code)


def test_p03_policies(tmp_path: Path) -> None:
    lab, checked = lab_of(tmp_path / "full", {"v": GROUPED}, "full")
    write_deltalake(lab.path("a"), rows_a(500, 1), mode="append")
    assert lab.refresh(checked, "v")["reason"] == "POLICY_FULL"
    lab, checked = lab_of(tmp_path / "auto", {"v": GROUPED}, "auto")
    write_deltalake(lab.path("a"), rows_a(500, 1), mode="append")
    assert lab.refresh(checked, "v")["mode"] == "INCREMENTAL"
    lab.input("a").update(predicate="id = 3", updates={"k": "4"})  # rewrites the one large file
    assert lab.refresh(checked, "v")["reason"] == "COST_FULL_CHEAPER"
    lab, checked = lab_of(tmp_path / "strict", {"v": GROUPED}, "incremental_strict")
    write_deltalake(lab.path("a"), rows_a(500, 1), mode="overwrite")
    lab.input("a").vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(UserError, match="REFRESH_NOT_INCREMENTAL"):
        lab.refresh(checked, "v")


def test_p04_every_refresh_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    lab, checked = lab_of(tmp_path, {"v": GROUPED, "w": "SELECT id, s FROM a WHERE k > 2"})
    write_deltalake(lab.path("a"), rows_a(500, 2), mode="append")
    facts = lab.refresh(checked, "v")
    assert (facts["mode"], facts["technique"], facts["reason"]) == ("INCREMENTAL", "GROUP_AGGREGATE", None)
    assert (facts["changed_rows"], facts["rows_added"], facts["rows_removed"]) == (2, 2, 2)
    assert 0 < facts["changed_bytes"] < facts["input_bytes"]
    assert list(facts["inputs"].values()) == [[0, 1]]
    lab.input("a").update(predicate="id = 3", updates={"x": "4"})
    assert lab.refresh(checked, "v")["technique"] == "GENERIC_AGGREGATE"

    lab.input("a").delete("id = 4")  # the files of the versions before are gone when it is looked at
    lab.input("a").vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert lab.refresh(checked, "w")["reason"] == "HISTORY_EXPIRED"
    assert lab.held("w") == lab.expected("w")

    lab.queries["v"] = GROUPED.replace("sum(x)", "sum(x + 1)")
    checked = lab.define()
    assert lab.refresh(checked, "v")["reason"] == "QUERY_CHANGED"
    lab.queries["v"] = GROUPED.replace("count(*)", "count(*)::VARCHAR")
    assert lab.refresh(lab.define(), "v")["reason"] == "QUERY_CHANGED"
    assert lab.held("v") == lab.expected("v")

    lab.reset_input("a", rows_a(0, 20))
    assert lab.refresh(lab.define(), "w")["reason"] == "INPUT_REBUILT"
    assert lab.held("w") == lab.expected("w")


def test_p04_it_is_explained_before_it_happens(tmp_path: Path) -> None:
    lab, checked = lab_of(tmp_path, {"v": GROUPED}, "auto")
    assert explain_view(checked, "v").next["mode"] == "NO_OP"
    write_deltalake(lab.path("a"), rows_a(500, 1), mode="append")
    plan = explain_view(checked, "v")
    assert (plan.technique, plan.next["mode"]) == ("GROUP_AGGREGATE", "INCREMENTAL")
    assert "incremental, GROUP_AGGREGATE" in "\n".join(plan.lines())
    spec = load_spec(tmp_path)
    made = explain_create(spec, "EXPLAIN CREATE OR REFRESH MATERIALIZED VIEW m AS SELECT k, random() AS r FROM v")
    assert (made.view, made.technique, made.reason) == ("m", None, "NON_DETERMINISTIC_FUNCTION")
    other = explain_create(
        spec, "EXPLAIN CREATE MATERIALIZED VIEW v REFRESH POLICY INCREMENTAL AS SELECT DISTINCT k FROM a"
    )
    assert (other.policy, other.technique, other.next["reason"]) == ("incremental", "DISTINCT", "QUERY_CHANGED")


def test_p04_the_reasons_are_documented() -> None:
    text = DOCS.read_text()
    assert [code for code in REASONS if f"`{code}`" not in text] == []


def test_w05_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    lab, checked = lab_of(tmp_path, {"v": "SELECT id, x, to_timestamp(x) AS at FROM a", "g": GROUPED})
    first = set(lab.table("v").file_uris())
    write_deltalake(lab.path("a"), rows_a(500, 3), mode="append")
    assert lab.refresh(checked, "v")["mode"] == "INCREMENTAL"
    assert first < set(lab.table("v").file_uris())
    lab.input("a").optimize.compact()
    before = (lab.refresh(checked, "g"), set(lab.table("g").file_uris()))
    lab.input("a").update(predicate="id = 3", updates={"d": "9.5"})  # a column that neither view reads
    after = (lab.refresh(checked, "g"), set(lab.table("g").file_uris()))
    assert (before[0]["mode"], after[0]["technique"], after[1]) == ("INCREMENTAL", "NO_OP", before[1])
    for number in range(20):  # small files are put together in time
        write_deltalake(lab.path("a"), rows_a(600 + number, 1), mode="append")
        lab.refresh(checked, "v")
    assert len(lab.table("v").file_uris()) < 20
    assert lab.held("v") == lab.expected("v")


def test_rules_of_a_view_hold_for_what_a_refresh_writes(tmp_path: Path) -> None:
    rule = "@wl.expect_or_drop('few', 'n < 73')\n@wl.expect('known', 'k IS NOT NULL')\n"
    lab, checked = lab_of(tmp_path, {"v": GROUPED}, decorators={"v": rule})
    write_deltalake(lab.path("a"), rows_a(504, 7 * 2), mode="append")  # group 0 had 72 rows, and has 74 now
    assert lab.refresh(checked, "v")["technique"] == "GENERIC_AGGREGATE"
    wanted = lab.run(f"FROM ({GROUPED}) WHERE n < 73")
    assert lab.held("v") == wanted
    assert len(wanted) < 7
    lab.input("a").delete("id >= 504")
    lab.refresh(checked, "v")
    assert lab.held("v") == lab.run(f"FROM ({GROUPED}) WHERE n < 73")
    assert len(lab.held("v")) == 7
    counts = lab.table("v").history(1)[0]["waxlake"]["flows"]["v"]["rules"]
    assert {c["rule"]: c["passed"] for c in counts} == {"few": 7, "known": 7}  # rows that the refresh wrote
    lab.decorators["v"] = rule.replace("73", "72")
    assert lab.refresh(lab.define(), "v")["reason"] == "QUERY_CHANGED"
    assert lab.held("v") == lab.run(f"FROM ({GROUPED}) WHERE n < 72")


PIPELINE = """
import waxlake as wl

wl.create_streaming_table("customers")
wl.create_auto_cdc_flow(target="customers", source="changes", keys=["id"], sequence_by="seq", apply_as_deletes="op = 'd'",
                        except_column_list=["op", "seq"])

@wl.temporary_view
def changes():
    return wl.read_kafka("changes", "nowhere:1", schema="id BIGINT, country STRING, op STRING, seq BIGINT").drop("_rescued_data")

@wl.table
def orders():
    return wl.read_kafka("orders", "nowhere:1", schema="id BIGINT, customer BIGINT, cents BIGINT").drop("_rescued_data")

@wl.temporary_view
def large():
    return wl.sql("SELECT * FROM orders WHERE cents > 10")

@wl.materialized_view(refresh_policy="incremental")
def revenue():
    return wl.sql("SELECT country, sum(cents) AS cents FROM large JOIN customers ON customer = customers.id GROUP BY country")

@wl.materialized_view(refresh_policy="incremental")
def ranked():
    return wl.sql("SELECT cents >= 100 AS is_large, count(*) AS n FROM revenue GROUP BY ALL")

wl.create_streaming_table("revenue_history")
wl.create_auto_cdc_from_snapshot_flow(target="revenue_history", source="revenue", keys=["country"], stored_as_scd_type=2)
"""


def test_p05_views_over_views_merged_tables_and_the_changes_of_a_view(tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text(textwrap.dedent(PIPELINE))
    pipeline = Pipeline(file)
    change = {"op": "u"}
    pipeline.run(
        {
            "kafka:changes": [{"id": i, "country": "abc"[i % 3], "seq": 1, **change} for i in range(30)],
            "kafka:orders": [{"id": i, "customer": i % 30, "cents": i % 20} for i in range(300)],
        }
    )
    result = pipeline.run(
        {
            "kafka:changes": [
                {"id": 3, "country": "b", "seq": 2, **change},
                {"id": 4, "country": "x", "seq": 2, "op": "d"},
            ],
            "kafka:orders": [{"id": 300, "customer": 5, "cents": 500}],
        }
    )
    countries = {row["id"]: row["country"] for row in result.rows("customers")}
    assert countries[3] == "b"
    assert 4 not in countries
    wanted: Counter[str] = Counter()
    for row in result.rows("orders"):
        if row["cents"] > 10 and row["customer"] in countries:
            wanted[countries[row["customer"]]] += row["cents"]
    assert {row["country"]: row["cents"] for row in result.rows("revenue")} == dict(wanted)
    assert counted(result["ranked"]) == Counter({("True", "3"): 1})
    planned = {
        event.dataset: event.details["planning_information"]["refresh"]
        for event in result.events_of("planning_information")
    }
    assert {name: facts["mode"] for name, facts in planned.items()} == {
        "revenue": "INCREMENTAL",
        "ranked": "INCREMENTAL",
    }
    history = [row for row in result.rows("revenue_history") if row["__END_AT"] is not None]
    assert {row["country"] for row in history} == {"a", "b", "c"}  # each changed once, and its past is kept
