"""What one version of a Delta table's log says: files, changes, columns, time; and which version a time means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote

from waxlake.stream.delta_table import TableLocation

__all__ = [
    "columns_of",
    "committed_at",
    "files_of",
    "first_version_since",
    "has_changes",
    "operation_of",
    "table_id_of",
]


def files_of(log: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the files of one kind of action (``add``, ``remove``, ``cdc``) where they stand for changed rows."""
    is_cdc = kind == "cdc"
    found = [dict(action[kind]) for action in log if kind in action]
    found = [file for file in found if is_cdc or file.get("dataChange", True)]
    for file in found:
        file["path"] = unquote(file["path"])
    return found


def has_changes(log: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a version updates or deletes rows."""
    return bool(files_of(log, "remove"))


def operation_of(log: Sequence[Mapping[str, Any]]) -> str:
    """Return what the writer called it, as ``DELETE``; empty if it did not say."""
    return next((str(action["commitInfo"].get("operation") or "") for action in log if "commitInfo" in action), "")


def committed_at(log: Sequence[Mapping[str, Any]] | None) -> datetime | None:
    """Return when a version was committed, by its writer's clock."""
    for action in log or ():
        info = action.get("commitInfo") or {}
        stamp = info.get("inCommitTimestamp", info.get("timestamp"))
        if stamp is not None:
            return datetime.fromtimestamp(int(stamp) / 1000, tz=timezone.utc)
    return None


def table_id_of(log: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the id of the table if the version says so."""
    return next((str(action["metaData"]["id"]) for action in log if "metaData" in action), None)


def columns_of(log: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """Return the columns that a version gives the table, name to type as text; None if it leaves them as they are."""
    for action in log:
        if "metaData" in action:
            fields = json.loads(action["metaData"]["schemaString"])["fields"]
            return {field["name"]: json.dumps(field["type"], sort_keys=True) for field in fields}
    return None


def first_version_since(location: TableLocation, at: datetime, latest: int) -> int:
    """Return the first version committed at a time or later; the one after the latest if there is none.

    Entries that the log no longer has count as earlier.
    """
    low, high = 0, latest + 1
    while low < high:
        middle = (low + high) // 2
        when = committed_at(location.read_log(middle))
        if when is None or when < at:
            low = middle + 1
        else:
            high = middle
    return low
