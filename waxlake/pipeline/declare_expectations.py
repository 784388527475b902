"""The decorators of rules: they may stand above or below that of the dataset, and leave the function as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from waxlake.pipeline.definitions import Action, Expectation, calling_line
from waxlake.pipeline.registry import add_expectations
from waxlake.pipeline.rules import Rule, limits
from waxlake.stream.errors import DefinitionError

__all__ = [
    "Rules",
    "expect",
    "expect_all",
    "expect_all_or_drop",
    "expect_all_or_fail",
    "expect_all_or_quarantine",
    "expect_or_drop",
    "expect_or_fail",
    "expect_or_quarantine",
    "rules_of",
]

F = TypeVar("F", bound=Callable[..., Any])
Rules = Mapping[str, "str | Rule"]


def rules_of(**groups: Rules | None) -> tuple[Expectation, ...]:
    """Return the expectations of groups, each named by its action: rule name to SQL."""
    return tuple(rule for action, group in groups.items() for rule in _expectations(group or {}, cast(Action, action)))


def _expectations(
    rules: Rules, action: Action, threshold: str | float | None = None, max_violations: int | None = None
) -> list[Expectation]:
    line = calling_line()
    bounds = limits(threshold, max_violations)
    made = []
    for name, rule in rules.items():
        rule = Rule(sql=rule) if isinstance(rule, str) else rule
        if not isinstance(name, str) or not isinstance(rule, Rule) or not name or not rule.sql.strip():
            raise DefinitionError(
                "an expectation is a name and a SQL condition, or a rule such as wl.unique('id')",
                where=line,
                code="ARGUMENT_INVALID",
                found=repr((name, rule)),
            )
        made.append(
            Expectation(
                name=name,
                sql=rule.sql,
                action=rule.action or action,
                where=line,
                scope=rule.scope,
                columns=rule.columns,
                tables=rule.tables,
                is_native=rule.is_native,
                **bounds,
            )
        )
    return made


def _expect(
    rules: Rules, action: Action, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    added = _expectations(rules, action, threshold, max_violations)

    def decorate(function: F) -> F:
        add_expectations(function, added)
        return function

    return decorate


def expect(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Count the rows that break a rule, and keep them.

    Args:
        name: Name of the rule, unique within its dataset.
        sql: Condition over a row, or what ``unique``, ``references``, ``row_count``, ``freshness`` or ``overall`` returns.
        threshold: Share of a micro-batch, as ``"1%"``, that may break it; if more do, nothing of the batch is committed.
        max_violations: Rows of a micro-batch that may break it, likewise.
    """
    return _expect({name: sql}, "warn", threshold, max_violations)


def expect_or_drop(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Count the rows that break a rule, and leave them out. Arguments as for ``expect``."""
    return _expect({name: sql}, "drop", threshold, max_violations)


def expect_or_fail(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Stop the flow at a row that breaks a rule; nothing of its batch is committed. With a limit, at more of them than it allows.

    Arguments as for ``expect``.
    """
    return _expect({name: sql}, "fail", threshold, max_violations)


def expect_or_quarantine(
    name: str, sql: str | Rule, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """Send the rows that break a rule to ``<table>_quarantine``, with the names of the rules they broke.

    Arguments as for ``expect``.
    """
    return _expect({name: sql}, "quarantine", threshold, max_violations)


def expect_all(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "warn", threshold, max_violations)


def expect_all_or_drop(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_drop`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "drop", threshold, max_violations)


def expect_all_or_fail(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_fail`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "fail", threshold, max_violations)


def expect_all_or_quarantine(
    rules: Rules, *, threshold: str | float | None = None, max_violations: int | None = None
) -> Callable[[F], F]:
    """``expect_or_quarantine`` for each rule of a mapping from name to SQL; a rule that brings an action of its own keeps it."""
    return _expect(rules, "quarantine", threshold, max_violations)
