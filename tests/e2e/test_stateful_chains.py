"""Several stateful operators in one flow, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.project import Project
from tests.e2e.test_stateful import row

CHAINS = """
def events():
    return wl.read_files("inbox", format="json", schema="id BIGINT, ts TIMESTAMP, v BIGINT").drop("_rescued_data")

def orders():
    return (wl.read_files("orders", format="json", schema="id BIGINT, at TIMESTAMP, city STRING").drop("_rescued_data")
            .with_watermark("at", "10 minutes"))

@wl.temporary_view
@wl.expect_or_drop("positive", "v > 0")
def unique():
    return events().drop_duplicates(["id", "v"])

@wl.table
def per_hour():
    return (wl.read_stream("unique").with_watermark("ts", "10 minutes", late="quarantine")
            .group_by("id", window=wl.tumbling("ts", "1 hour")).agg(n="count(*)"))

@wl.table
def per_city():
    return (events().with_watermark("ts", "10 minutes")
            .join(orders(), on="id", within=("5 minutes", "15 minutes"))
            .with_columns(place="upper(city)")
            .group_by("place", window=wl.tumbling("ts", "1 hour")).agg(n="count(*)", total="sum(v)")
            .group_by(window=wl.tumbling("window_end", "1 hour")).agg(best="arg_max(place, total)"))
"""


def test_p81_p82_p84_operators_one_after_the_other(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.define(CHAINS)
    project.land("1.json", row(1, 5), row(1, 6), row(1, 7, 2), row(2, 8), row(3, 9, 0))
    project.land("1.json", *({"id": i, "at": "2024-05-01 10:12:00", "city": c} for i, c in ((1, "Oslo"), (2, "Rome"))),
                 folder="orders")  # fmt: skip
    project.run()
    assert project.rows("per_hour") == []
    project.land("2.json", row(2, 10), row(9, 300))
    project.land("2.json", {"id": 9, "at": "2024-05-01 15:00:00", "city": "Bern"}, folder="orders")
    project.run()
    assert project.rows("per_hour", "id", "n") == [(1, 2), (2, 1)]
    assert project.rows("per_city", "best") == ["OSLO"]
    project.land("3.json", row(5, 20), row(9, 700))
    project.run("--workers", "2")
    assert project.rows("per_hour_quarantine", "id", "_failed_rules") == [(5, ["late"])]
    assert project.rows("per_hour", "id", "n") == [(1, 2), (2, 1), (9, 1)]
    shown = json.loads(project.waxlake("state", "per_hour", "--json", "-n", "9").succeeded().out)
    assert shown["operator"]["operator"] == "drop_duplicates > aggregate"
    assert {name: table["rows"] for name, table in shown["tables"].items()} == {"1_keys": 6, "2_groups": 0}
    project.define(CHAINS.replace('["id", "v"]', '["id"]'))
    project.waxlake("run").refused("STATE_SHAPE_CHANGED", "step 1", "--full-refresh per_hour")


REFUSED = """
@wl.table
def out():
    return {query}

def events():
    return wl.read_files("inbox", format="json", schema="id BIGINT, ts TIMESTAMP, v BIGINT").drop("_rescued_data")

def others():
    return wl.read_files("others", format="json", schema="id BIGINT, at TIMESTAMP").drop("_rescued_data").with_watermark("at", 0)

def same(rows, state):
    return rows, state
"""


def test_p81_chains_that_cannot_work_say_what_to_write(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.land("1.json", row(1, 5))
    for query, said in (
        ('events().group_by("id").agg(n="count(*)").drop_duplicates("n")', "update mode"),
        (
            'events().with_watermark("ts", 0).drop_duplicates("id").join(others(), on="id", within="1 hour")',
            "join with wl.read_stream",
        ),
        (
            'events().with_watermark("ts", 0).map_with_state(same, keys="id", schema="id BIGINT, ts TIMESTAMP", '
            'state_schema="n BIGINT").with_watermark("ts", 0).drop_duplicates("id", within="1 hour")',
            "wl.read_stream",
        ),
    ):
        project.define(REFUSED.format(query=query))
        project.waxlake("dry-run").refused("STATEFUL_CHAIN", "definitions.py:", said)


SQL = """
CREATE TEMPORARY VIEW clean AS SELECT DISTINCT * FROM STREAM read_files('inbox', format => 'json',
    schema => 'id BIGINT, ts TIMESTAMP, v BIGINT, k STRING') WATERMARK ts DELAY OF INTERVAL 10 MINUTES;
CREATE OR REFRESH STREAMING TABLE per_hour AS SELECT k, window.start AS hour, sum(v) AS total
    FROM STREAM(clean) WATERMARK ts DELAY OF INTERVAL 0 MINUTES GROUP BY k, window(ts, '1 hour');
CREATE OR REFRESH STREAMING TABLE first_of AS SELECT DISTINCT ON (k) k, v FROM STREAM read_files('inbox', format => 'json',
    schema => 'id BIGINT, ts TIMESTAMP, v BIGINT, k STRING');
CREATE OR REFRESH STREAMING TABLE bought AS SELECT e.id, e.v, o.*
    FROM STREAM read_files('inbox', format => 'json', schema => 'id BIGINT, ts TIMESTAMP, v BIGINT, k STRING')
        WATERMARK ts DELAY OF INTERVAL 10 MINUTES AS e
    LEFT JOIN STREAM read_files('orders', format => 'json', schema => 'user BIGINT, at TIMESTAMP, city STRING')
        WATERMARK at DELAY OF INTERVAL 10 MINUTES AS o
    ON e.id = o.user AND o."at" BETWEEN e.ts - INTERVAL 5 MINUTES AND e.ts + INTERVAL 15 MINUTES
    WHERE e.v > 0;
CREATE OR REFRESH STREAMING TABLE cities AS SELECT o.city, window.start AS hour, sum(e.v) AS total
    FROM STREAM read_files('inbox', format => 'json', schema => 'id BIGINT, ts TIMESTAMP, v BIGINT, k STRING')
        WATERMARK ts DELAY OF INTERVAL 10 MINUTES AS e
    JOIN STREAM read_files('orders', format => 'json', schema => 'user BIGINT, at TIMESTAMP, city STRING')
        WATERMARK at DELAY OF INTERVAL 10 MINUTES AS o
    ON e.id = o.user AND o."at" BETWEEN e.ts - INTERVAL 5 MINUTES AND e.ts + INTERVAL 15 MINUTES
    GROUP BY o.city, window(e.ts, '1 hour');
"""


def test_p80_p82_p84_w11_the_same_in_sql(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("flows/definitions.sql", SQL)
    project.land("1.json", *(row(i, m, v) | {"k": k} for i, m, v, k in ((1, 5, 1, "a"), (1, 5, 1, "a"), (2, 6, 2, "a"),
                                                                       (3, 7, 0, "b"), (4, 30, 4, "c"))))  # fmt: skip
    project.land("1.json", *({"user": i, "at": f"2024-05-01 10:{m}:00", "city": c} for i, m, c in
                             ((1, 19, "Oslo"), (2, 22, "Rome"), (3, "07", "Bern"), (4, 26, "Oslo"))),
                 folder="orders")  # fmt: skip
    project.run()
    project.land("2.json", row(9, 700) | {"k": "z"})
    project.land("2.json", {"user": 9, "at": "2024-05-02 15:00:00", "city": "Riga"}, folder="orders")
    project.run()
    assert project.rows("per_hour", "k", "total") == [("a", 3), ("b", 0), ("c", 4)]
    assert project.rows("first_of", "k", "v") == [("a", 1), ("b", 0), ("c", 4), ("z", 1)]
    assert project.rows("bought", "id", "v", "user", "city") == [
        (1, 1, 1, "Oslo"), (1, 1, 1, "Oslo"), (2, 2, None, None), (4, 4, 4, "Oslo")
    ]  # fmt: skip
    assert project.rows("cities", "city", "total") == [("Bern", 0), ("Oslo", 6)]
