"""The Delta table of events: created, appended to by several processes at once, tidied, read. Called by ``events``."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from sinks.delta.parquet import write_data_file
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError

__all__ = ["EVENT_SCHEMA", "EventTable"]

EVENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("level", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("pipeline", pa.string(), nullable=False),
        pa.field("update_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string()),
        pa.field("flow", pa.string()),
        pa.field("details", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
_log = logging.getLogger("waxlake.events")
_REOPEN_AFTER_COMMITS = 200
_TIDY_ABOVE_FILES = 200
_ATTEMPTS = 12


class EventTable:
    """The events table at a location. Used by one thread.

    Args:
        location: Where it lies; it need not exist.
    """

    def __init__(self, location: TableLocation) -> None:
        self.location = location
        self._handle: DeltaTable | None = None
        self._commits_on_handle = 0

    def append(self, rows: Sequence[Mapping[str, Any]], versions: Mapping[str, int]) -> None:
        """Append events in one commit.

        Args:
            rows: Events, with the columns of ``EVENT_SCHEMA``.
            versions: Table name to the version up to which its commits are in the log with these rows.

        Raises:
            ExternalError: The store refuses or does not answer; nothing was appended, as far as it said.
        """
        table = pa.Table.from_pylist(list(rows), schema=EVENT_SCHEMA)
        properties = CommitProperties(
            app_transactions=[Transaction(_app_id(name), version) for name, version in versions.items()]
        )
        for attempt in range(_ATTEMPTS):
            try:
                with delta_errors("append to the event log"):
                    self._commit(table, properties)
                self._commits_on_handle += 1
                return
            except CommitFailedError:
                self._handle = None
                time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 5)))  # processes that collide part by chance
            except BaseException:  # whatever it was, the commit may have landed: look before the next attempt
                self._handle = None
                raise
        raise TransientError(
            f"cannot append to the event log after {_ATTEMPTS} attempts",
            code="COMMIT_CONTENTION",
            remedy="Many processes write it at once; it is tried again",
        )

    def _commit(self, table: pa.Table, properties: CommitProperties) -> None:
        """Write a file of our own making and add it: delta-rs' writer panics on standard error where it cannot write."""
        handle = self._opened()
        add = write_data_file(self.location, table)
        handle.create_write_transaction(
            [add], mode="append", schema=handle.schema(), partition_by=[], commit_properties=properties
        )
        handle.update_incremental()

    def completed_version(self, name: str) -> int | None:
        """Return the version of a table up to which its commits are in the log; None if none is.

        Raises:
            ExternalError: The log cannot be read.
        """
        if not self.location.exists():
            return None
        version = self.location.open().transaction_version(_app_id(name))
        return None if version is None else int(version)

    def rows(self, *, event_types: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return events in the order of their sequence; none if there is no log.

        Raises:
            ExternalError: The log cannot be read.
        """
        if not self.location.exists():
            return []
        with delta_errors("read the event log"):
            dataset = self.location.open().to_pyarrow_dataset()
            wanted = None if event_types is None else pc.field("event_type").isin(list(event_types))
            rows: list[dict[str, Any]] = dataset.to_table(filter=wanted).sort_by("sequence").to_pylist()
        return rows

    def tidy(self) -> None:
        """Put small files together when there are many of them. Never raises; what fails is done another time."""
        try:
            if self._handle is None or len(self._handle.file_uris()) < _TIDY_ABOVE_FILES:
                return
            self._handle.optimize.compact()
            self._handle.vacuum(dry_run=False)
        except (CommitFailedError, DeltaError, OSError) as exc:
            _log.debug("the event log was not tidied: %s", exc)

    def _opened(self) -> DeltaTable:
        if self._handle is not None and self._commits_on_handle >= _REOPEN_AFTER_COMMITS:
            self.tidy()
            self._handle = None
        if self._handle is None:
            is_there = self.location.exists()
            self._handle = self.location.open() if is_there else self.location.create(EVENT_SCHEMA)
            self._commits_on_handle = 0
        return self._handle


def _app_id(name: str) -> str:
    return f"waxlake/events/{quote(name, safe='')}"
