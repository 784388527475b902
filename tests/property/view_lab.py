"""Materialized views over two Delta tables, refreshed one by one without a dataflow, and DuckDB over the same rows."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from sinks.delta import DeltaTarget
from sinks.delta.refreshing import RefreshSink
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.table_setup import prepare_tables
from waxlake.stream.position import app_id
from waxlake.stream.source import plan_partitions

A = pa.schema([("id", pa.int64()), ("k", pa.int64()), ("x", pa.int64()), ("d", pa.float64()), ("s", pa.string())])
B = pa.schema([("k", pa.int64()), ("name", pa.string())])


class ViewLab:
    """A pipeline of views over tables ``a`` and ``b``.

    Args:
        folder: Where everything lies.
        queries: View name to its query over ``a`` and ``b``.
        policy: Refresh policy of all views.
        decorators: View name to further decorators, as text.
    """

    def __init__(
        self,
        folder: Path,
        queries: Mapping[str, str],
        policy: str = "incremental",
        decorators: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.queries, self.policy = folder, dict(queries), policy
        self.decorators = dict(decorators or {})
        (folder / "flows").mkdir(parents=True, exist_ok=True)
        (folder / "waxlake.yml").write_text(
            '{"name": "views", "storage": "./lake", "libraries": [{"glob": {"include": "flows/d.py"}}]}'
        )

    def define(self) -> CheckedGraph:
        """Write the definitions and compile them."""
        text = "import waxlake as wl\n"
        for name in ("a", "b"):
            text += f"@wl.temporary_view\ndef {name}():\n    return wl.read({self.path(name)!r})\n"
        for view, query in self.queries.items():
            text += f"@wl.materialized_view(refresh_policy={self.policy!r})\n{self.decorators.get(view, '')}"
            text += f"def {view}():\n    return wl.sql({query!r})\n"
        (self.folder / "flows" / "d.py").write_text(text)
        checked = check_graph(load_graph(load_spec(self.folder)))
        prepare_tables(checked)
        return checked

    def reset(self, a: pa.Table, b: pa.Table) -> CheckedGraph:
        """Start with other inputs and empty views."""
        for name, rows in (("a", a), ("b", b)):
            self.reset_input(name, rows)
        shutil.rmtree(self.folder / "lake", ignore_errors=True)
        return self.define()

    def reset_input(self, name: str, rows: pa.Table) -> None:
        """Drop an input and create it anew."""
        shutil.rmtree(self.path(name), ignore_errors=True)
        write_deltalake(self.path(name), rows)

    def path(self, name: str) -> str:
        """Return where an input lies."""
        return str(self.folder / name)

    def input(self, name: str) -> DeltaTable:
        """Return an input."""
        return DeltaTable(self.path(name))

    def table(self, view: str) -> DeltaTable:
        """Return the table of a view."""
        return DeltaTable(str(self.folder / "lake" / "tables" / "default" / view))

    def refresh(self, checked: CheckedGraph, view: str) -> dict[str, Any] | None:
        """Refresh one view, and return what its commit says of that; None if there was nothing to do."""
        part = next(part for part in checked.flows if part.flow.target == view)
        location = checked.graph.datasets[view].location
        assert location is not None
        state = part.connector.inspect()
        handle = location.open()
        stored = {
            p: v
            for p in state.partitions
            if (v := handle.transaction_version(app_id(view, state.identity, p))) is not None
        }
        plan = plan_partitions(state, [stored], takes=[part.takes], on_data_loss="skip", is_bounded=True)
        reader = part.connector.reader(plan, tuple(plan.partitions), frozenset())
        sink = RefreshSink(target=DeltaTarget(location=location, replaces=True), flow=view)
        writer = sink.build_part("write", "table", None)
        batches = reader.read()
        for batch in batches:
            outcome = part.transform.apply(batch.table, lambda name: None)
            writer.write_batch(
                [batch.with_rows(outcome.table, rules=outcome.rules, dropped=outcome.dropped, is_last=True)]
            )
        writer.snapshot()
        if not batches:
            return None
        entry = self.table(view).history(1)[0]
        facts: dict[str, Any] = entry["waxlake"]["flows"][view]["refresh"]
        return facts

    def expected(self, view: str) -> Counter[tuple[Any, ...]]:
        """Return the rows that a view is to have."""
        return self.run(self.queries[view])

    def run(self, query: str) -> Counter[tuple[Any, ...]]:
        """Return the rows of a query over the inputs as they are."""
        with duckdb.connect() as connection:
            for name in ("a", "b"):
                connection.register(name, self.input(name).to_pyarrow_table())
            return counted(connection.sql(query).to_arrow_table())

    def held(self, view: str) -> Counter[tuple[Any, ...]]:
        """Return the rows that a view has."""
        return counted(self.table(view).to_pyarrow_table())


def counted(table: pa.Table) -> Counter[tuple[Any, ...]]:
    """Return how often each row is in a table."""
    return Counter(tuple(map(_plain, row.values())) for row in table.to_pylist())


def _plain(value: Any) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(timezone.utc)  # the name of its zone is another in a table than in DuckDB
    return repr(int(value) if isinstance(value, Decimal) else value)  # DuckDB hands a HUGEINT over as a decimal
