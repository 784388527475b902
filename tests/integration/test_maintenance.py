"""A table that is written in many small commits: its files are put together, sorted and deleted, and nobody's rows change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pytest

from connectors.delta import DeltaConnector
from sinks.delta import DeltaSink, DeltaTarget, FlushPolicy, SinkControl, stored_files
from sinks.delta.maintenance import Maintenance, MaintenanceReport, NeededVersions
from sinks.delta.protocol import Committer
from tests.conftest import LakeStorage
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.position import RowPosition
from waxlake.stream.settings import StorageOptions
from waxlake.stream.source import plan_partitions

SCHEMA = pa.schema([("id", pa.int64()), ("city", pa.string())])
NOTHING_KEPT = {
    "delta.deletedFileRetentionDuration": "interval 0 seconds",
    "delta.logRetentionDuration": "interval 0 seconds",
    "waxlake.vacuum.interval": "interval 0 seconds",
}


@dataclass
class SmallCommits:
    """A table, and the run that appends to it one small commit after the other."""

    storage: LakeStorage
    properties: Mapping[str, str] = field(default_factory=dict)
    partition_by: tuple[str, ...] = ()
    needed: NeededVersions | None = None
    sent: int = 0
    reports: list[MaintenanceReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.location = TableLocation(f"{self.storage.uri}/t", StorageOptions(self.storage.storage_options), "t")
        self.location.create(SCHEMA, partition_by=self.partition_by, properties=self.properties)
        sink = DeltaSink(
            target=DeltaTarget(location=self.location, partition_by=self.partition_by),
            flush=FlushPolicy(max_rows=1),
            control=SinkControl(needed=lambda name: self.needed, on_maintenance=self.reports.append),
        )
        self.writer = sink.build_part("write", "table", None)

    def send(self, commits: int, *, rows: pa.Table | None = None) -> None:
        for _ in range(commits):
            table = rows if rows is not None else pa.table([[self.sent], [f"c{self.sent % 3}"]], schema=SCHEMA)
            batch = MicroBatch(table=table, source="s", partition="p", start=self.sent, end=self.sent + 1)
            self.writer.write_batch([batch])
            self.sent += 1

    def operations(self) -> list[str]:
        assert not [report.error for report in self.reports if report.error]
        return [report.operation for report in self.reports]

    def ids(self) -> list[int]:
        return sorted(self.location.open().to_pyarrow_table().column("id").to_pylist())

    def files(self) -> int:
        return len(self.location.open().file_uris())

    def files_on_disk(self) -> int:
        found = self.location.filesystem()
        import pyarrow.fs as pa_fs

        selector = pa_fs.FileSelector("", recursive=True)
        return sum(i.path.endswith(".parquet") and "_delta_log" not in i.path for i in found.get_file_info(selector))


def _followed(
    location: TableLocation, positions: Mapping[str, int] | None = None
) -> tuple[list[int], Mapping[str, int]]:
    """Read the table as a stream, from its start or a position; return the ids and the position after them."""
    connector = DeltaConnector(location)
    state = connector.inspect()
    plan = plan_partitions(state, [positions or {}], on_data_loss="fail", is_bounded=True)
    reader = connector.reader(plan, tuple(plan.partitions), frozenset({"id", "city"}))
    ids: list[int] = []
    while not reader.is_done:
        for batch in reader.read():
            ids += batch.table.column("id").to_pylist()
    return ids, reader.positions()


def test_p93_small_files_are_put_together_and_the_stream_goes_on(lake_storage: LakeStorage) -> None:
    table = SmallCommits(lake_storage)
    table.send(5)
    early, position = _followed(table.location)
    table.send(65)
    assert table.operations() == ["compact", "compact"]
    assert table.files() <= 34
    assert table.ids() == list(range(70))
    late, _ = _followed(table.location, position)
    assert early + late == list(range(70))
    handle = table.location.open()
    (rewritten, *_) = [v for v in range(handle.version()) if _removes(table.location, v)]
    actions = table.location.read_log(rewritten) or []
    assert {a["add"]["dataChange"] for a in actions if "add" in a} == {False}
    assert {a["remove"]["dataChange"] for a in actions if "remove" in a} == {False}


def _removes(location: TableLocation, version: int) -> int:
    return sum("remove" in action for action in location.read_log(version) or ())


def test_p93_the_number_of_files_stays_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("many"))), {"waxlake.compaction.minFiles": "4"})
    most = 0
    for _ in range(30):
        table.send(8)
        most = max(most, table.files())
    assert table.ids() == list(range(240))
    assert most <= 16


def test_files_of_each_partition_are_put_together(lake_storage: LakeStorage) -> None:
    table = SmallCommits(lake_storage, {"waxlake.compaction.minFiles": "4"}, partition_by=("city",))
    table.send(24)
    assert set(table.operations()) == {"compact"}
    assert table.files() <= 12
    assert table.ids() == list(range(24))
    for file in stored_files(table.location.open()):
        assert file.partition["city"] in file.file_path


def test_files_from_before_a_column_came_get_nulls(tmp_path_factory: pytest.TempPathFactory) -> None:
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("grown"))), {"waxlake.compaction.minFiles": "6"})
    table.send(4)
    nested = pa.array([{"a": 1}], pa.struct([("a", pa.int64())]))
    table.send(1, rows=pa.table({"id": [4], "city": ["x"], "more": nested}))
    wider = pa.array([{"a": 2, "b": "y"}], pa.struct([("a", pa.int64()), ("b", pa.string())]))
    table.send(5, rows=pa.table({"id": [5], "city": ["x"], "more": wider}))
    assert "compact" in table.operations()
    rows = table.location.open().to_pyarrow_table().sort_by("id").to_pylist()
    assert [row["more"] for row in rows[:5]] == [None] * 4 + [{"a": 1, "b": None}]
    assert [row["more"] for row in rows[5:]] == [{"a": 2, "b": "y"}] * 5


def test_p92_files_are_sorted_by_the_columns_that_the_table_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    properties = {"waxlake.compaction.minFiles": "4", "pipelines.autoOptimize.zOrderCols": "id"}
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("sorted"))), properties)
    for start in (30, 10, 20, 0):
        table.send(1, rows=pa.table([list(range(start + 9, start - 1, -1)), ["x"] * 10], schema=SCHEMA))
    assert table.operations() == ["compact"]
    assert table.location.open().to_pyarrow_table().column("id").to_pylist() == list(range(40))


def test_p92_a_z_order_curve_keeps_neighbours_of_both_columns_together(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    properties = {"waxlake.compaction.minFiles": "2", "pipelines.autoOptimize.zOrderCols": "id, city"}
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("curve"))), properties)
    grid = [(x, f"{y:02d}") for y in range(16) for x in range(16)]
    for half in (grid[:128], grid[128:]):
        table.send(1, rows=pa.table([[x for x, _ in half], [y for _, y in half]], schema=SCHEMA))
    rows = table.location.open().to_pyarrow_table().to_pylist()
    assert sorted((row["id"], row["city"]) for row in rows) == sorted(grid)
    for start in range(0, 256, 64):  # each quarter of the curve is a quarter of the grid
        quarter = rows[start : start + 64]
        assert len({row["id"] for row in quarter}) <= 9
        assert len({row["city"] for row in quarter}) <= 9


def test_p93_files_and_log_entries_that_nobody_needs_are_deleted(lake_storage: LakeStorage) -> None:
    table = SmallCommits(lake_storage, {**NOTHING_KEPT, "waxlake.compaction.minFiles": "4"})
    table.send(12)
    assert "vacuum" in table.operations()
    assert table.files_on_disk() == table.files()
    assert table.location.read_log(0) is None
    assert table.ids() == list(range(12))
    ids, _ = _followed(table.location)  # a new reader begins with the table as it is
    assert sorted(ids) == list(range(12))


def test_p93_nothing_is_deleted_that_a_flow_still_has_to_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    properties = {**NOTHING_KEPT, "waxlake.compaction.minFiles": "4"}
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("behind"))), properties)
    table.needed = NeededVersions(2, 2)
    early = {"log": RowPosition(2).pack()}
    table.send(1)
    assert table.operations() == ["vacuum"]  # version 2 is not there yet: the flow is up to date
    table.send(11)
    assert set(table.operations()[1:]) == {"compact", "postponed"}
    rest, _ = _followed(table.location, early)
    assert rest == list(range(1, 12))  # version 0 created the table, version 1 holds the first row
    table.needed = NeededVersions(*[table.location.open().version() + 2] * 2)
    table.send(1)
    assert table.operations()[-1] == "vacuum"


def test_p93_log_entries_without_rows_are_kept_for_a_flow_that_has_to_step_through_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    properties = {**NOTHING_KEPT, "delta.deletedFileRetentionDuration": "interval 1 hour"}
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("steps"))), properties)
    table.send(3)
    before = table.location.open().version() + 1
    table.location.open().create_write_transaction([], mode="append", schema=SCHEMA)  # as maintenance does
    table.needed = NeededVersions(log=before, rows=before + 1)
    table.send(1)
    assert table.operations()[-1] == "vacuum"
    assert table.location.read_log(before) is not None
    rest, _ = _followed(table.location, {"log": RowPosition(before).pack()})
    assert rest == [3]


def test_p93_a_snapshot_opened_before_the_log_is_cleaned_can_be_read_after_it(lake_storage: LakeStorage) -> None:
    table = SmallCommits(lake_storage, NOTHING_KEPT)
    table.send(3)
    held = table.location.open()  # delta-rs reads its log entries later, when it needs them
    table.send(1)
    assert table.operations()[-1] == "vacuum"
    assert held.transaction_version("nobody") is None
    held.update_incremental()
    assert held.version() == table.location.open().version()


def test_p93_files_are_kept_for_a_week_and_looked_for_once_a_day(tmp_path_factory: pytest.TempPathFactory) -> None:
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("week"))), {"waxlake.compaction.minFiles": "4"})
    table.send(8)
    assert set(table.operations()) == {"compact"}  # the table is younger than a day
    before = table.files_on_disk()
    now = [datetime.now(timezone.utc) + timedelta(days=2)]
    told: list[MaintenanceReport] = []
    kept = Maintenance(
        committer=Committer(table.location, "later"), compacts=False, report=told.append, clock=lambda: now[0]
    )
    for _ in range(3):
        kept.after_commit(0)
    assert [report.operation for report in told] == ["vacuum"]
    assert table.files_on_disk() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delta.targetFileSize", "large"),
        ("waxlake.compaction.minFiles", "1"),
        ("waxlake.vacuum.interval", "now and then"),
    ],
)
def test_a_property_that_cannot_be_read_is_told_and_stops_no_stream(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: str
) -> None:
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("wrong"))), {name: value})
    table.send(3)
    assert table.ids() == [0, 1, 2]
    assert value in str(table.reports[0].error)
    assert name in str(table.reports[0].error)


def test_p93_maintenance_can_be_turned_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    properties = {**NOTHING_KEPT, "pipelines.autoOptimize.managed": "false", "waxlake.compaction.minFiles": "2"}
    table = SmallCommits(LakeStorage(uri=str(tmp_path_factory.mktemp("off"))), properties)
    table.send(10)
    assert table.reports == []
    assert table.files() == 10
