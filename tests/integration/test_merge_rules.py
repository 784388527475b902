"""What each parameter of AUTO CDC does to the rows of a target, row by row of the comparison with Lakeflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import waxlake as wl
from sinks.cdc import ChangeRules, MergeSink
from sinks.delta import DeltaTarget, FlushPolicy
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import DefinitionError

SCHEMA = pa.schema(
    [("id", pa.int64()), ("a", pa.string()), ("b", pa.int64()), ("op", pa.string()), ("seq", pa.int64())]
)
Row = tuple[int | None, str | None, int | None, str, int]


class Target:
    """A table that changes are merged into, a commit a call of ``send``."""

    def __init__(self, folder: Path, flows: Mapping[str, Any] | None = None, **rules: Any) -> None:
        own = {
            "apply_as_deletes": "op = 'd'",
            "apply_as_truncates": "op = 't'",
            "except_column_list": ("op", "seq"),
            **rules,
        }
        if "column_list" in own:
            del own["except_column_list"]
        self.rules = {
            name: ChangeRules(keys=("id",), sequence_by="seq", **{**own, **more})
            for name, more in (flows or {"flow": {}}).items()
        }
        self.location = TableLocation(str(folder / "t"), name="t")
        self.sent = dict.fromkeys(self.rules, 0)

    def send(self, *rows: Row, flow: str = "flow") -> list[tuple[Any, ...]]:
        """Merge some changes in one commit; return the rows then."""
        sink = MergeSink(target=DeltaTarget(location=self.location), flush=FlushPolicy(max_rows=1), rules=self.rules)
        writer = sink.build_part("write", "table", None)
        table = pa.table([[row[i] for row in rows] for i in range(5)], schema=SCHEMA)
        start, self.sent[flow] = self.sent[flow], self.sent[flow] + 1
        batch = MicroBatch(table=table, source="s", partition="p", start=start, end=start + 1, flow=flow)
        writer.write_batch([batch])
        writer.close()
        return self.rows()

    def rows(self) -> list[tuple[Any, ...]]:
        found = self.location.open().to_pyarrow_table().to_pylist()
        return sorted((tuple(row.values()) for row in found), key=repr)


def test_p40_the_newest_sequence_wins_in_any_order(tmp_path: Path) -> None:
    target = Target(tmp_path)
    assert target.send((1, "new", 1, "u", 9), (2, "x", 1, "u", 1)) == [(1, "new", 1), (2, "x", 1)]
    assert target.send((1, "old", 0, "u", 3), (2, "y", 2, "u", 2)) == [(1, "new", 1), (2, "y", 2)]


def test_p41_a_history_has_a_row_a_version_and_no_end_at_the_current_one(tmp_path: Path) -> None:
    target = Target(tmp_path, scd_type=2)
    target.send((1, "x", 1, "u", 1), (1, "z", 1, "u", 5))
    assert target.send((1, "y", 1, "u", 3), (1, None, None, "d", 7)) == [
        (1, "x", 1, 1, 3),
        (1, "y", 1, 3, 5),
        (1, "z", 1, 5, 7),
    ]


def test_p42_there_is_no_bitemporal_table_and_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="expected 1 or 2"):
        wl.create_auto_cdc_flow("t", "s", ["id"], "seq", stored_as_scd_type="bitemporal")


def test_p43_p53_a_version_begins_only_when_a_tracked_column_changes(tmp_path: Path) -> None:
    changes: list[Row] = [(1, "x", n, "u", n) for n in range(1, 20)] + [(1, "y", 99, "u", 50)]
    tracked = Target(tmp_path / "a", scd_type=2, track_history_column_list=("a",))
    assert tracked.send(*changes) == [(1, "x", 19, 1, 50), (1, "y", 99, 50, None)]
    others = Target(tmp_path / "b", scd_type=2, track_history_except_column_list=("b",))
    assert others.send(*changes) == tracked.rows()
    assert len(Target(tmp_path / "c", scd_type=2).send(*changes)) == 20


@pytest.mark.parametrize("scd_type", [1, 2])
def test_p44_w10_tied_sequences_have_one_winner_whatever_comes_first(tmp_path: Path, scd_type: int) -> None:
    tied: list[Row] = [(1, "b", 1, "u", 5), (1, "a", 2, "u", 5), (2, "x", 1, "u", 5), (2, None, None, "d", 5)]
    found = []
    for number, order in enumerate((tied, tied[::-1])):
        target = Target(tmp_path / str(number), scd_type=scd_type)
        for change in order:
            target.send(change)
        found.append([row[:3] for row in target.rows() if row[3:] == () or row[4] is None])
    assert found == [[(1, "b", 1)]] * 2  # the greatest content, and a delete before any


def test_p45_w10_what_is_late_resurrects_no_deleted_row_for_as_long_as_asked(tmp_path: Path) -> None:
    target = Target(tmp_path)
    target.send((1, "x", 1, "u", 1))
    assert target.send((1, None, None, "d", 5)) == []
    assert target.send((1, "late", 1, "u", 4)) == []
    assert target.send((1, "again", 1, "u", 6)) == [(1, "again", 1)]


@pytest.mark.parametrize("scd_type", [1, 2])
def test_p46_w10_a_truncate_clears_or_ends_whatever_is_older(tmp_path: Path, scd_type: int) -> None:
    target = Target(tmp_path, scd_type=scd_type)
    target.send((1, "x", 1, "u", 1), (2, "x", 1, "u", 9))
    rows = target.send((None, None, None, "t", 5), (3, "late", 1, "u", 4))
    if scd_type == 1:
        assert rows == [(2, "x", 1)]
    else:
        assert rows == [(1, "x", 1, 1, 5), (2, "x", 1, 9, None), (3, "late", 1, 4, 5)]


@pytest.mark.parametrize(
    ("rules", "row"),
    [
        ({}, (1, None, None)),
        ({"ignore_null_updates": True}, (1, "x", 1)),
        ({"ignore_null_updates": ("a",)}, (1, "x", None)),
        ({"ignore_null_updates": True, "ignore_null_updates_except": ("a",)}, (1, None, 1)),
    ],
)
def test_p47_w10_null_overwrites_or_leaves_as_it_is_by_column(
    tmp_path: Path, rules: dict[str, Any], row: tuple[Any, ...]
) -> None:
    target = Target(tmp_path, **rules)
    target.send((1, "x", 1, "u", 1))
    assert target.send((1, None, None, "u", 2)) == [row]


def test_p48_columns_are_listed_or_left_out(tmp_path: Path) -> None:
    assert Target(tmp_path / "a", column_list=("id", "b")).send((1, "x", 1, "u", 1)) == [(1, 1)]
    assert Target(tmp_path / "b", except_column_list=("a", "op")).send((1, "x", 1, "u", 1)) == [(1, 1, 1)]


def test_p49_several_flows_feed_one_table_each_from_where_it_stands(tmp_path: Path) -> None:
    target = Target(tmp_path, {"load": {}, "stream": {}, "corrections": {"ignore_null_updates": True}})
    target.send((1, "x", 1, "u", 3), flow="stream")
    target.send((1, "old", 0, "u", 0), (2, "x", 1, "u", 0), flow="load")
    assert target.send((1, None, 7, "u", 4), flow="corrections") == [(1, "x", 7), (2, "x", 1)]


def test_p52_rows_that_others_changed_are_rows_of_the_table(tmp_path: Path) -> None:
    target = Target(tmp_path)
    target.send((1, "x", 1, "u", 5), (2, "y", 2, "u", 5), (3, "z", 3, "u", 5))
    target.location.open().delete("id = 2")
    target.location.open().update({"a": "'by hand'"}, predicate="id = 1")
    assert target.rows() == [(1, "by hand", 1), (3, "z", 3)]
    assert target.send((1, "next", 1, "u", 6), (2, "back", 2, "u", 7)) == [(1, "next", 1), (2, "back", 2), (3, "z", 3)]
