"""Targets that AUTO CDC keeps beside the change logs of a workload's tables, and what they must hold in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from tests.recovery.workload import KEYS, Key, Row, Workload

__all__ = ["TARGETS", "TARGET_DEFINITIONS", "check_targets"]

TARGET_DEFINITIONS = """
wl.ingest_database(changes_of, {
    "accounts": {"keys": "id", "name": "accounts_now"},
    "entries": {"keys": ["a", "b"], "name": "entries_now"},
})
wl.ingest_database(changes_of, {
    "accounts": {"keys": "id", "name": "accounts_history", "scd_type": 2},
    "entries": {"keys": ["a", "b"], "name": "entries_history", "scd_type": 2},
})
"""
"""Declared beside the logs; ``changes_of`` returns the changes of a table."""

TARGETS = {f"{table}_{kind}": table for table in KEYS for kind in ("now", "history")}
"""Target to the table that it is kept of."""

_Event = tuple[int, int, Key, Row | None]


def check_targets(tables: Path, workload: Workload, *, since: int) -> int:
    """Compare each SCD 1 target with the rows, and replay each SCD 2 target to every committed state.

    Args:
        tables: Folder of the tables.
        workload: What was done; its rows are those of the source.
        since: Position of the log at which the first loads were complete: the states after it are compared.

    Returns:
        Number of states that a history was compared with.
    """
    compared = 0
    for table, keys in KEYS.items():
        now = DeltaTable(str(tables / f"{table}_now")).to_pyarrow_table().to_pylist()
        rows = {tuple(row[name] for name in keys): row for row in now}
        assert len(rows) == len(now), f"a key twice in {table}_now"
        assert rows == workload.rows[table], f"{table}_now is not the source's table"
        history = DeltaTable(str(tables / f"{table}_history")).to_pyarrow_table().to_pylist()
        compared = _check_history(table, history, workload, since)
    return compared


def _check_history(table: str, history: Sequence[Row], workload: Workload, since: int) -> int:
    """Go through the committed states; of each, only the keys that differ from the one before have to be looked at."""
    events = iter(sorted(_events(table, history), key=lambda event: event[:2]))
    event = next(events, None)
    stored: dict[Key, Row] = {}
    expected: dict[Key, Row] = {}
    compared = 0
    unsure = workload.moved_documents if table == "accounts" else set()
    for state in workload.states:
        changed = state.rows[table]
        touched = set(changed)
        expected.update({key: row for key, row in changed.items() if row is not None})
        for key in [key for key, row in changed.items() if row is None]:
            expected.pop(key, None)
        while event is not None and event[0] <= state.position:
            _, _, key, row = event
            touched.add(key)
            if row is None:
                stored.pop(key, None)
            else:
                stored[key] = row
            event = next(events, None)
        if state.position < since:
            continue
        for key in touched if compared else {*expected, *stored}:
            found, wanted = _told(stored.get(key)), _told(expected.get(key))
            if found != wanted and found and wanted and key in unsure and "document" not in found:
                wanted = {name: value for name, value in wanted.items() if name != "document"}
            versions = [version for version in history if _key(table, version) == key] if found != wanted else []
            assert found == wanted, f"{table}_history at {state.position}, key {key}: {wanted} is not in {versions}"
        compared += 1
    return compared


def _events(table: str, history: Sequence[Row]) -> Iterator[_Event]:
    """Yield (position, 0 for an end or 1 for a begin, key, row) of versions that outlived a commit."""
    for version in history:
        start, end = version["__START_AT"], version["__END_AT"]
        key = _key(table, version)
        begin = start["_commit_position"]
        if end is not None and end["_commit_position"] == begin:
            continue
        yield begin, 1, key, {name: value for name, value in version.items() if not name.startswith("_")}
        if end is not None:
            yield end["_commit_position"], 0, key, None


def _key(table: str, row: Row) -> Key:
    return tuple(row[name] for name in KEYS[table])


def _told(row: Row | None) -> dict[str, Any] | None:
    """Return what a row says: a column that came later is NULL in older rows."""
    return None if row is None else {name: value for name, value in row.items() if value is not None}
