"""Expectations beyond a condition over one row: limits, keys, references, whole views, rules as data."""

from __future__ import annotations

import json
import shutil
import signal
import types
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

import waxlake as wl
from tests.e2e.project import Project
from waxlake.pipeline.lake import run_sql
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.run import RunOptions, run_update
from waxlake.pipeline.spec import load_spec
from waxlake.stream.errors import DefinitionError, ExpectationFailed, UsageError

HEAD = "import waxlake as wl\n"


def pipeline(folder: Path, text: str, **options: Any) -> wl.testing.Pipeline:
    file = folder / "rules.py"
    file.write_text(HEAD + text)
    return wl.testing.Pipeline(file, **options)


def test_p30_a_rule_warns_drops_or_fails_and_a_failed_batch_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    made = pipeline(
        tmp_path,
        """
@wl.table
@wl.expect("small", "n < 10")
@wl.expect_or_drop("positive", "n > 0")
@wl.expect_or_fail("sane", "n < 1000")
def t():
    return wl.read_stream("s")
""",
    )
    result = made.run({"s": [{"n": n} for n in (-1, 1, 50)]})
    wl.testing.assert_rows(result["t"], [{"n": 1}, {"n": 50}])
    assert result.metrics("t").dropped == 1
    with pytest.raises(ExpectationFailed, match=r"'sane' of 't' failed.*1 rows of 2"):
        made.run({"s": [{"n": 2}, {"n": 5000}]})
    (tmp_path / "rules.py").write_text((tmp_path / "rules.py").read_text().replace("1000", "10000"))
    wl.testing.assert_rows(made.run()["t"], [{"n": n} for n in (1, 50, 2, 5000)])


def test_a_share_of_a_batch_may_break_a_rule(tmp_path: Path) -> None:
    made = pipeline(
        tmp_path,
        """
@wl.table
@wl.expect_or_fail("mostly_known", "n IS NOT NULL", threshold="10%")
@wl.expect_or_drop("mostly_positive", "n IS NULL OR n >= 0", max_violations=1)
def t():
    return wl.read_stream("s")
""",
    )
    rows = [{"n": n} for n in range(20)]
    result = made.run({"s": [*rows, {"n": None}, {"n": -1}]})
    assert len(result["t"]) == 21  # the row without a number stays, the negative one does not
    counts = result.metrics("t").expectations
    assert [(c.failed, c.action) for c in counts.values()] == [(1, "fail"), (1, "drop")]
    with pytest.raises(ExpectationFailed, match=r"found 3 rows of 23 .*expected at most 10 % of a batch"):
        made.run({"s": [*rows, {"n": None}, {"n": None}, {"n": None}]})
    sql = tmp_path / "rules.sql"
    sql.write_text(
        "CREATE STREAMING TABLE t (CONSTRAINT c EXPECT (n > 0) ON VIOLATION DROP ROW THRESHOLD '50%' MAX VIOLATIONS 2) "
        "AS SELECT * FROM STREAM s;"
    )
    assert wl.testing.run(sql, {"s": [{"n": n} for n in (-1, 0, 1, 2)]})["t"]["n"].to_pylist() == [1, 2]
    with pytest.raises(ExpectationFailed, match=r"at most 50 % and 2 rows of a batch"):
        wl.testing.run(sql, {"s": [{"n": n} for n in (-1, 0, 1)]})
    with pytest.raises(DefinitionError, match=r"threshold='many'.*ARGUMENT_INVALID"):
        wl.expect_or_fail("x", "true", threshold="many")


def test_p34_keys_are_unique_within_a_batch_and_against_the_table(tmp_path: Path) -> None:
    text = """
@wl.table
@wl.expect_or_quarantine("one_a_key", wl.unique("id", "part"))
def t():
    return wl.read_stream("s").where("id < 100")

@wl.materialized_view
@wl.expect_or_drop("first", wl.unique("part"))
def v():
    return wl.sql("SELECT part, count(*) AS n FROM t GROUP BY ALL UNION ALL SELECT 'a', -1")
"""
    made = pipeline(tmp_path, text, rows_per_batch=3)
    rows = [{"id": n % 4, "part": "a"} for n in range(8)] + [{"id": None, "part": "a"}] * 2
    result = made.run({"s": rows})
    assert sorted(result["t"]["id"].drop_null().to_pylist()) == [0, 1, 2, 3]
    assert result.metrics("t").expectations["one_a_key"] == wl.testing.RuleMetrics(
        passed=4, failed=4, action="quarantine"
    )
    result = made.run({"s": [{"id": 3, "part": "a"}, {"id": 3, "part": "b"}, {"id": 4, "part": "b"}]})
    wl.testing.assert_rows(
        result["t"].filter(result["t"]["id"].is_valid()),
        [{"id": n, "part": "a"} for n in range(4)] + [{"id": n, "part": "b"} for n in (3, 4)],
    )
    bad = result.quarantine("t")
    assert (len(bad), {tuple(names) for names in bad["_failed_rules"].to_pylist()}) == (5, {("one_a_key",)})
    assert set(bad["_source"].to_pylist()) != {None}
    assert sorted(result["v"]["part"].to_pylist()) == ["a", "b"]

    (tmp_path / "rules.py").write_text(HEAD + text.replace('wl.unique("id", "part")', 'wl.unique("id")'))
    assert made.replay("t").passed == 0
    (tmp_path / "rules.py").write_text(HEAD + text)
    done = made.replay("t", sets={"id": "id + 10"})
    assert (done.passed, done.kept) == (4, 1)  # two of them have the same key now, too


def test_a_reference_has_to_be_there(tmp_path: Path) -> None:
    made = pipeline(
        tmp_path,
        """
@wl.table
@wl.expect_or_drop("known_customer", wl.references("customer", "customers", "id"))
def orders():
    return wl.read_stream("s")

@wl.materialized_view
@wl.expect_or_fail("all_have_orders", wl.references(["id"], "orders", ["customer"]))
def customers_view():
    return wl.sql("SELECT * FROM customers WHERE id < 3")
""",
    )
    result = made.run({"customers": [{"id": 1}], "s": [{"customer": 1}, {"customer": 2}, {"customer": None}]})
    assert sorted(map(str, result["orders"]["customer"].to_pylist())) == ["1", "None"]
    result = made.run({"customers": [{"id": 2}], "s": [{"customer": 2}]})
    assert len(result["orders"]) == 3
    (tmp_path / "rules.py").write_text(
        (tmp_path / "rules.py").read_text().replace("expect_or_drop", "expect_or_quarantine")
    )
    made.run({"s": [{"customer": 7}]})
    assert made.replay("orders").passed == 0
    made.run({"customers": [{"id": 7}]})
    assert made.replay("orders").passed == 1
    assert sorted(result["customers_view"]["id"].to_pylist()) == [1, 2]
    with pytest.raises(DefinitionError, match=r"unknown dataset 'custmers'"):
        pipeline(
            tmp_path,
            '@wl.table\n@wl.expect("r", wl.references("a", "custmers"))\ndef t():\n    return wl.read_stream("s")',
        ).run({"s": [{"a": 1}]})


def test_w09_a_view_that_fails_as_a_whole_keeps_its_rows(tmp_path: Path) -> None:
    made = pipeline(
        tmp_path,
        """
@wl.materialized_view
@wl.expect_or_fail("enough", wl.row_count(at_least=1))
@wl.expect("fresh", wl.freshness("at", "1 day"))
@wl.expect_or_fail("as_many", wl.overall("count(*) <= (SELECT count(*) FROM ref.known)"))
@wl.expect_or_drop("known", "n IN (SELECT n FROM ref.known)")
def v():
    return wl.sql("SELECT * FROM s WHERE n > 0")
""",
    )
    rows = [{"n": 1, "at": "2026-01-01T00:00:00Z"}]
    ddl = "n BIGINT, at TIMESTAMP"
    known = {"ref.known": [{"n": n} for n in range(5)]}
    result = made.run({"s": wl.testing.rows(ddl, rows), **known}, now="2026-01-01T12:00:00Z")
    assert result.metrics("v").expectations["fresh"].failed == 0
    result = made.run({"s": wl.testing.rows(ddl, rows)}, now="2026-01-05")
    assert (result.metrics("v").expectations["fresh"].failed, len(result["v"])) == (1, 2)
    (tmp_path / "rules.py").write_text((tmp_path / "rules.py").read_text().replace("n > 0", "n > 5"))
    with pytest.raises(ExpectationFailed, match=r"'enough' of 'v'.*The view keeps the rows it had"):
        made.run()
    for wrong in (
        '@wl.table\n@wl.expect("r", wl.row_count(1))',
        '@wl.materialized_view\n@wl.expect_or_drop("r", wl.row_count(1))',
    ):
        with pytest.raises(DefinitionError, match="EXPECTATION_SCOPE"):
            pipeline(tmp_path, f'{wrong}\ndef t():\n    return wl.read_stream("s")').run({"s": [{"a": 1}]})


def test_p31_p32_rules_are_data_with_tags_and_actions(tmp_path: Path) -> None:
    (tmp_path / "rules.csv").write_text(
        "name,constraint,tag,action\npositive,n > 0,t,drop\nsmall,n < 10,t,\nother,m > 0,u,drop\nround,n % 10 <> 5,t,quarantine\n"
    )
    made = pipeline(
        tmp_path,
        """
@wl.table
@wl.expect_all(wl.rules_from("rules.csv", tag="t"))
@wl.expect_all_or_drop(wl.rules_from([{"name": "not_seven", "constraint": "n <> 7"}]))
def t():
    return wl.read_stream("s")
""",
    )
    result = made.run({"s": [{"n": n} for n in (-1, 5, 7, 11, 1)]})
    wl.testing.assert_rows(result["t"], [{"n": 11}, {"n": 1}])
    assert result.quarantine("t")["n"].to_pylist() == [5]
    actions = {name: rule.action for name, rule in result.metrics("t").expectations.items()}
    assert actions == {"positive": "drop", "small": "warn", "round": "quarantine", "not_seven": "drop"}

    module = types.ModuleType("checks")
    module.rules = {"a": "x > 0"}  # type: ignore[attr-defined]
    assert wl.rules_from(module)["a"].sql == "x > 0"
    with pytest.raises(DefinitionError, match="RULES_UNREADABLE"):
        wl.rules_from("no_such_module_or_table")
    with pytest.raises(DefinitionError, match=r"action 'explode' of 'a'.*RULES_UNREADABLE"):
        wl.rules_from([{"name": "a", "constraint": "x", "action": "explode"}])


QUALITY = """
@wl.temporary_view
@wl.expect("named", "name IS NOT NULL")
def named():
    return wl.read_stream("s")

@wl.table
@wl.expect_or_drop("positive", "n > 0")
@wl.expect_or_quarantine("small", "n < 10")
def t():
    return wl.read_stream("named")

@wl.materialized_view
@wl.expect("some", wl.row_count(at_least=3))
def v():
    return wl.sql("SELECT * FROM t")
"""


def of_commits(folder: Path) -> list[tuple[Any, ...]]:
    """What the commits of all tables say, read here from their logs."""
    found = []
    for log in sorted((folder / "lake/tables/default").glob("*/_delta_log/*.json")):
        for line in log.read_text().splitlines():
            info = json.loads(line).get("commitInfo", {}).get("waxlake", {})
            for flow, facts in (info.get("flows") or {}).items():
                for rule in facts["rules"]:
                    if rule["passed"] or rule["failed"]:
                        row = (
                            log.parts[-3],
                            rule["dataset"],
                            rule["rule"],
                            flow,
                            int(log.stem),
                            rule["passed"],
                            rule["failed"],
                        )
                        found.append(row)
    return sorted(found)


def of_table(project: Project) -> list[tuple[Any, ...]]:
    rows = run_sql(load_graph(load_spec(project.folder)), "SELECT * FROM quality").to_pylist()
    names = ("table", "dataset", "rule", "flow", "version", "passed", "failed")
    return sorted(tuple(row[name] for name in names) for row in rows)


@pytest.mark.kills
def test_p35_the_quality_table_equals_what_the_commits_say(project: Project) -> None:
    project.define(
        QUALITY.replace('wl.read_stream("s")', 'wl.read_files("inbox", "json", schema="n BIGINT, name STRING")')
    )
    for number, point in enumerate(["committed:1", "quality-write:1", "quality-written:1"]):
        project.land(f"{number}.json", *({"n": n, "name": None if n == 3 else "x"} for n in range(-1, 13)))
        assert project.waxlake("run", WAXLAKE_FAILPOINT=point).code == -signal.SIGKILL, point
        assert of_table(project) == of_commits(project.folder)
    run_update(load_spec(project.folder), RunOptions(), [])
    assert of_table(project) == of_commits(project.folder)
    stored = DeltaTable(str(project.folder / "lake/quality")).to_pyarrow_table()
    assert len(stored) == len(of_table(project)) > 5
    shutil.rmtree(project.folder / "lake/quality")
    assert of_table(project) == of_commits(project.folder)
    run_update(load_spec(project.folder), RunOptions(), [])
    assert DeltaTable(str(project.folder / "lake/quality")).to_pyarrow_table().num_rows == len(stored)

    said = project.waxlake("quality", "--json", "--table", "t").succeeded().out
    sums = {row["rule"]: row for row in map(json.loads, said.splitlines())}
    assert [sums["positive"][name] for name in ("passed", "failed", "dropped", "quarantined")] == [36, 6, 6, 0]
    assert [sums["small"][name] for name in ("passed", "failed", "dropped", "quarantined")] == [33, 9, 0, 9]
    assert sums["named"]["dataset"] == "named"


def test_some_rows_that_break_a_rule_are_in_the_event_log_without_their_secrets(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/t.py").write_text(
        HEAD + '@wl.table\n@wl.expect_or_drop("r", "n < 0")\n@wl.expect_or_quarantine("k", wl.unique("n"))\n'
        'def t():\n    return wl.read_stream("s")\n'
    )
    rows = [{"n": n, "email": "a@b.c", "password": "hunter2", "text": "x" * 5000} for n in (1, 2, 3, 4, -1, -1)]

    def violations(samples: str) -> list[dict[str, Any]]:
        (tmp_path / "waxlake.yml").write_text(f"name: p\nstorage: ./lake\nsamples: {samples}\n")
        events = wl.testing.run(tmp_path, {"s": rows}).events_of("expectation_violation")
        return [event.details["expectation_violation"] for event in events]

    dropped, twice = violations("{rows: 2, bytes: 300, redact: [email]}")
    assert (dropped["rule"], dropped["action"], len(dropped["rows"]), twice["rule"]) == ("r", "drop", 2, "k")
    text = json.dumps(dropped)
    assert '\\"n\\":' in text.replace(" ", "")
    assert "a@b.c" not in text
    assert "hunter2" not in text
    assert len(text) < 600
    assert violations("{rows: 0}") == []
    with pytest.raises(UsageError, match=r"unknown key 'samples.row'.*'rows'"):
        violations("{row: 0}")
