"""Expectations on a batch: the verdicts of its rules, and what becomes of the rows that break them."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.pipeline.definitions import Expectation
from waxlake.stream.batch import RuleCount
from waxlake.stream.errors import ExpectationFailed, shorten

__all__ = ["FAILED_RULES", "judge", "verdict_column"]

FAILED_RULES = "_failed_rules"


def verdict_column(index: int) -> str:
    """Return the name of the column that holds the verdict of the rule at ``index``."""
    return f"__rule_{index}"


def judge(
    table: pa.Table, rules: Sequence[Expectation], dataset: str, connection: duckdb.DuckDBPyConnection
) -> tuple[pa.Table, pa.Table | None, tuple[RuleCount, ...], int]:
    """Split rows by what the rules say; a row that breaks a quarantine rule is quarantined even if another drops it."""
    if not rules:
        return table, None, (), 0
    verdicts = [table.column(verdict_column(i)).combine_chunks() for i in range(len(rules))]
    rows = table.drop_columns([verdict_column(i) for i in range(len(rules))])
    counts = []
    for rule, verdict in zip(rules, verdicts, strict=True):
        passed = pc.sum(verdict).as_py() or 0
        counts.append(
            RuleCount(dataset=dataset, rule=rule.name, action=rule.action, passed=passed, failed=rows.num_rows - passed)
        )
        if rule.action == "fail" and passed < rows.num_rows:
            raise _violated(rule, dataset, rows.filter(pc.invert(verdict)))
    if all(c.failed == 0 or c.action == "warn" for c in counts):
        return rows, None, tuple(counts), 0
    kept = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action in ("drop", "quarantine")])
    sane = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action == "quarantine"])
    rejected = None
    if sane is not None:
        bad = pc.invert(sane)
        rejected = rows.filter(bad)
        if rejected.num_rows:
            failed = _failed_rules(connection, rules, [v.filter(bad) for v in verdicts])
            rejected = rejected.append_column(FAILED_RULES, failed)
        else:
            rejected = None
    passing = rows.filter(kept)
    lost = rows.num_rows - passing.num_rows - (rejected.num_rows if rejected is not None else 0)
    return passing, rejected, tuple(counts), lost


def _all_true(verdicts: Sequence[pa.Array]) -> pa.Array | None:
    result = None
    for verdict in verdicts:
        result = verdict if result is None else pc.and_(result, verdict)
    return result


def _failed_rules(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[Expectation], verdicts: Sequence[pa.Array]
) -> pa.ChunkedArray:
    """Return, per row, the names of all the rules it broke, in the order written."""
    names = [verdict_column(i) for i in range(len(rules))]
    cases = [
        f"CASE WHEN NOT {column} THEN '{rule.name.replace(chr(39), chr(39) * 2)}' END"
        for column, rule in zip(names, rules, strict=True)
    ]
    connection.register("__verdicts", pa.table(dict(zip(names, verdicts, strict=True))))
    listed = connection.sql(
        f"SELECT list_filter([{', '.join(cases)}], lambda x: x IS NOT NULL) AS failed FROM __verdicts"
    )
    table: pa.Table = listed.to_arrow_table()
    connection.unregister("__verdicts")
    return table.column("failed")


def _violated(rule: Expectation, dataset: str, offenders: pa.Table) -> ExpectationFailed:
    sample = shorten(offenders.slice(0, 1).to_pylist()[0], 300)
    return ExpectationFailed(
        f"expectation '{rule.name}' of '{dataset}' failed: {rule.sql}",
        code="EXPECTATION_FAILED",
        found=f"{offenders.num_rows} rows that break it, such as {sample}",
        expected="none (expect_or_fail)",
        remedy="Nothing of this batch was committed. Correct the source, or use expect_or_quarantine to let the rest through",
        rule=rule.name,
        dataset=dataset,
        rows=offenders.num_rows,
    )
