"""The state beside a table: what is put, removed and expired comes back after a restart; few files, and none without a name."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from sinks.state import store as state_store
from sinks.state.store import EXPIRES, ID, StateStore, StateTable, read_manifest
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TerminalError

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.string())])


def put(table: StateTable, rows: list[tuple[int, str, int | None]]) -> None:
    columns = [pa.array([r[i] for r in rows], kind) for i, kind in ((0, pa.int64()), (1, pa.string()), (2, pa.int64()))]
    table.session.register("made", pa.table(columns, names=["k", "v", EXPIRES]))
    table.put("SELECT * FROM made")
    table.session.unregister("made")


def held(table: StateTable) -> list[tuple[int, str]]:
    return sorted(table.session.execute(f"SELECT k, v FROM {table.sql_name}").fetchall())


def test_p85_the_changelog_gives_back_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "_SLACK_ROWS", 60)
    location, random_ = TableLocation(str(tmp_path), name="t"), random.Random(3)
    store = StateStore(location, "f", {"rows": SCHEMA}, {})
    other = StateStore(location, "another flow", {"rows": SCHEMA}, {})
    other.committed(other.write({"watermark": None}))
    model: dict[int, tuple[str, int | None]] = {}
    most_segments = 0
    for commit in range(60):
        table, watermark = store.tables["rows"], commit * 10 - 100
        fresh = [(commit * 100 + i, f"v{commit}") for i in range(random_.randrange(12))]
        again = [(key, f"again {commit}") for key in random_.sample(sorted(model), min(len(model), 4))]
        gone = random_.sample(sorted(model), min(len(model), 3))
        listed = ", ".join(str(key) for key in [*gone, *(key for key, _ in again)]) or "NULL"
        table.remove(f"SELECT {ID} FROM {table.sql_name} WHERE k IN ({listed})")
        for key in gone:
            model.pop(key)
        rows = [
            (k, v, random_.choice([None, commit * 10 + 50])) for k, v in fresh + [a for a in again if a[0] not in gone]
        ]
        put(table, rows)
        model |= {k: (v, expires) for k, v, expires in rows}
        table.expire(watermark)
        model = {k: (v, e) for k, (v, e) in model.items() if e is None or e >= watermark}
        number = store.write({"watermark": watermark})
        store.committed(number)
        said = read_manifest(location, "f", number)["tables"]["rows"]
        most_segments = max(most_segments, len(said["puts"]) + len(said["removals"]))
        assert held(table) == sorted((k, v) for k, (v, _) in model.items())
        if commit % 13 == 7:
            abandoned = store.write({"watermark": watermark})  # a commit that does not happen
            assert abandoned != number
            store.close()
            store = StateStore(location, "f", {"rows": SCHEMA}, {})
            store.load(number)
            assert held(store.tables["rows"]) == sorted((k, v) for k, (v, _) in model.items())
    assert most_segments <= 16
    named = {s["path"] for log in ("puts", "removals") for s in said[log]}
    files = {f"_waxlake/{path.name}" for path in (tmp_path / "_waxlake").glob("*.parquet")}
    assert named <= files
    assert len(files - named) <= 8  # of the four commits that did not happen: they stay for a day
    assert read_manifest(location, "another flow", other.number)["format"] == 1
    store.close()
    (tmp_path / sorted(named)[0]).unlink()
    lost = StateStore(location, "f", {"rows": SCHEMA}, {})
    with pytest.raises(TerminalError, match=r"\[STATE_LOST\]"):
        lost.load(number)
