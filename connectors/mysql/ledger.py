"""What a MySQL source has to remember beside positions.

Where chunks of a first load end, where streams began, columns it has seen, how often it began anew: a small Delta table.

Each commit moves a ``txn`` from a held snapshot, so of two runs that decide at the same time one fails and looks again. The end
of a chunk is decided once, before any of its rows is emitted: chunk ``n`` of a table means the same keys in every run. A chunk
that reaches the end of its table has no end that could be written: the table may have grown when it is read again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from connectors.mysql.columns import Column
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["SourceLedger"]

_SCHEMA = pa.schema(
    [
        pa.field(
            "kind",
            pa.string(),
            metadata={"comment": "chunk, column, begin, identity, epoch, server, place, gtids or origin"},
        ),
        pa.field("key", pa.string(), metadata={"comment": "What it belongs to, as schema.table"}),
        pa.field("number", pa.int64(), metadata={"comment": "Number of the chunk, the column, the epoch, from 0"}),
        pa.field("value", pa.string(), metadata={"comment": "JSON"}),
    ]
)
_CHANGES = "waxlake/source-ledger"
_ATTEMPTS = 10
_Entry = tuple[str, str, int]


class SourceLedger:
    """The ledger of one source. May be used by several threads.

    Args:
        location: Where the Delta table lies.
    """

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._handle: DeltaTable | None = None
        self._entries: dict[_Entry, Any] = {}

    @property
    def table_id(self) -> str:
        """Identity of the ledger: numbers of chunks mean something only together with it."""
        with self._lock:
            return str(self._opened().metadata().id)

    def last_key(self, table: str, chunk: int) -> Sequence[str] | None:
        """Return the last key of a chunk, as SQL literals; None if nobody has decided it yet."""
        found: Sequence[str] | None = self._get(("chunk", table, chunk))
        return found

    def end_chunk(self, table: str, chunk: int, last_key: Sequence[str]) -> bool:
        """Decide where a chunk ends; return whether it is there, and not where another run decided before."""
        kept = self._add({("chunk", table, chunk): list(last_key)})
        failpoint("chunk-recorded")
        return bool(kept["chunk", table, chunk] == list(last_key))

    def begin(self, epoch: int, table: str) -> int | None:
        """Return where the stream of a table began; None if it is new."""
        found: int | None = self._get(("begin", table, epoch))
        return found

    def begins(self, epoch: int, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return where the streams of tables began; one that is new begins at the position given."""
        kept = self._add({("begin", table, epoch): position for table, position in positions.items()})
        return {table: kept["begin", table, epoch] for table in positions}

    def columns(self, table: str) -> list[Column]:
        """Return the columns seen so far, in the order they were first seen."""
        self._get(("column", table, 0))
        with self._lock:
            found = sorted(
                (number, v) for (kind, key, number), v in self._entries.items() if (kind, key) == ("column", table)
            )
        return [Column(**{**value, "members": tuple(value["members"])}) for _, value in found]

    def add_columns(self, table: str, columns: Sequence[Column]) -> None:
        """Remember columns that are new."""
        known = self.columns(table)
        names = {column.name for column in known}
        new = [column for column in columns if column.name not in names]
        if new:
            self._add({("column", table, len(known) + i): asdict(column) for i, column in enumerate(new)})

    def epoch(self) -> int:
        """Return how often everything began anew."""
        return len(self._values("epoch"))

    def former(self) -> tuple[str, ...]:
        """Return the identities that the source had before it began anew."""
        return tuple(dict.fromkeys(identity for epoch in self._values("epoch") for identity in epoch["former"]))

    def begin_epoch(self, reason: str) -> None:
        """Note that everything begins anew, and that tables filled so far are to be filled again."""
        self._add({("epoch", "", self.epoch()): {"reason": reason, "former": self._values("identity")}})

    def add_identity(self, identity: str) -> None:
        """Remember an identity that the source has."""
        known = self._values("identity")
        if identity not in known:
            self._add({("identity", "", len(known)): identity})

    def servers(self) -> Sequence[str]:
        """Return the servers that took each other's place, the first one first."""
        return [str(identity) for identity in self._values("server")]

    def add_server(self, number: int, identity: str, places: Mapping[int, int]) -> Mapping[int, int]:
        """Remember which server comes after ``number`` others, and where in its log positions of those before are.

        Returns:
            The places that stand: another run may have been first.
        """
        entries: dict[_Entry, Any] = {("place", str(position), number): place for position, place in places.items()}
        kept = self._add({("server", "", number): identity, **entries})
        if kept["server", "", number] != identity:
            raise TransientError(
                f"cannot write the ledger '{self._location.label}'",
                code="LEDGER_CONTENTION",
                found=f"server {kept['server', '', number]}",
                expected=f"server {identity}",
                remedy="Another run of this pipeline found another server at the address at the same time",
            )
        return {position: kept["place", str(position), number] for position in places}

    def place(self, position: int, number: int) -> int | None:
        """Return where a position of an earlier server is in the log of one; None if nobody looked for it yet."""
        found: int | None = self._get(("place", str(position), number))
        return found

    def gtids(self, position: int) -> Mapping[str, int]:
        """Return the notes of a position at which a stream began."""
        return self._get(("gtids", str(position), 0)) or {}

    def add_gtids(self, position: int, notes: Mapping[str, int]) -> None:
        """Remember the notes of a position at which streams begin."""
        self._add({("gtids", str(position), 0): dict(notes)})

    def origins(self) -> Sequence[str]:
        """Return the domains, or servers, whose transactions notes may name."""
        return [str(origin) for origin in self._values("origin")]

    def add_origins(self, origins: Iterable[str]) -> None:
        """Remember domains before a table's commit names them."""
        known = self.origins()
        new = sorted(set(origins).difference(known))
        if new:
            self._add({("origin", "", len(known) + i): origin for i, origin in enumerate(new)})

    def _values(self, kind: str) -> list[Any]:
        """Return the entries of a kind that belong to the source as a whole, in their order."""
        with self._lock:
            self._opened()
            found = sorted((number, value) for (name, _, number), value in self._entries.items() if name == kind)
        return [value for _, value in found]

    def _get(self, entry: _Entry) -> Any:
        with self._lock:
            self._opened()
            return self._entries.get(entry)

    def _add(self, entries: Mapping[_Entry, Any]) -> dict[_Entry, Any]:
        """Store entries that are new; return what stands now under each."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                handle = self._opened()
                new = {entry: value for entry, value in entries.items() if entry not in self._entries}
                if not new or self._commit(handle, new):
                    return {entry: self._entries[entry] for entry in entries}
        raise TransientError(
            f"cannot write the ledger '{self._location.label}' after {_ATTEMPTS} attempts",
            code="LEDGER_CONTENTION",
            remedy="Other runs write it all the time; give each pipeline its own storage",
        )

    def _opened(self) -> DeltaTable:
        if self._handle is None:
            location = self._location
            exists = location.exists()
            self._handle = location.open() if exists else location.create(_SCHEMA, comment="What a source remembers")
            with delta_errors(f"read the ledger '{location.label}'"):
                rows = self._handle.to_pyarrow_table().to_pylist() if self._handle.version() else []
            self._entries = {(r["kind"], r["key"], r["number"]): json.loads(r["value"]) for r in rows}
        return self._handle

    def _commit(self, handle: DeltaTable, entries: Mapping[_Entry, Any]) -> bool:
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
