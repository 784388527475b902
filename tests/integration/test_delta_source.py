"""Delta tables as streams: where they begin, versions that change rows, change feeds, tables that are not what they were."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from connectors.delta import DeltaConnector
from connectors.delta.changes import DeltaChanges
from connectors.delta.settings import DeltaReadSettings, read_options
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SchemaGrown, SourceMoved, UsageError, WaxlakeError
from waxlake.stream.source import plan_partitions


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "table"


def _write(place: Path, *numbers: int, name: str = "a", **options: Any) -> None:
    rows = pa.table(
        {"n": list(numbers), "s": [name] * len(numbers)}, schema=pa.schema([("n", "int64"), ("s", "string")])
    )
    write_deltalake(place, rows, **{"mode": "append", **options})


def _connector(place: Path, **options: Any) -> DeltaConnector:
    settings = DeltaReadSettings.build("read_stream", read_options(options))
    kind = DeltaChanges if settings.read_change_feed else DeltaConnector
    return kind(TableLocation(str(place), name="table"), None, settings)


class _Follower:
    """Reads a table as one flow does: from its stored position on, to the latest version."""

    def __init__(self, place: Path, **options: Any) -> None:
        self._place, self._options = place, options
        self.position: int | None = None

    def rows(self, *columns: str, fences: Sequence[int] = ()) -> list[Any]:
        connector = _connector(self._place, **self._options)
        state = connector.inspect()
        stored = {} if self.position is None else {"log": self.position}
        others = [{"log": fence} for fence in fences]
        plan = plan_partitions(state, [stored, *others], is_bounded=True)
        reader = connector.reader(plan, ("log",), frozenset())
        self.position = plan.partitions["log"].start if self.position is None else self.position
        found: list[Any] = []
        while not reader.is_done:
            for batch in reader.read():
                self.position = batch.end
                names = columns or tuple(batch.table.column_names)
                rows = batch.table.select(names).to_pylist()
                found += [row[names[0]] for row in rows] if len(names) == 1 else [tuple(row.values()) for row in rows]
        return found


def _time_of(place: Path, version: int) -> datetime:
    entry = next(e for e in DeltaTable(place).history() if e["version"] == version)
    return datetime.fromtimestamp(entry["timestamp"] / 1000, tz=timezone.utc)


def test_p27_it_begins_where_it_is_told(place: Path) -> None:
    for version in range(3):
        _write(place, version)
    assert _Follower(place).rows("n") == [0, 1, 2]
    assert _Follower(place, startingVersion=1).rows("n") == [1, 2]
    assert _Follower(place, starting_version="latest").rows("n") == []
    assert _Follower(place, starting_timestamp=_time_of(place, 2).isoformat()).rows("n") == [2]
    long_ago = _time_of(place, 0) - timedelta(days=1)
    assert _Follower(place, starting_timestamp=long_ago).rows("n") == [0, 1, 2]
    follower = _Follower(place, starting_timestamp=_time_of(place, 2) + timedelta(days=1))
    assert follower.rows("n") == []
    _write(place, 3)
    assert follower.rows("n") == [3]
    with pytest.raises(SourceMoved) as caught:
        _Follower(place, starting_version=9).rows("n")
    assert caught.value.code == "STARTING_VERSION_UNKNOWN"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"starting_version": 1, "starting_timestamp": "2026-01-01"}, "exclude each other"),
        ({"read_change_feed": True, "SKIPCHANGECOMMITS": True}, "exclude each other"),
        ({"keys": ["n"]}, "read_change_feed"),
        ({"starting_version": -1}, "starting_version"),
        ({"startingVersoin": 1}, "'starting_version'"),
    ],
)
def test_p27_options_that_make_no_sense_are_refused(place: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _connector(place, **options)


def test_p27_versions_that_change_rows_stop_it_or_are_left_out(place: Path) -> None:
    _write(place, 1, 2)
    follower, skipping = _Follower(place), _Follower(place, skip_change_commits=True)
    assert follower.rows("n") == skipping.rows("n") == [1, 2]
    DeltaTable(place).delete("n = 1")
    _write(place, 3)
    with pytest.raises(SourceMoved) as caught:
        follower.rows("n")
    assert caught.value.code == "SOURCE_NOT_APPEND_ONLY"
    for part in ("version 1 (DELETE of ", "skip_change_commits=True", "read_change_feed=True"):
        assert part in str(caught.value)
    assert skipping.rows("n") == [3]
    DeltaTable(place).restore(0)
    with pytest.raises(SourceMoved, match=r"version 1 "):
        follower.rows("n")
    assert skipping.rows("n") == []


@pytest.mark.parametrize("has_feed", [False, True], ids=["file-difference", "change-data-files"])
@pytest.mark.parametrize("keys", [(), ("n",)], ids=["no-keys", "keys"])
def test_p27_p96_a_change_feed_is_the_table_and_then_its_changes(
    place: Path, has_feed: bool, keys: tuple[str, ...]
) -> None:
    configuration = {"delta.enableChangeDataFeed": "true"} if has_feed else None
    _write(place, 1, 2, 3, configuration=configuration)
    _write(place, 3)  # a second row that is equal
    follower = _Follower(place, read_change_feed=True, keys=keys)
    columns = ("n", "s", "_change_type", "_commit_position", "_change_index")
    first = follower.rows(*columns)
    assert sorted(row[0] for row in first) == [1, 2, 3, 3]
    assert {row[2:4] for row in first} == {("insert", 1)}
    assert [row[4] for row in first] == [0, 1, 2, 3]

    DeltaTable(place).update(predicate="n = 1", updates={"s": "'b'"})
    DeltaTable(place).delete("n = 2")
    _write(place, 4)
    DeltaTable(place).optimize.compact()  # changes nothing
    updated = [(1, "b", "update", 2, 0)] if keys else [(1, "a", "delete", 2, 0), (1, "b", "insert", 2, 1)]
    assert follower.rows(*columns) == [*updated, (2, "a", "delete", 3, 0), (4, "a", "insert", 4, 0)]
    assert follower.rows() == []

    _write(place, 7, 8, mode="overwrite")
    changes = follower.rows("n", "_change_type", "_commit_timestamp", "_table")
    gone, come = [(1, "delete"), (3, "delete"), (3, "delete"), (4, "delete")], [(7, "insert"), (8, "insert")]
    assert sorted(row[:2] for row in changes) == [*gone, *come]
    assert {row[2:] for row in changes} == {(_time_of(place, 6), "table")}


def test_p27_a_change_feed_goes_on_inside_its_first_read(place: Path) -> None:
    _write(place, *range(10))
    follower = _Follower(place, read_change_feed=True)
    begin = _connector(place, read_change_feed=True).inspect().begin["log"]
    connector = _connector(place, read_change_feed=True)
    follower.position = begin
    plan = plan_partitions(connector.inspect(), [{"log": begin}, {"log": begin + 4}], is_bounded=True)
    (batch,) = connector.reader(plan, ("log",), frozenset()).read()
    assert (batch.end, batch.table.num_rows) == (begin + 4, 4)
    follower.position = batch.end
    DeltaTable(place).delete("n < 5")  # the first read goes on with the version that it began with
    rows = follower.rows("n", "_change_type", "_change_index")
    assert rows[:6] == [(n, "insert", n) for n in range(4, 10)]
    assert sorted(row[:2] for row in rows[6:]) == [(n, "delete") for n in range(5)]
    assert [row[2] for row in rows[6:]] == list(range(5))


def _stop(follower: _Follower) -> WaxlakeError:
    with pytest.raises(WaxlakeError) as caught:
        follower.rows("n")
    return caught.value


def test_p27_a_table_that_is_not_what_it_was_is_a_clear_stop(place: Path) -> None:
    _write(place, 1)
    follower = _Follower(place)
    follower.rows("n")
    _write(place, 2)
    for file in DeltaTable(place).file_uris()[:1]:
        Path(file).unlink()
    error = _stop(follower)
    assert (error.code, "vacuumed" in str(error), "version 1" in str(error)) == ("SOURCE_EXPIRED", True, True)


def test_p27_a_table_that_was_recreated_while_it_was_followed_stops_it(place: Path) -> None:
    _write(place, 1)
    connector = _connector(place)
    plan = plan_partitions(connector.inspect(), [{}], is_bounded=False)
    reader = connector.reader(plan, ("log",), frozenset())
    assert [row for batch in reader.read() for row in batch.table["n"].to_pylist()] == [1]
    shutil.rmtree(place)
    _write(place, 7)
    _write(place, 8)
    with pytest.raises(SourceMoved) as caught:
        reader.read()
    assert caught.value.code == "SOURCE_RECREATED"


def test_p27_columns_that_come_end_the_plan_and_columns_that_go_stop_it(place: Path) -> None:
    _write(place, 1)
    connector = _connector(place)
    plan = plan_partitions(connector.inspect(), [{}], is_bounded=False)
    reader = connector.reader(plan, ("log",), frozenset())
    reader.read()
    wider = pa.table({"n": [2], "s": ["b"], "more": [1.5]})
    write_deltalake(place, wider, mode="append", schema_mode="merge")
    with pytest.raises(SchemaGrown, match="more"):
        reader.read()
    follower = _Follower(place)
    assert follower.rows("n", "more") == [(1, None), (2, 1.5)]

    write_deltalake(place, pa.table({"n": [3]}), mode="overwrite", schema_mode="overwrite")
    _write_n = pa.table({"n": [4]})
    write_deltalake(place, _write_n, mode="append")
    assert _stop(follower).code == "SOURCE_NOT_APPEND_ONLY"
    feed = _Follower(place, read_change_feed=True, starting_version=1)
    assert feed.rows("n", "_change_type")[-1] == (4, "insert")
