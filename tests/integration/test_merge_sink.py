"""MergeSink on a disk and on an object store: partitions, restarts, and a state that is read back and compacted."""

from __future__ import annotations

import pyarrow as pa
import pytest

from sinks.cdc import ChangeRules, MergeSink
from sinks.delta import DeltaTarget, FlushPolicy
from tests.conftest import LakeStorage
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SchemaError, TerminalError
from waxlake.stream.settings import StorageOptions

SCHEMA = pa.schema([("id", pa.int64()), ("city", pa.string()), ("op", pa.string()), ("seq", pa.int64())])


class Merging:
    """A partitioned target, merged into by a writer that is made anew for each batch."""

    def __init__(self, storage: LakeStorage, scd_type: int = 1) -> None:
        self.location = TableLocation(f"{storage.uri}/t", StorageOptions(storage.storage_options), "t")
        self.rules = ChangeRules(
            keys=("id",),
            sequence_by="seq",
            apply_as_deletes="op = 'd'",
            except_column_list=("op", "seq"),
            scd_type=scd_type,
        )
        self.sent = 0

    def send(self, *rows: tuple[int | None, str | None, str, int | None]) -> None:
        sink = MergeSink(
            target=DeltaTarget(location=self.location, partition_by=("city",)),
            flush=FlushPolicy(max_rows=1),
            rules=self.rules,
        )
        writer = sink.build_part("write", "table", None)
        table = pa.table([[row[i] for row in rows] for i in range(4)], schema=SCHEMA)
        start, self.sent = self.sent, self.sent + 1
        try:
            writer.write_batch([MicroBatch(table=table, source="s", partition="p", start=start, end=start + 1)])
        finally:
            writer.close()

    def rows(self) -> list[tuple[object, ...]]:
        return sorted((tuple(row.values()) for row in self.location.open().to_pyarrow_table().to_pylist()), key=repr)


def test_rows_move_between_partitions(lake_storage: LakeStorage) -> None:
    merging = Merging(lake_storage)
    merging.send((1, "Oslo", "u", 1), (2, "São Paulo", "u", 1), (3, None, "u", 1))
    merging.send((1, "São Paulo", "u", 2), (3, "Oslo", "u", 2), (2, None, "d", 2))
    assert merging.rows() == [(1, "São Paulo"), (3, "Oslo")]


def test_tombstones_outlive_restarts_and_compaction(lake_storage: LakeStorage) -> None:
    merging = Merging(lake_storage)
    merging.send(*((n, "Oslo", "u", 1) for n in range(12)))
    for n in range(12):  # more than the state keeps as files of their own
        merging.send((n, None, "d", 5))
    assert merging.rows() == []
    merging.send(*((n, "late", "u", 4) for n in range(12)))
    assert merging.rows() == []
    merging.send((7, "new", "u", 6))
    assert merging.rows() == [(7, "new")]


def test_a_history_in_partitions(lake_storage: LakeStorage) -> None:
    merging = Merging(lake_storage, scd_type=2)
    merging.send((1, "Oslo", "u", 1))
    merging.send((1, "Rome", "u", 5))
    merging.send((1, "Bern", "u", 3))
    assert merging.rows() == [(1, "Bern", 3, 5), (1, "Oslo", 1, 3), (1, "Rome", 5, None)]


@pytest.mark.parametrize(
    ("row", "code"), [((None, "x", "u", 1), "AUTO_CDC_NULL_KEY"), ((1, "x", "u", None), "AUTO_CDC_NULL_SEQUENCE")]
)
def test_nulls_are_refused(tmp_path: object, row: tuple[int | None, str, str, int | None], code: str) -> None:
    merging = Merging(LakeStorage(uri=str(tmp_path)))
    with pytest.raises(SchemaError) as refused:
        merging.send(row)
    assert refused.value.code == code


def test_a_table_without_its_state_is_not_written(tmp_path: object) -> None:
    import shutil

    merging = Merging(LakeStorage(uri=str(tmp_path)))
    merging.send((1, "Oslo", "u", 1), (2, "Oslo", "u", 1))
    merging.send((1, None, "d", 5))
    shutil.rmtree(merging.location.local_path / "_waxlake")
    with pytest.raises(TerminalError) as refused:
        merging.send((1, "late", "u", 4))
    assert refused.value.code == "AUTO_CDC_STATE_LOST"
    assert merging.rows() == [(2, "Oslo")]


NAMES_OF_OURS = (
    "k",
    "e",
    "p",
    "seq",
    "version",
    "origin",
    "opens",
    "unset",
    "life",
    "back",
    "is_change",
    "is_alive",
    "is_changed",
)


@pytest.mark.parametrize("scd_type", [1, 2])
@pytest.mark.parametrize("ignores_null", [False, True])
def test_columns_may_have_any_name(scd_type: int, ignores_null: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also those that the queries of a merge might have used for columns of their own."""
    location = TableLocation(str(tmp_path_factory.mktemp("names") / "t"), name="t")
    names = [*NAMES_OF_OURS, "q", "op"]
    rules = ChangeRules(
        keys=("k",),
        sequence_by="q",
        apply_as_deletes="op = 'd'",
        except_column_list=("q", "op"),
        ignore_null_updates=ignores_null,
        scd_type=scd_type,
    )
    sink = MergeSink(target=DeltaTarget(location=location), flush=FlushPolicy(max_rows=1), rules=rules)
    writer = sink.build_part("write", "table", None)
    for number, (key, value, op) in enumerate(
        [(1, 10, "u"), (2, 20, "u"), (1, 11, "u"), (2, None, "u"), (2, 0, "d"), (3, 5, "u")]
    ):
        row = pa.table([[key], *([[value]] * (len(NAMES_OF_OURS) - 1)), [number], [op]], names=names)
        row = row.cast(pa.schema([(n, pa.string() if n == "op" else pa.int64()) for n in names]))
        writer.write_batch([MicroBatch(table=row, source="s", partition="p", start=number, end=number + 1)])
    writer.close()
    rows = location.open().to_pyarrow_table().to_pylist()
    current = [row for row in rows if row.get("__END_AT") is None]
    assert sorted((row["k"], row["version"], row["is_alive"]) for row in current) == [(1, 11, 11), (3, 5, 5)]
