"""Persons, auctions and bids of an auction site, drawn from a seed: the same arguments make the same rows, on every machine.

    python -m benchmarks.nexmark.generator FOLDER [--events 1000000] [--rate 10000] [--format parquet|json] [--seed 1]

Written from the public specification of Nexmark (proportions, ids, hot keys, prices, lengths of auctions), with numpy and Arrow.
Of 50 events one is a person, three are auctions, 46 are bids. Half of the bids go to one of every hundred auctions; three
quarters of bids and auctions come from one of every hundred persons. Events arrive out of order within groups (``disorder``), so
that a row lies behind the latest one by at most ``disorder / rate`` seconds.

Each kind of event has a folder, each part of the stream a file in it. ``land`` lets parts appear one after the other.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

__all__ = ["SCHEMAS", "Generator", "ddl", "land"]

_TIME: Final = pa.timestamp("us", "UTC")
SCHEMAS: Final = {
    "person": pa.schema(
        [("id", pa.int64()), *((n, pa.string()) for n in ("name", "emailAddress", "creditCard", "city", "state")),
         ("dateTime", _TIME), ("extra", pa.string())]
    ),
    "auction": pa.schema(
        [("id", pa.int64()), ("itemName", pa.string()), ("description", pa.string()), ("initialBid", pa.int64()),
         ("reserve", pa.int64()), ("dateTime", _TIME), ("expires", _TIME), ("seller", pa.int64()), ("category", pa.int64()),
         ("extra", pa.string())]
    ),
    "bid": pa.schema(
        [("auction", pa.int64()), ("bidder", pa.int64()), ("price", pa.int64()), ("channel", pa.string()),
         ("url", pa.string()), ("dateTime", _TIME), ("extra", pa.string())]
    ),
    "side_input": pa.schema([("key", pa.int64()), ("value", pa.string())]),
}  # fmt: skip
_DDL: Final = {pa.int64(): "BIGINT", pa.string(): "STRING", _TIME: "TIMESTAMP"}

_EPOCH: Final = 50
_AUCTIONS: Final = 3
_FIRST_ID: Final = 1000
_FIRST_CATEGORY, _CATEGORIES = 10, 5
_HOT: Final = 100  # one of so many persons and auctions is hot
_IN_FLIGHT: Final = 100  # auctions that a bid that is not for a hot one may be for
_ACTIVE: Final = 1000  # persons who bid and sell
_LEAD: Final = 10  # ids ahead of those that were made, as if events had changed places
_CHANNELS: Final = 10_000
_BEGIN_MS: Final = 1_436_918_400_000  # 2015-07-15
_HOT_CHANNELS: Final = ("Google", "Facebook", "Baidu", "Apple")
_STATES: Final = ["AZ", "CA", "ID", "OR", "WA", "WY"]
_CITIES: Final = [
    "Phoenix",
    "Los Angeles",
    "San Francisco",
    "Boise",
    "Portland",
    "Bend",
    "Redmond",
    "Seattle",
    "Kent",
    "Cheyenne",
]
_FIRST_NAMES: Final = ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"]
_LAST_NAMES: Final = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"]


def ddl(kind: str) -> str:
    """Return the columns of a kind of event as a schema is written in a pipeline."""
    return ", ".join(f"{field.name} {_DDL[field.type]}" for field in SCHEMAS[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A stream of events.

    Attributes:
        events: How many.
        rate: Events a second of event time.
        disorder: Events within which the order of arrival is drawn at random; 1 for none.
        part: Events of one file of each kind.
        seed: What the random numbers begin with.
    """

    events: int
    rate: int = 10_000
    disorder: int = 1_000
    part: int = 50_000
    seed: int = 1

    def parts(self) -> Iterator[Mapping[str, pa.Table]]:
        """Yield the stream part by part: a table of each kind of event, in order of arrival."""
        for first in range(0, self.events, self.part):
            yield self._part(first, min(self.part, self.events - first))

    def write(self, folder: Path, form: str = "parquet") -> list[list[Path]]:
        """Write the stream as files and return them part by part: ``<kind>/<number>.<form>``, and the table of query 13.

        Args:
            folder: Where to.
            form: ``parquet`` or ``json``.
        """
        import duckdb

        keys = np.arange(_CHANNELS)
        side = pa.table([pa.array(keys), pa.array(keys).cast(pa.string())], schema=SCHEMAS["side_input"])
        with duckdb.connect() as session:
            session.execute("SET TimeZone = 'UTC'")
            _write(session, side, folder / "side_input" / f"00000.{form}")
            return [
                [_write(session, table, folder / kind / f"{number:05d}.{form}") for kind, table in tables.items()]
                for number, tables in enumerate(self.parts())
            ]

    def _part(self, first: int, count: int) -> Mapping[str, pa.Table]:
        random = np.random.default_rng([self.seed, first])
        numbers = np.arange(first, first + count)
        groups = np.arange(count) // self.disorder
        numbers = numbers[np.lexsort((random.random(count), groups))]
        offset = numbers % _EPOCH
        return {
            "person": self._persons(random, numbers[offset == 0]),
            "auction": self._auctions(random, numbers[(offset > 0) & (offset <= _AUCTIONS)]),
            "bid": self._bids(random, numbers[offset > _AUCTIONS]),
        }

    def _ms(self, numbers: np.ndarray) -> np.ndarray:
        return _BEGIN_MS + numbers * 1000 // self.rate

    def _persons(self, random: np.random.Generator, numbers: np.ndarray) -> pa.Table:
        count = len(numbers)
        names = [f"{one} {two}" for one in _FIRST_NAMES for two in _LAST_NAMES]
        cards = np.char.mod("%04d", random.integers(0, 10_000, (4, count)))
        card = cards[0]
        for part in cards[1:]:
            card = np.char.add(np.char.add(card, " "), part)
        email = np.char.add(np.char.add(_letters(random, np.full(count, 7)).to_numpy(False).astype("U"), "@"),
                            _letters(random, np.full(count, 5)).to_numpy(False).astype("U"))  # fmt: skip
        columns = [
            numbers // _EPOCH + _FIRST_ID,
            _drawn(random, names, count),
            pa.array(np.char.add(email, ".com").tolist(), pa.string()),
            pa.array(card.tolist(), pa.string()),
            _drawn(random, _CITIES, count),
            _drawn(random, _STATES, count),
            _times(self._ms(numbers)),
            _extra(random, count, 110),
        ]
        return _table("person", columns)

    def _auctions(self, random: np.random.Generator, numbers: np.ndarray) -> pa.Table:
        count, ms = len(numbers), self._ms(numbers)
        horizon_ms = max(2 * _IN_FLIGHT * _EPOCH // _AUCTIONS * 1000 // self.rate, 1)
        first = _prices(random, count)
        columns = [
            _last_auction(numbers) + _FIRST_ID,
            _letters(random, random.integers(3, 20, count)),
            _letters(random, random.integers(3, 100, count)),
            first,
            first + _prices(random, count),
            _times(ms),
            _times(ms + 1 + random.integers(0, horizon_ms, count)),
            _person(random, numbers, hot=0) + _FIRST_ID,
            random.integers(_FIRST_CATEGORY, _FIRST_CATEGORY + _CATEGORIES, count),
            _extra(random, count, 390),
        ]
        return _table("auction", columns)

    def _bids(self, random: np.random.Generator, numbers: np.ndarray) -> pa.Table:
        count, last = len(numbers), _last_auction(numbers)
        least = np.maximum(last - _IN_FLIGHT, 0)
        cold = least + random.integers(0, last - least + 1 + _LEAD)
        auction = np.where(random.integers(0, 2, count) > 0, last // _HOT * _HOT, cold)
        is_hot = random.integers(0, 2, count) > 0
        which = random.integers(0, _CHANNELS, count)
        which = np.where(is_hot, _CHANNELS + which % len(_HOT_CHANNELS), which)
        channels, urls = _channels(self.seed)
        columns = [
            auction + _FIRST_ID,
            _person(random, numbers, hot=1) + _FIRST_ID,
            _prices(random, count),
            channels.take(pa.array(which)),
            urls.take(pa.array(which)),
            _times(self._ms(numbers)),
            _extra(random, count, 68),
        ]
        return _table("bid", columns)


def land(files: Sequence[Path], source: Path, folder: Path) -> None:
    """Let files of a part appear in another folder too, each whole at once and as old as it is."""
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)


@functools.cache
def _channels(seed: int) -> tuple[pa.Array, pa.Array]:
    """Return the names of channels and their addresses, the hot ones last; nine of ten others tell their number."""
    random = np.random.default_rng([seed, 1 << 32])
    count = _CHANNELS + len(_HOT_CHANNELS)
    words = [_letters(random, np.full(count, 5)).to_pylist() for _ in range(3)]
    tells = (random.integers(0, 10, count) > 0).tolist()
    ids = random.integers(0, 1 << 31, count).tolist()
    urls = [
        f"https://www.nexmark.com/{a}/{b}/{c}/item.htm?query=1"
        + (f"&channel_id={ids[i]}" if tells[i] and i < _CHANNELS else "")
        for i, (a, b, c) in enumerate(zip(*words, strict=True))
    ]
    return pa.array([*(f"channel-{i}" for i in range(_CHANNELS)), *_HOT_CHANNELS]), pa.array(urls)


def _last_auction(numbers: np.ndarray) -> np.ndarray:
    """Return the number of the latest auction at each event."""
    offset = numbers % _EPOCH
    found: np.ndarray = numbers // _EPOCH * _AUCTIONS + np.where(offset == 0, -1, np.minimum(offset, _AUCTIONS) - 1)
    return found


def _person(random: np.random.Generator, numbers: np.ndarray, *, hot: int) -> np.ndarray:
    """Return who bids or sells: three times of four the hot person of the latest hundred."""
    count, last = len(numbers), numbers // _EPOCH
    active = np.minimum(last + 1, _ACTIVE)
    cold = last + 1 - active + random.integers(0, active + _LEAD)
    found: np.ndarray = np.where(random.integers(0, 4, count) > 0, last // _HOT * _HOT + hot, cold)
    return found


def _prices(random: np.random.Generator, count: int) -> np.ndarray:
    """Return prices in cents, spread evenly over six orders of magnitude."""
    found: np.ndarray = np.rint(np.power(10.0, random.random(count) * 6) * 100).astype("int64")
    return found


def _letters(random: np.random.Generator, lengths: np.ndarray) -> pa.Array:
    """Return texts of random small letters."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype("int32")
    letters = random.integers(ord("a"), ord("z") + 1, int(ends[-1]), dtype="uint8")
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(letters))


def _extra(random: np.random.Generator, count: int, length: int) -> pa.Array:
    """Return what fills events up to their usual size, give or take a fifth."""
    return _letters(random, random.integers(length * 4 // 5, length * 6 // 5 + 1, count))


def _drawn(random: np.random.Generator, values: Sequence[str], count: int) -> pa.Array:
    return pa.array(values).take(pa.array(random.integers(0, len(values), count)))


def _times(ms: np.ndarray) -> pa.Array:
    return pa.array(ms * 1000, pa.int64()).cast(_TIME)


def _table(kind: str, columns: Sequence[Any]) -> pa.Table:
    return pa.table([column if isinstance(column, pa.Array) else pa.array(column) for column in columns], SCHEMAS[kind])


def _write(session: duckdb.DuckDBPyConnection, table: pa.Table, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    session.register("part", table)
    session.execute(f"COPY part TO '{file}' (FORMAT {file.suffix[1:]})")
    settled = time.time() - 60
    os.utime(file, (settled, settled))
    return file


def main() -> None:
    """Write a stream of events to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=("parquet", "json"), default="parquet")
    options = parser.parse_args()
    Generator(events=options.events, rate=options.rate, seed=options.seed).write(options.folder, options.format)


if __name__ == "__main__":
    main()
