"""What the commits of a table say about themselves: run, counts, positions, rules. The log is the one source of truth.

Called to complete the event log after a crash, and by `waxlake status`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from sinks.delta.protocol import CommitReceipt
from waxlake.stream.delta_table import METADATA_KEY, TableLocation, delta_errors
from waxlake.stream.errors import TerminalError
from waxlake.stream.file_counts import FILES_FACT

__all__ = ["FILLED", "Commit", "commits_since", "filled_flows", "recent_commits", "refuse_restored"]

FILLED: Final = "filled"
"""Key under which the commit that ends a full refresh says what filled the table, as flows' commits do under ``flows``."""

_SEARCH: Final = 1000
_EVERY_COMMIT: Final = 1 << 62
_COUNTS: Final = ("read", "rows", "dropped", "quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit that a flow made.

    Attributes:
        version: Table version (>= 0).
        committed_at: When, by the clock of who committed.
        metadata: What the sink put into the commit: run, flows, quarantine.
        size_bytes: Bytes of data files added; 0 where it was not looked up.
    """

    version: int
    committed_at: datetime
    metadata: Mapping[str, Any]
    size_bytes: int = 0

    @property
    def run(self) -> str:
        """Update that made it."""
        return str(self.metadata.get("run", ""))

    @property
    def flows(self) -> Mapping[str, Any]:
        """Flow name to its counts, rules and positions."""
        flows: Mapping[str, Any] = self.metadata.get("flows") or self.metadata.get(FILLED) or {}
        return flows

    @property
    def is_refill(self) -> bool:
        """Whether it put a table that was filled anew in the place of what was there: what is counted before it is gone."""
        return FILLED in self.metadata

    def receipt(self, table: str) -> CommitReceipt:
        """Return the receipt that the sink gave for this commit."""
        return CommitReceipt(
            table=table,
            version=self.version,
            rows=sum(facts.get("rows", 0) for facts in self.flows.values()),
            size_bytes=self.size_bytes,
            quarantined=sum(facts.get("quarantined", 0) for facts in self.flows.values()),
            duration_s=0.0,
            metadata=self.metadata,
        )


def commits_since(location: TableLocation, version: int, *, limit: int = 1000) -> list[Commit]:
    """Return the flows' commits above ``version``, oldest first; the newest ``limit`` versions at most.

    Reads the log entries of those versions and nothing else, so it costs nothing when there are none. Entries that log
    clean-up has removed end the search.

    Raises:
        ExternalError: The table cannot be read.
    """
    latest = location.open().version()
    if version > latest:  # the table was dropped and created anew
        version = -1
    found: list[Commit] = []
    for number in range(latest, max(version, latest - limit), -1):
        with delta_errors(f"read the log of table '{location.label}'"):
            actions = location.read_log(number)
        if actions is None:
            break
        infos = [action["commitInfo"] for action in actions if "commitInfo" in action]
        size = sum(int(action["add"].get("size", 0)) for action in actions if "add" in action)
        found.extend(_commits(infos, number, size))
    return found[::-1]


def recent_commits(location: TableLocation, *, limit: int = 1000) -> list[Commit]:
    """Return the flows' commits among the newest ``limit`` versions, newest first, without sizes.

    Raises:
        ExternalError: The table cannot be read.
    """
    handle = location.open()
    with delta_errors(f"read the log of table '{location.label}'"):
        entries = handle.history(limit)
    return [commit for entry in entries for commit in _commits([entry], int(entry["version"]), 0)]


def _commits(infos: list[dict[str, Any]], version: int, size_bytes: int) -> Iterator[Commit]:
    for info in infos:
        metadata = info.get(METADATA_KEY)
        if isinstance(metadata, dict) and (metadata.get("flows") or FILLED in metadata):
            at = datetime.fromtimestamp(int(info.get("timestamp") or 0) / 1000, tz=timezone.utc)
            yield Commit(version=version, committed_at=at, metadata=metadata, size_bytes=size_bytes)


def filled_flows(location: TableLocation, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Return what all commits of a young table say about its flows, as one commit would.

    Counts are added up; of a source's moves there is one, from the first start to the last end, and each that tells of files.

    Args:
        location: The table.
        without: Sources whose moves are left out.

    Raises:
        ExternalError: The table cannot be read.
    """
    filled: dict[str, Any] = {}
    for commit in commits_since(location, -1, limit=_EVERY_COMMIT):
        for flow, facts in commit.flows.items():
            sums = filled.setdefault(flow, {**dict.fromkeys(_COUNTS, 0), "rules": [], "sources": [], "skipped": []})
            for key in _COUNTS:
                sums[key] += facts.get(key, 0)
            sums["skipped"] += facts.get("skipped") or ()
            for count in facts.get("rules") or ():
                _add_rule(sums["rules"], count)
            for moved in facts.get("sources") or ():
                if moved["source"] not in without:
                    _add_move(sums["sources"], moved)
    return filled


def _add_rule(rules: list[dict[str, Any]], count: Mapping[str, Any]) -> None:
    for rule in rules:
        if all(rule[key] == count[key] for key in ("dataset", "rule", "action")):
            rule["passed"] += count["passed"]
            rule["failed"] += count["failed"]
            return
    rules.append(dict(count))


def _add_move(moves: list[dict[str, Any]], moved: Mapping[str, Any]) -> None:
    for move in moves:
        is_same = all(move[key] == moved[key] for key in ("source", "partition"))
        if is_same and FILES_FACT not in move and FILES_FACT not in moved:
            move.update(moved, start=move["start"])
            return
    moves.append(dict(moved))


def refuse_restored(location: TableLocation) -> None:
    """Stop if a table was put back to an older version by other means than ours since we last wrote it.

    Rows went back and positions did not: to go on would leave out what the table no longer holds. Called at the start of a run;
    reads the log from its end to our last entry.

    Raises:
        TerminalError: It was. Not retryable.
    """
    latest = location.open().version()
    for version in range(latest, max(-1, latest - _SEARCH), -1):
        actions = location.read_log(version) or []
        for info in (action["commitInfo"] for action in actions if "commitInfo" in action):
            if info.get(METADATA_KEY):
                return
            if info.get("operation") == "RESTORE":
                raise TerminalError(
                    f"cannot go on writing table '{location.label}'",
                    code="TABLE_RESTORED",
                    found=f"version {version} puts it back to an older one, and its source positions stayed where they were",
                    expected="commits that leave positions and rows in step",
                    remedy="Restore the version before that one and use `waxlake rewind`, or fill it anew with --full-refresh, "
                    "or read its sources from their start with --reset-checkpoint",
                )
