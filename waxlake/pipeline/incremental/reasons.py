"""Why a view is recomputed in full, as stable codes; they are in the event log and in `docs/materialized-views.md`."""

from __future__ import annotations

from typing import Final

__all__ = ["REASONS", "NotIncremental"]

REASONS: Final = {
    "FIRST_RUN": "the view has never been filled, or not by a version that remembers what it had read",
    "FULL_REFRESH": "a full refresh was asked for",
    "QUERY_CHANGED": "its query, its rules that drop rows, or a view that it reads changed",
    "INPUT_REBUILT": "an input was dropped and created anew",
    "INPUT_SCHEMA_CHANGED": "a column of an input changed its type or is gone",
    "OUTPUT_SCHEMA_CHANGED": "the view's columns changed, as where * takes a new column of an input",
    "HISTORY_EXPIRED": "log entries or files of an input since the last refresh were cleaned",
    "INPUT_NOT_DELTA": "the query reads files",
    "INPUT_NOT_READABLE": "an input uses deletion vectors or column mapping",
    "NON_DETERMINISTIC_FUNCTION": "a function whose result is another one each time",
    "PYTHON_FUNCTION": "map_batches: a Python function may do anything",
    "EXPECTATIONS_OF_VIEW": "a temporary view with expectations is read",
    "RULES_OVER_ROWS": "a rule of the view is about all its rows, keys or other datasets, and not about one row alone",
    "UNSUPPORTED_OPERATOR": "a construct that is not followed, such as LIMIT or a subquery in an expression",
    "WINDOW_WITHOUT_PARTITION": "window functions that do not share a PARTITION BY expression",
    "ORDER_DEPENDENT": "something is computed from a value that depends on the order of rows, as a sum of doubles",
    "TARGET_CHANGED": "the view's table does not hold the rows that have to leave it",
    "COST_FULL_CHEAPER": "more than half of the inputs changed",
    "POLICY_FULL": "refresh_policy is full",
    "INCREMENTAL_FAILED": "the incremental query failed; the full one decides",
}
"""Code to what it means."""


class NotIncremental(Exception):
    """Raised while a refresh is worked out, where it has to be a full one; never leaves this package.

    Args:
        code: One of ``REASONS``.
        detail: The construct, or the facts.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        assert code in REASONS, code
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail
