"""CHECK constraints of a Delta table (``delta.constraints.*``), judged on rows that are about to be written.

Files are written without delta-rs, so its own check does not see them. A row keeps a constraint where it is true; false and
NULL break it, as in Delta's other writers the stricter ones have it. Source: Delta protocol, "CHECK Constraints".
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from waxlake.stream.engine import open_session, quote_name
from waxlake.stream.errors import SchemaError, shorten
from waxlake.stream.python_rows import python_rows
from waxlake.stream.settings import redact

__all__ = ["CONSTRAINT_PREFIX", "WRITTEN_PREFIX", "check_rows", "constraints_of"]

CONSTRAINT_PREFIX = "delta.constraints."
WRITTEN_PREFIX = "waxlake.constraints."
"""Property with a constraint as its definition has it: delta-rs writes it anew in its own words."""


def constraints_of(configuration: Mapping[str, str | None]) -> dict[str, str]:
    """Return the constraints among the properties of a table: name to condition, in the words of its definition if known."""
    names = [key.removeprefix(CONSTRAINT_PREFIX) for key in configuration if key.startswith(CONSTRAINT_PREFIX)]
    found = {n: configuration.get(WRITTEN_PREFIX + n) or configuration[CONSTRAINT_PREFIX + n] for n in names}
    return {name: condition for name, condition in found.items() if condition}


def check_rows(rows: pa.Table, constraints: Mapping[str, str], table: str) -> None:
    """Stop if a row breaks a constraint.

    Raises:
        SchemaError: ``CONSTRAINT_VIOLATED``, or ``CONSTRAINT_INVALID`` for one that is no condition over these columns. Not
            retryable.
    """
    if not rows.num_rows or not constraints:
        return
    session = open_session()
    try:
        session.register("checked", rows)
        for name, condition in constraints.items():
            found = session.sql(f"SELECT * FROM checked WHERE NOT coalesce(({condition})::BOOLEAN, false)")
            broken = python_rows(found.limit(1).to_arrow_table())
            if broken:
                raise _violated(table, name, condition, broken[0])
    except duckdb.Error as exc:
        raise SchemaError(
            f"cannot check the constraints of table '{table}'",
            code="CONSTRAINT_INVALID",
            found=shorten(exc, 300),
            expected="conditions in SQL over its columns",
            remedy="Drop the constraint, or write it so that DuckDB and delta-rs both understand it",
        ) from exc
    finally:
        session.close()


def _violated(table: str, name: str, condition: str, row: Mapping[str, object]) -> SchemaError:
    return SchemaError(
        f"cannot write to table '{table}': constraint {quote_name(name)} is violated",
        code="CONSTRAINT_VIOLATED",
        found=f"a row like {shorten(redact(row), 300)}",
        expected=condition,
        remedy="Filter or quarantine such rows with an expectation: a constraint stops the table",
    )
