"""What changed in a stored input between two of its versions: the files that its log says came and went, and their rows.

Commits that only put files together (``dataChange`` false) change nothing and are passed over: a row that came in a file which
was put together with others since is read from the file that it came in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from sinks.delta.files import StoredFile
from sinks.delta.stored import FileReader
from waxlake.pipeline.incremental.reasons import NotIncremental
from waxlake.stream.delta_table import TableLocation, arrow_schema
from waxlake.stream.errors import ExternalError, TerminalError, TransientError
from waxlake.stream.growth import merge_schemas
from waxlake.stream.schema import compare_schemas

__all__ = ["InputChange", "look_for_changes"]

_MAPPING = "delta.columnMapping.mode"


@dataclass(slots=True, kw_only=True)
class InputChange:
    """An input at two versions.

    Attributes:
        name: Its name.
        location: Where it lies.
        now: The version that the view is brought to.
        before: Number of the version that the view holds.
        schema: Its columns.
        added: Files that came.
        removed: Files that went.
    """

    name: str
    location: TableLocation
    now: DeltaTable
    before: int
    schema: pa.Schema
    added: Sequence[StoredFile] = ()
    removed: Sequence[StoredFile] = ()
    _reader: FileReader | None = field(default=None)

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that came or went."""
        return sum(file.size_bytes for file in (*self.added, *self.removed))

    @property
    def total_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(pa.table(self.now.get_add_actions(flatten=False)).column("size_bytes").to_pylist())

    def rows(self, columns: Sequence[str], *, added: bool) -> pa.Table:
        """Return some columns of the rows that came, or went; without columns, one of 0.

        Raises:
            NotIncremental: ``HISTORY_EXPIRED``: a file is gone.
        """
        if self._reader is None:
            self._reader = FileReader(self.location, self.schema)
        names = [f.name for f in self.schema if f.name.casefold() in columns] or [self.schema.names[0]]
        schema = pa.schema([self.schema.field(name).with_nullable(True) for name in names])
        try:
            parts = [self._reader.columns(file, names) for file in (self.added if added else self.removed)]
        except TransientError:
            raise
        except ExternalError as error:
            raise NotIncremental("HISTORY_EXPIRED", f"a file of '{self.name}' is gone: {error.what}") from error
        return pa.concat_tables(parts) if parts else schema.empty_table()


def look_for_changes(
    name: str, location: TableLocation, now: DeltaTable, before: int, schema: pa.Schema | None
) -> InputChange:
    """Return how an input changed since a version.

    Args:
        name: Its name.
        location: Where it lies.
        now: The version that the view is brought to.
        before: The version that the view holds.
        schema: Columns that the pipeline gives it, or None.

    Raises:
        NotIncremental: Its log does not tell any more, or the input cannot be read file by file.
    """
    stored = arrow_schema(now)
    whole = stored if schema is None else merge_schemas(stored, schema)
    change = InputChange(name=name, location=location, now=now, before=before, schema=whole)
    if before == now.version():
        return change
    if before > now.version():
        raise NotIncremental("INPUT_REBUILT", f"'{name}' is at version {now.version()}, the view has read {before}")
    if str(now.metadata().configuration.get(_MAPPING, "none")) != "none":
        raise NotIncremental("INPUT_NOT_READABLE", f"'{name}' uses column mapping")
    files: dict[str, StoredFile] = {}
    counts: Counter[str] = Counter()
    for version in range(before + 1, now.version() + 1):
        log = location.read_log(version)
        if log is None:
            raise NotIncremental("HISTORY_EXPIRED", f"version {version} of '{name}' is not in its log any more")
        for action in log:
            for kind, weight in (("add", 1), ("remove", -1)):
                file = _changing(action.get(kind), stored, name)
                if file is not None:
                    files.setdefault(file.path, file)
                    counts[file.path] += weight
            if "metaData" in action:
                _require_columns(location, before, action["metaData"], stored, name)
    change.added = [files[path] for path, count in counts.items() if count > 0]
    change.removed = [files[path] for path, count in counts.items() if count < 0]
    return change


def _changing(file: Mapping[str, Any] | None, schema: pa.Schema, name: str) -> StoredFile | None:
    """Return the file of an action, if rows come or go with it."""
    if file is None or not file.get("dataChange", True):
        return None
    if file.get("deletionVector"):
        raise NotIncremental("INPUT_NOT_READABLE", f"'{name}' has deletion vectors")
    values = file.get("partitionValues") or {}
    return StoredFile(
        path=file["path"],
        size_bytes=int(file.get("size") or 0),
        partition={key: _parsed(value, schema.field(key).type) for key, value in values.items()},
    )


def _parsed(value: str | None, kind: pa.DataType) -> Any:
    """Return a partition value in its column's type."""
    text = pa.scalar(None if value in (None, "") else str(value), pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pc.assume_timezone(pc.cast(text, pa.timestamp("us")), "UTC").as_py()
    return pc.cast(text, pa.binary() if pa.types.is_binary(kind) else kind).as_py()


def _require_columns(
    location: TableLocation, before: int, metadata: Mapping[str, Any], now: pa.Schema, name: str
) -> None:
    """Stop where a column was another one at some version: rows of that time do not read as they did."""
    from deltalake import Schema

    try:
        stored = arrow_schema(location.open(version=before))
    except TerminalError as error:
        raise NotIncremental("HISTORY_EXPIRED", f"version {before} of '{name}' cannot be read any more") from error
    for schema in (stored, pa.schema(Schema.from_json(metadata["schemaString"]).to_arrow())):
        change = compare_schemas(schema, now)
        if change.missing or change.changed or change.recased or change.shrunk:
            raise NotIncremental("INPUT_SCHEMA_CHANGED", f"columns of '{name}'")
