"""The ledger of first loads: where each chunk of a table ends, known before any of its rows is emitted.

A Delta table of the source's own. The position of a load is the number of the next chunk, and a chunk is the rows whose keys
lie after the last key of the chunk before it, up to its own last key. Those keys are written here first, from a held snapshot:
a second run that reads the same chunk finds them. A chunk that reaches the end of the table has no last key and is not written:
the table may have grown when it is read again.

The ledger also holds where the stream of each table began, so that a table added later is followed from then on.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.errors import TransientError
from waxlake.stream.failpoints import failpoint

__all__ = ["ChunkLedger"]

_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string(), metadata={"comment": "schema.table"}),
        pa.field("chunk", pa.int64(), metadata={"comment": "Number of the chunk; -1 for where the stream began"}),
        pa.field("last_key", pa.string(), metadata={"comment": "SQL literals of the last key, as a JSON list"}),
        pa.field("position", pa.int64(), metadata={"comment": "Position of the stream when it was written"}),
    ]
)
_BEGIN = -1
_EPOCH = "(everything)"
_ATTEMPTS = 10


class ChunkLedger:
    """The ledger of one source. Not thread-safe: one user at a time.

    Args:
        location: Where the Delta table lies.
    """

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._handle: DeltaTable | None = None
        self._last_keys: dict[tuple[str, int], str] = {}
        self._begins: dict[str, int] = {}
        self._read_version = -1

    @property
    def table_id(self) -> str:
        """Identity of the ledger: numbers of chunks mean something only together with it."""
        return str(self._opened().metadata().id)

    def begins(self) -> Mapping[str, int]:
        """Return where the stream of each table began."""
        self._refresh()
        return self._begins

    def last_key(self, table: str, chunk: int) -> str | None:
        """Return the last key of a chunk; None if nobody has read it yet."""
        self._refresh()
        return self._last_keys.get((table, chunk))

    def begin(self, tables: Mapping[str, int]) -> None:
        """Record where the streams of tables begin that are new to the ledger."""
        for _ in range(_ATTEMPTS):
            new = {table: position for table, position in tables.items() if table not in self.begins()}
            if not new or self._write([(table, _BEGIN, "", position) for table, position in new.items()], {}):
                return
        raise self._contended()

    def epoch(self) -> int:
        """Return how often everything began anew."""
        return sum(table == _EPOCH for table, _ in self._epochs())

    def begin_epoch(self) -> None:
        """Record that everything begins anew."""
        for _ in range(_ATTEMPTS):
            if self._write([(_EPOCH, self.epoch(), "", 0)], {}):
                return
        raise self._contended()

    def _epochs(self) -> list[tuple[str, int]]:
        self._refresh()
        return [key for key in self._last_keys if key[0] == _EPOCH]

    def record(self, table: str, chunk: int, last_key: str, position: int) -> bool:
        """Record the last key of a chunk; return whether it is that, and not another one that somebody recorded before."""
        for _ in range(_ATTEMPTS):
            known = self.last_key(table, chunk)
            if known is not None:
                return known == last_key
            if self._write([(table, chunk, last_key, position)], {f"waxlake/chunks/{table}": chunk}):
                failpoint("chunk-recorded")
                return True
        raise self._contended()

    def _contended(self) -> TransientError:
        return TransientError(
            f"cannot write the ledger of chunks at '{self._location.label}'",
            code="COMMIT_CONTENTION",
            remedy="Other runs write it all the time; give the source one run",
        )

    def _write(self, rows: list[tuple[str, int, str, int]], versions: Mapping[str, int]) -> bool:
        handle = self._opened()
        table = pa.table(
            [pa.array(column, f.type) for column, f in zip(zip(*rows, strict=True), _SCHEMA, strict=True)],
            schema=_SCHEMA,
        )
        own = {"waxlake/ledger": (handle.transaction_version("waxlake/ledger") or 0) + 1, **versions}
        properties = CommitProperties(app_transactions=[Transaction(app, version) for app, version in own.items()])
        try:
            with delta_errors(f"write table '{self._location.label}'"):
                write_deltalake(handle, table, mode="append", commit_properties=properties)
        except CommitFailedError:
            self._handle = None
            return False
        self._last_keys.update({(name, chunk): key for name, chunk, key, _ in rows if chunk != _BEGIN})
        self._begins.update({name: position for name, chunk, _, position in rows if chunk == _BEGIN})
        self._handle = None
        self._read_version = -1
        return True

    def _opened(self) -> DeltaTable:
        if self._handle is None:
            location = self._location
            self._handle = location.open() if location.exists() else location.create(_SCHEMA)
        return self._handle

    def _refresh(self) -> None:
        handle = self._opened()
        if handle.version() == self._read_version:
            return
        with delta_errors(f"read table '{self._location.label}'"):
            rows = handle.to_pyarrow_table().to_pylist() if handle.version() else []
        self._last_keys = {(row["table"], row["chunk"]): row["last_key"] for row in rows if row["chunk"] != _BEGIN}
        self._begins = {row["table"]: row["position"] for row in rows if row["chunk"] == _BEGIN}
        self._read_version = handle.version()
