"""The query connector: what there is to read, its columns, and readers of it; and a Bytewax source for plain dataflows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from connectors.query.database import Database
from connectors.query.ledger import QueryLedger
from connectors.query.polls import Polls
from connectors.query.reader import PARTITION, QueryReader
from connectors.query.settings import QuerySettings
from connectors.query.values import RESCUED
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import TransientError
from waxlake.stream.position import RowPosition
from waxlake.stream.preview import SourcePreview
from waxlake.stream.source import Reader, SourcePlan, SourceRange, SourceState
from waxlake.stream.standalone import StandaloneSource

__all__ = ["QueryConnector", "QuerySource"]

_ATTEMPTS = 5


class QueryConnector:
    """A table or query of a database, polled by a cursor column.

    Args:
        settings: What to read and how.
        ledger: Where the source keeps its ledger; its own, and durable like the tables it feeds.

    Guarantee: each version of a row that a poll sees is stored once, together with a sink that stores positions. A version
    that is replaced before a poll sees it is never seen; one whose cursor is lower than the highest by more than
    ``look_back`` when it is committed is not seen either.
    """

    def __init__(self, settings: QuerySettings, ledger: TableLocation) -> None:
        self.settings = settings
        self._location = ledger
        self._database = Database(settings)
        self._schema: pa.Schema | None = None

    @property
    def name(self) -> str:
        """What the user calls the source."""
        return f"query:{self.settings.what}@{self._database.place}"

    @property
    def metadata_columns(self) -> tuple[str, ...]:
        """Columns that stay out of ``*``."""
        return tuple(CHANGE_COLUMNS.names)

    @property
    def on_data_loss(self) -> str:
        """``fail``: a ledger that is gone stops the flow."""
        return "fail"

    def resolve_schema(self) -> pa.Schema:
        """Return the columns to read: declared, or those of the table now.

        Raises:
            TerminalError: The database refuses, or there is no such table. Not retryable.
            TransientError: The database does not answer. Retryable.
        """
        if self._schema is None:
            try:
                self._schema = self._database.schema()
            finally:
                self._database.close()
        return self._schema

    def empty(self) -> pa.Table:
        """Return a table of no rows with every column a batch may have."""
        return pa.schema([*self.resolve_schema(), (RESCUED, pa.string()), *CHANGE_COLUMNS]).empty_table()

    def inspect(self) -> SourceState:
        """Look for changes, record a poll if there are any, and return what there is to read.

        Raises:
            TerminalError: The database refuses, or there is no such table. Not retryable.
            TransientError: The database does not answer. Retryable.
        """
        polls, ledger, database = self._opened()
        try:
            ledger.load()
            _discover(polls, ledger)
        finally:
            database.close()
        cursor = ",".join(self.settings.cursor)
        return SourceState(
            identity=f"{self.name}:{cursor}@{ledger.table_id}",
            name=self.name,
            partitions={PARTITION: SourceRange(low=0, high=RowPosition(ledger.next_poll).pack())},
            begin={PARTITION: 0},
        )

    def preview(self) -> SourcePreview:
        """Return what there is to read; no poll is recorded."""
        if not self._location.exists():
            return SourcePreview(state=None, note="the whole table is read first")
        polls, ledger, database = self._opened()
        try:
            ledger.load()
            has_changed = polls.next_poll() is not None
        finally:
            database.close()
        high = RowPosition(ledger.next_poll + has_changed).pack()
        state = SourceState(
            identity=f"{self.name}:{','.join(self.settings.cursor)}@{ledger.table_id}",
            name=self.name,
            partitions={PARTITION: SourceRange(low=0, high=high)},
            begin={PARTITION: 0},
        )
        return SourcePreview(state=state, note="rows have changed since the last poll" if has_changed else "")

    def groups(self, plan: SourcePlan, count: int) -> Mapping[str, tuple[str, ...]]:
        """Return one group: windows are read in the order of their numbers by one reader."""
        return {"0000": tuple(plan.partitions)} if plan.partitions and count else {}

    def reader(self, plan: SourcePlan, partitions: tuple[str, ...], columns: frozenset[str]) -> Reader:
        """Return the reader of a run; no columns asks for all but the metadata columns."""
        names = [*self.resolve_schema().names, RESCUED]
        names += [name for name in CHANGE_COLUMNS.names if name in columns]
        opened: list[Database] = []

        def open_polls() -> tuple[Polls, QueryLedger]:
            close()
            polls, ledger, database = self._opened()
            opened.append(database)
            return polls, ledger

        def close() -> None:
            while opened:
                opened.pop().close()

        return QueryReader(
            plan=plan.partitions[partitions[0]],
            identity=plan.identity,
            table=self.settings.what,
            empty=self.empty().select(names),
            open_polls=open_polls,
            discover=_discover,
            close=close,
            poll_interval_s=self.settings.poll_interval,
        )

    def _opened(self) -> tuple[Polls, QueryLedger, Database]:
        """Return what reads polls, on a connection of its own."""
        database = Database(self.settings)
        try:
            database.schema()  # says whether a cursor may be NULL, and that the table is still there
            ledger = QueryLedger(self._location, self.name)
            return Polls(self.settings, database, ledger, self.resolve_schema(), database.key()), ledger, database
        except BaseException:  # whatever it was, nobody else knows of the connection
            database.close()
            raise


def _discover(polls: Polls, ledger: QueryLedger) -> None:
    """Record a poll if something has changed."""
    for _ in range(_ATTEMPTS):
        poll = polls.next_poll()
        if poll is None or ledger.record_poll(poll):
            return
        ledger.load()
    raise TransientError(
        "cannot record a poll",
        code="LEDGER_CONTENTION",
        remedy="Other runs read the same source all the time; run one pipeline at a time",
    )


class QuerySource(StandaloneSource):
    """A polled table or query as an input of a hand-written Bytewax dataflow; its items are ``MicroBatch``.

    Args:
        url: URL of the database.
        ledger: Where the source keeps its ledger of polls.
        positions: Stored position of the partition ``query``, or a function from what the source holds to it.
        is_bounded: End at what the database holds when the dataflow is built.
        columns: Metadata columns that are wanted, such as ``_change_type``.
        options: Further fields of ``QuerySettings``.

    Guarantee: see ``QueryConnector``.
    """

    def __init__(
        self,
        url: str,
        *,
        ledger: TableLocation | str,
        positions: Mapping[str, int] | Callable[[SourceState], Mapping[str, int]] | None = None,
        is_bounded: bool = False,
        columns: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        location = ledger if isinstance(ledger, TableLocation) else TableLocation(str(ledger))
        settings = QuerySettings.build("QuerySource()", {"url": url, **options})
        super().__init__(
            QueryConnector(settings, location), positions=positions, is_bounded=is_bounded, columns=columns
        )
