"""SQL of another dialect in DuckDB's: what a pipeline with ``dialect: databricks`` says, before anything else looks at it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from waxlake.pipeline.definitions import Expectation, Query, Read, Select, SqlQuery, Stateful, Step, Where, WithColumns
from waxlake.pipeline.stream import Branch
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    from sinks.cdc import ChangeRules

__all__ = ["translated", "translated_changes", "translated_rules"]


def translated(branch: Branch, dialect: str) -> Branch:
    """Return a branch with the SQL of its read and its steps in DuckDB's dialect.

    Raises:
        DefinitionError: ``SQL_SYNTAX``, text that is none of the dialect's. Not retryable.
    """
    if dialect == "duckdb":
        return branch
    return Branch(_read(branch.read, dialect), tuple(_step(step, dialect) for step in branch.steps))


def translated_rules(rules: tuple[Expectation, ...], dialect: str) -> tuple[Expectation, ...]:
    """Return expectations with their conditions in DuckDB's dialect."""
    if dialect == "duckdb":
        return rules
    return tuple(
        replace(rule, sql=_expression(rule.sql, dialect, rule.where)) if not rule.is_native else rule for rule in rules
    )


def translated_changes(changes: ChangeRules | None, dialect: str, where: str) -> ChangeRules | None:
    """Return the rules of an AUTO CDC flow with their conditions and sequence in DuckDB's dialect."""
    if dialect == "duckdb" or changes is None:
        return changes
    deletes, truncates = changes.apply_as_deletes, changes.apply_as_truncates
    return replace(
        changes,
        sequence_by=_expression(changes.sequence_by, dialect, where),
        apply_as_deletes=deletes and _expression(deletes, dialect, where),
        apply_as_truncates=truncates and _expression(truncates, dialect, where),
    )


def _read(read: Read, dialect: str) -> Read:
    return replace(read, text=_query(read.text, dialect, read.where)) if isinstance(read, SqlQuery) else read


def _step(step: Step, dialect: str) -> Step:
    if isinstance(step, Query):
        return replace(step, text=_query(step.text, dialect, step.where))
    if isinstance(step, Where):
        return replace(step, condition=_expression(step.condition, dialect, step.where))
    if isinstance(step, Select):
        return replace(step, expressions=tuple(_expression(e, dialect, step.where) for e in step.expressions))
    if isinstance(step, Stateful):
        return _stateful(step, dialect)
    if isinstance(step, WithColumns):
        return replace(step, columns=tuple((n, _expression(e, dialect, step.where)) for n, e in step.columns))
    return step


def _stateful(step: Stateful, dialect: str) -> Stateful:
    from sinks.state import Aggregate

    operator = step.operator
    if not isinstance(operator, Aggregate):
        return step
    pairs = tuple((name, _expression(text, dialect, step.where)) for name, text in operator.aggregates)
    return replace(step, operator=replace(operator, aggregates=pairs))


def _query(text: str, dialect: str, where: str) -> str:
    import sqlglot

    try:
        return sqlglot.transpile(text, read=dialect, write="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)[0]
    except sqlglot.errors.SqlglotError as exc:
        raise DefinitionError(
            f"cannot translate the query from {dialect}: {exc}",
            where=where,
            code="SQL_SYNTAX",
            remedy="Write it in DuckDB's dialect, or in a Python step with map_batches",
        ) from exc


def _expression(text: str, dialect: str, where: str) -> str:
    """Translate an expression; ``*`` and an alias are part of it in a select list."""
    return _query(f"SELECT {text}", dialect, where).removeprefix("SELECT ")
