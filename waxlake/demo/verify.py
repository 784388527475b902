"""Compare the demo's tables with the data set, which is read anew from its own files and queried directly.

Nothing here knows the pipeline's definitions: what its tables must hold is worked out a second time, in SQL over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from waxlake.demo.alerts import ALERT_DELAY
from waxlake.demo.data import FlightData
from waxlake.demo.database import ALLIANCES
from waxlake.pipeline.spec import Spec
from waxlake.pipeline.status import TableStatus
from waxlake.stream.delta_table import delta_errors

__all__ = ["Check", "check_rules", "check_tables"]

# Table: (its columns, the query over the data set that gives the same rows).
_EXPECTED = {
    "bronze.flights": ("* EXCLUDE (_rescued_data, _partition, _offset)", "FROM flights"),
    "bronze.weather": ("* EXCLUDE (_rescued_data)", "FROM weather"),
    "bronze.airports": ("* EXCLUDE (_rescued_data)", "FROM airports"),
    "silver.flights": (
        "time_hour, carrier, flight, origin, dest, dep_delay, arr_delay, tailnum, seats",
        """
        SELECT time_hour, carrier, flight, origin, dest, dep_delay, arr_delay, tailnum, seats
        FROM flown LEFT JOIN planes USING (tailnum)
        """,
    ),
    "silver.flights_quarantine": (
        "time_hour, carrier, flight, dep_delay",
        "SELECT time_hour, carrier, flight, dep_delay FROM flights WHERE dep_delay > 900",
    ),
    "silver.flights_weather": (
        "time_hour, carrier, flight, origin, temp, wind_speed, precip, visib",
        """
        SELECT time_hour, carrier, flight, origin, temp, wind_speed, precip, visib
        FROM flown LEFT JOIN weather USING (origin, time_hour)
        """,
    ),
    "gold.delay_by_carrier": (
        "month, carrier, airline, flights, mean_delay, late_flights",
        """
        SELECT flown.month, carrier, airlines.name, count(*), round(avg(dep_delay), 1), count_if(dep_delay > 15)
        FROM flown JOIN airlines USING (carrier) GROUP BY ALL
        """,
    ),
    "gold.delay_by_airport": (
        "dest, airport, lat, lon, flights, mean_delay",
        """
        SELECT dest, airports.name, lat, lon, count(*), round(avg(arr_delay), 1)
        FROM flown LEFT JOIN airports ON faa = dest GROUP BY ALL
        """,
    ),
    "gold.delay_by_weather": (
        "origin, conditions, flights, mean_delay, late_flights",
        """
        SELECT origin,
               if(temp IS NULL, 'not reported',
                  if(precip > 0, if(temp <= 32, 'snow', 'rain'),
                     if(visib < 3, 'fog', if(wind_speed > 20, 'wind', 'calm')))),
               count(*), round(avg(dep_delay), 1), count_if(dep_delay > 15)
        FROM flown LEFT JOIN weather USING (origin, time_hour) GROUP BY ALL
        """,
    ),
}

# What was sent to the topic of alerts, each record once: those of its first flow, and those of one that was added later.
_ALERTS = (
    "kind, flight_date, carrier, flight, origin, dest, dep_delay",
    f"""
    SELECT if(dep_delay > 0, 'late', 'early'), strftime(make_date(year, month, day), '%Y-%m-%d'), carrier, flight, origin, dest,
           dep_delay
    FROM flown WHERE dep_delay > {ALERT_DELAY} OR dep_delay < -15
    """,
)

_FROM_FILES = {
    "bronze.airlines": ("* EXCLUDE (_rescued_data)", "FROM airlines"),
    "bronze.planes": ("* EXCLUDE (_rescued_data)", "FROM planes"),
}
_FROM_DATABASE = {
    "bronze.airlines": ("carrier, name, alliance", "SELECT carrier, name, alliance FROM database_airlines"),
    "bronze.airlines_history": (
        "carrier, name, alliance, __END_AT IS NULL",
        """
        SELECT carrier, name, alliance, n = max(n) OVER (PARTITION BY carrier) FROM (
            SELECT carrier, NULL AS alliance, 0 AS n FROM airlines UNION ALL FROM joined
        ) JOIN airlines USING (carrier)
        """,
    ),
    "bronze.planes": (
        "tailnum, year, type, manufacturer, model, engines, seats, speed, engine",
        "SELECT tailnum, year, type, manufacturer, model, engines, seats, speed, engine FROM database_planes",
    ),
}

# Rule of silver.flights: the rows of the data set that break it. Those with long delays were judged twice: as they came, and when
# they were replayed with a higher limit.
_BROKEN = {
    "aircraft_is_known": "FROM judged ANTI JOIN planes USING (tailnum)",
    "has_departed": "FROM judged WHERE dep_time IS NULL",
    "delay_is_credible": "FROM judged WHERE dep_delay > if(is_replayed, 900, 600)",
    "left_new_york": "FROM judged WHERE NOT (origin = 'EWR' OR origin = 'JFK' OR origin = 'LGA')",
}

_DIFFERENT = """
SELECT sum(abs(surplus)) FROM (
    SELECT * EXCLUDE (_sign), sum(_sign) AS surplus
    FROM (SELECT *, 1 AS _sign FROM found UNION ALL SELECT *, -1 FROM expected)
    GROUP BY ALL
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: what was compared, what was found, what the data set says."""

    what: str
    found: int
    expected: int

    @property
    def is_ok(self) -> bool:
        """Whether they are equal."""
        return self.found == self.expected


def check_tables(spec: Spec, data: FlightData) -> list[Check]:
    """Compare the rows of every table with the data set, and the places of the events with the topic's.

    Raises:
        ExternalError: A table cannot be read.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        _register_data(connection, data)
        expected = {**_EXPECTED, **(_FROM_DATABASE if _register_database(connection, spec) else _FROM_FILES)}
        connection.register(_alias("delay_alerts"), pq.read_table(spec.folder / "alerts.parquet"))
        for name in expected:
            with delta_errors(f"read table '{name}'"):
                connection.register(_alias(name), spec.table_location(name).open().to_pyarrow_table())
        expected["delay_alerts"] = _ALERTS
        return [*_check_places(connection, data.flights), *_check_rows(connection, expected)]


def check_rules(table: TableStatus, data: FlightData) -> list[Check]:
    """Compare what the rules of silver.flights counted, as its commits tell, with the data set.

    Args:
        table: Status of ``silver.flights``.
        data: What was published.
    """
    total = data.flights.num_rows
    counted = {rule.rule: rule for rule in table.rules}
    checks = [
        Check(
            what="silver.flights + dropped + quarantined = events",
            found=(table.rows or 0) + table.dropped + table.quarantined,
            expected=total,
        )
    ]
    with duckdb.connect() as connection:
        _register_data(connection, data)
        judged = _one(connection, "SELECT count(*) FROM judged")
        for name, query in _BROKEN.items():
            rule = counted.get(name)
            broken = _one(connection, f"SELECT count(*) {query}")
            checks += [
                Check(what=f"rows judged by {name}", found=rule.passed + rule.failed if rule else 0, expected=judged),
                Check(what=f"rows that broke {name}", found=rule.failed if rule else 0, expected=broken),
            ]
    return checks


def _register_data(connection: duckdb.DuckDBPyConnection, data: FlightData) -> None:
    tables: Mapping[str, pa.Table] = {
        "flights": data.flights,
        "weather": data.weather,
        "airlines": data.airlines,
        "airports": data.airports,
        "planes": data.planes,
    }
    for name, table in tables.items():
        connection.register(name, table)
    connection.execute("CREATE TEMP VIEW flown AS FROM flights WHERE dep_time IS NOT NULL AND dep_delay <= 900")
    connection.execute(
        "CREATE TEMP VIEW judged AS SELECT *, false AS is_replayed FROM flights "
        "UNION ALL SELECT *, true FROM flights WHERE dep_delay > 600"
    )


def _register_database(connection: duckdb.DuckDBPyConnection, spec: Spec) -> bool:
    """Register the tables of the database as they were at the end; return whether there was one."""
    folder = spec.folder / "database"
    if not folder.exists():
        return False
    for name in ("airlines", "planes"):
        connection.register(f"database_{name}", pq.read_table(folder / f"{name}.parquet"))
    rows = [{"carrier": carrier, "alliance": name, "n": n} for n, (carrier, name) in enumerate(ALLIANCES, 1)]
    connection.register("joined", pa.Table.from_pylist(rows))
    return True


def _check_places(connection: duckdb.DuckDBPyConnection, flights: pa.Table) -> Iterator[Check]:
    table, total = _alias("bronze.flights"), flights.num_rows
    yield Check(
        what="events in bronze.flights, by (partition, offset)",
        found=_one(connection, f"SELECT count(DISTINCT (_partition, _offset)) FROM {table}"),
        expected=total,
    )
    yield Check(
        what="offsets from each partition's first to its last",
        found=_one(connection, f"SELECT sum(n) FROM (SELECT max(_offset) + 1 AS n FROM {table} GROUP BY _partition)"),
        expected=total,
    )


def _check_rows(connection: duckdb.DuckDBPyConnection, expected: Mapping[str, tuple[str, str]]) -> Iterator[Check]:
    for name, (columns, query) in expected.items():
        connection.execute(f"CREATE OR REPLACE TEMP TABLE expected AS {query}")
        connection.execute(f"CREATE OR REPLACE TEMP TABLE found AS SELECT {columns} FROM {_alias(name)}")
        yield Check(
            what=f"rows of {name}",
            found=_one(connection, "SELECT count(*) FROM found"),
            expected=_one(connection, "SELECT count(*) FROM expected"),
        )
        # Each different row, as often as it is in one and not in the other. EXCEPT ALL says the same, ten times slower.
        yield Check(what=f"rows of {name} that differ", found=_one(connection, _DIFFERENT), expected=0)


def _alias(name: str) -> str:
    return f"stored_{name.replace('.', '_')}"


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0] or 0) if row else 0
