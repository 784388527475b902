"""From binlog events to transactions: which row events belong together, to which tables, and where they end."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pymysqlreplication.constants import BINLOG

from connectors.mysql.dump import Event
from connectors.mysql.gtid import Gtid, GtidSet, parse_gtid, parse_listed
from connectors.mysql.position import binlog_position, server_number, show_position
from connectors.mysql.statements import effect_of
from connectors.mysql.table_map import TableMap, parse_table_map, table_name
from waxlake.stream.errors import SourceMoved, TerminalError
from waxlake.stream.position import RowPosition

__all__ = ["RowsEvent", "Transactions", "Truncation"]

_WRITES: Final = {BINLOG.WRITE_ROWS_EVENT_V1: 1, BINLOG.WRITE_ROWS_EVENT_V2: 2}
_UPDATES: Final = {BINLOG.UPDATE_ROWS_EVENT_V1: 1, BINLOG.UPDATE_ROWS_EVENT_V2: 2}
_DELETES: Final = {BINLOG.DELETE_ROWS_EVENT_V1: 1, BINLOG.DELETE_ROWS_EVENT_V2: 2}
_VERSIONS: Final = {**_WRITES, **_UPDATES, **_DELETES}
_STANDALONE = 1
_HEARTBEATS: Final = (BINLOG.HEARTBEAT_LOG_EVENT, 41)
_GTIDS: Final = (BINLOG.GTID_LOG_EVENT, BINLOG.ANONYMOUS_GTID_LOG_EVENT)
_LISTS: Final = (BINLOG.MARIADB_GTID_GTID_LIST_EVENT, BINLOG.PREVIOUS_GTIDS_LOG_EVENT)
_COMPRESSED: Final = (40, 165, 166, 167, 168, 169, 170, 171)


@dataclass(slots=True)
class RowsEvent:
    """One row event of a table that is followed.

    Attributes:
        kind: What happened to its rows.
        layout: Structure of the table at that place.
        body: The event after its header.
        start: Offset of the first row image in ``body``.
        commit_position: Position of the transaction: the end of its first event.
        index: Order of the event's first row in the transaction; later rows count from it.
        timestamp_s: When the transaction was committed, seconds since 1970.
        end: Position after the transaction; 0 while it is open.
    """

    kind: Literal["insert", "update", "delete"]
    layout: TableMap
    body: bytes
    start: int
    commit_position: int
    index: int
    timestamp_s: int
    end: int = 0


@dataclass(slots=True)
class Truncation:
    """All rows of a table are gone."""

    commit_position: int
    timestamp_s: int
    end: int = 0


Change = RowsEvent | Truncation


@dataclass(slots=True)
class Transactions:
    """Takes events one after the other; gives changes by table.

    Args:
        name: The source, for errors.
        file: Server and number of the binlog file that the stream starts in, as in a position.
        position: Where it starts: between two transactions.
        wanted: Table to the position that it holds already; changes before that are not kept.
        charset_of: Collation id to character set.
        is_mariadb: Which of the two dialects of GTID events is spoken.
        known_from: Position from which on ``gtids`` is known.
        gtids: The transactions before ``position``, as far as ``take_gtids`` was called; None if that is not known.
    """

    name: str
    file: int
    position: int
    wanted: Mapping[str, int]
    charset_of: Callable[[int], str]
    is_mariadb: bool
    gtids: GtidSet | None = None
    changes: dict[str, list[Change]] = field(default_factory=dict)
    open_changes: dict[str, list[Change]] = field(default_factory=dict)
    size_bytes: int = 0
    open_bytes: int = 0
    is_open: bool = False
    last: Gtid | None = None
    committed: list[tuple[int, Gtid]] = field(default_factory=list)
    _maps: dict[bytes, TableMap | None] = field(default_factory=dict)
    known_from: int = 0
    _gtid: Gtid | None = None
    _commit_position: int = 0
    _timestamp_s: int = 0
    _last_end: int = 0
    _wraps: int = 0

    def feed(self, event: Event) -> None:
        """Take one event.

        Raises:
            TerminalError: The binlog holds what cannot be read as rows. Not retryable.
        """
        kind = event.kind
        if kind in _VERSIONS:
            self._rows(event, _VERSIONS[kind])
        elif kind == BINLOG.TABLE_MAP_EVENT:
            self._table_map(event)
        elif kind == BINLOG.XID_EVENT:
            self._commit(self._end_of(event))
        elif kind == BINLOG.MARIADB_GTID_EVENT or kind in _GTIDS:
            self._begin(event)
        elif kind == BINLOG.QUERY_EVENT:
            self._query(event)
        elif kind == BINLOG.ROTATE_EVENT:
            self._rotate(event)
        elif kind in _HEARTBEATS:
            self._heartbeat(event)
        elif kind in _COMPRESSED or kind in (
            BINLOG.XA_PREPARE_EVENT,
            BINLOG.PARTIAL_UPDATE_ROWS_EVENT,
            BINLOG.INCIDENT_EVENT,
        ):
            self._refuse(event)
        elif not self.is_open and event.end:
            self.position = self._end_of(event)
            self._learn(event)

    def take(self) -> dict[str, list[Change]]:
        """Return the changes of complete transactions up to ``position``, and forget them."""
        taken, self.changes, self.size_bytes = self.changes, {}, 0
        return taken

    def take_open(self) -> dict[str, list[Change]]:
        """Return what the transaction that is still open changed so far, and forget it."""
        taken, self.open_changes, self.open_bytes = self.open_changes, {}, 0
        return taken

    def _learn(self, event: Event) -> None:
        """Take the set that a file begins with, where none was known."""
        if event.kind not in _LISTS or self.gtids is not None:
            return
        with contextlib.suppress(ValueError):
            self.gtids = parse_listed(event.body, is_mariadb=event.kind == BINLOG.MARIADB_GTID_GTID_LIST_EVENT)
            self.known_from = self.position
            self.committed.clear()

    def take_gtids(self, ends: Collection[int]) -> dict[int, GtidSet]:
        """Return the transactions before each of some positions up to ``position``, and go on from there.

        Args:
            ends: Positions after the last ones that were asked for.
        """
        found: dict[int, GtidSet] = {}
        if self.gtids is None:
            self.committed.clear()
            return found
        at = 0
        for end in [*sorted(ends), self.position]:
            first, at = at, bisect.bisect_right(self.committed, end, lo=at, key=lambda entry: entry[0])
            if at > first:
                self.gtids = self.gtids.with_all(gtid for _, gtid in self.committed[first:at])
            if end >= self.known_from:
                found[end] = self.gtids
        del self.committed[:at]
        return found

    def _end_of(self, event: Event) -> int:
        """Return the position after an event; its offset is kept in 32 bits, and files grow larger."""
        if event.end < self._last_end:
            self._wraps += 1
        self._last_end = event.end
        return RowPosition(self.file, (self._wraps << 32) + event.end).pack()

    def _begin(self, event: Event) -> None:
        self._commit_position, self._timestamp_s = self._end_of(event), event.timestamp_s
        self._gtid = None
        if event.kind != BINLOG.ANONYMOUS_GTID_LOG_EVENT:
            is_mariadb = event.kind == BINLOG.MARIADB_GTID_EVENT
            self._gtid = parse_gtid(event.body, event.server, is_mariadb=is_mariadb)
        self.is_open = True

    def _commit(self, end: int) -> None:
        for table, changes in self.open_changes.items():
            for change in changes:
                change.end = end
            self.changes.setdefault(table, []).extend(changes)
        self.size_bytes += self.open_bytes
        self.open_changes, self.open_bytes, self.is_open = {}, 0, False
        self.position = end
        if self._gtid is not None:
            self.committed.append((end, self._gtid))
            self.last, self._gtid = self._gtid, None

    def _rotate(self, event: Event) -> None:
        name = event.body[8:].decode()
        offset = int.from_bytes(event.body[:8], "little")
        position = binlog_position(name, offset, server_number(self.position))
        file = RowPosition.unpack(position).major
        if file != self.file:
            self.file, self._last_end, self._wraps = file, 0, 0
            self._maps.clear()
            self.position = max(self.position, position)

    def _heartbeat(self, event: Event) -> None:
        """Where the server is, when it had nothing to send: some events are not for us."""
        if not self.is_open and event.end >= self._last_end and not self._wraps:
            self.position = max(self.position, RowPosition(self.file, event.end).pack())

    def _table_map(self, event: Event) -> None:
        body = event.body
        schema, table = table_name(body)
        name = f"{schema}.{table}"
        wanted = self.wanted.get(name)
        self._end_of(event)
        self._maps[body[:6]] = (
            None
            if wanted is None or self._commit_position < wanted
            else parse_table_map(body[8:], self.charset_of, self.is_mariadb)
        )

    def _rows(self, event: Event, version: int) -> None:
        end = self._end_of(event)
        body = event.body
        layout = self._maps.get(body[:6])
        if layout is None:
            return
        at = 8 if version == 1 else 8 + int.from_bytes(body[8:10], "little")
        count, at = (body[at], at + 1) if body[at] < 251 else (int.from_bytes(body[at + 1 : at + 3], "little"), at + 3)
        kind: Literal["insert", "update", "delete"] = (
            "insert" if event.kind in _WRITES else "update" if event.kind in _UPDATES else "delete"
        )
        size = (count + 7) // 8
        images = 2 if kind == "update" else 1
        present = (
            int.from_bytes(body[at : at + size], "little"),
            int.from_bytes(body[at + size * (images - 1) : at + size * images], "little"),
        )
        full = (1 << count) - 1
        if count != len(layout.layouts) or any(bits & full != full for bits in present):
            raise self._not_full(layout.name)
        index = end - self._commit_position - len(body)
        change = RowsEvent(kind, layout, body, at + size * images, self._commit_position, index, self._timestamp_s)
        self.open_changes.setdefault(layout.name, []).append(change)
        self.open_bytes += len(body)

    def _query(self, event: Event) -> None:
        body = event.body
        name_size, status_size = body[8], int.from_bytes(body[11:13], "little")
        at = 13 + status_size
        database, statement = body[at : at + name_size].decode(), body[at + name_size + 1 :]
        end = self._end_of(event)
        word = statement[:12].strip().upper()
        if word.startswith(b"BEGIN"):
            if not self.is_open:  # a server without GTIDs
                self._commit_position, self._timestamp_s, self.is_open = end, event.timestamp_s, True
            return
        if word.startswith((b"SAVEPOINT", b"RELEASE ")):
            return
        if word.startswith(b"COMMIT"):
            self._commit(end)
            return
        if word.startswith(b"ROLLBACK"):
            self._roll_back(statement, end)
            return
        self._statement(statement.decode(errors="replace"), database, end, event.timestamp_s)

    def _roll_back(self, statement: bytes, end: int) -> None:
        if self.open_changes:
            raise self._cannot(
                "MYSQL_MIXED_ENGINES", f"a transaction that ends with {statement[:40].decode(errors='replace')}"
            )
        if not statement.strip().upper().startswith(b"ROLLBACK TO"):
            self._commit(end)

    def _statement(self, statement: str, database: str, end: int, timestamp_s: int) -> None:
        """Take a statement that stands for itself."""
        effect = effect_of(statement, database)
        wanted = self.wanted.get(effect[1]) if effect else None
        if effect is not None and wanted is not None and wanted < end:
            if effect[0] in ("truncate", "create"):
                commit = self._commit_position if self.is_open else end
                self.open_changes.setdefault(effect[1], []).append(Truncation(commit, timestamp_s))
            else:
                raise self._unreadable(effect, end)
        self._commit(end)

    def _unreadable(self, effect: tuple[str, str], end: int) -> TerminalError:
        kind, table = effect
        if kind == "rows":
            return TerminalError(
                f"cannot read the changes of table '{table}' of {self.name}",
                code="MYSQL_BINLOG_FORMAT",
                found=f"a statement instead of rows, before {show_position(end)}",
                expected="binlog_format=ROW in every session",
                remedy="Set it, and load the table anew",
            )
        return TerminalError(
            f"cannot read the changes of table '{table}' of {self.name}",
            code="MYSQL_PARTITION_CHANGED",
            found=f"a partition was truncated, dropped or exchanged before {show_position(end)}: no row tells of it",
            remedy="Load the table anew",
        )

    def _not_full(self, table: str) -> TerminalError:
        return TerminalError(
            f"cannot read the changes of table '{table}' of {self.name}",
            code="MYSQL_ROW_IMAGE",
            found=f"row images without all columns, after {show_position(self.position)}",
            expected="binlog_row_image=FULL in every session",
            remedy="SET GLOBAL binlog_row_image=FULL, let old sessions end, and load the table anew",
        )

    def _refuse(self, event: Event) -> None:
        if event.kind == BINLOG.XA_PREPARE_EVENT and not self.open_changes:
            self._commit(self._end_of(event))
            return
        if event.kind == BINLOG.INCIDENT_EVENT:
            raise SourceMoved(
                f"cannot read the binlog of {self.name}",
                code="MYSQL_BINLOG_INCIDENT",
                found=f"changes that the server could not log, after {show_position(self.position)}",
                remedy="Load the tables anew",
            )
        what = {BINLOG.XA_PREPARE_EVENT: "an XA transaction", BINLOG.PARTIAL_UPDATE_ROWS_EVENT: "a partial JSON update"}
        raise self._cannot("MYSQL_EVENT_UNSUPPORTED", what.get(event.kind, "a compressed event"))

    def _cannot(self, code: str, found: str) -> TerminalError:
        return TerminalError(
            f"cannot read the binlog of {self.name}", code=code, found=f"{found}, after {show_position(self.position)}"
        )
