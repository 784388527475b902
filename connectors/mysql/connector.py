"""The MySQL connector: what there is to read, its columns, and readers of it; and a Bytewax source for plain dataflows."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors.mysql.client import Client, Server, SourceTable
from connectors.mysql.failover import find_place
from connectors.mysql.gtid import GtidSet, note_names, parse_text
from connectors.mysql.ledger import SourceLedger
from connectors.mysql.loads import Loads
from connectors.mysql.position import LOADED, SERVERS, server_number, show_position
from connectors.mysql.reader import LOAD_SUFFIX, Continuation, MySQLReader
from connectors.mysql.rows import RowDecoder, full_schema
from connectors.mysql.settings import MySQLSettings
from connectors.mysql.status import BinlogStatus, binlog_status
from waxlake.stream.changes import CHANGE_COLUMNS, CHANGE_TYPE
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SourceMoved, TerminalError, UsageError
from waxlake.stream.load_window import is_load_open
from waxlake.stream.preview import SourcePreview
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Connector, Reader, SourcePlan, SourceRange, SourceState
from waxlake.stream.standalone import Positions, StandaloneSource

__all__ = ["MySQLConnector", "MySQLSource"]


_OWN_TO_A_FLOW = {"tables", "exclude_columns", "backfill_new_columns"}


class MySQLConnector:
    """Tables of a MySQL or MariaDB server, followed by its binlog after a first load.

    Args:
        settings: What to read and how.
        ledger: Where the source keeps where chunks of first loads end; its own, and durable like the tables it feeds.

    Guarantee: each change of a table once, in the order of the log, together with a sink that stores positions; rows of the
    first load before every change that they do not hold.
    """

    def __init__(self, settings: MySQLSettings, ledger: TableLocation) -> None:
        self.settings = settings
        self._location = ledger
        self._client = Client(settings)
        self._lock = threading.Lock()
        self._surveyed: tuple[Server, dict[str, SourceTable]] | None = None
        self._parts = [settings]

    @property
    def name(self) -> str:
        """What the user calls the source: its name, or its server."""
        return f"mysql:{self.settings.source_name}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Columns that are there when selected and stay out of ``*``."""
        return tuple(CHANGE_COLUMNS.names)

    @property
    def on_data_loss(self) -> str:
        """Changes are never skipped."""
        return "fail"

    def source_key(self) -> object:
        """Return what is equal for tables of one server: they are read together."""
        return "mysql", self.settings.source_name, self._location.uri

    def together(self, others: Sequence[Connector]) -> MySQLConnector:
        """Return a connector of the tables of all.

        Raises:
            UsageError: ``MYSQL_SETTINGS_DIFFER``. Not retryable.
        """
        joined = MySQLConnector(self.settings, self._location)
        for other in others:
            assert isinstance(other, MySQLConnector)
            theirs = other.settings.model_dump(exclude=_OWN_TO_A_FLOW)
            mine = self.settings.model_dump(exclude=_OWN_TO_A_FLOW)
            differing = sorted(name for name in mine if mine[name] != theirs[name])
            if differing:
                raise UsageError(
                    f"reads of {self.name} do not agree",
                    code="MYSQL_SETTINGS_DIFFER",
                    found=f"two values of {', '.join(differing)}",
                    expected="equal options besides tables and exclude_columns: one reader serves all",
                )
            joined._parts.append(other.settings)
        return joined

    def backfilled(self) -> frozenset[str]:
        """Return the partitions of first loads that are read again when a target gets columns."""
        if not (self.settings.backfill_new_columns and self.settings.initial_load):
            return frozenset()
        return frozenset(name + LOAD_SUFFIX for name, table in self._survey()[1].items() if table.key)

    def inactive_columns(self) -> frozenset[str]:
        """Return the names of columns that no table has any more."""
        tables = self._survey()[1].values()
        present = {column.name for table in tables for column in table.columns if column.name not in table.dropped}
        return frozenset(name for table in tables for name in table.dropped) - present

    def takes(self) -> frozenset[str]:
        """Return the partitions of its tables."""
        _, tables = self._survey()
        return frozenset(self._partitions(tables))

    def empty(self) -> pa.Table:
        """Return a table of no rows with the columns of all tables; metadata columns last."""
        _, tables = self._survey()
        fields: dict[str, pa.Field] = {}
        for table in tables.values():
            for column in table.columns:
                known = fields.setdefault(column.name, column.field)
                if known.type != column.arrow:
                    raise UsageError(
                        f"cannot read {', '.join(tables)} as one stream",
                        code="MYSQL_COLUMNS_DIFFER",
                        found=f"column '{column.name}' of types {known.type} and {column.arrow}",
                        remedy="Read each table in a flow of its own: they share one connection all the same",
                    )
        return no_rows(pa.schema([*fields.values(), *CHANGE_COLUMNS]))

    def empty_of(self, partition: str) -> pa.Table:
        """Return a table of no rows with the columns of one table."""
        _, tables = self._survey()
        return no_rows(full_schema(tables[partition.removesuffix(LOAD_SUFFIX)]))

    def inspect(self) -> SourceState:
        """Check the server and the tables, and return what there is to read.

        Raises:
            TerminalError: A setting, a privilege or a table is missing. Not retryable.
            TransientError: The server does not answer. Retryable.
        """
        self._surveyed = None
        server, tables = self._survey()
        ledger = SourceLedger(self._location)
        epoch = ledger.epoch()
        self._note_begin(server, ledger, [name for name in tables if ledger.begin(epoch, name) is None])
        begins = ledger.begins(epoch, dict.fromkeys(tables, server.last))
        for name, table in tables.items():
            ledger.add_columns(name, table.columns)
        servers = ledger.servers()
        if not servers:
            ledger.add_server(0, server.identity, {})
        identity = f"mysql:{_origin(server, servers)}@{ledger.table_id}" + (f"#{epoch}" if epoch else "")
        ledger.add_identity(identity)
        ranges: dict[str, SourceRange] = {}
        begin: dict[str, int] = {}
        for name in tables:
            low = min(max(0 if server.number else server.first, begins[name]), server.last)
            ranges[name], begin[name] = SourceRange(low=low, high=server.last), server.last
            if self.settings.initial_load:
                load = SourceRange(low=0, high=LOADED, is_waiting=not is_load_open(self.settings.load_window))
                ranges[name + LOAD_SUFFIX], begin[name + LOAD_SUFFIX] = load, 0
        return SourceState(
            identity=identity,
            name=self.name,
            partitions=ranges,
            begin=begin,
            former=ledger.former(),
        )

    def status(self, held: Iterable[tuple[str, str, int]]) -> BinlogStatus:
        """Return how far tables are behind the binlog.

        Args:
            held: Source identity, partition and position of every flow.

        Raises:
            ExternalError: The server cannot be asked.
        """
        server, _ = self._survey()
        own = f"@{SourceLedger(self._location).table_id}" if self._location.exists() else "@"
        stored = [p for source, part, p in held if own in source and not part.endswith(LOAD_SUFFIX)]
        return binlog_status(self.settings, server, stored)

    def note_names(self) -> tuple[str, ...]:
        """Return the names of what is stored beside positions: which transactions lie before them."""
        return note_names(SourceLedger(self._location).origins())

    def settle(self, plan: SourcePlan) -> None:
        """Find the positions of servers before in the log of the one that took their place.

        Raises:
            SourceMoved: ``MYSQL_BINLOG_PURGED``, ``MYSQL_GTID_MISSING``, ``MYSQL_GTID_DIVERGED``. Not retryable.
            TransientError: The server does not answer. Retryable.
        """
        server, _ = self._survey()
        ledger = SourceLedger(self._location)
        parts = [part for name, part in plan.partitions.items() if not name.endswith(LOAD_SUFFIX)]
        notes: dict[int, Mapping[str, int]] = {p: found for part in parts for p, found in part.notes.items()}
        places: dict[int, int] = {}
        found: dict[int, int] = {}
        for position in sorted({p for part in parts for p in (part.start, *part.fences)}):
            place = position if server_number(position) == server.number else ledger.place(position, server.number)
            if place is None:
                gtids = GtidSet.of_notes(notes.get(position) or ledger.gtids(position), position)
                place = found[position] = self._place_of(server, position, gtids)
            places[position] = place
        if any(place < server.first for place in places.values()):
            raise SourceMoved(
                f"cannot go on reading {self.name}",
                code="MYSQL_BINLOG_PURGED",
                found=f"a binlog that begins at {show_position(server.first)}",
                expected=f"{show_position(min(places.values()))}, the next position that a table needs",
                remedy="Set on_binlog_lost='resnapshot' to load the tables anew, and keep binlogs longer (expire_logs_days)",
            )
        if found or len(ledger.servers()) <= server.number:
            ledger.add_server(server.number, server.identity, found)

    def preview(self) -> SourcePreview:
        """Return what there is to read; the ledger is not written."""
        if not self._location.exists():
            return SourcePreview(state=None, note="every table is loaded first" if self.settings.initial_load else "")
        self._surveyed = None
        server, tables = self._survey()
        ledger = SourceLedger(self._location)
        epoch = ledger.epoch()
        ranges = {name: SourceRange(low=0, high=server.last) for name in tables}
        if self.settings.initial_load:
            ranges |= {name + LOAD_SUFFIX: SourceRange(low=0, high=LOADED) for name in tables}
        identity = f"mysql:{_origin(server, ledger.servers())}@{ledger.table_id}" + (f"#{epoch}" if epoch else "")
        state = SourceState(identity=identity, name=self.name, partitions=ranges, begin={})
        return SourcePreview(state=state)

    def start_over(self, error: SourceMoved) -> bool:
        """Make ready to load every table again, if the user allowed it."""
        if self.settings.on_binlog_lost != "resnapshot" or not self.settings.initial_load:
            return False
        SourceLedger(self._location).begin_epoch(error.code)
        return True

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return one group: one connection carries the log of all tables."""
        return {"0000": tuple(sorted(plan.partitions))} if plan.partitions and count else {}

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return the reader of a run; no columns asks for all but the metadata columns."""
        server, tables = self._survey()
        followed = {p.removesuffix(LOAD_SUFFIX) for p in partitions}
        ledger = SourceLedger(self._location)
        decoders = {
            name: RowDecoder(tables[name], _names(tables[name], columns, server.is_mariadb), ledger.add_columns)
            for name in sorted(followed)
        }
        pending = {p.removesuffix(LOAD_SUFFIX): plan.partitions[p] for p in partitions if p.endswith(LOAD_SUFFIX)}
        loads = Loads(
            self._client,
            server,
            ledger,
            tables=tables,
            schemas={name: decoder.schema for name, decoder in decoders.items()},
            plans=pending,
            suffix=LOAD_SUFFIX,
            settings=self.settings,
        )
        follow = Continuation(server, ledger, plan)
        return MySQLReader(
            self.settings, self._client, server, plan=plan, decoders=decoders, loads=loads, continuation=follow
        )

    def _note_begin(self, server: Server, ledger: SourceLedger, new: Sequence[str]) -> None:
        """Remember which transactions lie before the place where streams of new tables begin."""
        if not new or not server.has_gtids or ledger.gtids(server.last):
            return
        is_told = not server.is_mariadb
        gtids = parse_text(server.executed, is_mariadb=False) if is_told else self._client.gtids_at(server, server.last)
        if gtids is not None:
            ledger.add_origins(gtids.origins)
            ledger.add_gtids(server.last, gtids.notes(server.last))

    def _place_of(self, server: Server, position: int, gtids: GtidSet | None) -> int:
        if gtids is None or not server.has_gtids:
            raise SourceMoved(
                f"cannot go on reading {self.name} at another server",
                code="MYSQL_GTID_UNKNOWN",
                found=f"no transaction ids beside {show_position(position)} of the server before",
                expected="those of the transactions that the tables hold",
                remedy="Go back to the server before, or set on_binlog_lost='resnapshot' to load the tables anew",
            )
        return find_place(self._client, server, gtids)

    def _partitions(self, tables: Mapping[str, SourceTable]) -> list[str]:
        suffixes = ("", LOAD_SUFFIX) if self.settings.initial_load else ("",)
        return [name + suffix for name in tables for suffix in suffixes]

    def _survey(self) -> tuple[Server, dict[str, SourceTable]]:
        """Return the server and the tables, asked once until ``inspect`` asks again."""
        with self._lock:
            if self._surveyed is None:
                connection = self._client.connect()
                try:
                    server = self._numbered(self._client.survey(connection))
                    found: dict[str, SourceTable] = {}
                    for part in self._parts:
                        found |= {t.full_name: t for t in Client(part).tables(connection)}
                finally:
                    connection.close()
                self._check_load(server)
                if self._location.exists():
                    ledger = SourceLedger(self._location)
                    found = {name: table.remembering(ledger.columns(name)) for name, table in found.items()}
                self._surveyed = server, found
            return self._surveyed

    def _numbered(self, server: Server) -> Server:
        """Return the server with its place in the row of those that took each other's place."""
        servers = SourceLedger(self._location).servers() if self._location.exists() else []
        if not servers:
            return server
        number = len(servers) - 1 if servers[-1] == server.identity else len(servers)
        if number >= SERVERS:
            raise TerminalError(
                f"cannot go on reading {self.name} at another server",
                code="MYSQL_TOO_MANY_SERVERS",
                found=f"{number} servers before it",
                expected=f"at most {SERVERS}",
                remedy="Give the source a new name= to load its tables anew",
            )
        return server.numbered(number)

    def _check_load(self, server: Server) -> None:
        if self.settings.initial_load and not server.is_mariadb and not server.has_gtids:
            raise TerminalError(
                f"cannot load tables of {self.name}",
                code="MYSQL_GTID_OFF",
                found="gtid_mode=OFF",
                expected="gtid_mode=ON: it tells which transactions a snapshot holds",
                remedy="Turn it on (OFF_PERMISSIVE, ON_PERMISSIVE, ON), or set initial_load=False",
            )


def _origin(server: Server, servers: Sequence[str]) -> str:
    """Return the server that the source's identity names: the first of those that took each other's place."""
    return servers[0] if servers and (server.has_gtids or servers[-1] == server.identity) else server.identity


def _names(table: SourceTable, columns: frozenset[str], is_mariadb: bool) -> list[str]:
    """Return the columns of a batch: those wanted, all but the metadata columns if none is named.

    A server that does not tell where a snapshot stands needs the keys, too, and the type of a change.
    """
    own = [column.name for column in table.columns]
    if not columns:
        return own
    needed = columns if is_mariadb else columns | {*table.key, CHANGE_TYPE}
    return [name for name in [*own, *CHANGE_COLUMNS.names] if name in needed] or own[:1]


class MySQLSource(StandaloneSource):
    """MySQL tables as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    The server is asked when Bytewax builds the dataflow. Positions are what the caller says: give those that the target table
    holds, and rows are stored exactly once together with them.

    Args:
        url: ``mysql://user:password@host:port/database``.
        tables: Tables to follow.
        ledger: Where the source keeps where chunks of first loads end.
        positions: Stored position of each partition (``database.table``, ``database.table:load``), or a function from what the
            source holds to them; none begins with the first load.
        is_bounded: End at what the server holds when the dataflow is built.
        columns: Metadata columns that are wanted, as ``_change_type``.
        options: Further fields of ``MySQLSettings``.

    Guarantee: every change once per run, in the order of the log; exactly once with a sink that stores positions.
    """

    def __init__(
        self,
        url: str,
        tables: Sequence[str],
        *,
        ledger: TableLocation | str,
        positions: Positions | None = None,
        is_bounded: bool = False,
        columns: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        location = ledger if isinstance(ledger, TableLocation) else TableLocation(str(ledger))
        connector = MySQLConnector(MySQLSettings.of(url, tables, **options), location)
        super().__init__(connector, positions=positions, is_bounded=is_bounded, columns=columns)
