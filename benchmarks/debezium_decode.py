"""Debezium's events to change rows on one core, beside plain JSON records of the same columns.

    python benchmarks/debezium_decode.py [--rows 50000] [--rounds 5]

Each line is the best of some rounds, in records per second of wall time, and megabytes per second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import pyarrow as pa

from connectors.debezium import DebeziumDecoder, DebeziumSettings
from connectors.json_records import JsonDecoder
from waxlake.stream.ddl import parse_ddl

COLUMNS = "id BIGINT, name STRING, country STRING, amount DOUBLE, at TIMESTAMP, note STRING"
KINDS = {"id": "int64", "name": "string", "country": "string", "amount": "double", "at": "int64", "note": "string"}


def row(index: int) -> dict[str, object]:
    return {
        "id": index,
        "name": f"customer {index % 5_000}",
        "country": ["DE", "FR", "US", "GB"][index % 4],
        "amount": index % 1_000 + 0.5,
        "at": 1_700_000_000_000_000 + index,
        "note": "first order",
    }


def event(index: int) -> dict[str, object]:
    source = {
        "version": "2.5.4.Final",
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": 1_700_000_000_123,
        "snapshot": "false",
        "db": "shop",
        "sequence": f'["{24_000_000 + index}","{24_000_100 + index}"]',
        "schema": "public",
        "table": "orders",
        "txId": 800 + index,
        "lsn": 24_000_100 + index,
        "xmin": None,
    }
    return {
        "before": None,
        "after": row(index),
        "source": source,
        "op": "c",
        "ts_ms": 1_700_000_000_456,
        "transaction": None,
    }


def schema() -> dict[str, object]:
    fields: list[dict[str, object]] = [{"type": kind, "optional": True, "field": name} for name, kind in KINDS.items()]
    fields[4] |= {"name": "io.debezium.time.MicroTimestamp", "version": 1}
    image = {"type": "struct", "optional": True, "name": "shop.public.orders.Value", "fields": fields}
    return {"type": "struct", "fields": [{**image, "field": "before"}, {**image, "field": "after"}], "name": "Envelope"}


def binary(records: list[dict[str, object]]) -> pa.Array:
    return pa.array([json.dumps(record, separators=(",", ":")).encode() for record in records], pa.binary())


def best(function: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    every = range(options.rows)
    plain = binary([{**row(i), "at": "2024-03-01T10:00:00.123456Z"} for i in every])
    bare = binary([event(i) for i in every])
    wrapped = binary([{"schema": schema(), "payload": event(i)} for i in every])
    settings = DebeziumSettings.build("benchmark", {"schema": COLUMNS, "types": {"at": "MicroTimestamp"}})
    decoder, records = DebeziumDecoder(settings), JsonDecoder(parse_ddl(COLUMNS))
    runs: dict[str, tuple[pa.Array, Callable[[pa.Array], pa.Table]]] = {
        "plain JSON records": (plain, records.decode),
        "events without schema": (bare, lambda values: decoder.decode(pa.table({"value": values}))),
        "events with schema": (wrapped, lambda values: decoder.decode(pa.table({"value": values}))),
    }
    for name, (values, decode) in runs.items():
        assert decode(values).column("_rescued_data").null_count == options.rows, name
        seconds = best(lambda d=decode, v=values: d(v), options.rounds)
        size = values.nbytes / options.rows
        print(
            f"{name:24} {options.rows / seconds:12,.0f} records/s {values.nbytes / seconds / 1e6:8.0f} MB/s  ({size:.0f} B each)"
        )


if __name__ == "__main__":
    main()
