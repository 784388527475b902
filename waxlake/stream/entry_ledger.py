"""A small Delta table of decisions that every run of a source has to take alike. Database sources build their ledgers on it.

An entry is decided once: (kind, key, number) to a JSON value that never changes. Each commit moves a ``txn`` from a held
snapshot, so of two runs that decide at the same time one fails, looks again, and finds what the other decided.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError

__all__ = ["Entry", "EntryLedger"]

Entry = tuple[str, str, int]
"""Kind, what it belongs to, and number from 0."""

_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.string(), metadata={"comment": "What was decided, as the end of a chunk"}),
        pa.field("key", pa.string(), metadata={"comment": "What it belongs to, as a table"}),
        pa.field("number", pa.int64(), metadata={"comment": "From 0"}),
        pa.field("value", pa.string(), metadata={"comment": "JSON"}),
    ]
)
_CHANGES: Final = "waxlake/source-ledger"
_ATTEMPTS: Final = 10


class EntryLedger:
    """The entries of one source. May be used by several threads.

    Args:
        location: Where the Delta table lies; it is created by the first write.
    """

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._entries: dict[Entry, Any] = {}

    @property
    def table_id(self) -> str:
        """Identity of the ledger, which is created if need be: numbers mean something only together with it."""
        with self._lock:
            return str(self._created().metadata().id)

    def refresh(self) -> None:
        """Look again at what other runs decided, at the next question."""
        with self._lock:
            self._handle = None

    def get(self, kind: str, key: str, number: int) -> Any:
        """Return the value of an entry; None if nobody has decided it yet."""
        with self._lock:
            self._load()
            return self._entries.get((kind, key, number))

    def values(self, kind: str, key: str = "") -> list[Any]:
        """Return the values of a kind that belong to something, in the order of their numbers."""
        with self._lock:
            self._load()
            found = [(number, v) for (name, of, number), v in self._entries.items() if (name, of) == (kind, key)]
        return [value for _, value in sorted(found, key=lambda item: item[0])]

    def add(self, entries: Mapping[Entry, Any], *, is_one: bool = False) -> dict[Entry, Any]:
        """Store entries that are new, in one commit; return what stands now under each.

        Args:
            entries: Entries to their values.
            is_one: They are one decision: if another run has taken any of them, none is stored, and those that nobody took are
                missing from what is returned.

        Raises:
            TransientError: Other runs write the ledger all the time. Retryable.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._load()
                new = {entry: value for entry, value in entries.items() if entry not in self._entries}
                is_taken = is_one and len(new) < len(entries)
                if not new or is_taken or self._commit(self._created(), new):
                    return {entry: self._entries[entry] for entry in entries if entry in self._entries}
        raise TransientError(
            f"cannot write the ledger '{self._location.label}' after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )

    def _created(self) -> DeltaTable:
        self._load()
        if self._handle is None:
            self._handle = self._location.create(_SCHEMA, comment="What a source remembers")
        return self._handle

    def _load(self) -> None:
        if self._handle is not None:
            return
        self._entries = {}
        if not self._location.exists():
            return
        handle = self._location.open()
        with delta_errors(f"read the ledger '{self._location.label}'"):
            rows = handle.to_pyarrow_table().to_pylist() if handle.version() else []
        self._entries = {(r["kind"], r["key"], r["number"]): json.loads(r["value"]) for r in rows}
        self._handle = handle

    def _commit(self, handle: DeltaTable, entries: Mapping[Entry, Any]) -> bool:
        rows = [(*entry, json.dumps(value)) for entry, value in entries.items()]
        columns = [pa.array(column, f.type) for column, f in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
        number = (handle.transaction_version(_CHANGES) or 0) + 1
        properties = CommitProperties(app_transactions=[Transaction(_CHANGES, number)])
        try:
            with delta_errors(f"write the ledger '{self._location.label}'"):
                write_deltalake(handle, pa.table(columns, schema=_SCHEMA), mode="append", commit_properties=properties)
                handle.update_incremental()
        except CommitFailedError:
            self._handle = None
            return False
        self._entries.update({entry: json.loads(json.dumps(value)) for entry, value in entries.items()})
        return True
