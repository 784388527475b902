"""Events that a target cannot show but late ones need: deletes, truncates, changes that opened no version of their own.

They lie in small Parquet files under ``_waxlake/`` in the table's folder, where a vacuum does not look. A manifest names the
files; its random number is stored as a ``txn`` by the commit that needs it, so output and state are one commit. Files of a
commit that did not happen are named by nobody, and are deleted after a day.

Crash points: after the files are written and before the commit, nobody names them; after it, the commit does.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from sinks.cdc.keys import KeyIndex
from sinks.cdc.outcome import KEY
from sinks.cdc.rules import KIND, SEQUENCE, TRUNCATED, UNSET, TargetShape
from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.engine import open_session, select_list
from waxlake.stream.errors import TerminalError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.schema import no_rows

__all__ = ["DEFAULT_RETENTION", "STATE_APP_ID", "EventState", "adopt_events", "event_files"]

STATE_APP_ID: Final = "waxlake/cdc/state"
DEFAULT_RETENTION: Final = timedelta(days=2)
RECORDED_AT: Final = "__waxlake_recorded_at"
_FOLDER = "_waxlake"
_SEGMENTS = 8
_CACHE_BYTES = 64 << 20
_ORPHAN_AGE = timedelta(days=1)


@dataclass(slots=True)
class EventState:
    """The events kept beside one target.

    Args:
        location: The target.
        shape: Its shape.
        retention: How long an event is kept after it was recorded; truncates are kept for ever.
        number: Number of the manifest that belongs to the last commit; 0 if there is none.
    """

    location: TableLocation
    shape: TargetShape
    retention: timedelta = DEFAULT_RETENTION
    number: int = 0
    _filesystem: pa_fs.FileSystem | None = None
    _segments: list[dict[str, Any]] = field(default_factory=list)
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _cache: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """Columns of an event."""
        changes = [item for item in self.shape.changes if item.name in (*self.shape.names, SEQUENCE, KIND, UNSET)]
        return pa.schema([*changes, pa.field(RECORDED_AT, pa.timestamp("us", "UTC"))])

    @property
    def filesystem(self) -> pa_fs.FileSystem:
        """The table's folder."""
        if self._filesystem is None:
            self._filesystem = self.location.filesystem()
        return self._filesystem

    def load(self, number: int) -> None:
        """Take the manifest of a commit.

        Raises:
            TerminalError: A file of the state is gone. Not retryable.
        """
        if number == self.number:
            return
        self.number, self._segments = number, []
        if number:
            try:
                with (
                    delta_errors(f"read the state of table '{self.location.label}'"),
                    self.filesystem.open_input_file(_manifest(number)) as stream,
                ):
                    self._segments = json.loads(stream.read())["segments"]
            except TerminalError as error:
                raise self._lost(error) from error

    def events(self, index: KeyIndex) -> pa.Table:
        """Return the events of some keys, with ``KEY``, the number of the key in ``index``."""
        found = []
        for segment in self._live():
            rows = self._rows(segment)
            ids = index.find(rows)
            rows = rows.append_column(KEY, ids).filter(pc.is_valid(ids))
            found.append(rows.filter(pc.less(rows.column(KIND), TRUNCATED)))
        schema = pa.schema([*self.schema, pa.field(KEY, pa.int64())])
        return pa.concat_tables(found) if found else no_rows(schema)

    def truncates(self) -> pa.Table:
        """Return the sequences at which every key was deleted."""
        found = [self._rows(segment) for segment in self._segments if segment["truncates"]]
        rows = [rows.filter(pc.equal(rows.column(KIND), TRUNCATED)).select([SEQUENCE]) for rows in found]
        return pa.concat_tables(rows) if rows else no_rows(pa.schema([(SEQUENCE, self.shape.sequence)]))

    def write(self, tables: Sequence[pa.Table]) -> int:
        """Write events, and a manifest with them; return its number, to be committed with the output.

        Args:
            tables: Events, with the columns of a prepared change; those missing are NULL.
        """
        now = utc_now()
        events = pa.concat_tables([_fitted(table, self.schema) for table in tables])
        recorded = pa.repeat(_stamp(now), len(events))
        events = events.set_column(events.num_columns - 1, self.schema.field(RECORDED_AT), recorded)
        segments = list(self._segments)
        if len(segments) >= _SEGMENTS:
            events, segments = self._compacted(events, now), []
        with delta_errors(f"write the state of table '{self.location.label}'"):
            self.filesystem.create_dir(_FOLDER, recursive=True)
            if len(events):
                segments.append(self._written(events, now))
            number = secrets.randbits(62) + 1
            # buffered: a store's stream takes the bytes of a buffer, not the object that Arrow would hand it
            with self.filesystem.open_output_stream(_manifest(number), buffer_size=1 << 16) as stream:
                stream.write(json.dumps({"segments": segments}).encode())
        self._pending = segments
        failpoint("state-written")
        return number

    def committed(self, number: int) -> None:
        """The commit that names the manifest is durable."""
        has_shrunk = len(self._pending) < len(self._segments)
        self.number, self._segments = number, self._pending
        kept = {segment["path"] for segment in self._segments}
        self._cache = {path: rows for path, rows in self._cache.items() if path in kept}
        if has_shrunk:
            self._sweep(kept)

    def _live(self) -> list[dict[str, Any]]:
        oldest = utc_now() - self.retention
        return [s for s in self._segments if datetime.fromisoformat(s["newest"]) >= oldest]

    def _rows(self, segment: dict[str, Any]) -> pa.Table:
        path = segment["path"]
        rows = self._cache.get(path)
        if rows is None:
            try:
                with (
                    delta_errors(f"read the state of table '{self.location.label}'"),
                    self.filesystem.open_input_file(path) as stream,
                ):
                    rows = pq.ParquetFile(stream).read()
            except TerminalError as error:
                raise self._lost(error) from error
            if sum(t.nbytes for t in self._cache.values()) + rows.nbytes <= _CACHE_BYTES:
                self._cache[path] = rows
        return _fitted(rows, self.schema)

    def _compacted(self, events: pa.Table, now: datetime) -> pa.Table:
        """Return every event that is still to be kept, each once, with the time it was recorded last."""
        everything = pa.concat_tables([*(self._rows(segment) for segment in self._segments), events])
        is_kept = pc.or_(
            pc.greater_equal(everything.column(RECORDED_AT), _stamp(now - self.retention)),
            pc.equal(everything.column(KIND), TRUNCATED),
        )
        session = open_session()
        try:
            session.register("events", everything.filter(is_kept))
            names = select_list([name for name in self.schema.names if name != RECORDED_AT])
            text = f"SELECT {names}, max({RECORDED_AT}) AS {RECORDED_AT} FROM events GROUP BY {names}"
            return _fitted(session.sql(text).to_arrow_table(), self.schema)
        finally:
            session.close()

    def _written(self, events: pa.Table, now: datetime) -> dict[str, Any]:
        path = f"{_FOLDER}/events-{uuid.uuid4()}.parquet"
        with self.filesystem.open_output_stream(path) as stream:
            pq.write_table(events, stream, compression="zstd", compression_level=1)
        if events.nbytes <= _CACHE_BYTES // 4:
            self._cache[path] = events
        truncates = pc.sum(pc.equal(events.column(KIND), TRUNCATED)).as_py() or 0
        return {"path": path, "rows": len(events), "truncates": truncates, "newest": now.isoformat()}

    def _sweep(self, kept: set[str]) -> None:
        """Delete files that no commit of the last day can name. What cannot be deleted now is deleted another time."""
        import contextlib

        with contextlib.suppress(OSError):
            for info in self.filesystem.get_file_info(pa_fs.FileSelector(_FOLDER)):
                path = f"{_FOLDER}/{info.base_name}"
                written_at = info.mtime
                if written_at is None or path in kept or path == _manifest(self.number):
                    continue
                if utc_now() - written_at.replace(tzinfo=written_at.tzinfo or timezone.utc) > _ORPHAN_AGE:
                    self.filesystem.delete_file(path)

    def _lost(self, error: TerminalError) -> TerminalError:
        return TerminalError(
            f"cannot read the AUTO CDC state of table '{self.location.label}'",
            code="AUTO_CDC_STATE_LOST",
            found=str(error.found),
            expected=f"the files under {_FOLDER}/ that the table's last commit names",
            remedy="Restore them with the table, or delete the table to fill it anew",
        )


def _manifest(number: int) -> str:
    return f"{_FOLDER}/state-{number:016x}.json"


def _stamp(at: datetime) -> pa.Scalar:
    return pa.scalar(at, pa.timestamp("us", "UTC"))


def _fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows with the columns of ``schema``; missing ones are NULL."""
    columns = [
        rows.column(item.name).cast(item.type) if item.name in rows.column_names else pa.nulls(len(rows), item.type)
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def event_files(location: TableLocation, number: int) -> list[str]:
    """Return the paths of the events that a commit names by the number of their manifest; 0 names none.

    Raises:
        TerminalError: The manifest is gone. Not retryable.
    """
    if not number:
        return []
    with (
        delta_errors(f"read the state of table '{location.label}'"),
        location.filesystem().open_input_file(_manifest(number)) as stream,
    ):
        return [segment["path"] for segment in json.loads(stream.read())["segments"]]


def adopt_events(table: TableLocation, shadow: TableLocation) -> None:
    """Put the events of a table that takes the place of another beside that one; nothing names them yet. Idempotent."""
    from_, to = shadow.filesystem(), table.filesystem()
    with delta_errors(f"read the events beside table '{shadow.label}'"):
        found = from_.get_file_info(pa_fs.FileSelector(_FOLDER, allow_not_found=True))
        if found:
            to.create_dir(_FOLDER, recursive=True)
        for info in found:
            path = f"{_FOLDER}/{info.base_name}"
            with from_.open_input_stream(path) as source, to.open_output_stream(path) as target:
                target.write(source.read())
