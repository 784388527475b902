"""The ledger of a query source: which polls were made, and which rows each of their windows took.

A poll reads the rows up to the highest cursor of the moment; a window is a part of it that fits a batch. Each is recorded
here, in a Delta table, before any of its rows is emitted; a position is (poll, window). A database keeps no old rows, so a
window that is read again after a crash finds what is left of it: of the rows that it took, those that have not changed since.
The others have a higher cursor by now and belong to a later window. So each version of a row that a poll saw, and that is
still there, is stored once.

Where a process can die, and what happens then:

- ``poll-recorded``: the poll is there, nothing of it was read. The next run makes it, up to the same highest cursor.
- ``window-recorded``: its rows were not emitted, or not committed. The next run reads the window again.
- after the commit of the table: the position is behind the window; the next one is read.

Rows near the border between polls are told apart by fingerprints, kept for as far as a poll looks back.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from connectors.query.values import Cursor, decode_cursor, encode_cursor
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["Poll", "QueryLedger", "Window"]

_SCHEMA: Final = pa.schema(
    [
        pa.field("poll", pa.int64(), metadata={"comment": "Number of the poll; the major part of a position"}),
        pa.field("window", pa.int64(), metadata={"comment": "Number of the window in it; NULL for the poll itself"}),
        pa.field("kind", pa.string(), metadata={"comment": "poll, rows, nulls, deletes or end"}),
        pa.field("low", pa.string(), metadata={"comment": "Cursor after which it begins; NULL for the start"}),
        pa.field("high", pa.string(), metadata={"comment": "Cursor with which it ends"}),
        pa.field("is_last", pa.bool_(), metadata={"comment": "Whether the poll ends with it"}),
        pa.field("is_full", pa.bool_(), metadata={"comment": "poll: whether it reads everything"}),
        pa.field("rows", pa.int64(), metadata={"comment": "Rows that it took"}),
        pa.field("seen", pa.binary(), metadata={"comment": "Fingerprints of rows near its borders, int64"}),
        pa.field("gone", pa.binary(), metadata={"comment": "nulls: fingerprints of rows that are no more, int64"}),
        pa.field("file", pa.string(), metadata={"comment": "File of keys that belongs to it"}),
        pa.field("columns", pa.string(), metadata={"comment": "Columns that the poll reads"}),
        pa.field("recorded_at", pa.timestamp("us", tz="UTC"), metadata={"comment": "When it was recorded"}),
    ]
)
_NEXT: Final = "waxlake/ledger"
_COMPACT_ABOVE_FILES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """A poll: rows with cursors in ``[low - look back, high]`` that none before took.

    Attributes:
        number: Its number.
        is_full: Whether it reads everything: the first load, or a back-fill.
        low: Highest cursor of the poll before; None for a full one, and if there was no cursor yet.
        high: Highest cursor when it was recorded; None if no row had one.
        detects_deletes: Whether all keys are read at its end.
        columns: Columns that it reads.
        recorded_at: When it was recorded.
    """

    number: int
    is_full: bool
    low: Cursor
    high: Cursor
    detects_deletes: bool
    columns: tuple[str, ...]
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a poll.

    Attributes:
        poll: Number of the poll.
        number: Its number in the poll.
        kind: ``rows``, ``nulls``, ``deletes`` or ``end``.
        low: Cursor after which its rows begin; None for the start.
        high: Cursor with which they end.
        is_last: Whether the poll ends with it.
        rows: Rows that it took.
        seen: Fingerprints of rows near its borders (``rows``), or of all its rows (``nulls``).
        gone: Fingerprints of rows without a cursor that are no more.
        file: File of keys: those of its rows, or of the rows that are gone (``deletes``).
    """

    poll: int
    number: int
    kind: str
    low: Cursor = None
    high: Cursor = None
    is_last: bool = False
    rows: int = 0
    seen: np.ndarray
    gone: np.ndarray
    file: str | None = None


class QueryLedger:
    """The ledger of one source. Used by one thread at a time.

    Args:
        location: Where the Delta table lies.
        source: What is read, for the comment.
    """

    def __init__(self, location: TableLocation, source: str) -> None:
        self._location, self._source = location, source
        self._handle: DeltaTable | None = None
        self._polls: dict[int, Poll] = {}
        self._windows: dict[int, list[Window]] = {}
        self._loaded: set[str] = set()
        self._count = 0

    @property
    def table_id(self) -> str:
        """Id of the Delta table: a ledger that was made anew is another one."""
        return str(self._opened().metadata().id)

    @property
    def next_poll(self) -> int:
        """The number of the next poll."""
        return max(self._polls, default=-1) + 1

    @property
    def last_poll(self) -> Poll | None:
        """The newest poll."""
        return self._polls[self.next_poll - 1] if self._polls else None

    def poll(self, number: int) -> Poll:
        """Return a poll."""
        return self._polls[number]

    def windows(self, poll: int) -> Sequence[Window]:
        """Return the windows of a poll that were recorded, in order."""
        return self._windows.get(poll, [])

    def is_complete(self, poll: int) -> bool:
        """Return whether all windows of a poll are recorded."""
        return any(window.is_last for window in self.windows(poll))

    def all_windows(self) -> list[Window]:
        """Return every window, in order."""
        return [window for number in sorted(self._windows) for window in self._windows[number]]

    def load(self) -> None:
        """Create the ledger unless it is there, and see what was recorded."""
        if self._handle is None and not self._location.exists():
            self._handle = self._location.create(_SCHEMA, comment=f"Polls of {self._source}")
        handle = self._opened()
        with delta_errors(f"read the ledger '{self._location.label}'"):
            handle.update_incremental()
            self._count = handle.transaction_version(_NEXT) or 0
            names = set(pa.table(handle.get_add_actions(flatten=True)).column("path").to_pylist())
            fresh = sorted(names - self._loaded)
            filesystem = self._location.filesystem()
            tables = [pq.read_table(name, filesystem=filesystem, schema=_SCHEMA) for name in fresh]
        for row in pa.concat_tables(tables).to_pylist() if tables else ():
            self._take(row)
        self._loaded = names
        if len(names) > _COMPACT_ABOVE_FILES:
            self._compact(sorted(names))

    def record_poll(self, poll: Poll) -> bool:
        """Record a poll; return False if another run recorded one at the same moment."""
        row = {
            "poll": poll.number,
            "kind": "poll",
            "low": _encoded(poll.low),
            "high": _encoded(poll.high),
            "is_last": poll.detects_deletes,
            "is_full": poll.is_full,
            "columns": json.dumps(poll.columns),
            "recorded_at": poll.recorded_at,
        }
        if not self._append(row):
            return False
        self._take(row)
        failpoint("poll-recorded")
        return True

    def record_window(self, window: Window) -> None:
        """Record a window.

        Raises:
            TransientError: ``LEDGER_CONTENTION``: another run reads the same source. Retryable.
        """
        row = {
            "poll": window.poll,
            "window": window.number,
            "kind": window.kind,
            "low": _encoded(window.low),
            "high": _encoded(window.high),
            "is_last": window.is_last,
            "rows": window.rows,
            "seen": window.seen.tobytes(),
            "gone": window.gone.tobytes(),
            "file": window.file,
            "recorded_at": utc_now(),
        }
        if not self._append(row):
            raise TransientError(
                f"cannot write the ledger '{self._location.label}'",
                code="LEDGER_CONTENTION",
                found="another run that reads the same source",
                remedy="Run one pipeline at a time, or give each its own storage",
            )
        self._take(row)
        failpoint("window-recorded")

    # -- files of keys -------------------------------------------------------------------------------------------

    def write_keys(self, keys: pa.Table) -> str:
        """Write a file of keys beside the ledger and return its name."""
        name = f"keys/{uuid.uuid4().hex}.parquet"
        with delta_errors(f"write beside the ledger '{self._location.label}'"):
            filesystem = self._location.filesystem()
            filesystem.create_dir("keys", recursive=True)
            pq.write_table(keys, name, filesystem=filesystem, compression="zstd")
        return name

    def read_keys(self, names: Sequence[str]) -> list[pa.Table]:
        """Return files of keys."""
        with delta_errors(f"read beside the ledger '{self._location.label}'"):
            filesystem = self._location.filesystem()
            return [pq.read_table(name, filesystem=filesystem) for name in names]

    # -- inside --------------------------------------------------------------------------------------------------

    def _opened(self) -> DeltaTable:
        if self._handle is None:
            self._handle = self._location.open()
        return self._handle

    def _append(self, row: Mapping[str, Any]) -> bool:
        """Append a row from the snapshot that was loaded; return False if another run came between."""
        properties = CommitProperties(app_transactions=[Transaction(_NEXT, self._count + 1)])
        table = pa.Table.from_pylist([dict(row)], schema=_SCHEMA)
        try:
            with delta_errors(f"write the ledger '{self._location.label}'"):
                write_deltalake(self._opened(), table, mode="append", commit_properties=properties)
        except CommitFailedError:
            self._handle = None
            return False
        self._count += 1
        self._opened().update_incremental()
        return True

    def _take(self, row: Mapping[str, Any]) -> None:
        number = row["poll"]
        if row["kind"] == "poll":
            self._polls[number] = Poll(
                number=number,
                is_full=row["is_full"],
                low=_decoded(row["low"]),
                high=_decoded(row["high"]),
                detects_deletes=row["is_last"],
                columns=tuple(json.loads(row["columns"])),
                recorded_at=row["recorded_at"],
            )
            return
        windows = self._windows.setdefault(number, [])
        if all(window.number != row["window"] for window in windows):
            windows.append(
                Window(
                    poll=number,
                    number=row["window"],
                    kind=row["kind"],
                    low=_decoded(row["low"]),
                    high=_decoded(row["high"]),
                    is_last=row["is_last"],
                    rows=row["rows"],
                    seen=np.frombuffer(row["seen"], np.int64),
                    gone=np.frombuffer(row["gone"], np.int64),
                    file=row["file"],
                )
            )
            windows.sort(key=lambda window: window.number)

    def _compact(self, names: Sequence[str]) -> None:
        """Rewrite many small files as one, from the held snapshot: refused if anything came between."""
        with delta_errors(f"compact the ledger '{self._location.label}'"):
            filesystem = self._location.filesystem()
            rows = pa.concat_tables([pq.read_table(n, filesystem=filesystem, schema=_SCHEMA) for n in names])
        order = pc.sort_indices(rows, sort_keys=[("poll", "ascending"), ("window", "ascending")])
        properties = CommitProperties(app_transactions=[Transaction(_NEXT, self._count + 1)])
        try:
            with delta_errors(f"compact the ledger '{self._location.label}'"):
                write_deltalake(self._opened(), rows.take(order), mode="overwrite", commit_properties=properties)
        except CommitFailedError:
            self._handle = None
            return
        self._count += 1
        self._opened().update_incremental()
        self._loaded = set(pa.table(self._opened().get_add_actions(flatten=True)).column("path").to_pylist())


def _encoded(cursor: Cursor) -> str | None:
    return None if cursor is None else encode_cursor(cursor)


def _decoded(text: str | None) -> Cursor:
    return None if text is None else decode_cursor(text)
