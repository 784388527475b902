"""Put a table that was filled anew beside another in its place: rows, columns and positions, in one commit.

Called by a full refresh. The new table (the shadow) lies in a folder inside the old one, so its data files are where the old
table's log can name them. Where a crash can fall:

1. before the commit: the table is as it was.
2. after it: the table holds an app id of the refresh; a repetition finds it and does nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from sinks.delta.protocol import FENCE_APP_ID
from waxlake.stream.delta_table import METADATA_KEY, REBUILT_APP_ID, TableLocation, delta_errors
from waxlake.stream.errors import CommitConflict, TerminalError, TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["commit_once", "positions_of", "refresh_app_id", "swap_in"]

_ATTEMPTS: Final = 30


def refresh_app_id(refresh: str) -> str:
    """Return the app id under which a table remembers that a refresh is in it."""
    return f"waxlake/refresh/{refresh}"


def swap_in(
    table: TableLocation,
    shadow: TableLocation,
    *,
    refresh: str,
    run_number: int,
    positions: Mapping[str, int],
    facts: Mapping[str, Any],
) -> int:
    """Replace a table's content by that of its shadow, unless that was done.

    Args:
        table: The table.
        shadow: The new one, in a folder inside it.
        refresh: Identity of the refresh.
        run_number: Fence of the run.
        positions: App id to the position that goes with the new content.
        facts: What the commit's metadata says.

    Returns:
        Table version of the replacement.

    Raises:
        CommitConflict: A newer run writes the table. Not retryable.
        TransientError: Others write the table all the time, or the store does not answer. Retryable.

    Guarantee: the old table or the new one, never a mixture.
    """
    folder = shadow.uri[len(table.uri) :].strip("/")
    new = shadow.open()
    adds = [_moved(add, folder) for add in _live_files(shadow, new)]

    def replace(handle: DeltaTable, version: int) -> bool:
        versions = {**positions, FENCE_APP_ID: run_number, refresh_app_id(refresh): version, REBUILT_APP_ID: version}
        return _replaced(handle, table, new, adds, versions, facts)

    remedy = "Run the full refresh again when it has ended"
    return commit_once(table, replace, doing="replace", key=refresh, run_number=run_number, remedy=remedy)


def commit_once(
    table: TableLocation,
    commit: Callable[[DeltaTable, int], bool],
    *,
    doing: str,
    key: str,
    run_number: int,
    remedy: str,
) -> int:
    """Commit what replaces the content of a table, unless that was done.

    Args:
        table: The table.
        commit: Commits to a snapshot the version given; returns False if somebody else was first.
        doing: What it does, as ``replace``.
        key: Identity of what is done, under which the table remembers it.
        run_number: Fence of this run.
        remedy: What to do once a newer run has ended.

    Returns:
        Table version of the commit.

    Raises:
        CommitConflict: A newer run writes the table. Not retryable.
        TransientError: Others write the table all the time. Retryable.
    """
    for attempt in range(_ATTEMPTS):
        handle = table.open()
        done = handle.transaction_version(refresh_app_id(key))
        if done is not None:
            return int(done)
        _require_fence(handle, f"{doing} table '{table.label}'", run_number, remedy)
        version = handle.version() + 1
        if commit(handle, version):
            return version
        time.sleep(min(0.01 * 2**attempt, 0.5))
    raise TransientError(
        f"cannot {doing} table '{table.label}' after {_ATTEMPTS} attempts",
        code="COMMIT_CONTENTION",
        remedy="Other writers change this table all the time; give it one writer",
    )


def _require_fence(handle: DeltaTable, doing: str, run_number: int, remedy: str) -> None:
    """Stop if a newer run than ours writes a table.

    Args:
        handle: The table, as it is about to be committed to.
        doing: What is about to be done, as ``replace table 'orders'``.
        run_number: Fence of this run.
        remedy: What to do once the other has ended.

    Raises:
        CommitConflict: It does. Not retryable.
    """
    fence = handle.transaction_version(FENCE_APP_ID) or 0
    if fence > run_number:
        raise CommitConflict(
            f"cannot {doing} at version {handle.version()}",
            code="COMMIT_CONFLICT",
            found=f"fence {fence} of a newer run",
            expected=f"at most {run_number}, the fence of this run",
            remedy=f"Another run is writing this table. {remedy}",
        )


def _replaced(
    handle: DeltaTable,
    table: TableLocation,
    new: DeltaTable,
    adds: Sequence[AddAction],
    versions: Mapping[str, int],
    facts: Mapping[str, Any],
) -> bool:
    """Commit once; return False if somebody else was first."""
    properties = CommitProperties(
        custom_metadata={METADATA_KEY: {"commit_id": uuid.uuid4().hex, **facts}},
        app_transactions=[Transaction(app, version) for app, version in versions.items()],
    )
    failpoint("before-swap")
    try:
        with delta_errors(f"replace table '{table.label}'"):
            handle.create_write_transaction(
                list(adds),
                mode="overwrite",
                schema=new.schema(),
                partition_by=list(new.metadata().partition_columns),
                commit_properties=properties,
            )
    except CommitFailedError:
        return False
    failpoint("swapped")
    return True


def positions_of(shadow: TableLocation) -> dict[str, int]:
    """Return the app ids of the flows that fed a shadow, and their versions, from its log."""
    versions: dict[str, int] = {}
    for action in _actions(shadow, shadow.open()):
        if "txn" in action:
            versions[action["txn"]["appId"]] = int(action["txn"]["version"])
    return versions


def _actions(shadow: TableLocation, handle: DeltaTable) -> list[dict[str, Any]]:
    """Return every action of a young log, in order.

    Raises:
        TerminalError: An entry of it is gone. Not retryable.
    """
    actions: list[dict[str, Any]] = []
    for version in range(handle.version() + 1):
        entry = shadow.read_log(version)
        if entry is None:
            raise TerminalError(
                f"cannot put table '{shadow.label}' in its place",
                code="REFRESH_LOG_GONE",
                found=f"no log entry of version {version} of the table that was filled anew",
                expected=f"every entry up to version {handle.version()}",
                remedy="Its log was cleaned by other means. Run the full refresh again; the table is as it was",
            )
        actions += entry
    return actions


def _live_files(shadow: TableLocation, handle: DeltaTable) -> list[dict[str, Any]]:
    """Return the add actions of the files that the shadow consists of."""
    live: dict[str, dict[str, Any]] = {}
    for action in _actions(shadow, handle):
        if "add" in action:
            live[action["add"]["path"]] = action["add"]
        elif "remove" in action:
            live.pop(action["remove"]["path"], None)
    return list(live.values())


def _moved(add: Mapping[str, Any], folder: str) -> AddAction:
    """Return an add action that names the same file from the table's folder."""
    return AddAction(
        f"{folder}/{unquote(add['path'])}",
        int(add["size"]),
        dict(add.get("partitionValues") or {}),
        int(add["modificationTime"]),
        True,
        add.get("stats") or "{}",
    )
