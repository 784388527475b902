"""The law of materialized views: after any changes of its inputs, an incremental refresh leaves what a full one would."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.property.view_lab import A, B, ViewLab

QUERIES = {
    "projection": "SELECT id, x * 2 AS y, s FROM a WHERE x % 3 <> 0",
    "star": "SELECT * FROM a",
    "grouped": "SELECT k, count(*) AS n, sum(x) AS sx, min(x) AS lo, max(d) AS hi, count(x) AS nx FROM a GROUP BY k",
    "grouped_more": "SELECT s, sum(d) AS sd, avg(x) AS ax, count(DISTINCT k) AS ck, bool_or(x > 3) AS bo FROM a GROUP BY ALL "
    "HAVING count(*) > 1",
    "filtered_count": "SELECT k, count(*) FILTER (WHERE x > 2) AS n, sum(x) FILTER (WHERE s = 'p') AS sx FROM a GROUP BY k",
    "everything": "SELECT count(*) AS n, sum(x) AS sx, max(s) AS hi FROM a",
    "inner_join": "SELECT a.id, b.name FROM a JOIN b ON a.k = b.k",
    "left_join": "SELECT a.id, a.d, b.name FROM a LEFT JOIN b USING (k)",
    "right_join": "SELECT a.id, b.name FROM a RIGHT JOIN b ON a.k = b.k AND a.x > 1",
    "full_join": "SELECT a.id, b.name, a.k FROM a FULL JOIN b ON a.k = b.k AND a.x > 1",
    "semi_join": "SELECT * FROM a SEMI JOIN b ON a.k = b.k",
    "anti_join": "SELECT id, d FROM a ANTI JOIN b ON a.k = b.k",
    "self_join": "SELECT l.id, r.id AS other FROM a l LEFT JOIN a r ON l.k = r.x",
    "joined_groups": "SELECT b.name, count(*) AS n, sum(a.x) AS sx FROM a LEFT JOIN b ON a.k = b.k GROUP BY b.name",
    "three": "SELECT a.id, b.name, c.n FROM a LEFT JOIN b ON a.k = b.k "
    "JOIN (SELECT s, count(*) AS n FROM a GROUP BY s) c ON c.s = a.s",
    "union_all": "SELECT id, s FROM a UNION ALL SELECT k, name FROM b",
    "union_distinct": "SELECT k FROM a UNION SELECT k FROM b",
    "distinct_rows": "SELECT DISTINCT k, s FROM a",
    "windows": "SELECT id, k, row_number() OVER (PARTITION BY k ORDER BY x, id, d, s) AS rn, "
    "sum(x) OVER (PARTITION BY k) AS t FROM a",
    "latest": "SELECT k, x FROM a QUALIFY row_number() OVER (PARTITION BY k ORDER BY x DESC) = 1",
    "hidden_key": "SELECT count(*) AS n FROM a GROUP BY k",
    "groups_of_groups": "WITH t AS (SELECT k, s, sum(x) AS sx FROM a GROUP BY k, s) "
    "SELECT k, max(sx) AS m, count(*) AS n FROM t WHERE sx > 2 GROUP BY k",
    "groups_of_doubles": "WITH t AS (SELECT k, sum(d) AS sd FROM a GROUP BY k) "
    "SELECT t.k, round(sd, 3) AS sd, name FROM t JOIN b ON b.k = t.k",
}
_SMALL = st.one_of(st.none(), st.integers(0, 4))
_ROW_A = st.fixed_dictionaries(
    {
        "id": st.integers(0, 9),
        "k": _SMALL,
        "x": _SMALL,
        "d": st.one_of(st.none(), st.integers(-8, 8).map(lambda n: n / 4)),
        "s": st.sampled_from(["p", "q", None]),
    }
)
_ROW_B = st.fixed_dictionaries({"k": _SMALL, "name": st.sampled_from(["u", "v", None])})
_ROWS = {"a": st.lists(_ROW_A, max_size=6), "b": st.lists(_ROW_B, max_size=4)}
_PREDICATES = ("k = 1", "k IS NULL", "k > 1", "k = 0 OR k = 3")


@st.composite
def _change(draw: st.DrawFn) -> tuple[str, str, Any]:
    table = draw(st.sampled_from(["a", "a", "b"]))
    kind = draw(st.sampled_from(["append", "append", "delete", "update", "widen", "compact"]))
    if kind in ("append", "widen"):
        return kind, table, draw(_ROWS[table])
    return kind, table, draw(st.sampled_from(_PREDICATES))


_VIEWS = st.lists(st.sampled_from(sorted(QUERIES)), min_size=4, max_size=4, unique=True)


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    a=_ROWS["a"], b=_ROWS["b"], rounds=st.lists(st.lists(_change(), max_size=3), min_size=2, max_size=3), views=_VIEWS
)
def test_p02_an_incremental_refresh_leaves_what_a_full_one_would(
    a: list[Any], b: list[Any], rounds: list[list[tuple[str, str, Any]]], views: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = ViewLab(Path(folder), {view: QUERIES[view] for view in views})
        checked = lab.reset(pa.Table.from_pylist(a, A), pa.Table.from_pylist(b, B))
        for changes in [[], *rounds]:
            for number, change in enumerate(changes):
                _apply(lab, number, *change)
            if any(kind == "widen" for kind, _, _ in changes):
                checked = lab.define()
            for view in views:
                facts = lab.refresh(checked, view)
                assert lab.held(view) == lab.expected(view), (view, facts)
                if changes and facts is not None and view != "star":
                    assert facts["mode"] == "INCREMENTAL", (view, facts)


def _apply(lab: ViewLab, number: int, kind: str, table: str, what: Any) -> None:
    handle = lab.input(table)
    if kind == "delete":
        handle.delete(what)
    elif kind == "update":
        handle.update(predicate=what, updates={"k": "2"})
    elif kind == "compact":
        handle.optimize.compact()
    elif what:
        schema = A if table == "a" else B
        rows = pa.Table.from_pylist(what, schema)
        if kind == "widen":
            rows = rows.append_column(f"more_{number}", pa.array(range(len(rows)), pa.int64()))
        lacking = [f for f in pa.schema(handle.schema().to_arrow()) if f.name not in rows.column_names]
        for item in lacking:
            rows = rows.append_column(item, pa.nulls(len(rows), item.type))
        write_deltalake(handle, rows, mode="append", schema_mode="merge")
