"""What a poll takes from the database: rows above the last cursor, late ones below it, rows without a cursor, deleted keys.

Called by the reader, for windows that are new and for windows that are read again; see the ledger for what that means.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from connectors.query.database import Database, Row
from connectors.query.ledger import Poll, QueryLedger, Window
from connectors.query.settings import QuerySettings
from connectors.query.values import Cursor, encode_cursor, fingerprints, look_back, to_table
from waxlake.stream.clock import utc_now
from waxlake.stream.engine import select_list
from waxlake.stream.errors import TerminalError

__all__ = ["Draft", "Polls"]

NO_MARKS: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A window that was read and not recorded.

    Attributes:
        kind: As in ``Window``.
        table: Its rows: columns of the source, ``_rescued_data``.
        is_deleted: Which of them are marked as deleted, shape (n_rows,).
        low: As in ``Window``.
        high: As in ``Window``.
        seen: As in ``Window``.
        gone: As in ``Window``.
        file: As in ``Window``.
    """

    kind: str
    table: pa.Table
    is_deleted: np.ndarray
    low: Cursor = None
    high: Cursor = None
    seen: np.ndarray = field(default_factory=lambda: NO_MARKS)
    gone: np.ndarray = field(default_factory=lambda: NO_MARKS)
    file: str | None = None


@dataclass(frozen=True, slots=True)
class _Page:
    """Rows of one SELECT: their table, deletion marks, cursors, fingerprints, and where the next page begins."""

    table: pa.Table
    is_deleted: np.ndarray
    cursors: list[Cursor]
    marks: np.ndarray
    last: Row


class Polls:
    """Reads polls of one source. Used by one thread at a time.

    Args:
        settings: What to read.
        database: Its connection.
        ledger: Its ledger, loaded.
        schema: Columns to read.
        key: Columns of the key.
    """

    def __init__(
        self, settings: QuerySettings, database: Database, ledger: QueryLedger, schema: pa.Schema, key: tuple[str, ...]
    ) -> None:
        self._settings, self._database, self._ledger = settings, database, ledger
        self._schema, self._key = schema, key
        self._opened_connection: duckdb.DuckDBPyConnection | None = None
        self._columns = tuple(f"{field.name}:{field.type}" for field in schema)

    # -- is there anything to do? --------------------------------------------------------------------------------

    def next_poll(self) -> Poll | None:
        """Return the poll that is to be recorded now, or None if nothing has changed."""
        last = self._ledger.last_poll
        high, now = self._database.highest_cursor(), utc_now()
        if high is not None:
            encode_cursor(high)  # refuses what is no cursor
        if last is None:
            return self._poll(0, None, high, now, is_full=True)
        low = last.high if last.high is not None else last.low
        is_due = self._is_due(last, now)
        if self._settings.backfill_new_columns and not set(self._columns) <= set(last.columns):
            return self._poll(last.number + 1, None, _higher(low, high), now, detects=is_due, is_full=True)
        has_more = high is not None and (low is None or high > low)
        if has_more or is_due or (self._ledger.is_complete(last.number) and self._has_late_rows(low)):
            return self._poll(last.number + 1, low, _higher(low, high), now, detects=is_due)
        return None

    def _poll(
        self, number: int, low: Cursor, high: Cursor, now: datetime, *, detects: bool = False, is_full: bool = False
    ) -> Poll:
        return Poll(
            number=number,
            is_full=is_full,
            low=low,
            high=high,
            detects_deletes=detects,
            columns=self._columns,
            recorded_at=now,
        )

    def _is_due(self, last: Poll, now: datetime) -> bool:
        every = self._settings.detect_deletes_every
        if every is None or (last.detects_deletes and not self._ledger.is_complete(last.number)):
            return False
        polls = [self._ledger.poll(number) for number in range(last.number + 1)]
        at = max((poll.recorded_at for poll in polls if poll.detects_deletes), default=polls[0].recorded_at)
        return now - at >= timedelta(seconds=every)

    def _has_late_rows(self, low: Cursor) -> bool:
        if low is not None:
            seen = self._seen(look_back(low, self._settings.look_back))
            for page in self._pages(low=look_back(low, self._settings.look_back), high=low):
                if not _is_in(page.marks, seen).all():
                    return True
        if not self._scans_nulls:
            return False
        known, left = self._null_state(None), 0
        for page in self._pages(is_null=True):
            if not _is_in(page.marks, known).all():
                return True
            left += len(page.marks)
        return left != len(known)

    # -- windows -------------------------------------------------------------------------------------------------

    def new_windows(self, poll: Poll) -> Iterator[Draft]:
        """Yield what a poll takes that none of its recorded windows took."""
        done = self._ledger.windows(poll.number)
        kinds = {window.kind for window in done}
        if not kinds & {"nulls", "deletes"}:
            yield from self._new_rows(poll, done)
        if "deletes" not in kinds and self._scans_nulls:
            yield from self._new_nulls(poll)
        if poll.detects_deletes and "deletes" not in kinds:
            yield self._deletes()

    def again(self, poll: Poll, window: Window) -> Draft:
        """Return what is left of a recorded window."""
        if window.kind == "deletes":
            return self._deleted(self._ledger.read_keys([str(window.file).split("\n")[0]])[0])
        drafts = [self._empty(window.kind)]
        is_same = poll.columns == self._columns
        if window.kind == "rows":
            edge = look_back(window.high, self._settings.look_back)
            low = None if window.low is None else look_back(window.low, self._settings.look_back)
            for page in self._pages(low=low, high=window.high):
                keep = _is_in(page.marks, window.seen)
                first = 0 if window.low is None else bisect_right(page.cursors, window.low)
                keep[first : bisect_left(page.cursors, edge)] = True
                # Fingerprints of other columns tell nothing: rather twice than never.
                drafts.append(self._draft(poll, "rows", page, keep if is_same else keep | True))
        elif window.kind == "nulls" and len(window.seen):
            for page in self._pages(is_null=True):
                keep = _is_in(page.marks, window.seen)
                drafts.append(self._draft(poll, "nulls", page, keep if is_same else keep | True))
        table = pa.concat_tables([draft.table for draft in drafts])
        return Draft(kind=window.kind, table=table, is_deleted=np.concatenate([d.is_deleted for d in drafts]))

    def nothing(self) -> Draft:
        """Return the window of a poll that takes nothing."""
        return self._empty("end")

    def _new_rows(self, poll: Poll, done: Sequence[Window]) -> Iterator[Draft]:
        highs = [window.high for window in done if window.kind == "rows"]
        low = max(highs) if highs else poll.low
        distance = self._settings.look_back
        edge = None if low is None else look_back(low, distance)
        seen = NO_MARKS if low is None else self._seen(edge, poll.number if poll.is_full else None)
        if poll.high is None:
            return
        for page in self._pages(low=edge, high=poll.high):
            below = 0 if low is None else bisect_right(page.cursors, low)
            fresh = np.ones(len(page.marks), dtype=bool)
            fresh[:below] = ~_is_in(page.marks[:below], seen)
            if not fresh.any():
                continue
            high = _higher(low, page.cursors[-1])
            is_near = np.ones(len(fresh), dtype=bool)
            is_near[below : bisect_left(page.cursors, look_back(high, distance))] = False
            draft = self._draft(poll, "rows", page, fresh)
            yield self._with_keys(draft, low=low, high=high, seen=page.marks[fresh & is_near])
            low = high

    def _new_nulls(self, poll: Poll) -> Iterator[Draft]:
        state = self._null_state(None)
        known = self._null_state(poll.number) if poll.is_full else state
        present = []
        for page in self._pages(is_null=True):
            present.append(page.marks)
            fresh = ~_is_in(page.marks, known)
            if fresh.any():
                yield self._with_keys(self._draft(poll, "nulls", page, fresh), seen=page.marks[fresh])
        gone = np.setdiff1d(state, np.concatenate([NO_MARKS, *present]))
        if len(gone):
            empty = self._empty("nulls")
            yield Draft(kind="nulls", table=empty.table, is_deleted=empty.is_deleted, gone=gone)

    def _deletes(self) -> Draft:
        """Read all keys, and find those that were taken before and are gone."""
        kind = pa.schema([self._schema.field(name) for name in self._key])
        pages, after = [kind.empty_table()], None
        while True:
            rows = self._database.keys(self._key, after)
            if rows:
                after = rows[-1]
                pages.append(to_table(rows, kind).select(kind.names))
            if len(rows) < self._settings.max_rows_per_batch:
                break
        present = pa.concat_tables(pages)
        known = pa.concat_tables([kind.empty_table(), *self._ledger.read_keys(self._known_files())])
        gone = _missing(known, present, self._key, self._connection).cast(kind)
        files = "\n".join([self._ledger.write_keys(gone), self._ledger.write_keys(present)])
        draft = self._deleted(gone)
        return Draft(kind="deletes", table=draft.table, is_deleted=draft.is_deleted, file=files)

    def _known_files(self) -> list[str]:
        """Return the files of the keys that were taken since all keys were last read, and of those."""
        files: list[str] = []
        for window in self._ledger.all_windows():
            if window.kind == "deletes":
                files = [str(window.file).split("\n")[1]]
            elif window.file is not None:
                files.append(window.file)
        return files

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._opened_connection is None:
            self._opened_connection = duckdb.connect(config={"threads": 1})
            self._opened_connection.execute("SET TimeZone = 'UTC'")
        return self._opened_connection

    @property
    def _scans_nulls(self) -> bool:
        return self._settings.null_cursors == "scan" and self._database.may_lack_cursor

    def _pages(self, *, low: Cursor = None, high: Cursor = None, is_null: bool = False) -> Iterator[_Page]:
        after: Row | None = None
        while True:
            rows = self._database.page(self._schema.names, self._key, low=low, high=high, after=after, is_null=is_null)
            if rows:
                page = self._page(rows)
                after = page.last
                yield page
            if len(rows) < self._settings.max_rows_per_batch:
                return

    def _page(self, rows: list[Row]) -> _Page:
        width = len(self._schema)
        table = to_table([row[:width] for row in rows], self._schema)
        is_deleted = np.array([bool(row[width]) for row in rows], dtype=bool)
        cursors = [row[width + 1] for row in rows]
        if len({type(cursor) for cursor in cursors}) > 1:
            raise TerminalError(
                f"cannot read {self._database.what} by its cursor",
                code="QUERY_CURSOR_TYPE",
                found=" and ".join(sorted({type(cursor).__name__ for cursor in cursors})),
                expected="values of one type",
                remedy="Give row_filter=, or a query that casts it",
            )
        marks = fingerprints(table.append_column("__deleted", pa.array(is_deleted)), self._connection)
        return _Page(table, is_deleted, cursors, marks, rows[-1][width + 1 :])

    def _draft(self, poll: Poll, kind: str, page: _Page, keep: np.ndarray) -> Draft:
        if poll.is_full:  # a first load has nothing to delete
            keep = keep & ~page.is_deleted
        table = page.table if keep.all() else page.table.filter(pa.array(keep))
        return Draft(kind=kind, table=table, is_deleted=page.is_deleted[keep])

    def _with_keys(
        self, draft: Draft, *, low: Cursor = None, high: Cursor = None, seen: np.ndarray = NO_MARKS
    ) -> Draft:
        file = None
        if self._settings.detect_deletes_every is not None:
            alive = draft.table.filter(pa.array(~draft.is_deleted)).select(list(self._key))
            file = self._ledger.write_keys(alive)
        return Draft(
            kind=draft.kind, table=draft.table, is_deleted=draft.is_deleted, low=low, high=high, seen=seen, file=file
        )

    def _deleted(self, keys: pa.Table) -> Draft:
        columns = [
            keys.column(field.name).cast(field.type) if field.name in self._key else pa.nulls(len(keys), field.type)
            for field in self._empty("deletes").table.schema
        ]
        table = pa.table(columns, schema=self._empty("deletes").table.schema)
        return Draft(kind="deletes", table=table, is_deleted=np.ones(len(keys), dtype=bool))

    def _empty(self, kind: str) -> Draft:
        return Draft(kind=kind, table=to_table([], self._schema), is_deleted=np.zeros(0, dtype=bool))

    def _seen(self, edge: Cursor, poll: int | None = None) -> np.ndarray:
        """Return the fingerprints of rows from ``edge`` on that were taken; of one poll, or of all."""
        windows = self._ledger.all_windows() if poll is None else self._ledger.windows(poll)
        near = [w.seen for w in windows if w.kind == "rows" and w.high >= edge]
        return np.unique(np.concatenate([NO_MARKS, *near]))

    def _null_state(self, poll: int | None) -> np.ndarray:
        """Return the fingerprints of the rows without a cursor that were there at the last look."""
        state = NO_MARKS
        for window in self._ledger.all_windows() if poll is None else self._ledger.windows(poll):
            if window.kind == "nulls":
                state = np.setdiff1d(np.union1d(state, window.seen), window.gone)
        return state


def _is_in(marks: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.isin(marks, known)


def _higher(one: Cursor, other: Cursor) -> Cursor:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def _missing(known: pa.Table, present: pa.Table, key: Sequence[str], connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return the keys that are known and not present."""
    connection.register("known", known)
    connection.register("present", present)
    try:
        names = select_list(key)
        found: Any = connection.sql(f"SELECT {names} FROM known EXCEPT SELECT {names} FROM present")
        return found.to_arrow_table()
    finally:
        connection.unregister("known")
        connection.unregister("present")
