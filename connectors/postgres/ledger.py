"""What a PostgreSQL source has to remember beside positions.

Where chunks of a first load end, columns it has seen, and how often its slot was made anew: a small Delta table. Each commit
moves a ``txn`` from a held snapshot, so of two runs that decide at the same time one fails and looks again.

A chunk's end is decided once, before any of its rows is emitted: chunk ``n`` of a table means the same keys in every run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pa_dataset
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from connectors.postgres.types import PostgresType
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["KnownColumn", "SourceLedger"]

_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), metadata={"comment": "chunk, column or epoch"}),
        pa.field("key", pa.string(), metadata={"comment": "What it belongs to"}),
        pa.field("number", pa.int64(), metadata={"comment": "Chunk or column number, from 0"}),
        pa.field("value", pa.string(), metadata={"comment": "JSON"}),
    ]
)
_CHANGES = "waxlake/source-ledger"
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownColumn:
    """A column that a table has or once had, with the type it had first."""

    name: str
    type: PostgresType


class SourceLedger:
    """The ledger of one source. May be used by several threads.

    Args:
        location: Where the Delta table lies.
    """

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._entries: dict[tuple[str, str], dict[int, Any]] = {}
        self._loaded = -1

    def exists(self) -> bool:
        """Return whether it was made already."""
        return self._location.exists()

    def bounds(self, identity: str, table: int) -> list[Sequence[str]]:
        """Return the last key of each chunk decided so far."""
        return self._values("chunk", f"{identity}/{table}")

    def add_bounds(self, identity: str, table: int, known: int, bounds: Sequence[Sequence[str]]) -> None:
        """Decide where the chunks after the first ``known`` ones end; what another run decided first stands."""
        failpoint("load-planned")
        self._add("chunk", f"{identity}/{table}", known, [list(bound) for bound in bounds])

    def columns(self, source: str, table: int) -> list[KnownColumn]:
        """Return the columns seen so far, in the order they were first seen."""
        return [
            KnownColumn(
                name=v["name"], type=PostgresType(name=v["type"], modifier=v["modifier"], is_array=v["is_array"])
            )
            for v in self._values("column", f"{source}/{table}")
        ]

    def add_columns(self, source: str, table: int, known: int, columns: Sequence[KnownColumn]) -> None:
        """Remember columns."""
        values = [
            {"name": c.name, "type": c.type.name, "modifier": c.type.modifier, "is_array": c.type.is_array}
            for c in columns
        ]
        self._add("column", f"{source}/{table}", known, values)

    def epochs(self, slot: str) -> list[Mapping[str, Any]]:
        """Return an entry for each time that the slot was made."""
        return self._values("epoch", slot)

    def add_epoch(self, slot: str, known: int, facts: Mapping[str, Any]) -> None:
        """Remember that the slot is made anew."""
        self._add("epoch", slot, known, [facts])

    def refresh(self) -> None:
        """See what other runs decided."""
        with self._lock:
            self._handle, self._loaded = None, -1

    def _values(self, kind: str, key: str) -> list[Any]:
        with self._lock:
            self._load()
            found = self._entries.get((kind, key), {})
            return [found[number] for number in range(len(found))]

    def _load(self) -> None:
        if self._handle is None:
            if not self._location.exists():
                self._entries = {}
                return
            self._handle = self._location.open()
        version = self._handle.version()
        if version == self._loaded:
            return
        with delta_errors(f"read the ledger '{self._location.label}'"):
            names = pa.table(self._handle.get_add_actions(flatten=True)).column("path").to_pylist()
            files = pa_dataset.dataset(names, schema=_SCHEMA, filesystem=self._location.filesystem(), format="parquet")
            rows = files.to_table()
        entries: dict[tuple[str, str], dict[int, Any]] = {}
        columns = [rows.column(name).to_pylist() for name in _SCHEMA.names]
        for kind, key, number, value in zip(*columns, strict=True):
            entries.setdefault((kind, key), {})[number] = json.loads(value)
        self._entries, self._loaded = entries, version

    def _add(self, kind: str, key: str, known: int, values: Sequence[Any]) -> None:
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._load()
                if len(self._entries.get((kind, key), {})) > known:
                    return  # another run was first
                if self._commit(kind, key, known, values):
                    return
        raise TransientError(
            f"cannot write the ledger '{self._location.label}' after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )

    def _commit(self, kind: str, key: str, first: int, values: Sequence[Any]) -> bool:
        if self._handle is None:
            self._handle = self._location.create(_SCHEMA, comment="What a database source remembers")
        rows = pa.table(
            [
                pa.array([kind] * len(values)),
                pa.array([key] * len(values)),
                pa.array(range(first, first + len(values)), pa.int64()),
                pa.array([json.dumps(value) for value in values]),
            ],
            schema=_SCHEMA,
        )
        number = (self._handle.transaction_version(_CHANGES) or 0) + 1
        properties = CommitProperties(app_transactions=[Transaction(_CHANGES, number)])
        try:
            with delta_errors(f"write the ledger '{self._location.label}'"):
                write_deltalake(self._handle, rows, mode="append", commit_properties=properties)
                self._handle.update_incremental()
        except CommitFailedError:
            self._handle = None
            return False
        entries = self._entries.setdefault((kind, key), {})
        if self._loaded == self._handle.version() - 1:
            entries.update({first + i: json.loads(json.dumps(value)) for i, value in enumerate(values)})
            self._loaded = self._handle.version()
        return True
