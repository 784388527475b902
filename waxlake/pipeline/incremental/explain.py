"""Say, before it happens, how a materialized view will be refreshed, and why so. Called by the command line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from waxlake.pipeline.incremental.algebra import Keyed
from waxlake.pipeline.incremental.reasons import REASONS, NotIncremental
from waxlake.pipeline.incremental.refresh import Refresher, refresher_of
from waxlake.pipeline.registry import Registry
from waxlake.pipeline.view import ViewConnector
from waxlake.stream.errors import UsageError
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph
    from waxlake.pipeline.spec import Spec

__all__ = ["ViewPlan", "explain_create", "explain_view", "is_explain_create"]

_EXPLAIN: Final = re.compile(r"\s*EXPLAIN\s+(?=CREATE\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPlan:
    """How a view will be refreshed.

    Attributes:
        view: Its name.
        policy: Its refresh policy.
        technique: How an incremental refresh works; None if the query does not allow one.
        reason: Code of why the query does not allow one.
        detail: The construct behind the reason, and where it is.
        inputs: Stored tables that it reads.
        next: What the next refresh would do with the inputs as they are: ``mode``, ``reason``, ``changed_bytes``, …
    """

    view: str
    policy: str
    technique: str | None
    reason: str | None = None
    detail: str = ""
    inputs: tuple[str, ...] = ()
    next: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it for people."""
        query = f"incremental, {self.technique}" if self.technique else f"full, {_told(self.reason, self.detail)}"
        found = [f"view {self.view}", f"  policy: {self.policy}", f"  query: {query}"]
        found.append(f"  inputs: {', '.join(self.inputs) or 'none'}")
        changed = f"{self.next['changed_bytes']:,} of {self.next['input_bytes']:,} bytes of its inputs changed"
        mode = self.next["mode"]
        if mode == "FULL":
            found.append(f"  next refresh: full, {_told(self.next['reason'], self.next['detail'])}")
        else:
            found.append(
                "  next refresh: nothing to do" if mode == "NO_OP" else f"  next refresh: incremental, {changed}"
            )
        return found


def _told(reason: str | None, detail: str) -> str:
    return f"{reason}: {REASONS.get(reason or '', '')}" + (f" ({detail})" if detail else "")


def explain_view(checked: CheckedGraph, view: str) -> ViewPlan:
    """Return how a materialized view will be refreshed; nothing is written.

    Raises:
        UsageError: There is no such view. Not retryable.
        ExternalError: An input cannot be looked at.
    """
    views = [name for name, dataset in checked.graph.datasets.items() if dataset.kind == "materialized_view"]
    if view not in views:
        raise UsageError(f"there is no materialized view {view!r}", code="TABLE_UNKNOWN", remedy=nearest(view, views))
    refresher = refresher_of(checked, view)
    technique, reason, detail = None, None, ""
    try:
        root = refresher.analysis().root
        technique = root.kind if isinstance(root, Keyed) else "ROW_BASED"
    except NotIncremental as refused:
        reason, detail = refused.code, refused.detail
    connector = next(part.connector for part in checked.flows if part.flow.target == view)
    assert isinstance(connector, ViewConnector)
    return ViewPlan(
        view=view,
        policy=refresher.policy,
        technique=technique,
        reason=reason,
        detail=detail,
        inputs=connector.inputs,
        next=_next(checked, refresher, connector),
    )


def _next(checked: CheckedGraph, refresher: Refresher, connector: ViewConnector) -> dict[str, Any]:
    """Return what the next refresh would do."""
    dataset = checked.graph.datasets[refresher.view]
    places = [checked.graph.datasets[n].location for n in connector.inputs if n in checked.graph.datasets]
    assert dataset.location is not None
    if not dataset.location.exists() or not all(place is not None and place.exists() for place in places):
        return {"mode": "FULL", "reason": "FIRST_RUN", "detail": "", "changed_bytes": 0, "input_bytes": 0}
    handles, target = connector.handles(), dataset.location.open()
    stored = connector.stored(target, handles)
    decision = refresher.decide(target, handles, is_reset=stored is None)
    facts = decision.facts()
    is_moved = connector.position([h.version() for h in handles.values()], 0) > (stored or 0)
    return facts if is_moved or not decision.is_incremental else {**facts, "mode": "NO_OP"}


def is_explain_create(text: str) -> bool:
    """Return whether a text is ``EXPLAIN CREATE …``."""
    return _EXPLAIN.match(text) is not None


def explain_create(spec: Spec, text: str) -> ViewPlan:
    """Return how a view that is not defined yet would be refreshed.

    Args:
        spec: The pipeline that it would belong to.
        text: ``EXPLAIN CREATE [OR REFRESH] MATERIALIZED VIEW name … AS query``; a view of that name is taken for replaced.

    Raises:
        DefinitionError: The statement or the query is wrong. Not retryable.
    """
    from waxlake.pipeline.check import check_graph
    from waxlake.pipeline.resolve import load_graph
    from waxlake.pipeline.sqlfile import load_sql_file

    names: list[str] = []

    def adapt(registry: Registry) -> Registry:
        alone = Registry(configuration=registry.configuration, dialect=registry.dialect)
        with tempfile.TemporaryDirectory(prefix="waxlake-") as folder:
            file = Path(folder) / "statement.sql"
            file.write_text(_EXPLAIN.sub("", text, count=1), "utf-8")
            load_sql_file(file, alone)
        names.extend(definition.name for definition in alone.datasets())
        for definition in registry.datasets():
            if definition.name not in names:
                alone.add_dataset(definition)
        for flow in registry.flows():
            alone.add_flow(flow)
        return alone

    graph = load_graph(spec, adapt)
    if len(names) != 1:
        raise UsageError("EXPLAIN CREATE takes one materialized view", code="SQL_NOT_A_QUERY", found=", ".join(names))
    return explain_view(check_graph(graph), names[0])
