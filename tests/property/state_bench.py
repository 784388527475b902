"""A table behind a stateful operator, fed by hand: batches in any cut and order of partitions, with restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from sinks.delta import DeltaTarget, FlushPolicy
from sinks.state import BoundOperator, EventTime, Input, Operator, StatefulFlow, StatefulSink
from sinks.state.store import read_manifest, state_app_id
from waxlake.stream.batch import MicroBatch, RuleCount
from waxlake.stream.delta_table import TableLocation


@dataclass(frozen=True, slots=True)
class Kept:
    """What is done with an operator's rows: nothing."""

    table: pa.Table
    rejected: pa.Table | None = None
    rules: tuple[RuleCount, ...] = ()
    dropped: int = 0


@dataclass(slots=True)
class Bench:
    """One table and its sink.

    Args:
        folder: Where.
        operator: Declared operator.
        inputs: Columns and event time of each of its inputs.
        partitions: Partitions of each input.
    """

    folder: Path
    operator: Operator
    inputs: tuple[Input, ...]
    partitions: int = 1
    bound: BoundOperator = field(init=False)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.location = TableLocation(str(self.folder / "t"), name="t")
        self.bound = self.operator.bind(self.inputs)
        self.restart()

    location: TableLocation = field(init=False)
    writer: object = field(init=False)

    def restart(self) -> None:
        """Begin anew with what the table holds."""
        times: dict[int, EventTime] = {n: i.time for n, i in enumerate(self.inputs) if i.time is not None}
        flow = StatefulFlow(
            operator=self.bound, times=times, sources=len(self.inputs), finish=Kept, output=self.bound.output
        )
        sink = StatefulSink(
            target=DeltaTarget(location=self.location), flow="f", flush=FlushPolicy(max_rows=1), flows={"f": flow}
        )
        self.writer = sink.build_part("write", "table", None)
        self.send(
            *(
                (side, p, self.inputs[side].schema.empty_table())
                for side in range(len(self.inputs))
                for p in range(self.partitions)
            )
        )

    def send(self, *batches: tuple[int, int, pa.Table]) -> None:
        """Send batches of (input, partition, rows) that are committed together."""
        made = []
        for side, partition, rows in batches:
            start = self.positions.get((side, partition), 0)
            end = start + rows.num_rows
            self.positions[side, partition] = end
            made.append(
                MicroBatch(
                    table=rows, source=f"s{side}", partition=f"p{partition}", start=start, end=end, side=side,
                    partition_count=self.partitions,
                )
            )  # fmt: skip
        self.writer.write_batch(made)

    def rows(self) -> pa.Table:
        """Return the table."""
        return self.location.open().to_pyarrow_table()

    def manifest(self) -> dict:
        """Return the manifest of the state."""
        number = self.location.open().transaction_version(state_app_id("f"))
        return read_manifest(self.location, "f", number)
