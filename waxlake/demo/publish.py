"""The demo's outside world: flights as JSON events on a topic, weather and reference files in a folder.

A process of its own: ``python -m waxlake.demo.publish --help``. It writes one line of JSON for every portion of the data.

A stream-static join sees the weather that is stored when a flight is joined. So weather lands some portions ahead of its
flights, and with ``--weather-table`` flights are held back until that table has had their weather for a while.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyarrow import csv

from waxlake.demo.data import FAST, FULL, FlightData, Schedule, load_data
from waxlake.demo.stored import stored_rows
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError

__all__ = ["PARTITIONS", "TOPIC", "Portion", "create_topic", "json_events", "land_reference_files", "main", "portions"]

TOPIC = "flights"
PARTITIONS = 4
_SETTLE_S = 2.0  # a static table is looked at anew after a second at the latest
_POLL_S = 0.1
_FLUSH_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """The flights and the weather of one span of time."""

    name: str
    flights: pa.Table
    weather: pa.Table


def portions(data: FlightData, schedule: Schedule) -> list[Portion]:
    """Return the data in portions, in the order of time; together they hold every row once."""
    hours = [pc.min_max(table["time_hour"]) for table in (data.flights, data.weather)]
    start = min(hour["min"].as_py() for hour in hours).replace(hour=0)
    last = max(hour["max"].as_py() for hour in hours)
    found = []
    while start <= last:
        end = start + schedule.portion
        is_in = (pc.field("time_hour") >= pa.scalar(start)) & (pc.field("time_hour") < pa.scalar(end))
        found.append(
            Portion(name=f"{start:%Y-%m-%d}", flights=data.flights.filter(is_in), weather=data.weather.filter(is_in))
        )
        start = end
    return found


def json_events(flights: pa.Table) -> tuple[list[bytes], list[bytes]]:
    """Return (keys, values) of the events: the flight's designator, such as UA1545, and its row as a JSON object."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("flights", flights)
        events = connection.sql("""
            SELECT (carrier || flight)::BLOB AS key, to_json(event)::VARCHAR::BLOB AS value
            FROM (SELECT * REPLACE (strftime(time_hour, '%Y-%m-%dT%H:%M:%SZ') AS time_hour) FROM flights) AS event
        """).to_arrow_table()
    return events["key"].to_pylist(), events["value"].to_pylist()


def create_topic(bootstrap_servers: str) -> None:
    """Create the topic. Does nothing when it is there.

    Raises:
        TerminalError: The broker refuses it (``DEMO_TOPIC_FAILED``). Not retryable.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for created in admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]).values():
        try:
            created.result(timeout=30)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TerminalError(
                    f"cannot create topic '{TOPIC}' at {bootstrap_servers}", code="DEMO_TOPIC_FAILED", found=exc.args[0]
                ) from exc


def land_reference_files(data: FlightData, landing: Path) -> None:
    """Write airlines as JSON lines, airports as CSV, planes as Parquet. Does nothing when they are there."""
    if (landing / "planes.parquet").exists():
        return
    lines = "".join(f"{json.dumps(row)}\n" for row in data.airlines.to_pylist())
    (landing / "airlines.json").write_text(lines, encoding="utf-8")
    csv.write_csv(data.airports, landing / "airports.csv")
    pq.write_table(data.planes, landing / "planes.parquet")


def _land_weather(portion: Portion, landing: Path) -> None:
    """Write one weather file; it appears whole."""
    unfinished = landing / f".weather-{portion.name}.part"
    csv.write_csv(portion.weather, unfinished)
    unfinished.rename(landing / f"weather-{portion.name}.csv")


class _Topic:
    """Publishes batches of events and waits until the broker has them."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,  # a retry must not become a second event: the figures are compared
                "linger.ms": 20,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._failed: KafkaError | None = None

    def publish(self, flights: pa.Table) -> None:
        for key, value in zip(*json_events(flights), strict=True):
            self._producer.produce(TOPIC, value, key, on_delivery=self._note)
        missing = self._producer.flush(_FLUSH_S)
        if missing or self._failed is not None:
            raise TerminalError(
                f"cannot publish to topic '{TOPIC}'",
                code="DEMO_PUBLISH_FAILED",
                found=self._failed or f"{missing} events without an answer after {_FLUSH_S:g} s",
            )

    def _note(self, error: KafkaError | None, message: Message) -> None:
        self._failed = self._failed or error


class _StoredWeather:
    """Tells how long a table has held a number of rows."""

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._reached: list[tuple[int, float]] = []

    def wait_for(self, rows: int) -> None:
        """Return once the table has held so many rows for a while."""
        while not any(held >= rows and time.monotonic() - at_s >= _SETTLE_S for held, at_s in self._reached):
            held = stored_rows(self._location)
            if not self._reached or held > self._reached[-1][0]:
                self._reached.append((held, time.monotonic()))
            time.sleep(_POLL_S)


def publish(
    parts: Sequence[Portion], schedule: Schedule, topic: _Topic, landing: Path, weather: _StoredWeather | None
) -> Iterator[dict[str, int]]:
    """Publish the data portion by portion; yield what has been published so far."""
    landed = flights = rows = 0
    for number, portion in enumerate(parts):
        started_s = time.monotonic()
        for ahead in parts[landed : number + schedule.lead + 1]:
            _land_weather(ahead, landing)
            landed += 1
        rows += portion.weather.num_rows
        if weather is not None:
            weather.wait_for(rows)
        topic.publish(portion.flights)
        flights += portion.flights.num_rows
        yield {"flights": flights, "weather_files": landed}
        time.sleep(max(0.0, started_s + schedule.portion_s - time.monotonic()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish all, then return."""
    parser = argparse.ArgumentParser(prog="python -m waxlake.demo.publish", description=__doc__)
    parser.add_argument("--bootstrap-servers", required=True, help="host:port of the broker")
    parser.add_argument("--landing", required=True, type=Path, help="folder where the files land")
    parser.add_argument(
        "--weather-table", help="Delta table that must hold the weather before its flights are published"
    )
    parser.add_argument("--fast", action="store_true", help="two weeks instead of the year")
    given = parser.parse_args(arguments)
    schedule = FAST if given.fast else FULL
    data = load_data(schedule)
    given.landing.mkdir(parents=True, exist_ok=True)
    land_reference_files(data, given.landing)
    create_topic(given.bootstrap_servers)
    weather = _StoredWeather(TableLocation(given.weather_table)) if given.weather_table else None
    parts = portions(data, schedule)
    for progress in publish(parts, schedule, _Topic(given.bootstrap_servers), given.landing, weather):
        sys.stdout.write(json.dumps(progress) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
