"""Upload local files into a table, once: the table, its rows and the proof that they are there are one commit.

Where a crash can fall: before the commit, then the table is as it was (data files that nobody names are left for a vacuum);
after it, then the same upload is recognised by a ``txn`` whose name is a hash of the files' content, and not done twice.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from waxlake.stream.ddl import parse_ddl, to_ddl
from waxlake.stream.delta_table import arrow_schema, delta_errors
from waxlake.stream.errors import TransientError, UsageError, UserError, WaxlakeError, shorten
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import delta_schema
from waxlake.stream.settings import nearest

if TYPE_CHECKING:
    from connectors.files.scan import FilesScan
    from waxlake.pipeline.spec import Spec

__all__ = ["PREVIEW_ROWS", "Upload", "UploadOptions", "UploadReceipt", "refuse_owned"]

PREVIEW_ROWS: Final = 50
_RESCUED: Final = "_rescued_data"
_FORMATS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".tab": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".avro": ("avro", {}),
    ".orc": ("orc", {}),
    ".txt": ("text", {}),
    ".text": ("text", {}),
    ".xml": ("xml", {}),
}
_COMPRESSED: Final = (".gz", ".gzip", ".bz2", ".zst", ".zstd", ".lz4", ".br")
_ARCHIVES: Final = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".7z", ".rar")
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How to upload.

    Attributes:
        mode: ``create`` a table, ``append`` to one, or ``overwrite`` one.
        format: Format of the files; None takes it from their names.
        options: Options of the format, as ``read_files`` has them.
        types: Column to type, as DDL; a column that the sample does not show is added.
        renames: Column to its name in the table.
        excludes: Columns that are left out.
        keeps_rescued: Keep what does not fit in ``_rescued_data``; else such rows stop the upload.
        is_forced: Append again what was appended before.
        max_files: Most files.
        max_bytes: Most bytes of them together.
    """

    mode: Literal["create", "append", "overwrite"] = "create"
    format: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    excludes: tuple[str, ...] = ()
    keeps_rescued: bool = False
    is_forced: bool = False
    max_files: int = 10
    max_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReceipt:
    """What an upload did.

    Attributes:
        version: Version of the table that holds it.
        rows: Rows written.
        was_there: Whether an earlier upload had done it already.
    """

    version: int
    rows: int
    was_there: bool = False


class Upload:
    """An upload that is ready to be looked at, or done.

    Args:
        spec: Names the storage.
        table: ``table`` or ``schema.table``.
        files: Local files.
        options: How.

    Raises:
        UsageError: Too many or too large files, an archive, an unknown option, or a name that no file has. Not retryable.
        UserError: The table is there or is not, or its columns are not those of the files. Not retryable.
    """

    def __init__(self, spec: Spec, table: str, files: Sequence[Path], options: UploadOptions) -> None:
        self.table, self.location, self._options = table, spec.table_location(table), options
        self._scan = _scan_of(files, options)
        self._files = [Path(file.path) for file in self._scan.found()]
        self._stored = self._look()
        self.read_schema = self._columns_to_read()
        self.schema = self._columns_of_table()

    def preview(self) -> pa.Table:
        """Return the first rows as they would be stored; writes nothing."""
        parts: list[pa.Table] = []
        for table in self._scan.tables(self.read_schema):
            parts.append(self._shaped(table))
            if sum(part.num_rows for part in parts) >= PREVIEW_ROWS:
                break
        rows = pa.concat_tables(parts) if parts else pa.Table.from_batches([], self.schema)
        return rows.slice(0, PREVIEW_ROWS)

    def run(self) -> UploadReceipt:
        """Do it.

        Raises:
            UserError: ``UPLOAD_ROWS_REJECTED``: rows do not fit their columns; nothing was written. Not retryable.
            ExternalError: The storage cannot be written.

        Guarantee: all rows or none, once, whatever dies in between and however often it is repeated.
        """
        app = f"waxlake/upload/{uuid.uuid4().hex if self._options.is_forced else self._digest()}"
        for attempt in range(1, _ATTEMPTS + 1):
            if self._options.mode != "overwrite" and self._stored is not None:
                done = self._stored.transaction_version(app)
                if done is not None:
                    return UploadReceipt(version=done, rows=0, was_there=True)
                if self._options.mode == "create":
                    raise _exists(self.table)
            rows = _Rows(self)
            try:
                return self._write(rows, app)
            except (CommitFailedError, TransientError):
                if attempt == _ATTEMPTS:
                    raise
                self._stored = self.location.open() if self.location.exists() else None
                if self._options.mode == "append" and self._stored is not None:
                    self._require_columns(arrow_schema(self._stored))
        raise AssertionError("unreachable")

    def _write(self, rows: _Rows, app: str) -> UploadReceipt:
        version = 0 if self._stored is None else self._stored.version() + 1
        target: DeltaTable | str = self.location.uri if self._stored is None else self._stored
        if self._stored is None and self.location.is_local:
            self.location.local_path.mkdir(parents=True, exist_ok=True)
        facts = {"upload": [path.name for path in self._files]}
        properties = CommitProperties(app_transactions=[Transaction(app, version)], custom_metadata={"waxlake": facts})
        mode: Literal["error", "append", "overwrite"] = "error" if self._stored is None else "append"
        if self._stored is not None and self._options.mode == "overwrite":
            mode = "overwrite"
        try:
            with delta_errors(f"write table '{self.table}'"):
                write_deltalake(
                    target,
                    pa.RecordBatchReader.from_batches(self.schema, iter(rows)),
                    mode=mode,
                    schema_mode="overwrite" if mode == "overwrite" else None,
                    commit_properties=properties,
                    storage_options=dict(self.location.options),
                )
        except Exception as exc:  # what the rows raised comes back as an error of the writer
            if rows.error is not None:
                raise rows.error from exc
            if isinstance(exc, DeltaError) and not isinstance(exc, CommitFailedError) and self.location.exists():
                raise CommitFailedError(str(exc)) from exc  # another one has created it meanwhile
            raise
        failpoint("upload-committed")
        return UploadReceipt(version=version, rows=rows.count)

    def _digest(self) -> str:
        """Return what is the same for the same files, read in the same way, into the same table."""
        digest = hashlib.sha256(repr((self.table, self._options.mode, to_ddl(self.read_schema))).encode())
        digest.update(repr((sorted(self._options.renames.items()), self._options.excludes)).encode())
        for path in self._files:
            with path.open("rb") as stream:
                digest.update(
                    hashlib.file_digest(stream, "sha256").digest() if hasattr(hashlib, "file_digest") else _of(stream)
                )
        return digest.hexdigest()[:32]

    def _look(self) -> DeltaTable | None:
        if not self.location.exists():
            if self._options.mode == "append":
                raise UserError(
                    f"cannot append to table '{self.table}'",
                    code="TABLE_UNKNOWN",
                    found="no such table",
                    remedy="Use --mode create",
                )
            return None
        return self.location.open()

    def _columns_to_read(self) -> pa.Schema:
        """Return the columns of the files, with the types that the user or the table says."""
        found = self._scan.schema()
        if self._options.mode == "append" and self._stored is not None:
            back = {new: old for old, new in self._options.renames.items()}
            stored = {back.get(item.name, item.name): item.type for item in arrow_schema(self._stored)}
            found = pa.schema([item.with_type(stored.get(item.name, item.type)) for item in found])
        fields = {item.name: item for item in found}
        for name, kind in self._options.types.items():
            (declared,) = parse_ddl(f"`{name.replace('`', '``')}` {kind}")
            fields[name] = declared.with_nullable(True)
        for what, names in (("--rename", self._options.renames), ("--exclude", self._options.excludes)):
            for name in names:
                if name not in fields:
                    raise UsageError(
                        f"{what}: no column {name!r}",
                        code="OPTION_INVALID",
                        remedy=nearest(name, [*fields] or ["(none)"]),
                    )
        return pa.schema(list(fields.values()))

    def _columns_of_table(self) -> pa.Schema:
        kept = [item for item in self.read_schema if item.name not in self._options.excludes]
        fields = [item.with_name(self._options.renames.get(item.name, item.name)) for item in kept]
        if self._options.keeps_rescued:
            fields.append(pa.field(_RESCUED, pa.string()))
        schema = delta_schema(pa.schema(fields))
        if self._options.mode == "append" and self._stored is not None:
            stored = arrow_schema(self._stored)
            self._require_columns(stored, schema)
            return pa.schema([schema.field(item.name) if item.name in schema.names else item for item in stored])
        return schema

    def _require_columns(self, stored: pa.Schema, schema: pa.Schema | None = None) -> None:
        """Stop unless the files have exactly the columns of the table; one for rescued data may be in the table alone."""
        mine = {item.name: item.type for item in (self.schema if schema is None else schema)}
        theirs = {item.name: item.type for item in stored if item.name in mine or item.name != _RESCUED}
        if mine != theirs:
            raise UserError(
                f"cannot append to table '{self.table}': the columns differ",
                code="SCHEMA_MISMATCH",
                found=", ".join(f"{name} {kind}" for name, kind in mine.items() if theirs.get(name) != kind)
                or "no " + ", ".join(name for name in theirs if name not in mine),
                expected=", ".join(f"{name} {kind}" for name, kind in theirs.items()),
                remedy="Use --type, --rename or --exclude, or --mode overwrite",
            )

    def _shaped(self, table: pa.Table) -> pa.Table:
        """Return rows with the columns of the table."""
        names = {new: old for old, new in self._options.renames.items()}
        arrays = []
        for item in self.schema:
            index = table.schema.get_field_index(names.get(item.name, item.name))
            arrays.append(table.column(index) if index >= 0 else pa.nulls(len(table), item.type))
        return pa.table(arrays, schema=self.schema)


class _Rows:
    """The batches of one attempt; rows that do not fit end it, after all of them are counted."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.count = self._bad = 0
        self._sample = ""
        self.error: WaxlakeError | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches()
            failpoint("upload-written")
            if self._bad:
                raise self._rejected()
        except WaxlakeError as error:
            self.error = error
            raise

    def _batches(self) -> Iterator[pa.RecordBatch]:
        upload = self._upload
        for table in upload._scan.tables(upload.read_schema):
            self.count += table.num_rows
            if not upload._options.keeps_rescued:
                rescued = table.column(upload._scan.settings.rescued_data_column)
                self._bad += len(rescued) - rescued.null_count
                if self._bad:
                    texts = rescued.drop_null()
                    self._sample = self._sample or (shorten(texts[0].as_py(), 200) if len(texts) else "")
                    continue
            yield from upload._shaped(table).combine_chunks().to_batches()

    def _rejected(self) -> UserError:
        return UserError(
            f"cannot upload into table '{self._upload.table}': {self._bad:,} of {self.count:,} rows do not fit its columns",
            code="UPLOAD_ROWS_REJECTED",
            found=f"such as {self._sample}",
            expected=f"values of {to_ddl(self._upload.read_schema)}",
            remedy="Nothing was written. Change types with --type name=STRING (also for a column that the sample did not "
            "show), or keep such values in _rescued_data with --rescue",
        )


def _exists(table: str) -> UserError:
    return UserError(
        f"cannot create table '{table}'",
        code="TABLE_EXISTS",
        found="a table of that name",
        remedy="Use --mode append or --mode overwrite, or another name",
    )


def _of(stream: Any) -> bytes:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.digest()


def _scan_of(files: Sequence[Path], options: UploadOptions) -> FilesScan:
    """Return the read of local files, or say why they cannot be uploaded."""
    from connectors.files import FilesSettings
    from connectors.files.scan import FilesScan
    from connectors.files.store import FoundFile

    paths = [Path(os.path.abspath(path)) for path in files]
    _check_files(paths, options)
    format = options.format
    given: Mapping[str, Any] = {}
    if format is None:
        kinds = {_format_of(path)[0] for path in paths}
        if len(kinds) > 1:
            raise UsageError("the files have several formats", code="UPLOAD_FORMATS", found=", ".join(sorted(kinds)))
        format, given = _format_of(paths[0])
    settings = FilesSettings.of(
        str(paths[0].parent), format=format, partition_columns="", **{**given, **options.options}
    )
    found = []
    for path in paths:
        status = path.stat()
        found.append(FoundFile(status.st_mtime_ns // 1000, str(path), status.st_size))
    return FilesScan(settings, found)


def _check_files(paths: Sequence[Path], options: UploadOptions) -> None:
    if not 1 <= len(paths) <= options.max_files:
        raise UsageError(
            "cannot upload so many files at once",
            code="UPLOAD_LIMIT",
            found=f"{len(paths)} files",
            expected=f"1 to {options.max_files}",
            remedy="Raise --max-files, or load a folder with waxlake copy-into",
        )
    for path in paths:
        if not path.is_file():
            raise UsageError(f"cannot upload '{path}'", code="UPLOAD_FILE_UNKNOWN", found="no file there")
        if path.name.lower().endswith(_ARCHIVES):
            raise UsageError(
                f"cannot upload '{path.name}'",
                code="UPLOAD_ARCHIVE",
                found="an archive of several files",
                expected="csv, tsv, json, parquet, avro, orc, txt or xml; .gz, .bz2 and .zst of one file are fine",
                remedy="Unpack it first",
            )
    size = sum(path.stat().st_size for path in paths)
    if size > options.max_bytes:
        raise UsageError(
            "cannot upload so much at once",
            code="UPLOAD_LIMIT",
            found=f"{size:,} bytes",
            expected=f"at most {options.max_bytes:,}",
            remedy="Raise --max-bytes, or load a folder with waxlake copy-into",
        )


def _format_of(path: Path) -> tuple[str, Mapping[str, str]]:
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    found = _FORMATS.get(Path(name).suffix)
    if found is None:
        raise UsageError(
            f"cannot tell the format of '{path.name}' by its name",
            code="UPLOAD_FORMAT_UNKNOWN",
            expected=f"a name that ends with {', '.join(_FORMATS)}",
            remedy="Say it with --format",
        )
    return found


def refuse_owned(spec: Spec, table: str) -> None:
    """Stop where a flow of the pipeline writes the table: it would not know of rows that others put there.

    Raises:
        UserError: ``TABLE_OF_PIPELINE``. Not retryable.
        DefinitionError: The definitions cannot be read, so nobody knows. Not retryable.
    """
    from waxlake.pipeline.lake import stored_tables
    from waxlake.pipeline.resolve import load_graph

    try:
        graph = load_graph(spec)
    except UsageError as error:
        if error.code not in ("PIPELINE_EMPTY", "SPEC_NO_DEFINITIONS"):
            raise
        return
    here = spec.table_location(table)
    for stored in stored_tables(graph).values():
        if stored.location.uri == here.uri:
            raise UserError(
                f"cannot write table '{table}'",
                code="TABLE_OF_PIPELINE",
                found=f"a {stored.kind.replace('_', ' ')} of pipeline '{spec.name}'",
                expected="a table that no flow writes",
                remedy="Choose another name, and let a flow read it: wl.read_stream with the table's path",
            )
