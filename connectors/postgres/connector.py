"""PostgreSQL tables as a source: for the planner a connector, for a hand-written dataflow a Bytewax input."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from connectors.postgres.catalog import SourceTable, TypeCatalog, read_tables, union_of
from connectors.postgres.client import (
    connect,
    connect_replication,
    format_lsn,
    parse_lsn,
    postgres_errors,
    server_label,
)
from connectors.postgres.ledger import SourceLedger
from connectors.postgres.load import LOADED
from connectors.postgres.preparation import Preparation, Slot, check_confirmed, find_slot, lost_slot, missing_tables
from connectors.postgres.reader import PostgresReader
from connectors.postgres.rows import RowMaker
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.stream import ChangeStream
from connectors.postgres.timeline import SNAPSHOT, TIMELINE, ServerIdentity, check_history, identify
from connectors.postgres.types import PostgresType
from waxlake.stream.batch import Backlog
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import SourceMoved, UsageError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.load_window import is_load_open
from waxlake.stream.preview import SourcePreview
from waxlake.stream.schema import no_rows
from waxlake.stream.source import Connector, Reader, SourcePlan, SourceRange, SourceState
from waxlake.stream.standalone import Positions, StandaloneSource

__all__ = ["PostgresConnector", "PostgresSource"]

_OWN_TO_A_FLOW = ("tables", "text_columns", "backfill_new_columns")


class PostgresConnector:
    """Tables of one slot to be read.

    Args:
        settings: The source.
        ledger: A place for its ledger.

    Guarantee: each row of a first load and each committed change once; the slot is told of a position only after every table
    holds everything before it. Positions: see ``connectors.postgres.reader``.
    """

    def __init__(self, settings: PostgresSettings, ledger: TableLocation) -> None:
        self.settings = settings
        self._location = ledger
        self._ledger = SourceLedger(ledger)
        self._tables: dict[str, SourceTable] | None = None
        self._source_key = ""
        self._stream: ChangeStream | None = None
        self._types: TypeCatalog | None = None
        self._is_anew = False

    @property
    def name(self) -> str:
        """``postgres:`` with database and slot: the same whichever tables are named and wherever the server moves."""
        return f"postgres:{server_label(self._dsn).rpartition('/')[2]}/{self.settings.slot}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """The change columns."""
        return tuple(CHANGE_COLUMNS.names)

    @property
    def on_data_loss(self) -> str:
        """Lost changes are never passed over; ``on_slot_lost`` may load the tables again."""
        return "fail"

    @property
    def _dsn(self) -> str:
        return self.settings.dsn.get_secret_value()

    def source_key(self) -> object:
        """Return the database and the slot."""
        return ("postgres", self._dsn, self.settings.slot)

    def takes(self) -> frozenset[str]:
        """Return the partitions of the tables: changes, and first load."""
        tables = self._found().values()
        loads = {table.load_partition for table in tables} if self.settings.initial_load else set()
        return frozenset({table.partition for table in tables} | loads)

    def backfilled(self) -> frozenset[str]:
        """Return the partitions of first loads that are read again when a target gets columns."""
        if not (self.settings.backfill_new_columns and self.settings.initial_load):
            return frozenset()
        return frozenset(table.load_partition for table in self._found().values() if table.key)

    def inactive_columns(self) -> frozenset[str]:
        """Return the names of columns that no table has any more."""
        tables = self._found().values()
        present = {column.name for table in tables for column in table.present}
        return frozenset(column.name for table in tables for column in table.columns) - present

    def together(self, others: Sequence[Connector]) -> PostgresConnector:
        """Return a connector of the tables of all.

        Raises:
            UsageError: ``POSTGRES_SETTINGS_DIFFER``. Not retryable.
        """
        connectors = [self, *(other for other in others if isinstance(other, PostgresConnector))]
        first = self.settings.model_dump(exclude=set(_OWN_TO_A_FLOW))
        for other in connectors[1:]:
            differing = [k for k, v in other.settings.model_dump(exclude=set(_OWN_TO_A_FLOW)).items() if v != first[k]]
            if differing:
                raise UsageError(
                    f"two reads of {self.name} do not agree",
                    code="POSTGRES_SETTINGS_DIFFER",
                    found=f"different values of {', '.join(differing)}",
                    expected="one value for all reads of a slot",
                )
        tables = {name: table for c in connectors for name, table in c._found().items()}
        text_columns = tuple(dict.fromkeys(c for one in connectors for c in one.settings.text_columns))
        settings = self.settings.model_copy(update={"tables": tuple(tables), "text_columns": text_columns})
        merged = PostgresConnector(settings, self._location)
        merged._tables, merged._source_key, merged._types = tables, self._source_key, self._types
        return merged

    def empty(self) -> pa.Table:
        """Return no rows, with the columns of all tables.

        Raises:
            UsageError: ``POSTGRES_COLUMNS_DIFFER``: two tables have a column of one name and different types. Not retryable.
        """
        try:
            return no_rows(union_of(self._found().values()))
        except pa.ArrowException as exc:
            raise UsageError(
                f"cannot read {', '.join(self.settings.tables)} in one flow",
                code="POSTGRES_COLUMNS_DIFFER",
                found=str(exc),
                expected="one type for each column name",
                remedy="Read them in flows of their own, over the same slot",
            ) from exc

    def empty_of(self, partition: str) -> pa.Table:
        """Return no rows, with the columns of one table."""
        oid = int(partition.partition(":")[0])
        return next(table for table in self._found().values() if table.oid == oid).empty()

    def inspect(self) -> SourceState:
        """Check the database, create what is missing, and return where its changes begin and end.

        Raises:
            TerminalError: ``POSTGRES_NOT_READY``, ``POSTGRES_AUTHENTICATION``, ``POSTGRES_TABLE_MISSING``. Not retryable.
            SourceMoved: ``POSTGRES_SLOT_LOST``. Not retryable.
            TransientError: ``POSTGRES_UNREACHABLE``. Retryable.
        """
        self._ledger.refresh()
        with contextlib.closing(connect(self._dsn)) as connection:
            tables = self._found(connection)
            slot_key, epochs = self._slot_key, self._ledger.epochs(self._slot_key)
            slot = find_slot(connection, self.settings.slot)
            if slot.is_lost if slot is not None else epochs and not self._is_anew:
                raise lost_slot(self._read_as, slot)
            creates = slot is None and self.settings.create
            self._tables = Preparation(connection, self.settings, tables).run(creates_slot=creates)
            if slot is None:
                if not epochs:
                    self._ledger.add_epoch(slot_key, 0, {"created_at": utc_now().isoformat()})
                slot = find_slot(connection, self.settings.slot)
            assert slot is not None
            self._remember_columns()
            high = self._mark(connection)
        return self._state(slot, high)

    def preview(self) -> SourcePreview:
        """Return where the changes begin and end; creates neither slot nor publication, and writes nothing to the log."""
        with contextlib.closing(connect(self._dsn)) as connection:
            self._found(connection)
            slot = find_slot(connection, self.settings.slot)
            if slot is None or not self._ledger.exists():
                return SourcePreview(
                    state=None, note=f"slot {self.settings.slot!r} is made ready first, and every table is loaded"
                )
            if slot.is_lost:
                raise lost_slot(self._read_as, slot)
            with postgres_errors("read the position of a database"), connection.cursor() as cursor:
                cursor.execute(
                    "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
                    "ELSE pg_current_wal_flush_lsn() END)::text"
                )
                high = parse_lsn(cursor.fetchone()[0])
        state = self._state(slot, high)

        def backlog(partition: str, position: int | None) -> Backlog:
            if ":" in partition or position is None:
                return Backlog()
            return Backlog(size_bytes=max(0, high - position))

        return SourcePreview(state=state, backlog=backlog, note="bytes are those of the whole log of the server")

    def start_over(self, error: SourceMoved) -> bool:
        """Drop the slot and begin a new epoch, if ``on_slot_lost`` says so."""
        if self.settings.on_slot_lost != "resnapshot" or error.code == "SOURCE_RECREATED":
            return False  # another cluster is another source
        with contextlib.closing(connect(self._dsn)) as connection:
            epochs = self._ledger.epochs(self._slot_key)
            if not epochs:
                self._ledger.add_epoch(self._slot_key, 0, {})
            facts = {"created_at": utc_now().isoformat(), "reason": error.code}
            self._ledger.add_epoch(self._slot_key, max(1, len(epochs)), facts)
            self._is_anew = True
            if find_slot(connection, self.settings.slot) is not None:
                with postgres_errors(f"drop slot {self.settings.slot!r}"), connection.cursor() as cursor:
                    cursor.execute("SELECT pg_drop_replication_slot(%s)", (self.settings.slot,))
        return True

    def note_names(self) -> tuple[str, ...]:
        """Return the names of what is stored beside positions: the timeline, and where a load's snapshot stood."""
        return (TIMELINE, SNAPSHOT)

    def settle(self, plan: SourcePlan) -> None:
        """Look whether what the tables hold is part of the server's history; positions stay as they are.

        Raises:
            SourceMoved: ``POSTGRES_DIVERGED``, ``POSTGRES_SLOT_LOST``, ``POSTGRES_SLOT_AHEAD``. Not retryable.
            TransientError: The server is away. Retryable.
        """
        self._checked_server(plan)

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return the one group: a slot has one reader."""
        return {"0000": tuple(sorted(plan.partitions))} if plan.partitions else {}

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return a reader; it connects with its first ``read``.

        Raises:
            SourceMoved: The slot was confirmed beyond what the tables hold, or the server has another history. Not retryable.
        """
        server, epoch = self._checked_server(plan), int(plan.identity.rpartition("/")[2])
        return PostgresReader(
            self.settings,
            plan,
            {table.oid: table for table in self._found().values()},
            self._ledger,
            server=server,
            maker=RowMaker(self.settings, self._ledger, self._source_key, self._resolve, columns, epoch=epoch),
            is_reload=epoch > 0,
            on_stream=self._follow,
        )

    def confirm(self, plan: SourcePlan, durable: Mapping[str, int]) -> None:
        """Let the server forget what every table holds: through the stream while it runs, else by moving the slot.

        Raises:
            TransientError: The server is away, or somebody reads the slot just now. Told again later.
        """
        streams = [partition for partition in plan.partitions if ":" not in partition]
        if not streams or any(partition not in durable for partition in streams):
            return
        position = min(durable[partition] for partition in streams)
        stream = self._stream
        if stream is not None:
            stream.confirm(position)
            return
        with contextlib.closing(connect(self._dsn)) as connection:
            slot = find_slot(connection, self.settings.slot)
            if slot is None or slot.is_lost or position <= slot.confirmed:
                return
            failpoint("confirm")
            with postgres_errors(f"move slot {self.settings.slot!r}"), connection.cursor() as cursor:
                cursor.execute("SELECT pg_replication_slot_advance(%s, %s)", (self.settings.slot, format_lsn(position)))
            failpoint("confirmed")

    def _checked_server(self, plan: SourcePlan) -> ServerIdentity:
        """Return the server that answers, after a look whether a plan can be read from it."""
        with contextlib.closing(connect_replication(self._dsn)) as connection:
            server = identify(connection)
            check_history(self._read_as, server, plan)
            starts = [part.start for key, part in plan.partitions.items() if ":" not in key]
            if starts:
                check_confirmed(self._read_as, find_slot(connection, self.settings.slot), min(starts))
        return server

    @property
    def _read_as(self) -> str:
        return f"{self.name} (slot {self.settings.slot!r})"

    def _follow(self, stream: ChangeStream | None) -> None:
        self._stream = stream

    def _found(self, connection: Any = None) -> dict[str, SourceTable]:
        """Return the tables, looked up once: what was checked is what is read."""
        if self._tables is None:
            if connection is None:
                with contextlib.closing(connect(self._dsn)) as own:
                    return self._found(own)
            with postgres_errors("identify a database"), connection.cursor() as cursor:
                cursor.execute("SELECT system_identifier::text, current_database() FROM pg_control_system()")
                self._source_key = "/".join(cursor.fetchone())
            self._types = types = TypeCatalog(connection)
            found = read_tables(connection, types, self.settings, {})
            seen = {table.oid: self._ledger.columns(self._source_key, table.oid) for table in found.values()}
            if any(seen.values()):
                found = read_tables(connection, types, self.settings, seen)
            missing = missing_tables(self.settings, found)
            if missing is not None:
                raise missing
            self._tables = found
        return self._tables

    def _resolve(self, oid: int, modifier: int) -> PostgresType:
        if self._types is None or not self._types.knows(oid):
            with contextlib.closing(connect(self._dsn)) as connection:
                self._types = TypeCatalog(connection)
                return self._types.resolve(oid, modifier)
        return self._types.resolve(oid, modifier)

    @property
    def _slot_key(self) -> str:
        return f"{self._source_key}/{self.settings.slot}"

    def _identity(self, epoch: int) -> str:
        return f"postgres:{self._slot_key}/{epoch}"

    def _state(self, slot: Slot, high: int) -> SourceState:
        epoch = max(0, len(self._ledger.epochs(self._slot_key)) - 1)
        partitions, begin = {}, {}
        is_waiting = not is_load_open(self.settings.load_window)
        for table in self._found().values():
            partitions[table.partition] = SourceRange(low=slot.confirmed, high=max(high, slot.confirmed))
            begin[table.partition] = max(high, slot.confirmed)
            if self.settings.initial_load:
                partitions[table.load_partition] = SourceRange(low=0, high=LOADED, is_waiting=is_waiting)
                begin[table.load_partition] = 0
        return SourceState(
            identity=self._identity(epoch),
            name=self.name,
            partitions=partitions,
            begin=begin,
            former=tuple(self._identity(before) for before in range(epoch)),
        )

    def _remember_columns(self) -> None:
        for table in self._found().values():
            known = self._ledger.columns(self._source_key, table.oid)
            if len(known) < len(table.columns):
                self._ledger.add_columns(self._source_key, table.oid, len(known), table.columns[len(known) :])

    def _mark(self, connection: Any) -> int:
        """Return a position behind everything that was committed before, and make the log reach it."""
        with postgres_errors("read the position of a database"), connection.cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            if cursor.fetchone()[0]:
                cursor.execute("SELECT pg_last_wal_replay_lsn()::text")
            else:
                cursor.execute("SET synchronous_commit = local")
                cursor.execute("SELECT pg_logical_emit_message(true, 'waxlake', '')::text")
            return parse_lsn(cursor.fetchone()[0])


class PostgresSource(StandaloneSource):
    """PostgreSQL tables as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    Args:
        dsn: libpq URI or key=value text.
        tables: Tables, ``schema.table``.
        ledger: Place of a small Delta table that remembers chunks of first loads.
        positions: Stored position of each partition, or a function from what the source holds to them.
        is_bounded: End at what the database holds when the dataflow is built.
        columns: Change columns that are wanted, such as ``_change_type``.
        settings: Further fields of ``PostgresSettings``.

    Guarantee: every row and change once per run; exactly once with a sink that stores positions.
    """

    def __init__(
        self,
        dsn: str,
        tables: Sequence[str],
        *,
        ledger: str,
        positions: Positions | None = None,
        is_bounded: bool = False,
        columns: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        values = {"dsn": SecretStr(dsn), "tables": tuple(tables), **settings}
        connector = PostgresConnector(PostgresSettings.build("PostgresSource", values), TableLocation(ledger))
        super().__init__(connector, positions=positions, is_bounded=is_bounded, columns=columns)
