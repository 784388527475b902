"""Decisions that runs of one source take alike."""

from __future__ import annotations

from pathlib import Path

from waxlake.stream.delta_table import TableLocation
from waxlake.stream.entry_ledger import EntryLedger


def test_what_was_decided_first_stands_for_everybody(tmp_path: Path) -> None:
    location = TableLocation(str(tmp_path / "ledger"))
    one, other = EntryLedger(location), EntryLedger(location)
    assert (one.get("chunk", "t", 0), one.values("chunk", "t")) == (None, [])
    assert not location.exists()  # looking creates nothing
    assert one.add({("chunk", "t", 0): ["a"]}) == {("chunk", "t", 0): ["a"]}
    assert other.get("chunk", "t", 0) == ["a"]
    one.add({("chunk", "t", 1): ["b"]})
    kept = other.add({("chunk", "t", 1): ["x"], ("chunk", "t", 2): ["y"]})  # from a snapshot that is old by now
    assert kept == {("chunk", "t", 1): ["b"], ("chunk", "t", 2): ["y"]}
    assert one.table_id == other.table_id
    one.refresh()
    assert one.values("chunk", "t") == [["a"], ["b"], ["y"]]


def test_one_decision_is_taken_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    location = TableLocation(str(tmp_path / "ledger"))
    one, other = EntryLedger(location), EntryLedger(location)
    one.add({("chunk", "t", 0): "a"}, is_one=True)
    other.values("chunk", "t")
    one.add({("chunk", "t", 1): "b"}, is_one=True)
    assert other.add({("chunk", "t", 1): "x", ("chunk", "t", 2): "y"}, is_one=True) == {("chunk", "t", 1): "b"}
    assert other.values("chunk", "t") == ["a", "b"]
