"""The flights that left New York in 2013: raw in bronze, checked in silver, summed up in gold.

Flights arrive as JSON events on a Kafka topic, weather reports as CSV files in a folder; airports are a reference file, and
airlines and planes follow the tables of a live PostgreSQL (where there is none, they are reference files too). Each function
returns what its table holds; Waxlake finds the order and the rest.
"""

import waxlake as wl


@wl.table("bronze.flights", comment="Flight events as they arrive, each with its place in the topic")
def flight_events() -> wl.Stream:
    return wl.read_kafka(
        "flights",
        bootstrap_servers=wl.conf("bootstrap_servers"),
        format="json",
        schema="""
            year INT, month INT, day INT, dep_time INT, sched_dep_time INT, dep_delay INT, arr_time INT, sched_arr_time INT,
            arr_delay INT, carrier STRING, flight INT, tailnum STRING, origin STRING, dest STRING, air_time INT,
            distance INT, hour INT, minute INT, time_hour TIMESTAMP
        """,
    ).select("*", "_partition", "_offset")


@wl.table("bronze.weather", comment="Hourly weather at the three airports")
def weather_reports() -> wl.Stream:
    return wl.read_files(
        f"{wl.conf('landing')}/weather-*.csv",
        format="csv",
        schema="""
            origin STRING, year INT, month INT, day INT, hour INT, temp DOUBLE, dewp DOUBLE, humid DOUBLE, wind_dir INT,
            wind_speed DOUBLE, wind_gust DOUBLE, precip DOUBLE, pressure DOUBLE, visib DOUBLE, time_hour TIMESTAMP
        """,
        poll_interval_s=0.5,
    )


DATABASE = wl.conf("database", "")
ORDER = ["_commit_position", "_change_index"]
DELETES = "_change_type = 'delete'"

if DATABASE:
    airlines = wl.read_postgres(DATABASE, "public.airlines")
    planes = wl.read_postgres(DATABASE, "public.planes")

    wl.create_streaming_table("bronze.airlines", comment="Airlines as they are now")
    wl.create_auto_cdc_flow("bronze.airlines", airlines, ["carrier"], ORDER, DELETES)

    wl.create_streaming_table("bronze.airlines_history", comment="Airlines as they were: a row for each version")
    wl.create_auto_cdc_flow("bronze.airlines_history", airlines, ["carrier"], ORDER, DELETES, stored_as_scd_type=2)

    wl.create_streaming_table("bronze.planes", comment="Planes as they are now")
    wl.create_auto_cdc_flow("bronze.planes", planes, ["tailnum"], ORDER, DELETES)
else:

    @wl.table("bronze.airlines")
    def airlines_files() -> wl.Stream:
        return wl.read_files(
            f"{wl.conf('landing')}/airlines*.json", format="json", schema="carrier STRING, name STRING"
        )

    @wl.table("bronze.planes")
    def planes_files() -> wl.Stream:
        return wl.read_files(
            f"{wl.conf('landing')}/planes*.parquet",
            format="parquet",
            schema="""
                tailnum STRING, year INT, type STRING, manufacturer STRING, model STRING, engines INT, seats INT, speed INT,
                engine STRING
            """,
        )


@wl.table("bronze.airports")
def airports() -> wl.Stream:
    return wl.read_files(
        f"{wl.conf('landing')}/airports*.csv",
        format="csv",
        schema="faa STRING, name STRING, lat DOUBLE, lon DOUBLE, alt INT, tz INT, dst STRING, tzone STRING",
    )


@wl.table("silver.flights", comment="Flights that took off, with airline and aircraft")
@wl.expect("aircraft_is_known", "seats IS NOT NULL")
@wl.expect_or_drop("has_departed", "dep_time IS NOT NULL")
@wl.expect_or_quarantine("delay_is_credible", f"dep_delay IS NULL OR dep_delay <= {wl.conf('credible_delay', '600')}")
@wl.expect_or_fail("left_new_york", "origin IN ('EWR', 'JFK', 'LGA')")
def checked_flights() -> wl.Stream:
    return wl.read_stream("bronze.flights").sql("""
        SELECT
            make_date(stream.year, stream.month, stream.day) AS flight_date,
            time_hour, carrier, airlines.name AS airline, flight, origin, dest, distance,
            dep_time, dep_delay, arr_time, arr_delay, air_time,
            tailnum, manufacturer, model, seats
        FROM stream
        LEFT JOIN bronze.airlines AS airlines USING (carrier)
        LEFT JOIN bronze.planes AS planes USING (tailnum)
    """)


@wl.table("silver.flights_weather", comment="Flights that took off, with the weather at their airport in that hour")
def flights_in_weather() -> wl.Stream:
    return wl.read_stream("silver.flights").sql("""
        SELECT
            flight_date, time_hour, carrier, flight, origin, dest, dep_delay,
            temp, wind_speed, precip, visib,
            CASE
                WHEN temp IS NULL THEN 'not reported'
                WHEN temp <= 32 AND precip > 0 THEN 'snow'
                WHEN precip > 0 THEN 'rain'
                WHEN visib < 3 THEN 'fog'
                WHEN wind_speed > 20 THEN 'wind'
                ELSE 'calm'
            END AS conditions
        FROM stream
        LEFT JOIN bronze.weather AS weather USING (origin, time_hour)
    """)


@wl.materialized_view("gold.delay_by_carrier", comment="Departure delay in minutes, by airline and month")
def delay_by_carrier() -> wl.Batch:
    return wl.sql("""
        SELECT
            month(flight_date) AS month, carrier, airline,
            count(*) AS flights,
            round(avg(dep_delay), 1) AS mean_delay,
            count(*) FILTER (WHERE dep_delay > 15) AS late_flights
        FROM silver.flights
        GROUP BY ALL
        ORDER BY ALL
    """)


@wl.materialized_view("gold.delay_by_airport", comment="Arrival delay in minutes, by destination")
def delay_by_airport() -> wl.Batch:
    return wl.sql("""
        SELECT
            dest, airports.name AS airport, lat, lon,
            count(*) AS flights,
            round(avg(arr_delay), 1) AS mean_delay
        FROM silver.flights
        LEFT JOIN bronze.airports AS airports ON dest = faa
        GROUP BY ALL
        ORDER BY ALL
    """)


@wl.materialized_view("gold.delay_by_weather", comment="Departure delay in minutes, by airport and weather")
def delay_by_weather() -> wl.Batch:
    return wl.sql("""
        SELECT
            origin, conditions,
            count(*) AS flights,
            round(avg(dep_delay), 1) AS mean_delay,
            count(*) FILTER (WHERE dep_delay > 15) AS late_flights
        FROM silver.flights_weather
        GROUP BY ALL
        ORDER BY ALL
    """)
