"""The queries, what each reads and in which form it is told, and the same query in plain DuckDB over all events at once.

``pipelines/`` holds the definitions and ``reference/`` the plain queries, by table. Windows that are open at the end have no row
yet, so a reference leaves them out: it may ask the view ``marks`` where the watermark of each kind of event is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from benchmarks.nexmark.generator import SCHEMAS, ddl

__all__ = ["QUERIES", "Query", "difference", "open_events"]

HERE: Final = Path(__file__).parent
DELAY: Final = "INTERVAL 4 SECONDS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query.

    Attributes:
        form: What kind of tables answer it.
        reads: Kinds of events that it reads.
        stores: Whether views read these from tables, and not the operators from the files.
        tables: Tables that have a reference, if not just the query's own.
    """

    form: str
    reads: tuple[str, ...] = ("bid",)
    stores: bool = False
    tables: tuple[str, ...] = ()


_STATELESS, _VIEW = "stateless", "view"
_BOTH: Final = ("auction", "bid")
QUERIES: Final = {
    "q0": Query(form=_STATELESS),
    "q1": Query(form=_STATELESS),
    "q2": Query(form=_STATELESS),
    "q3": Query(form="view: join", reads=("auction", "person"), stores=True),
    "q4": Query(form="view: join, groups of groups", reads=_BOTH, stores=True),
    "q5": Query(form="sliding window, then view"),
    "q6": Query(form="view: join, window function", reads=_BOTH, stores=True),
    "q7": Query(form="tumbling window, then join of streams"),
    "q8": Query(form="tumbling windows, then join of streams", reads=("auction", "person")),
    "q9": Query(form="view: join, window function", reads=_BOTH, stores=True),
    "q10": Query(form="stateless, partitioned"),
    "q11": Query(form="session window"),
    "q12": Query(form="tumbling window, updated", tables=("q12_seen", "q12")),
    "q13": Query(form="join with a table"),
    "q14": Query(form=_STATELESS),
    "q15": Query(form="groups, updated"),
    "q16": Query(form="groups, updated"),
    "q17": Query(form="groups, updated"),
    "q18": Query(form="AUTO CDC"),
    "q19": Query(form="view: window function", stores=True),
    "q20": Query(form="view: join", reads=_BOTH, stores=True),
    "q21": Query(form=_STATELESS),
    "q22": Query(form=_STATELESS),
}


def libraries(names: Sequence[str]) -> list[str]:
    """Return the files that define some queries."""
    stored = sorted({kind for name in names if QUERIES[name].stores for kind in QUERIES[name].reads})
    files = [next((HERE / "pipelines").glob(f"{name}.*")) for name in names]
    return [str(path) for path in (*(HERE / "pipelines" / f"{kind}.sql" for kind in stored), *files)]


def open_events(data: Path, form: str) -> duckdb.DuckDBPyConnection:
    """Return a session with each kind of event as a view, and ``marks``."""
    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    for kind in SCHEMAS:
        typed = [column.split() for column in ddl(kind).replace("TIMESTAMP", "TIMESTAMPTZ").split(", ")]
        columns = ", ".join(f'CAST("{name}" AS {type_}) AS "{name}"' for name, type_ in typed)
        session.execute(f"CREATE TABLE {kind} AS SELECT {columns} FROM read_{form}('{data}/{kind}/*.{form}')")
    marks = ", ".join(
        f'(SELECT max("dateTime") - {DELAY} FROM {kind}) AS {kind}' for kind in ("person", "auction", "bid")
    )
    session.execute(f"CREATE VIEW marks AS SELECT {marks}")
    return session


def difference(session: duckdb.DuckDBPyConnection, query: str, lake: Path) -> tuple[int, int, int]:
    """Compare a query's tables with their references, row for row as multisets, every value exactly.

    Returns:
        Rows that the tables hold, rows that they lack, and rows too many.
    """
    from deltalake import DeltaTable

    rows = missing = extra = 0
    for table in QUERIES[query].tables or (query,):
        session.register("stored", DeltaTable(lake / "tables" / "default" / table).to_pyarrow_table())
        session.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS FROM stored")
        session.execute(f"CREATE OR REPLACE TEMP TABLE expected AS {(HERE / 'reference' / f'{table}.sql').read_text()}")
        columns = ", ".join(f'"{row[0]}"' for row in session.sql("DESCRIBE expected").fetchall())
        found = f"SELECT {columns} FROM {table}"
        wanted = f"SELECT {columns} FROM expected"
        ((rows, lacking, surplus),) = session.sql(
            f"SELECT (SELECT count(*) FROM {table}), (SELECT count(*) FROM ({wanted} EXCEPT ALL {found})), "
            f"(SELECT count(*) FROM ({found} EXCEPT ALL {wanted}))"
        ).fetchall()
        missing, extra = missing + lacking, extra + surplus
    return rows, missing, extra
