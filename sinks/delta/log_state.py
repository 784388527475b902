"""A table's data files and ``txn`` versions as they were at a version, from its log and checkpoints. Called by a rewind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TerminalError

__all__ = ["LogState", "read_state", "txn_history"]

_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")


@dataclass(slots=True)
class LogState:
    """A table at a version.

    Attributes:
        version: The version.
        adds: Path, as the log writes it, to the add action of each data file.
        txns: App id to its version.
    """

    version: int
    adds: dict[str, dict[str, Any]] = field(default_factory=dict)
    txns: dict[str, int] = field(default_factory=dict)

    def take(self, action: dict[str, Any]) -> None:
        """Apply one action."""
        if action.get("add"):
            self.adds[action["add"]["path"]] = action["add"]
        elif action.get("remove"):
            self.adds.pop(action["remove"]["path"], None)
        elif action.get("txn"):
            self.txns[action["txn"]["appId"]] = int(action["txn"]["version"])


def read_state(location: TableLocation, version: int) -> LogState:
    """Return a table as it was at a version.

    Raises:
        TerminalError: ``REWIND_TOO_FAR``: the log no longer reaches back to it. Not retryable.
        TransientError: The store does not answer. Retryable.
    """
    state = LogState(version)
    start = _checkpoint(location, version)
    if start is not None:
        _take_checkpoint(location, start, state)
    for number in range(0 if start is None else start + 1, version + 1):
        actions = location.read_log(number)
        if actions is None:
            raise too_far(location, version)
        for action in actions:
            state.take(action)
    return state


def txn_history(location: TableLocation, app: str, latest: int) -> list[tuple[int, int]]:
    """Return (table version, value) of each change of an app id, newest first, as far back as the log reaches."""
    found = []
    for number in range(latest, -1, -1):
        actions = location.read_log(number)
        if actions is None:
            break
        found += [(number, int(a["txn"]["version"])) for a in actions if "txn" in a and a["txn"]["appId"] == app]
    return found


def too_far(location: TableLocation, version: int) -> TerminalError:
    """Return the error of a table whose log was cleaned."""
    return TerminalError(
        f"table '{location.label}' cannot be rewound",
        code="REWIND_TOO_FAR",
        found="a log that no longer reaches back so far",
        expected=f"its log entries up to version {version}",
        remedy="Choose a later time or version, or fill it anew with waxlake run --full-refresh",
    )


def _checkpoint(location: TableLocation, version: int) -> int | None:
    """Return the newest checkpoint at or below a version."""
    with delta_errors(f"look at the log of table '{location.label}'"):
        infos = location.filesystem().get_file_info(pa_fs.FileSelector("_delta_log"))
    found = [match for info in infos if (match := _CHECKPOINT.fullmatch(str(info.base_name)))]
    return max((int(match[1]) for match in found if int(match[1]) <= version), default=None)


def _take_checkpoint(location: TableLocation, number: int, state: LogState) -> None:
    path = f"_delta_log/{number:020d}.checkpoint.parquet"
    with (
        delta_errors(f"read a checkpoint of table '{location.label}'"),
        location.filesystem().open_input_file(path) as stream,
    ):
        rows = pq.read_table(stream, columns=["add", "txn"]).to_pylist()
    for row in rows:
        if row.get("add"):
            row["add"]["partitionValues"] = dict(row["add"].get("partitionValues") or ())
        state.take(row)
