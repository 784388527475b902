"""All rows of the files of a path, as a materialized view reads them: no ledger, every file at each refresh."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from connectors.files.scan import FilesScan
from waxlake.stream.schema import no_rows

__all__ = ["FileRows"]

_METADATA: Final = "_metadata"
_IN_MEMORY_BYTES: Final = 64 << 20


@dataclass(slots=True)
class FileRows:
    """The rows of one read.

    Args:
        scan: The read.
        schema: Its columns, as they were when the pipeline was checked.
        has_metadata: Whether a step uses ``_metadata``.
        seen: What was listed when the update was planned; None lists anew each time.
    """

    scan: FilesScan
    schema: pa.Schema
    has_metadata: bool
    seen: str | None = None

    def empty(self) -> pa.Table:
        """Return no rows, with all columns."""
        table = self.scan.empty(self.schema)
        return table if self.has_metadata else table.drop_columns([_METADATA])

    def fingerprint(self) -> str:
        """Return what changes when a file comes, goes or changes."""
        if self.seen is not None:
            return self.seen
        return "\n".join(
            f"{file.path}\0{file.size_bytes}\0{file.modified_us}\0{file.etag}" for file in self.scan.found()
        )

    def read(self) -> pa.Table:
        """Return the rows of all files that are there now; many of them lie in a temporary file, mapped into memory."""
        tables: list[pa.Table] = []
        size_bytes = 0
        parts = self.scan.tables(self.schema, has_metadata=self.has_metadata)
        for table in parts:
            tables.append(table)
            size_bytes += table.nbytes
            if size_bytes > _IN_MEMORY_BYTES:
                break
        else:
            return pa.concat_tables(tables) if tables else no_rows(self.empty().schema)
        with tempfile.NamedTemporaryFile(prefix="waxlake-", suffix=".arrow") as file:  # mapped pages outlive its name
            with pa.ipc.new_file(file.name, tables[0].schema) as writer:
                for table in tables:
                    writer.write_table(table)
                tables.clear()
                for table in parts:
                    writer.write_table(table)
            return pa.ipc.open_file(pa.memory_map(file.name)).read_all()
