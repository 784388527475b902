"""Merges into a table whose files are large enough for two threads to rewrite them; to be killed. Run by ``test_merge_kills``."""

from __future__ import annotations

import random
import sys

import pyarrow as pa

from sinks.cdc import ChangeRules, MergeSink
from sinks.delta import DeltaTarget, FlushPolicy
from sinks.delta.sink import TableWriter
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation

FILES, ROWS = 8, 100


def batches() -> list[pa.Table]:
    """Return what fills the files, one after the other, and then changes that meet each of them."""
    random_ = random.Random(0)
    filled = [
        pa.table(
            {"id": ids, "text": [random_.randbytes(3000).hex() for _ in ids], "op": ["u"] * ROWS, "seq": [1] * ROWS}
        )
        for ids in (list(range(n * ROWS, (n + 1) * ROWS)) for n in range(FILES))
    ]
    ids = [*range(0, FILES * ROWS, 7), -1]
    ops = ["d" if n % 2 else "u" for n in ids[:-1]] + ["u"]
    return [*filled, pa.table({"id": ids, "text": [f"new {n}" for n in ids], "op": ops, "seq": [2] * len(ids)})]


def expected(count: int) -> dict[int, str]:
    """Return the table's rows after so many batches."""
    rows: dict[int, str] = {}
    for row in (row for batch in batches()[:count] for row in batch.to_pylist()):
        rows[row["id"]] = row["text"]
        if row["op"] == "d":
            del rows[row["id"]]
    return rows


def writer(path: str) -> TableWriter:
    """Return a sink's writer that commits each batch."""
    rules = ChangeRules(keys=("id",), sequence_by="seq", apply_as_deletes="op = 'd'", except_column_list=("op", "seq"))
    target = DeltaTarget(location=TableLocation(path, name="t"))
    return MergeSink(target=target, flush=FlushPolicy(max_rows=1), rules=rules).build_part("write", "table", None)


def send(to: TableWriter, number: int) -> None:
    """Send one batch."""
    batch = MicroBatch(table=batches()[number], source="s", partition="p", start=number, end=number + 1)
    to.write_batch([batch])


def main(path: str) -> None:
    """Send the changes."""
    send(writer(path), FILES)


if __name__ == "__main__":
    main(sys.argv[1])
