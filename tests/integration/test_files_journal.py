"""The journal of a files source: nothing is in it twice, whoever folds at the same time or dies in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from connectors.files.journal import FileJournal, journal_rows
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.file_counts import FileCounts, FileTally, LeftOut, decode_counts


def _journal(folder: Path) -> FileJournal:
    return FileJournal(TableLocation(str(folder / "ledger")))


def _read(number: int, version: int) -> pa.Table:
    return journal_rows(number=[number], kind="read", rows=[1], rescued=[0], version=version, at=utc_now())


def test_a_fold_that_is_repeated_adds_nothing(tmp_path: Path) -> None:
    one, other = _journal(tmp_path), _journal(tmp_path)
    assert (one.folded("app"), one.rows().num_rows) == (-1, 0)
    assert not (tmp_path / "ledger_journal").exists()
    rows = pa.concat_tables([_read(0, 1), _read(1, 2)])
    one.fold(rows, "app", 2)
    other.fold(rows, "app", 2)
    other.fold(pa.concat_tables([rows, _read(2, 3)]), "app", 3)
    one.fold(pa.concat_tables([rows, _read(2, 3)]), "app", 3)  # from a snapshot that is not the last one
    one.refresh()
    assert sorted(one.rows().column("number").to_pylist()) == [0, 1, 2]
    assert one.folded("app") == other.folded("app") == 3


def test_compaction_keeps_every_row_and_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.files.journal._COMPACT_ABOVE_FILES", 3)
    journal, other = _journal(tmp_path), _journal(tmp_path)
    for number in range(6):
        journal.fold(_read(number, number + 1), "app", number + 1)
        journal.note(journal_rows(number=[number], kind="deleted", at=utc_now()), cleaned=number + 1)
        other.refresh()
        other.fold(_read(number, number + 1), "app", number + 1)
    journal.refresh()
    assert sorted(journal.rows().column("number").to_pylist()) == sorted([*range(6), *range(6)])
    assert (journal.folded("app"), journal.cleaned, journal.removed()) == (6, 6, frozenset(range(6)))
    table = TableLocation(str(tmp_path / "ledger_journal")).open()
    assert len(table.file_uris()) <= 4


@pytest.mark.parametrize("counts", [[0], [5] * 1000, list(range(40)), [i * 7919 % 1300 for i in range(5000)]])
def test_counts_come_back_as_they_were(counts: list[int]) -> None:
    tally = FileTally()
    for start in range(0, len(counts), 7):
        rows = np.array(counts[start : start + 7], np.int64)
        tally.add(FileCounts(100 + start, rows, rows // 2))
    tally.add(FileCounts(100, np.array([3], np.int64), None, (LeftOut(100, "/a", "skipped", "why"),)))
    numbers, rows, rescued, left_out = decode_counts(tally.facts())
    assert numbers.tolist() == list(range(100, 100 + len(counts)))
    assert rows.tolist() == [counts[0] + 3, *counts[1:]]
    assert rescued.tolist() == [-1, *(count // 2 for count in counts[1:])]
    assert [(lost.number, lost.state, lost.error) for lost in left_out] == [(100, "skipped", "why")]
    assert len(str(tally.facts())) < 40_000


def test_rescued_rows_stay_unknown_once_a_part_of_a_file_was_not_looked_at() -> None:
    tally = FileTally()
    one = np.array([4], np.int64)
    tally.add(FileCounts(0, one, None))
    tally.add(FileCounts(0, one, one))
    assert decode_counts(tally.facts())[2].tolist() == [-1]
