"""Expectations on a batch: the verdicts of its rules, and what becomes of the rows that break them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.pipeline.definitions import DatasetDefinition, Expectation
from waxlake.pipeline.sql import with_static_aliases
from waxlake.stream.batch import RuleCount
from waxlake.stream.engine import quote_name, quote_text
from waxlake.stream.errors import DefinitionError, ExpectationFailed, shorten
from waxlake.stream.python_rows import python_rows
from waxlake.stream.settings import redact

__all__ = ["FAILED_RULES", "OnOffenders", "check_scope", "judge", "judge_whole", "verdict_column", "verdict_sql"]

FAILED_RULES = "_failed_rules"

OnOffenders = Callable[[str, Expectation, Callable[[], pa.Table], int], None]
"""Is told of rows that break a rule: dataset, rule, how to get at the rows, and how many they are."""


def verdict_column(index: int) -> str:
    """Return the name of the column that holds the verdict of the rule at ``index``."""
    return f"__rule_{index}"


def verdict_sql(rule: Expectation, order_by: str = "") -> str:
    """Return the condition of a rule as one over a row; of rows with the same key the first keeps a rule over keys."""
    if rule.scope != "key":
        return rule.sql
    names = [quote_name(name) for name in rule.columns]
    missing = " OR ".join(f"{name} IS NULL" for name in names)
    order = f" ORDER BY {order_by}" if order_by else ""
    return f"({missing} OR row_number() OVER (PARTITION BY {', '.join(names)}{order}) = 1)"


def check_scope(definition: DatasetDefinition, rule: Expectation) -> None:
    """Stop at a rule that cannot be told of its dataset.

    Raises:
        DefinitionError: ``EXPECTATION_SCOPE``. Not retryable.
    """
    found, expected = "", ""
    if rule.scope == "whole" and definition.kind != "materialized_view":
        found, expected = "a rule over all rows at once", "a materialized view: other datasets come batch by batch"
    elif rule.scope == "whole" and (rule.action not in ("warn", "fail") or rule.is_limited):
        found, expected = (
            f"a rule over all rows at once that is to {rule.action} some of them",
            "expect or expect_or_fail",
        )
    elif rule.scope == "key" and definition.kind == "sink":
        found, expected = "a rule over keys of a sink, whose rows are not here", "the table that it streams from"
    elif rule.scope == "key" and definition.kind in ("temporary_view", "sink"):
        found, expected = f"a rule over keys of a {definition.kind.replace('_', ' ')}", "a table: its rows are known"
    elif rule.scope == "key" and definition.is_merged:
        found, expected = "a rule over keys of a table that changes are merged into", "its keys: they are unique"
    if found:
        raise DefinitionError(
            f"expectation '{rule.name}' cannot be one of '{definition.name}'",
            where=rule.where,
            code="EXPECTATION_SCOPE",
            found=found,
            expected=expected,
        )


def judge(
    table: pa.Table,
    rules: Sequence[Expectation],
    dataset: str,
    connection: duckdb.DuckDBPyConnection,
    on_offenders: OnOffenders | None = None,
) -> tuple[pa.Table, pa.Table | None, tuple[RuleCount, ...], int]:
    """Split rows by what the rules say; a row that breaks a quarantine rule is quarantined even if another drops it."""
    if not rules:
        return table, None, (), 0
    verdicts = [table.column(verdict_column(i)).combine_chunks() for i in range(len(rules))]
    rows = table.drop_columns([verdict_column(i) for i in range(len(rules))])
    counts = []
    for rule, verdict in zip(rules, verdicts, strict=True):
        passed = pc.sum(verdict).as_py() or 0
        failed = rows.num_rows - passed
        counts.append(RuleCount(dataset=dataset, rule=rule.name, action=rule.action, passed=passed, failed=failed))
        if failed and on_offenders is not None:
            on_offenders(dataset, rule, lambda bad=verdict: rows.filter(pc.invert(bad)), failed)  # type: ignore[misc]
        if rule.stops(failed, rows.num_rows):
            raise _violated(rule, dataset, rows.filter(pc.invert(verdict)), rows.num_rows)
    if all(c.failed == 0 or c.action in ("warn", "fail") for c in counts):
        return rows, None, tuple(counts), 0
    kept = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action in ("drop", "quarantine")])
    sane = _all_true([v for r, v in zip(rules, verdicts, strict=True) if r.action == "quarantine"])
    rejected = None
    if sane is not None:
        bad = pc.invert(sane)
        rejected = rows.filter(bad)
        if rejected.num_rows:
            broken = _failed_rules(connection, rules, [v.filter(bad) for v in verdicts])
            rejected = rejected.append_column(FAILED_RULES, broken)
        else:
            rejected = None
    passing = rows.filter(kept)
    lost = rows.num_rows - passing.num_rows - (rejected.num_rows if rejected is not None else 0)
    return passing, rejected, tuple(counts), lost


def judge_whole(
    rows: pa.Table, rules: Sequence[Expectation], dataset: str, connection: duckdb.DuckDBPyConnection
) -> tuple[RuleCount, ...]:
    """Return what rules over all rows of a view say, one check each; tables they read are registered already.

    Raises:
        ExpectationFailed: One that is to fail does. Not retryable.
        duckdb.Error: A rule is wrong.
    """
    counts = []
    for rule in rules:
        connection.register("stream", rows)
        try:
            sql = with_static_aliases(rule.sql, rule.tables)
            found = connection.sql(f"SELECT coalesce(({sql})::BOOLEAN, false) AS kept FROM stream").to_arrow_table()
        finally:
            connection.unregister("stream")
        is_kept = found.column("kept").to_pylist() == [True]
        counts.append(
            RuleCount(dataset=dataset, rule=rule.name, action=rule.action, passed=int(is_kept), failed=int(not is_kept))
        )
        if not is_kept and rule.action == "fail":
            raise ExpectationFailed(
                f"expectation '{rule.name}' of '{dataset}' failed: {rule.sql}",
                code="EXPECTATION_FAILED",
                found=f"{rows.num_rows} rows that break it together",
                remedy="The view keeps the rows it had",
                rule=rule.name,
                dataset=dataset,
                rows=rows.num_rows,
            )
    return tuple(counts)


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
        f"CASE WHEN NOT {column} THEN {quote_text(rule.name)} END" for column, rule in zip(names, rules, strict=True)
    ]
    connection.register("__verdicts", pa.table(dict(zip(names, verdicts, strict=True))))
    listed = connection.sql(
        f"SELECT list_filter([{', '.join(cases)}], lambda x: x IS NOT NULL) AS failed FROM __verdicts"
    )
    table: pa.Table = listed.to_arrow_table()
    connection.unregister("__verdicts")
    return table.column("failed")


def _violated(rule: Expectation, dataset: str, offenders: pa.Table, total: int) -> ExpectationFailed:
    sample = shorten(redact(python_rows(offenders.slice(0, 1))[0]), 300)
    limit = "none (expect_or_fail)"
    if rule.is_limited:
        share = "" if rule.threshold is None else f"{rule.threshold * 100:g} %"
        most = "" if rule.max_violations is None else f"{rule.max_violations} rows"
        limit = f"at most {' and '.join(filter(None, (share, most)))} of a batch"
    return ExpectationFailed(
        f"expectation '{rule.name}' of '{dataset}' failed: {rule.sql}",
        code="EXPECTATION_FAILED",
        found=f"{offenders.num_rows} rows of {total} that break it, such as {sample}",
        expected=limit,
        remedy="Nothing of this batch was committed. Correct the source, or use expect_or_quarantine to let the rest through",
        rule=rule.name,
        dataset=dataset,
        rows=offenders.num_rows,
    )
