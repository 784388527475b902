"""Rules beyond a condition over one row: unique keys, references to other tables, conditions over a whole view, rules as data.

What the functions return is given to ``wl.expect`` and the other actions instead of a SQL text.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from waxlake.pipeline.definitions import Action, RuleScope, calling_line
from waxlake.stream.engine import quote_name, quote_text
from waxlake.stream.errors import DefinitionError

__all__ = ["Rule", "RuleSet", "freshness", "limits", "overall", "references", "row_count", "rules_from", "unique"]

_NAME = re.compile(r"\w+(\.\w+)?")
_ACTIONS: Mapping[str, Action] = {
    "warn": "warn",
    "allow": "warn",
    "drop": "drop",
    "drop row": "drop",
    "fail": "fail",
    "fail update": "fail",
    "quarantine": "quarantine",
}
_FILES = (".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a row, a key or a view must keep.

    Attributes:
        sql: Condition; for a rule over keys, what it says to people.
        scope: ``row``: over each row; ``key``: over the rows of a table that have the same ``columns``; ``whole``: over all rows
            of a view at once.
        columns: Key columns.
        tables: Datasets that ``sql`` reads.
        action: Given by the rule itself, or None for that of the decorator.
        is_native: ``sql`` is DuckDB's, whatever the dialect of the definitions.
    """

    sql: str
    scope: RuleScope = "row"
    columns: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    action: Action | None = None
    is_native: bool = False


class RuleSet(Mapping[str, Rule]):
    """Rules by name, in the order in which they were found."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)

    def __getitem__(self, name: str) -> Rule:
        return self._rules[name]

    def __iter__(self) -> Any:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def unique(*columns: str) -> Rule:
    """A rule that no two rows have the same key: of rows with one key the first keeps it, in the table or on the way there.

    A key with a NULL in it equals no other. Of a table, not of a temporary view.
    """
    _require(bool(columns), "unique() needs at least one column")
    return Rule(sql=f"unique({', '.join(columns)})", scope="key", columns=tuple(columns), is_native=True)


def references(column: str | Sequence[str], table: str, key: str | Sequence[str] | None = None) -> Rule:
    """A rule that the values of a column are among those of another dataset's column, as it is then; NULL refers to nothing.

    Args:
        column: Column, or several that are compared together.
        table: Dataset of this pipeline, or a Delta table at a URI.
        key: Its column or columns; None for those of the same name.
    """
    own = (column,) if isinstance(column, str) else tuple(column)
    other = own if key is None else (key,) if isinstance(key, str) else tuple(key)
    _require(bool(own) and len(own) == len(other), "references() compares as many columns as the other table's key has")
    names, keys = ", ".join(map(quote_name, own)), ", ".join(map(quote_name, other))
    missing = " OR ".join(f"{quote_name(c)} IS NULL" for c in own)
    row = f"({names})" if len(own) > 1 else names
    source = ".".join(map(quote_name, table.split("."))) if _NAME.fullmatch(table) else quote_name(table)
    return Rule(sql=f"{missing} OR {row} IN (SELECT {keys} FROM {source})", tables=(table,), is_native=True)


def overall(sql: str) -> Rule:
    """A rule over all rows of a view at once, as ``count(*) > 0``; a view that fails it keeps its old rows."""
    return Rule(sql=sql, scope="whole")


def row_count(at_least: int = 0, at_most: int | None = None) -> Rule:
    """A rule over the number of rows of a view."""
    upper = "" if at_most is None else f" AND count(*) <= {int(at_most)}"
    return overall(f"count(*) >= {int(at_least)}{upper}")


def freshness(column: str, within: str) -> Rule:
    """A rule that the newest time in a column of a view is at most so old.

    Args:
        column: Column of a date or timestamp.
        within: Age, as ``1 day`` or ``90 minutes``.
    """
    condition = f"max({quote_name(column)})::TIMESTAMPTZ >= now() - INTERVAL {quote_text(within)}"
    return Rule(sql=condition, scope="whole", is_native=True)


def rules_from(source: str | ModuleType | Iterable[Mapping[str, Any]], tag: str | None = None) -> RuleSet:
    """Rules as data: rows of ``name``, ``constraint``, and where they have them ``tag`` and ``action``.

    They are read when the definitions are. ``action`` is warn, drop, fail or quarantine; a row without one takes that of the
    decorator.

    Args:
        source: A table of this pipeline's storage, a Delta table at a path or URI, a CSV, JSON or Parquet file, a Python module
            (or its name) with ``rules`` or ``get_rules()``, or the rows themselves.
        tag: Only rules of this tag; None for all.

    Raises:
        DefinitionError: ``RULES_UNREADABLE``. Not retryable.
    """
    found: dict[str, Rule] = {}
    for row in _rows(source):
        if not isinstance(row, Mapping) or not row.get("name") or not row.get("constraint"):
            raise _unreadable(source, repr(row), "rows of name and constraint")
        if tag is not None and row.get("tag") != tag:
            continue
        said = str(row.get("action") or "").strip().lower()
        if said and said not in _ACTIONS:
            raise _unreadable(source, f"action {said!r} of '{row['name']}'", "warn, drop, fail or quarantine")
        found[str(row["name"])] = Rule(sql=str(row["constraint"]), action=_ACTIONS.get(said))
    return RuleSet(found)


def _rows(source: Any) -> list[Any]:
    if isinstance(source, ModuleType):
        return _of_module(source, source)
    if not isinstance(source, str):
        return list(source)
    if source.endswith(_FILES):
        return _of_file(source)
    from waxlake.pipeline.graph import is_external, resolve_path
    from waxlake.pipeline.registry import registry_spec
    from waxlake.stream.delta_table import TableLocation

    spec = registry_spec()
    if is_external(source) or spec is not None:
        options = {} if spec is None else {"options": spec.storage_options}
        path = resolve_path(spec, source) if spec is not None else source
        location = TableLocation(path, name=source, **options)
        if spec is not None and not is_external(source) and _NAME.fullmatch(source):
            location = spec.table_location(source)
        if is_external(source) or location.exists():
            rows: list[Any] = location.open().to_pyarrow_table().to_pylist()
            return rows
    try:
        module = importlib.import_module(source)
    except ImportError as exc:
        raise _unreadable(source, f"neither a table nor a module: {exc}", "a table, a file or a module") from exc
    return _of_module(module, source)


def _of_module(module: ModuleType, source: Any) -> list[Any]:
    rules = getattr(module, "rules", None) or getattr(module, "get_rules", None)
    if callable(rules):
        rules = rules()
    if isinstance(rules, Mapping):
        return [{"name": name, "constraint": text} for name, text in rules.items()]
    if rules is None:
        raise _unreadable(source, "a module without them", "`rules` or `get_rules()`")
    return list(rules)


def _of_file(path: str) -> list[Any]:
    import pyarrow.csv as pa_csv
    import pyarrow.json as pa_json
    import pyarrow.parquet as pq

    from waxlake.pipeline.registry import registry_spec

    spec = registry_spec()
    file = Path(path) if spec is None else spec.folder / path
    readers: dict[str, Any] = {".csv": pa_csv.read_csv, ".parquet": pq.read_table}
    try:
        rows: list[Any] = readers.get(file.suffix, pa_json.read_json)(str(file)).to_pylist()
    except (OSError, ValueError) as exc:
        raise _unreadable(path, str(exc), "a readable file") from exc
    return rows


def _unreadable(source: Any, found: str, expected: str) -> DefinitionError:
    name = source if isinstance(source, str) else getattr(source, "__name__", "the rows given")
    return DefinitionError(
        f"cannot take rules from {name}", where=calling_line(), code="RULES_UNREADABLE", found=found, expected=expected
    )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise DefinitionError(what, where=calling_line(), code="ARGUMENT_INVALID")


def limits(threshold: str | float | None, max_violations: int | None) -> dict[str, Any]:
    """Return how many rows of a batch may break a rule, as fields of an ``Expectation``.

    Args:
        threshold: Share of a batch, as ``"1%"`` or 0.01; None for no limit of that kind.
        max_violations: Rows of a batch; None for no limit of that kind.
    """
    share: float | None = None
    if threshold is not None:
        text = str(threshold).strip()
        try:
            share = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        _require(0 <= share <= 1, f"threshold={threshold!r} is no share: give '1%' or 0.01")
    _require(
        max_violations is None or (type(max_violations) is int and max_violations >= 0),
        f"max_violations={max_violations!r} is no number of rows",
    )
    return {"threshold": share, "max_violations": max_violations}
