"""An aggregate view over ten million rows, refreshed after ten thousand new ones: incrementally, and in full, in one run.

Both refreshes do the same to equal tables: read what they need, compute, write, commit. ``--rows`` makes it smaller;
``--groups`` says how many groups there are. New rows are of the last days, as they come in life; a file holds ten days.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from sinks.delta import DeltaTarget
from sinks.delta.refreshing import RefreshSink
from waxlake.pipeline.check import check_graph
from waxlake.pipeline.checked import CheckedGraph
from waxlake.pipeline.resolve import load_graph
from waxlake.pipeline.spec import load_spec
from waxlake.pipeline.table_setup import prepare_tables
from waxlake.stream.position import app_id
from waxlake.stream.source import plan_partitions

NEW_ROWS = 10_000
FILES = 40
QUERIES = {
    "additive": "SELECT customer, count(*) AS n, sum(cents) AS cents, min(cents) AS least, max(day) AS last "
    "FROM orders GROUP BY customer",
    "averages": "SELECT day, count(*) AS n, avg(cents) AS mean, count(DISTINCT customer) AS customers FROM orders GROUP BY day",
    "filtered": "SELECT customer, day, cents / 100 AS amount FROM orders WHERE cents % 10 = 0",
}
DEFINITIONS = """
import waxlake as wl

@wl.temporary_view
def orders():
    return wl.read({path!r})
"""


def rows(count: int, groups: int, seed: int, days: tuple[int, int]) -> pa.Table:
    """Return orders of customers drawn at random, and of some days."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "customer": random.integers(0, groups, count),
            "cents": random.integers(1, 100_000, count),
            "day": random.integers(*days, count).astype("int32"),
            "note": pa.array(random.integers(0, 1 << 40, count)).cast(pa.string()),
        }
    )


def define(folder: Path) -> CheckedGraph:
    """Return each query as a view that is refreshed incrementally, and one that is not."""
    text = DEFINITIONS.format(path=str(folder / "orders"))
    for name, query in QUERIES.items():
        for policy in ("incremental", "full"):
            text += f"\n@wl.materialized_view(refresh_policy={policy!r})\ndef {name}_{policy}():\n    return wl.sql({query!r})\n"
    (folder / "flows").mkdir()
    (folder / "flows" / "views.py").write_text(text)
    (folder / "waxlake.yml").write_text(
        '{"name": "views", "storage": "./lake", "libraries": [{"glob": {"include": "flows/views.py"}}]}'
    )
    checked = check_graph(load_graph(load_spec(folder)))
    prepare_tables(checked)
    return checked


def refresh(checked: CheckedGraph, view: str) -> float:
    """Refresh a view and return the seconds it took."""
    started_s = time.perf_counter()
    part = next(part for part in checked.flows if part.flow.target == view)
    location = checked.graph.datasets[view].location
    assert location is not None
    state, handle = part.connector.inspect(), location.open()
    stored = {
        p: v for p in state.partitions if (v := handle.transaction_version(app_id(view, state.identity, p))) is not None
    }
    plan = plan_partitions(state, [stored], takes=[part.takes], on_data_loss="skip", is_bounded=True)
    reader = part.connector.reader(plan, tuple(plan.partitions), frozenset())
    writer = RefreshSink(target=DeltaTarget(location=location, replaces=True), flow=view).build_part(
        "write", "table", None
    )
    for batch in reader.read():
        made = part.transform.apply(batch.table, lambda name: None)
        writer.write_batch([batch.with_rows(made.table, is_last=True)])
    writer.snapshot()
    return time.perf_counter() - started_s


def main() -> None:
    """Print one line of JSON a query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="waxlake-views-") as name:
        folder = Path(name)
        piece = options.rows // FILES
        for number in range(FILES):
            days = (number * 10, number * 10 + 10)
            write_deltalake(folder / "orders", rows(piece, options.groups, number, days), mode="append")
        checked = define(folder)
        for view in QUERIES:
            for policy in ("incremental", "full"):
                refresh(checked, f"{view}_{policy}")
        times: dict[str, list[float]] = {}
        for number in range(options.repeat):
            write_deltalake(
                folder / "orders", rows(NEW_ROWS, options.groups, FILES + number, (395, 400)), mode="append"
            )
            for view in QUERIES:
                for policy in ("incremental", "full"):
                    times.setdefault(f"{view}_{policy}", []).append(refresh(checked, f"{view}_{policy}"))
        for view in QUERIES:
            fast, slow = min(times[f"{view}_incremental"]), min(times[f"{view}_full"])
            told = {"view": view, "rows": options.rows, "new_rows": NEW_ROWS, "groups": options.groups}
            print(json.dumps({**told, "incremental_s": fast, "full_s": slow, "ratio": slow / fast}))


if __name__ == "__main__":
    main()
