"""What the demo publishes: portions, events, files, and what flights wait for."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake
from pyarrow import csv

from waxlake.demo.data import FlightData, Schedule
from waxlake.demo.publish import Holds, json_events, land_reference_files, portions, publish
from waxlake.stream.delta_table import TableLocation

NEW_YEAR = datetime(2013, 1, 1, tzinfo=timezone.utc)
DAILY = Schedule(name="daily", until=None, portion=timedelta(days=1), portion_s=0.0, lead=1)


def hours(*numbers: int) -> pa.Array:
    return pa.array([NEW_YEAR + timedelta(hours=number) for number in numbers], pa.timestamp("us", "UTC"))


def some_data() -> FlightData:
    flights = pa.table(
        {
            "time_hour": hours(5, 23, 24, 80),
            "carrier": ["UA", "AA", "UA", "B6"],
            "flight": [1545, 1, 2, 725],
            "dep_delay": [2, None, -5, 0],
            "tailnum": ["N14228", None, 'N"1', "Ñ2"],
        }
    )
    return FlightData(
        flights=flights,
        weather=pa.table({"time_hour": hours(1, 23, 25, 49, 95), "temp": [39.02, None, 1.5, 2.0, 3.0]}),
        airlines=pa.table({"carrier": ["UA", "B6"], "name": ["United", 'The "Blue" one']}),
        airports=pa.table({"faa": ["EWR"], "name": ["Newark, Liberty"], "lat": [40.69]}),
        planes=pa.table({"tailnum": ["N14228"], "seats": [178]}),
    )


class ListTopic:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.flights: list[int] = []

    def publish(self, flights: pa.Table) -> None:
        self.flights += flights["flight"].to_pylist()


def test_portions_hold_every_row_once_in_order() -> None:
    data = some_data()
    parts = portions(data, DAILY)
    assert [part.name for part in parts] == ["2013-01-01", "2013-01-02", "2013-01-03", "2013-01-04"]
    assert [part.flights.num_rows for part in parts] == [2, 1, 0, 1]
    assert pa.concat_tables(part.flights for part in parts).equals(data.flights)
    assert pa.concat_tables(part.weather for part in parts).equals(data.weather)


def test_an_event_is_the_row_as_json() -> None:
    keys, values = json_events(some_data().flights)
    assert keys == [b"UA1545", b"AA1", b"UA2", b"B6725"]
    assert [json.loads(value) for value in values] == [
        {"time_hour": "2013-01-01T05:00:00Z", "carrier": "UA", "flight": 1545, "dep_delay": 2, "tailnum": "N14228"},
        {"time_hour": "2013-01-01T23:00:00Z", "carrier": "AA", "flight": 1, "dep_delay": None, "tailnum": None},
        {"time_hour": "2013-01-02T00:00:00Z", "carrier": "UA", "flight": 2, "dep_delay": -5, "tailnum": 'N"1'},
        {"time_hour": "2013-01-04T08:00:00Z", "carrier": "B6", "flight": 725, "dep_delay": 0, "tailnum": "Ñ2"},
    ]


def test_reference_files_land_in_three_formats_and_stay(tmp_path: Path) -> None:
    data = some_data()
    land_reference_files(data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    lines = (tmp_path / "airlines.json").read_text().splitlines()
    assert [json.loads(line) for line in lines] == data.airlines.to_pylist()
    assert csv.read_csv(tmp_path / "airports.csv").equals(data.airports)
    assert pq.read_table(tmp_path / "planes.parquet").equals(data.planes)

    land_reference_files(data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_weather_lands_ahead_of_its_flights(tmp_path: Path) -> None:
    topic, landed = ListTopic(), []
    for said in publish(portions(some_data(), DAILY), DAILY, topic, tmp_path, Holds()):
        landed.append(sorted(path.name for path in tmp_path.iterdir()))
        assert len(landed[-1]) == said["weather_files"]
        assert len(topic.flights) == said["flights"]
    assert landed[0] == ["weather-2013-01-01.csv", "weather-2013-01-02.csv"]
    assert len(landed[-1]) == 4
    assert topic.flights == [1545, 1, 2, 725]
    assert csv.read_csv(tmp_path / "weather-2013-01-01.csv")["temp"].to_pylist() == [39.02, None]


def test_flights_wait_until_their_weather_is_stored(tmp_path: Path) -> None:
    table = TableLocation(str(tmp_path / "weather"))
    waiting, done = Holds(weather_table=table), threading.Event()
    write_deltalake(table.uri, pa.table({"temp": [1.0, 2.0]}))
    waiting.wait(weather_rows=2, share=0.0)

    thread = threading.Thread(target=lambda: (waiting.wait(weather_rows=3, share=0.0), done.set()), daemon=True)
    thread.start()
    assert not done.wait(0.5)
    write_deltalake(table.uri, pa.table({"temp": [3.0]}), mode="append")
    assert done.wait(30)


def test_the_last_quarter_waits_for_the_go_file(tmp_path: Path) -> None:
    holds, done = Holds(go_file=tmp_path / "go"), threading.Event()
    holds.wait(weather_rows=0, share=0.74)

    thread = threading.Thread(target=lambda: (holds.wait(weather_rows=0, share=0.75), done.set()), daemon=True)
    thread.start()
    assert not done.wait(0.3)
    (tmp_path / "go").touch()
    assert done.wait(30)
