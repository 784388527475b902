"""A process that merges prepared batches of changes into a table, to be killed. Run by ``test_merge_kills``."""

from __future__ import annotations

import json
import sys

from sinks.cdc import MergeSink
from sinks.delta import DeltaTarget, FlushPolicy
from tests.property.cdc_model import Change
from tests.property.test_auto_cdc import Variant
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation


def main(path: str, plan: str) -> None:
    said = json.loads(plan)
    said["variant"]["tracked"] = tuple(said["variant"]["tracked"])
    variant = Variant(**said["variant"])
    sink = MergeSink(
        target=DeltaTarget(location=TableLocation(path, name="t")), flush=FlushPolicy(max_rows=1), rules=variant.rules
    )
    writer = sink.build_part("write", "table", None)
    for number, rows in enumerate(said["batches"]):
        changes = [Change(tuple(key), at, kind, tuple(values)) for key, at, kind, values in rows]
        writer.write_batch(
            [MicroBatch(table=variant.rows(changes), source="s", partition="p", start=number, end=number + 1)]
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
