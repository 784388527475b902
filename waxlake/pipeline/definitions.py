"""What a user declared, as plain frozen data that knows nothing of the engine. Each element remembers its file and line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from waxlake.stream.errors import DefinitionError, UserError

if TYPE_CHECKING:
    from sinks.batches import Handoff
    from sinks.cdc import ChangeRules
    from sinks.state import EventTime, Operator
    from waxlake.pipeline.spec import Spec
    from waxlake.stream.delta_table import TableLocation
    from waxlake.stream.source import Connector

__all__ = [
    "Action",
    "DatasetDefinition",
    "DatabaseRead",
    "DatabaseSettings",
    "DatasetKind",
    "Decode",
    "Drop",
    "EventHook",
    "Expectation",
    "Expect",
    "FilesRead",
    "FlowDefinition",
    "KafkaRead",
    "MapBatches",
    "Query",
    "Read",
    "RuleScope",
    "Select",
    "SinkTarget",
    "SqlQuery",
    "Stateful",
    "Step",
    "TableRead",
    "WatermarkStep",
    "Where",
    "WithColumns",
    "at_line",
    "calling_line",
    "located",
]

Action = Literal["warn", "drop", "fail", "quarantine"]
RuleScope = Literal["row", "key", "whole"]
DatasetKind = Literal["table", "materialized_view", "temporary_view", "sink"]
_PACKAGE = str(Path(__file__).resolve().parent)


_line: ContextVar[str] = ContextVar("waxlake_line", default="")


@contextmanager
def at_line(where: str) -> Iterator[None]:
    """Let what is declared inside the block belong to a place that no Python frame shows, as one in a SQL file."""
    token = _line.set(where)
    try:
        yield
    finally:
        _line.reset(token)


def calling_line() -> str:
    """Return ``file:line`` of the nearest caller outside this package, or the place that ``at_line`` names."""
    if _line.get():
        return _line.get()
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let a user error of the block name the definition it belongs to, unless it names its place already.

    Raises:
        DefinitionError: The user error, with its code, found, expected and remedy. Not retryable.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error, DefinitionError) and error.where:
            raise
        rest = {"found": error.found, "expected": error.expected, "remedy": error.remedy, **error.facts}
        raise DefinitionError(error.what, where=where, code=error.code, **rest) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A named boolean SQL rule; false and NULL both break it.

    Attributes:
        name: Unique within its dataset.
        sql: Condition over a row; over all rows of a view at once if ``scope`` is ``whole``; for people, if it is ``key``.
        action: What becomes of rows that break it.
        where: ``file:line``.
        scope: What it is about.
        columns: Columns that no two rows may have in common, if ``scope`` is ``key``.
        tables: Datasets that ``sql`` reads.
        threshold: Share of a micro-batch that may break it; more stop the flow. None for no limit.
        max_violations: Rows of a micro-batch that may break it; more stop the flow. None for no limit.
        is_native: ``sql`` is DuckDB's, whatever the dialect of the definitions.
    """

    name: str
    sql: str
    action: Action
    where: str
    scope: RuleScope = "row"
    columns: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    threshold: float | None = None
    max_violations: int | None = None
    is_native: bool = False

    @property
    def is_limited(self) -> bool:
        """Whether some rows may break it before the flow stops."""
        return self.threshold is not None or self.max_violations is not None

    def stops(self, failed: int, total: int) -> bool:
        """Return whether so many broken rows of a batch stop the flow."""
        if not self.is_limited:
            return self.action == "fail" and failed > 0
        return (self.threshold is not None and failed > self.threshold * total) or (
            self.max_violations is not None and failed > self.max_violations
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaRead:
    """Read Kafka topics; equal settings share one consumer."""

    settings: Any
    where: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRead:
    """Read new files under a path; equal settings share one reader and one ledger."""

    settings: Any
    where: str = field(compare=False, default="")


class DatabaseSettings(Protocol):
    """What a read of a database needs to say of itself; the settings of each kind of database do."""

    @property
    def label(self) -> str:
        """What users call it, without secrets, as ``postgres:public.orders``."""
        ...

    def connector(self, ledger: Callable[[str], TableLocation]) -> Connector:
        """Return the connector, a ``Sharing`` one.

        Args:
            ledger: From a plain name to a place for a small table of the connector's own, such as chunks of a first load.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRead:
    """Read tables of a database; reads of one log share one reader though they name different tables."""

    settings: DatabaseSettings
    where: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRead:
    """Read a dataset of this pipeline by name, or a Delta table by URI.

    Attributes:
        name: Name or URI.
        snapshot_keys: Keys of its rows if each of its versions is a snapshot to be compared with the one before.
        settings: Where to begin, and what to do with versions that do not only append; None for the usual.
    """

    name: str
    snapshot_keys: tuple[str, ...] = ()
    settings: Any = None
    where: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlQuery:
    """A batch query over datasets of this pipeline."""

    text: str
    where: str = field(compare=False, default="")


Read = KafkaRead | FilesRead | DatabaseRead | TableRead | SqlQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """``.sql``: a query over ``stream`` and static datasets; these at one version for a whole update if it is pinned."""

    text: str
    where: str
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """``.where``: keep the rows for which the condition is true."""

    condition: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """``.select``: expressions, ``*`` allowed."""

    expressions: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WithColumns:
    """``.with_columns``: add or replace columns."""

    columns: tuple[tuple[str, str], ...]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """``.drop``: leave columns out."""

    names: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapBatches:
    """``.map_batches``: a Python function from table to table."""

    function: Callable[[pa.Table], pa.Table]
    schema: pa.Schema | None
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """``read_debezium``: records to change rows, whose metadata columns join those of the source.

    Attributes:
        settings: What the events look like.
        where: ``file:line``.
    """

    settings: Any
    where: str = field(compare=False, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """The expectations of a temporary view, at the place where it is read."""

    dataset: str
    expectations: tuple[Expectation, ...]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkStep:
    """``.with_watermark``: which column is the event time of the stateful operator that follows."""

    time: EventTime
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful:
    """A stateful operator; the steps after it are done with what it puts out.

    Attributes:
        operator: It.
        side: Number of its input that the branch feeds.
        where: ``file:line``.
    """

    operator: Operator
    side: int = 0
    where: str


Step = Query | Where | Select | WithColumns | Drop | MapBatches | Decode | Expect | WatermarkStep | Stateful


class SinkTarget(Protocol):
    """Where the rows of a sink go, as the user set it."""

    @property
    def label(self) -> str:
        """What users call it, without secrets, as ``kafka:orders``."""
        ...

    @property
    def on_full_refresh(self) -> str:
        """``refuse``, ``resend`` or ``skip``."""
        ...

    @property
    def has_ledger(self) -> bool:
        """Whether positions are kept in a ledger; else in the Delta table that the rows go to."""
        ...

    def location(self, spec: Spec, name: str) -> TableLocation:
        """Return the Delta table that holds the positions."""
        ...

    def check(self, name: str, schema: pa.Schema) -> None:
        """Refuse rows that cannot go there.

        Raises:
            UserError: An option does not fit the columns. Not retryable.
        """
        ...

    def handoff(self, name: str) -> Handoff:
        """Return the other side, where there is a ledger."""
        ...

    def flush_limits(self) -> dict[str, int]:
        """Return ``max_rows`` and ``max_bytes`` of a batch, where they are not the usual ones."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHook:
    """A function that is told of every event of an update.

    Attributes:
        name: Its name.
        function: Takes the event as a dict.
        max_failures: Failures in a row after which it is not called again in that update; None for ever.
        where: ``file:line``.
    """

    name: str
    function: Callable[[dict[str, Any]], Any]
    max_failures: int | None
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDefinition:
    """A function whose stream feeds a table.

    Attributes:
        name: Flow name: the identity under which positions are stored.
        target: Table it feeds.
        function: Returns a Stream (or a Batch, for a materialized view).
        where: ``file:line``.
        changes: What its rows mean if they are changes to be merged, or None.
        once: Whether it ends for good when it has read what its source holds.
    """

    name: str
    target: str
    function: Callable[[], Any]
    where: str
    changes: ChangeRules | None = None
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDefinition:
    """A table, materialized view, temporary view or sink.

    Attributes:
        name: Name, ``table`` or ``schema.table``.
        kind: What it is.
        function: Its own query; None for a table that only other flows feed.
        where: ``file:line``.
        expectations: Its rules, in the order written.
        schema: Declared columns, or None.
        partition_by: Partition columns.
        comment: Table comment.
        properties: Delta table properties.
        path: Place of the table if not the usual one.
        is_merged: Changes are merged into it.
        sink: Where its rows go, if it is a sink; None otherwise.
        refresh_policy: How a materialized view is refreshed: ``auto``, ``incremental``, ``incremental_strict`` or
            ``full``.
    """

    name: str
    kind: DatasetKind
    function: Callable[[], Any] | None
    where: str
    expectations: tuple[Expectation, ...] = ()
    schema: pa.Schema | None = None
    partition_by: tuple[str, ...] = ()
    comment: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    path: str | None = None
    is_merged: bool = False
    sink: SinkTarget | None = None
    refresh_policy: str = "auto"
