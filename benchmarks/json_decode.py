"""JSON records to Arrow on one core: our decoder beside the engines it stands on, which promise less.

    python benchmarks/json_decode.py [--rows 50000] [--rounds 7] [--threads 1]

Each line is the best of some rounds, in rows per second of wall time. ``from_json`` of DuckDB raises on malformed text and
``json_transform`` rounds 1.7 into a BIGINT; ``read_json`` of pyarrow loses which row came from which record.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable

import duckdb
import pyarrow as pa
from pyarrow import json as arrow_json

from connectors.json_records import RESCUED, JsonDecoder
from waxlake.stream.ddl import parse_ddl

SCHEMA = parse_ddl("id BIGINT, ts TIMESTAMP, user STRING, country STRING, amount DOUBLE, ok BOOLEAN, note STRING")
STRUCTURE = (
    '{"id":"BIGINT","ts":"TIMESTAMPTZ","user":"VARCHAR","country":"VARCHAR","amount":"DOUBLE","ok":"BOOLEAN",'
    '"note":"VARCHAR"}'
)


def record(index: int, **more: object) -> dict[str, object]:
    return {
        "id": index,
        "ts": f"2024-03-{index % 28 + 1:02}T{index % 24:02}:{index % 60:02}:07.{index % 1_000_000:06}Z",
        "user": f"user-{index % 5_000}",
        "country": ["DE", "FR", "US", "GB"][index % 4],
        "amount": round(random.random() * 1_000, 2),
        "ok": index % 3 == 0,
        "note": "first order",
        **more,
    }


def encode(record: dict[str, object], *, separators: tuple[str, str] = (",", ":")) -> bytes:
    return json.dumps(record, separators=separators).encode()


def shuffled(record: dict[str, object]) -> dict[str, object]:
    return dict(random.sample(list(record.items()), len(record)))


def inputs(rows: int) -> dict[str, pa.Array]:
    every = range(rows)
    records = {
        "clean": [encode(record(i)) for i in every],
        "one undeclared field": [encode(record(i, trace=f"t-{i}")) for i in every],
        "two undeclared fields": [encode(record(i, trace=f"t-{i}", score=i / 8)) for i in every],
        "undeclared, any order": [encode(shuffled(record(i, trace=f"t-{i}", n=[i]))) for i in every],
        "half with a field more": [encode(record(i, **({"trace": "t"} if i % 2 else {}))) for i in every],
        "1 % malformed": [b'{"id":' if i % 100 == 50 else encode(record(i)) for i in every],
        "text in a BIGINT": [encode(record(i, id=str(i))) for i in every],
        "object in a STRING": [encode(record(i, note={"n": i})) for i in every],
        "NULL every tenth": [None if i % 10 == 0 else encode(record(i)) for i in every],
        "nothing but garbage": [b"x%d" % i for i in every],
    }
    return {name: pa.array(values, pa.binary()) for name, values in records.items()}


def rate(work: Callable[[], object], *, rows: int, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return rows / best


def engines(values: pa.Array, threads: int) -> dict[str, Callable[[], object]]:
    connection = duckdb.connect(config={"threads": threads})
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("records", pa.table({"v": values.cast(pa.string())}))
    block = b"\n".join(values.to_pylist())
    options = arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
    reading = arrow_json.ReadOptions(use_threads=threads > 1, block_size=(4 << 20) if threads > 1 else len(block) + 1)

    def query(function: str, value: str) -> Callable[[], object]:
        text = f"SELECT unnest({function}({value}, '{STRUCTURE}')) FROM records"
        return lambda: connection.sql(text).to_arrow_table()

    return {
        "DuckDB from_json": query("from_json", "v"),
        "DuckDB json_transform, malformed as NULL": query("json_transform", "try_cast(v AS JSON)"),
        "pyarrow read_json": lambda: arrow_json.read_json(
            pa.BufferReader(block), parse_options=options, read_options=reading
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(1)
    batches = inputs(arguments.rows)
    size = batches["clean"].nbytes / arguments.rows
    print(f"{arguments.rows} records of {size:.0f} B, {arguments.threads} thread(s)")
    for name, work in engines(batches["clean"], arguments.threads).items():
        print(f"{name:42}{rate(work, rows=arguments.rows, rounds=arguments.rounds):12,.0f} rows/s")
    for name, values in batches.items():
        decoder = JsonDecoder(SCHEMA, threads=arguments.threads)
        found = decoder.decode(values)
        rescued = len(values) - found.column(RESCUED).null_count
        assert len(found) == len(values)
        best = rate(lambda d=decoder, v=values: d.decode(v), rows=arguments.rows, rounds=arguments.rounds)
        print(f"{'Waxlake, ' + name:42}{best:12,.0f} rows/s   {rescued:,} rescued")


if __name__ == "__main__":
    main()
