"""What a view's table remembers of its last refresh: the query, and each input with its version. Stored with the rows.

It is in the same commit as the rows, as ``txn`` actions, so that a refresh after a crash starts from what the rows were made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltalake import DeltaTable

from waxlake.pipeline.incremental.reasons import NotIncremental
from waxlake.stream.position import app_id, identity_version

if TYPE_CHECKING:
    from waxlake.pipeline.checked import CheckedGraph

__all__ = ["Baseline", "baseline_of", "view_fingerprint"]


def view_fingerprint(checked: CheckedGraph, view: str) -> str:
    """Return what changes when a view's query does, that of a temporary view that it reads, or a rule that drops rows."""
    own = checked.queries[view].fingerprint
    dataset = checked.graph.datasets[view]
    rules = [(r.name, r.sql, r.action) for r in dataset.expectations if r.action in ("drop", "quarantine")]
    below = [
        view_fingerprint(checked, name)
        for name in dataset.flows[0].statics
        if name in checked.graph.datasets and checked.graph.datasets[name].kind == "temporary_view"
    ]
    if not rules and not below:
        return own
    return hashlib.sha256(repr((own, rules, below)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How a view names what it remembers.

    Attributes:
        flow: Its flow.
        query: Its fingerprint.
        columns: Its columns, as a text.
    """

    flow: str
    query: str
    columns: str

    def versions(self, inputs: Mapping[str, DeltaTable]) -> dict[str, int]:
        """Return the app ids that stand for the inputs as they are now."""
        stored = {
            self._app("query"): identity_version(self.query),
            self._app("columns"): identity_version(self.columns),
        }
        for name, handle in inputs.items():
            stored[self._app(f"version/{name}")] = handle.version()
            stored[self._app(f"table/{name}")] = identity_version(str(handle.metadata().id))
        return stored

    def read(self, target: DeltaTable, inputs: Mapping[str, DeltaTable]) -> dict[str, int]:
        """Return the version of each input that the view's rows were made of.

        Raises:
            NotIncremental: It cannot be told, or the view is another one now.
        """
        if target.transaction_version(self._app("query")) is None:
            raise NotIncremental("FIRST_RUN")
        if target.transaction_version(self._app("query")) != identity_version(self.query):
            raise NotIncremental("QUERY_CHANGED")
        if target.transaction_version(self._app("columns")) != identity_version(self.columns):
            raise NotIncremental("OUTPUT_SCHEMA_CHANGED")
        found = {}
        for name, handle in inputs.items():
            version = target.transaction_version(self._app(f"version/{name}"))
            if version is None:
                raise NotIncremental("QUERY_CHANGED", f"'{name}' is a new input")
            if target.transaction_version(self._app(f"table/{name}")) != identity_version(str(handle.metadata().id)):
                raise NotIncremental("INPUT_REBUILT", f"'{name}'")
            found[name] = version
        return found

    def _app(self, what: str) -> str:
        return app_id(self.flow, "view", what)


def baseline_of(checked: CheckedGraph, view: str) -> Baseline:
    """Return how a view's table remembers what it was made of."""
    columns = "\n".join(f"{f.name} {f.type}" for f in checked.queries[view].schema)
    flow = checked.graph.datasets[view].flows[0].name
    return Baseline(flow=flow, query=view_fingerprint(checked, view), columns=columns)
