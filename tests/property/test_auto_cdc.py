"""AUTO CDC's law: the target is a function of the set of changes, whatever their order, batches, repetitions and restarts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.cdc import ChangeRules, MergeSink
from sinks.delta import DeltaTarget, FlushPolicy
from tests.property.cdc_model import COLUMNS, LEFT, Change, versions
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.position import app_id

SOURCE_FLOW = app_id("flow", "s", "p")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to declare the same thing."""

    scd_type: int
    partial: str  # no, null, unchanged
    tracked: tuple[str, ...]
    is_struct: bool
    retention: str = "172800"

    @property
    def rules(self) -> ChangeRules:
        return ChangeRules(
            keys=("k1", "k2"),
            sequence_by="struct(x, y)" if self.is_struct else "x",
            apply_as_deletes="op = 'delete'",
            apply_as_truncates="op = 'truncate'",
            ignore_null_updates=self.partial == "null",
            except_column_list=("op", "x", "y"),
            scd_type=self.scd_type,
            track_history_column_list=self.tracked if self.scd_type == 2 else None,
        )

    def rows(self, changes: list[Change]) -> pa.Table:
        data: dict[str, list[Any]] = {name: [] for name in ("k1", "k2", "a", "b", "op", "x", "y", "_unchanged")}
        for change in changes:
            key = change.key or (None, None)
            values = change.values or (None, None)
            for name, value in zip(("k1", "k2", *COLUMNS), (*key, *values), strict=True):
                data[name].append(None if value == LEFT else value)
            data["op"].append(change.kind)
            data["x"].append(change.at // 2)
            data["y"].append("ab"[change.at % 2])
            data["_unchanged"].append([n for n, v in zip(COLUMNS, values, strict=True) if v == LEFT])
        kinds = [
            pa.int64(),
            pa.string(),
            pa.int64(),
            pa.string(),
            pa.string(),
            pa.int64(),
            pa.string(),
            pa.list_(pa.string()),
        ]
        if not self.is_struct:
            data["x"] = [change.at for change in changes]
        table = pa.table({name: pa.array(data[name], kind) for name, kind in zip(data, kinds, strict=True)})
        return table if self.partial == "unchanged" else table.drop_columns(["_unchanged"])

    def sequence(self, at: int | None) -> Any:
        if at is None or not self.is_struct:
            return at
        return {"x": at // 2, "y": "ab"[at % 2]}


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    return Variant(
        scd_type=draw(st.sampled_from([1, 2])),
        partial=draw(st.sampled_from(["no", "null", "unchanged"])),
        tracked=draw(st.sampled_from([COLUMNS, ("a",), ()])),
        is_struct=draw(st.booleans()),
    )


@st.composite
def histories(draw: st.DrawFn, variant: Variant) -> list[Change]:
    """Changes of few keys at few sequences, so that they meet: late, tied, repeated."""
    a = st.sampled_from({"no": [None, 1, 2], "null": [LEFT, 1, 2], "unchanged": [LEFT, None, 1, 2]}[variant.partial])
    b = st.sampled_from({"no": [None, "p"], "null": [LEFT, "p"], "unchanged": [LEFT, None, "p"]}[variant.partial])
    keys = st.sampled_from([(1, "m"), (1, "n"), (2, "m")])
    upsert = st.builds(Change, keys, st.integers(0, 9), st.just("upsert"), st.tuples(a, b))
    delete = st.builds(Change, keys, st.integers(0, 9), st.just("delete"))
    truncate = st.builds(Change, st.just(()), st.integers(0, 9), st.just("truncate"))
    kinds = st.sampled_from([upsert, upsert, upsert, upsert, delete, truncate]).flatmap(lambda kind: kind)
    return draw(st.lists(kinds, min_size=1, max_size=14))


class Target:
    """A table, its sink, and restarts of it."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        self.location, self.variant = TableLocation(str(folder / "t"), name="t"), variant
        self.location.create(
            variant.rules.bind(variant.rows([])[:0].schema).shape.table,
            properties={"pipelines.cdc.tombstoneGCThresholdInSeconds": variant.retention},
        )
        self.positions: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        sink = MergeSink(
            target=DeltaTarget(location=self.location),
            flush=FlushPolicy(max_rows=1),
            rules={"first": self.variant.rules, "second": self.variant.rules},
        )
        self.writer = sink.build_part("write", "table", None)

    def send(self, flow: str, changes: list[Change]) -> None:
        start = self.positions.get(flow, 0)
        self.positions[flow] = start + 1
        table = self.variant.rows(changes)
        self.writer.write_batch(
            [MicroBatch(table=table, source="s", partition="p", start=start, end=start + 1, flow=flow)]
        )

    def check(self, changes: list[Change]) -> None:
        variant = self.variant
        tracked = variant.tracked if variant.scd_type == 2 else COLUMNS
        expected = []
        for key, rows in versions(changes, tracked, is_partial=variant.partial != "no").items():
            for start, end, values in rows:
                span = [variant.sequence(start), variant.sequence(end)]
                if variant.scd_type == 2:
                    expected.append([*key, *values, *span])
                elif end is None:
                    expected.append([*key, *values])
        table = self.location.open().to_pyarrow_table()
        names = ["k1", "k2", *COLUMNS, *(["__START_AT", "__END_AT"] if variant.scd_type == 2 else [])]
        assert table.column_names == names
        assert sorted(map(repr, (list(row.values()) for row in table.to_pylist()))) == sorted(map(repr, expected))


@settings(max_examples=40)
@given(data=st.data(), variant=variants())
def test_the_target_is_a_function_of_the_changes(data: st.DataObject, variant: Variant) -> None:
    changes = data.draw(histories(variant))
    sent = data.draw(st.permutations([*changes, *data.draw(st.lists(st.sampled_from(changes), max_size=5))]))
    folder = Path(tempfile.mkdtemp())
    try:
        target = Target(folder, variant)
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            target.send(data.draw(st.sampled_from(["first", "second"])), sent[:size])
            sent = sent[size:]
            if data.draw(st.booleans()):
                target.restart()
        target.check(changes)
    finally:
        shutil.rmtree(folder)
