"""What a flow's definition says, in a form that does not change when only its lines, comments or white space do.

Each commit of a flow stores the fingerprint as a ``txn``, and the event log keeps the text with every update, so that
``waxlake plan`` can tell what changed since the rows that are there were written.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from waxlake.pipeline.definitions import Decode, Expect, Expectation, MapBatches, Step
from waxlake.pipeline.graph import Dataset, Flow, read_name
from waxlake.stream.position import identity_version

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph

__all__ = ["ASPECTS", "flow_fingerprint", "flow_text"]

ASPECTS: Final = ("sources", "query", "expectations", "schema", "keys", "partitioning")
"""The parts of a definition that are compared one by one."""

_TOKENS: Final = re.compile(
    r"""(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<space>\s+)|(?P<other>.)""", re.S
)


def flow_text(checked: CheckedGraph, dataset: Dataset, flow: Flow) -> dict[str, Any]:
    """Return the definition of a flow, aspect by aspect, as plain JSON values without secrets."""
    definition = dataset.definition
    schema = checked.schemas.get(dataset.name, pa.schema([]))
    return {
        "sources": sorted(flow.inputs or flow.statics),
        "query": _query(flow),
        "expectations": [_rule(rule) for rule in definition.expectations],
        "schema": [f"{item.name} {item.type}" for item in schema],
        "keys": None if flow.changes is None else _plain(flow.changes),
        "partitioning": list(definition.partition_by),
    }


def flow_fingerprint(text: Mapping[str, Any]) -> int:
    """Return a number that stands for a definition, to be stored as a ``txn`` version.

    The columns are left out: a source that grows is no change of the definition.
    """
    shown = {aspect: text[aspect] for aspect in ASPECTS if aspect != "schema"}
    return identity_version(json.dumps(shown, sort_keys=True))


def _query(flow: Flow) -> list[str]:
    lines = []
    for branch in flow.branches:
        text = getattr(branch.read, "text", None)
        lines.append(f"from {read_name(branch.read)}" if text is None else _sql(text))
        lines += [line for step in branch.steps for line in _step(step)]
    return lines


def _step(step: Step) -> list[str]:
    """Return what a step does, without the place where it was written."""
    if isinstance(step, MapBatches):
        return [_function(step.function)]
    if isinstance(step, Expect):
        return [_rule(rule) for rule in step.expectations]
    name = type(step).__name__.lower()
    if isinstance(step, Decode):
        return [f"{name} {hashlib.sha256(repr(step.settings).encode()).hexdigest()[:12]}"]
    values = [_sql(str(value)) if isinstance(value, str) else str(_plain(value)) for value in _values(step)]
    return [f"{name} {', '.join(values)}"]


def _values(element: Any) -> list[Any]:
    values = [(item.name, getattr(element, item.name)) for item in fields(element) if item.name != "where"]
    return [value for name, value in values if name != "pinned" or value]


def _rule(rule: Expectation) -> str:
    limits = [f" above {rule.threshold:%}"] if rule.threshold is not None else []
    limits += [f" above {rule.max_violations} rows"] if rule.max_violations is not None else []
    scope = "" if rule.scope == "row" else f" ({rule.scope}: {', '.join((*rule.columns, *rule.tables))})"
    return f"expect {rule.name}: {_sql(rule.sql)} or {rule.action}{''.join(limits)}{scope}"


def _function(function: Any) -> str:
    """Return a Python function: its source, and what its code is made of where that cannot be had."""
    name = getattr(function, "__qualname__", repr(type(function)))
    try:
        return f"map_batches {name}\n{textwrap.dedent(inspect.getsource(function))}".rstrip()
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        made_of = (
            "" if code is None else repr((code.co_code, code.co_names, [type(c).__name__ for c in code.co_consts]))
        )
        return f"map_batches {name} {hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def _sql(text: str) -> str:
    """Return SQL without comments, and with one space where there is white space outside of quotes."""
    parts = []
    for match in _TOKENS.finditer(text):
        if match["text"] or match["other"]:
            parts.append(match[0])
        elif not parts or parts[-1] != " ":
            parts.append(" ")
    return "".join(parts).strip().rstrip(";").rstrip()


def _plain(value: Any) -> Any:
    """Return a value as plain JSON, without places in files."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in ("where", "line")}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return _sql(value)
    if inspect.isfunction(value) or inspect.ismethod(value):
        return _function(value)
    if isinstance(value, Sequence | set | frozenset):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    return value if isinstance(value, int | float | bool | None) else str(value)
