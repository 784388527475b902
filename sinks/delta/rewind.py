"""Put a table back to what it was at an old version, its positions with it, in one log entry.

The data files of then are named again, later ones are removed, and each app id gets the version it had: positions that did not
exist are forgotten. What only ever grows stays: the fence, the number of the last quarantine manifest, the owner. Columns that
came later stay, too, as NULL.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import pyarrow.fs as pa_fs
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from sinks.delta.log_state import LogState, read_state
from sinks.delta.swap import commit_once, refresh_app_id
from waxlake.stream.delta_table import FORGOTTEN, METADATA_KEY, REBUILT_APP_ID, TableLocation, delta_errors
from waxlake.stream.errors import TerminalError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import FENCE_APP_ID

__all__ = ["kept_rows", "require_files", "rewind_table"]

_KEPT: Final = ("fence", "owner", "quarantine", "primary", "refresh", "vacuumed", "rebuilt", "replayed")


def rewind_table(
    location: TableLocation,
    version: int,
    *,
    key: str,
    run_number: int,
    positions: Mapping[str, int],
    facts: Mapping[str, Any],
) -> int:
    """Put a table back to a version, unless that was done.

    Args:
        location: The table.
        version: Version to go back to.
        key: Identity of the rewind.
        run_number: Fence of the run.
        positions: App ids that get another version than they had then.
        facts: What the commit's metadata says.

    Returns:
        Table version of the rewind.

    Raises:
        CommitConflict: A newer run writes the table. Not retryable.
        TerminalError: The log no longer reaches back. Not retryable.
        TransientError: Others write the table all the time. Retryable.

    Guarantee: the table as it is or as it was, never a mixture, and the positions that belong to it.
    """

    def put_back(handle: DeltaTable, new: int) -> bool:
        now, then = read_state(location, handle.version()), read_state(location, version)
        versions = {**_versions(now, then), **positions}
        versions |= {FENCE_APP_ID: run_number, refresh_app_id(key): new, REBUILT_APP_ID: new}
        return _committed(handle, location, now, then, versions, facts)

    remedy = "Rewind when it has ended"
    return commit_once(location, put_back, doing="rewind", key=key, run_number=run_number, remedy=remedy)


def require_files(location: TableLocation, now: LogState, then: LogState) -> None:
    """Stop if a data file that is to be named again was deleted.

    Raises:
        TerminalError: ``REWIND_FILES_GONE``. Not retryable.
    """
    paths = [unquote(path) for path in then.adds if path not in now.adds]
    if not paths:
        return
    with delta_errors(f"look for files of table '{location.label}'"):
        found = location.filesystem().get_file_info(paths)
    gone = [str(info.path) for info in found if info.type == pa_fs.FileType.NotFound]
    if gone:
        raise TerminalError(
            f"table '{location.label}' cannot be rewound to version {then.version}",
            code="REWIND_FILES_GONE",
            found=f"{len(gone)} of its data files deleted, such as {gone[0]}",
            expected="every file of that version",
            remedy="A vacuum has deleted them. Choose a later version, or fill it anew with waxlake run --full-refresh",
        )


def kept_rows(state: LogState) -> int:
    """Return the rows of a table as its log counts them."""
    return sum(int(json.loads(add.get("stats") or "{}").get("numRecords") or 0) for add in state.adds.values())


def _versions(now: LogState, then: LogState) -> dict[str, int]:
    """Return what each app id is put back to; positions that did not exist are forgotten."""
    versions: dict[str, int] = {}
    for app, current in now.txns.items():
        parts = app.split("/")
        if len(parts) > 1 and parts[1] in _KEPT and (len(parts) == 2 or parts[1] in ("primary", "refresh")):
            continue
        is_position = parts[-1] not in ("identity", "sources", "definition", "state") and len(parts) > 3
        is_position = is_position or parts[1:] == ["cdc", "state"]  # there was none before the first late event
        before = then.txns.get(app, FORGOTTEN if is_position else current)
        if before != current:
            versions[app] = before
    return versions


def _committed(
    handle: DeltaTable,
    location: TableLocation,
    now: LogState,
    then: LogState,
    versions: Mapping[str, int],
    facts: Mapping[str, Any],
) -> bool:
    """Commit once; return False if somebody else was first."""
    removes = [_removal(add) for path, add in now.adds.items() if path not in then.adds]
    adds = [_addition(add) for path, add in then.adds.items() if path not in now.adds]
    properties = CommitProperties(
        custom_metadata={METADATA_KEY: {"commit_id": uuid.uuid4().hex, **facts}},
        app_transactions=[Transaction(app, version) for app, version in versions.items()],
    )
    failpoint("before-rewind")
    try:
        with delta_errors(f"rewind table '{location.label}'"):
            handle.create_write_transaction(
                [*removes, *adds],
                mode="append",
                schema=handle.schema(),
                partition_by=list(handle.metadata().partition_columns),
                commit_properties=properties,
            )
    except CommitFailedError:
        return False
    failpoint("rewound")
    return True


def _removal(add: Mapping[str, Any]) -> RemoveAction:
    partition = dict(add.get("partitionValues") or {})
    return RemoveAction(unquote(add["path"]), True, int(time.time() * 1000), int(add["size"]), partition)


def _addition(add: Mapping[str, Any]) -> AddAction:
    return AddAction(
        unquote(add["path"]),
        int(add["size"]),
        dict(add.get("partitionValues") or {}),
        int(add["modificationTime"]),
        True,
        add.get("stats") or "{}",
    )
