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
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # its stubs leave NewTopic out
from pyarrow import csv

from waxlake.demo.data import FAST, FULL, FlightData, Schedule, load_data
from waxlake.demo.stored import stored_rows
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError

__all__ = [
    "PARTITIONS",
    "TOPIC",
    "Holds",
    "Portion",
    "Topic",
    "create_topic",
    "json_events",
    "land_reference_files",
    "main",
    "portions",
    "publish",
]

TOPIC = "flights"
PARTITIONS = 4
_SETTLE_S = 1.5  # a static table is looked at anew after a second at the latest
_HEAD_START_S = 10.0  # without a table to look at, time enough for a running pipeline to store the first files
_POLL_S = 0.1
_LAST_QUARTER = 0.75
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
            SELECT carrier || flight AS key, to_json(event)::VARCHAR AS value
            FROM (SELECT * REPLACE (strftime(time_hour, '%Y-%m-%dT%H:%M:%SZ') AS time_hour) FROM flights) AS event
        """).to_arrow_table()
    return events["key"].cast(pa.binary()).to_pylist(), events["value"].cast(pa.binary()).to_pylist()


def create_topic(bootstrap_servers: str) -> None:
    """Create the topic. Does nothing when it is there.

    Raises:
        TerminalError: The broker refuses it (``DEMO_TOPIC_FAILED``). Not retryable.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    for created in admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]).values():
        try:
            created.result(timeout=30)
        except KafkaException as exc:
            if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TerminalError(
                    f"cannot create topic '{TOPIC}' at {bootstrap_servers}", code="DEMO_TOPIC_FAILED", found=exc.args[0]
                ) from exc


def land_reference_files(data: FlightData, landing: Path, *, has_database: bool = False) -> None:
    """Write airports as CSV, and without a database airlines as JSON lines and planes as Parquet, unless they are there."""
    if not (landing / "airports.csv").exists():
        csv.write_csv(data.airports, landing / "airports.csv")
    if has_database or (landing / "planes.parquet").exists():
        return
    lines = "".join(f"{json.dumps(row)}\n" for row in data.airlines.to_pylist())
    (landing / "airlines.json").write_text(lines, encoding="utf-8")
    pq.write_table(data.planes, landing / "planes.parquet")


def _land_weather(portion: Portion, landing: Path) -> None:
    """Write one weather file; it appears whole."""
    unfinished = landing / f".weather-{portion.name}.part"
    csv.write_csv(portion.weather, unfinished)
    unfinished.rename(landing / f"weather-{portion.name}.csv")


class Topic:
    """The topic, to be written.

    Args:
        bootstrap_servers: ``host:port`` of the broker.
    """

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
        """Publish flights; return when the broker has them.

        Raises:
            TerminalError: It does not take them (``DEMO_PUBLISH_FAILED``). Not retryable.
        """
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


class Holds:
    """What flights wait for before they are published.

    Args:
        weather_table: Table that has to have held their weather for a while; None for no such table.
        go_file: File that has to be there before the last quarter is published; None for no such file.
        head_start_s: Seconds that the first files have before the first flight.
    """

    def __init__(
        self, weather_table: TableLocation | None = None, go_file: Path | None = None, *, head_start_s: float = 0.0
    ) -> None:
        self._weather_table, self._go_file = weather_table, go_file
        self._head_start_s = head_start_s
        self._reached: list[tuple[int, float]] = []

    def wait(self, *, weather_rows: int, share: float) -> None:
        """Return once flights may be published.

        Args:
            weather_rows: Rows of weather up to those of the flights.
            share: Share of the data that is published already, 0 to 1.
        """
        time.sleep(self._head_start_s)
        self._head_start_s = 0.0
        while share >= _LAST_QUARTER and self._go_file is not None and not self._go_file.exists():
            time.sleep(_POLL_S)
        while self._weather_table is not None and not self._has_held(self._weather_table, weather_rows):
            time.sleep(_POLL_S)

    def _has_held(self, table: TableLocation, rows: int) -> bool:
        if not self._reached or self._reached[-1][0] < rows:
            self._reached.append((stored_rows(table), time.monotonic()))
        return any(held >= rows and time.monotonic() - at_s >= _SETTLE_S for held, at_s in self._reached)


def publish(
    parts: Sequence[Portion], schedule: Schedule, topic: Topic, landing: Path, holds: Holds
) -> Iterator[dict[str, int]]:
    """Publish the data portion by portion; yield what has been published so far."""
    landed = flights = weather_rows = 0
    for number, portion in enumerate(parts):
        started_s = time.monotonic()
        for ahead in parts[landed : number + schedule.lead + 1]:
            _land_weather(ahead, landing)
            landed += 1
        weather_rows += portion.weather.num_rows
        holds.wait(weather_rows=weather_rows, share=number / len(parts))
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
    parser.add_argument("--go-file", type=Path, help="file that must be there before the last quarter is published")
    parser.add_argument("--fast", action="store_true", help="two weeks instead of the year")
    given = parser.parse_args(arguments)
    schedule = FAST if given.fast else FULL
    data = load_data(schedule)
    given.landing.mkdir(parents=True, exist_ok=True)
    land_reference_files(data, given.landing)
    create_topic(given.bootstrap_servers)
    if given.weather_table:
        holds = Holds(TableLocation(given.weather_table), given.go_file)
    else:
        holds = Holds(go_file=given.go_file, head_start_s=_HEAD_START_S)
    topic = Topic(given.bootstrap_servers)
    for progress in publish(portions(data, schedule), schedule, topic, given.landing, holds):
        sys.stdout.write(json.dumps(progress) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
