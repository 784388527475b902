"""All rows of some files, now, without a ledger: what uploads and batch reads are made of. Memory holds one block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from connectors.files.contents import UNREADABLE
from connectors.files.discovery.open import open_store
from connectors.files.formats import decompressed
from connectors.files.formats.choice import make_format
from connectors.files.inference import infer_schema
from connectors.files.partition_columns import PartitionColumns, declared_partitions
from connectors.files.provenance import METADATA_TYPE, Provenance
from connectors.files.settings import FilesSettings
from connectors.files.store import FileChanged, FileGone, FoundFile, FoundFiles, Store, store_errors
from waxlake.stream.ddl import parse_ddl
from waxlake.stream.errors import SourceMoved, TerminalError, UserError, shorten

__all__ = ["FilesScan"]


@dataclass(slots=True)
class FilesScan:
    """A full read of files.

    Args:
        settings: What to read and how.
        files: The files; None lists the path.
    """

    settings: FilesSettings
    files: Sequence[FoundFile] | None = None
    _store: Store | None = None

    @property
    def store(self) -> Store:
        """Where the files are."""
        if self._store is None:
            self._store = open_store(self.settings)
        return self._store

    def found(self) -> list[FoundFile]:
        """Return the files in order of (modification time, path); listed anew each time unless they were given."""
        if self.files is not None:
            return list(self.files)
        return sorted(file for block in self.store.list_files() for file in block)

    def schema(self) -> pa.Schema:
        """Return the columns: declared, or inferred from a sample of the files.

        Raises:
            UserError: ``FILES_SCHEMA_UNKNOWN``: nothing declared, and no file to infer from. Not retryable.
            TerminalError: ``FILE_UNREADABLE``. Not retryable.
        """
        declared = self.settings.declared_schema
        if declared is not None:
            found: pa.Schema | None = declared_partitions(self.settings, parse_ddl(declared))
        else:
            found = infer_schema(self.settings, self.store, self.found())
        if found is None:
            raise UserError(
                f"cannot infer the schema of '{self.store.shown}'",
                code="FILES_SCHEMA_UNKNOWN",
                found="no file with a column",
                expected=f"a {self.settings.format} file, or a declared schema",
                remedy="Declare it, as in schema='id BIGINT, name STRING', or put a first file there",
            )
        return pa.schema([field.with_nullable(True) for field in found])

    def empty(self, schema: pa.Schema) -> pa.Table:
        """Return no rows, with every column that ``tables`` may give."""
        fields = [
            *schema,
            pa.field(self.settings.rescued_data_column, pa.string()),
            pa.field("_metadata", METADATA_TYPE),
        ]
        return pa.Table.from_batches([], pa.schema(fields))

    def tables(self, schema: pa.Schema, *, has_metadata: bool = False) -> Iterator[pa.Table]:
        """Yield the rows of all files, in order, a block at a time, with rescued data.

        Args:
            schema: Columns to make.
            has_metadata: Whether ``_metadata`` is made.

        Raises:
            TerminalError: ``FILE_UNREADABLE``. Not retryable.
            SourceMoved: A file is gone, or was changed while it was read. Not retryable as it is.
        """
        provenance = Provenance(
            settings=self.settings,
            partitions=PartitionColumns.of(self.settings, schema, self.store.root),
            has_metadata=has_metadata,
        )
        for file in self.found():
            try:
                for table in self._blocks(file, schema):
                    owners = pa.array(np.zeros(len(table), np.int64))
                    yield provenance.add(table, FoundFiles.of([file]), owners)
            except (FileGone, FileChanged) as exc:
                raise SourceMoved(
                    f"cannot read file '{file.path}'",
                    code="FILE_CHANGED",
                    found="another file, or none",
                    expected=f"the {file.size_bytes} bytes that were found there",
                    remedy="Run again when nobody writes it",
                ) from exc
            except UNREADABLE as exc:
                raise TerminalError(
                    f"cannot read file '{file.path}'",
                    code="FILE_UNREADABLE",
                    found=shorten(exc, 300),
                    expected=f"a whole {self.settings.format} file",
                    remedy="Repair or remove it",
                ) from exc

    def _blocks(self, file: FoundFile, schema: pa.Schema) -> Iterator[pa.Table]:
        format = make_format(self.settings, schema, has_rescued=True)
        opened = self.store.open(file)
        try:
            with nullcontext() if self.store.is_local else store_errors(f"read file '{file.path}'"):
                for raw in format.blocks(decompressed(opened.stream, file.path, self.settings.format), 0):
                    yield format.decode([raw])
            opened.verify()
        finally:
            opened.stream.close()
