"""State of one flow beside its table: a working copy in DuckDB, and a changelog of Parquet segments under ``_waxlake/``.

``docs/decisions/0012-where-state-lives.md`` says why. Crash points: after segments are written and before the commit nobody names
them; after it, the commit does, by the number of the manifest.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from waxlake.stream.clock import utc_now
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.engine import select_list
from waxlake.stream.errors import TerminalError
from waxlake.stream.failpoints import failpoint
from waxlake.stream.position import identity_version
from waxlake.stream.schema import no_rows

__all__ = ["EXPIRES", "ID", "StateStore", "StateTable", "read_manifest", "state_app_id", "state_files"]

ID: Final = "__waxlake_id"
EXPIRES: Final = "__waxlake_expires"
_FOLDER: Final = "_waxlake"
_MEMORY_LIMIT: Final = "640MB"
_READ_ROWS: Final = 262_144
_SLACK_ROWS: Final = 100_000
_ORPHAN_AGE: Final = timedelta(days=1)


def state_app_id(flow: str) -> str:
    """Return the app id under which a table's log names the state of a flow."""
    return "/".join(["waxlake", quote(flow, safe=":@+=,~!$&'()*;"), "state", "operator"])


def _prefix(flow: str) -> str:
    return f"operator-{identity_version(flow):016x}-"


def _manifest_path(flow: str, number: int) -> str:
    return f"{_FOLDER}/{_prefix(flow)}{number:016x}.json"


def read_manifest(
    location: TableLocation, flow: str, number: int, filesystem: pa_fs.FileSystem | None = None
) -> dict[str, Any]:
    """Return the manifest of the state of a flow.

    Raises:
        TerminalError: It is gone. Not retryable.
    """
    try:
        with (
            delta_errors(f"read the state of table '{location.label}'"),
            (filesystem or location.filesystem()).open_input_file(_manifest_path(flow, number)) as stream,
        ):
            manifest: dict[str, Any] = json.loads(stream.read())
            return manifest
    except TerminalError as error:
        raise _lost(location, error) from error


def state_files(location: TableLocation, flow: str, number: int) -> list[str]:
    """Return the paths of the segments of a state.

    Raises:
        TerminalError: Its manifest is gone. Not retryable.
    """
    tables = read_manifest(location, flow, number)["tables"]
    return [segment["path"] for said in tables.values() for key in ("puts", "removals") for segment in said[key]]


def _lost(location: TableLocation, error: TerminalError) -> TerminalError:
    return TerminalError(
        f"cannot read the state of table '{location.label}'",
        code="STATE_LOST",
        found=str(error.found),
        expected=f"the files under {_FOLDER}/ that the table's last commit names",
        remedy="Restore them with the table, or fill the table anew with waxlake run --full-refresh",
    )


@dataclass(slots=True)
class _Log:
    """The segments of one column of numbers, in order; each holds the rows of a range of them."""

    kind: str
    segments: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0

    @property
    def rows(self) -> int:
        return sum(segment["rows"] for segment in self.segments)

    def due(self, fresh: int) -> int:
        """Return how many of the last segments are to be written again together with ``fresh`` rows."""
        count, size = 0, fresh
        while count < len(self.segments) and self.segments[-1 - count]["rows"] <= 2 * size:
            count += 1
            size += self.segments[-count]["rows"]
        return count


class StateTable:
    """One table of a state. Its SQL name is ``sql_name``; rows have ``ID`` and ``EXPIRES`` beside their own columns.

    Args:
        session: Database of the working copy.
        name: Name within the state.
        schema: Its own columns.
        lag_us: Microseconds by which the watermark that its rows expire by is behind that of the flow.
    """

    def __init__(self, session: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, lag_us: int = 0) -> None:
        self.session, self.name, self.schema, self.lag_us = session, name, schema, lag_us
        self.sql_name, self._gone = f"state_{name}", f"gone_{name}"
        self.next_id = self.next_gone = 1
        self.puts, self.removals = _Log("put"), _Log("gone")
        self.is_anew = False
        self.folded_rows = 0
        session.register("incoming", no_rows(schema))
        session.execute(
            f"CREATE TABLE {self.sql_name} AS SELECT *, 0::BIGINT AS {ID}, 0::BIGINT AS {EXPIRES} FROM incoming"
        )
        session.execute(f"CREATE TABLE {self._gone} ({ID} BIGINT, n BIGINT)")
        session.unregister("incoming")

    @property
    def columns(self) -> str:
        """Its own columns, as a select list."""
        return select_list(self.schema.names)

    @property
    def rows(self) -> int:
        """Rows held."""
        return self._number(f"SELECT count(*) FROM {self.sql_name}")

    def put(self, query: str) -> int:
        """Add the rows of a query; return how many.

        Args:
            query: Makes the table's own columns and ``EXPIRES``: the watermark, in microseconds, above which a row is of no
                use any more, or NULL.
        """
        first = self.next_id
        count = self._number(
            f"INSERT INTO {self.sql_name} SELECT {self.columns}, {first} + row_number() OVER () - 1, "
            f"{EXPIRES}::BIGINT FROM ({query})"
        )
        self.next_id += count
        return count

    def remove(self, query: str) -> int:
        """Take out the rows whose ``ID`` a query returns, and return how many."""
        self.session.execute(f"CREATE OR REPLACE TEMP TABLE removed_now AS SELECT {ID} FROM ({query})")
        count = self._number(f"DELETE FROM {self.sql_name} WHERE {ID} IN (SELECT {ID} FROM removed_now)")
        self.next_gone += self._number(
            f"INSERT INTO {self._gone} SELECT {ID}, {self.next_gone} + row_number() OVER () - 1 FROM removed_now "
            f"WHERE {ID} < {max(1, self.puts.written)}"
        )
        return count

    def own_watermark(self, watermark: int | None) -> int | None:
        """Return the watermark that its rows expire by."""
        return None if watermark is None else watermark - self.lag_us

    def expire(self, watermark: int | None) -> int:
        """Drop the rows that a watermark has made useless; nothing is written for that."""
        if watermark is None:
            return 0
        return self._number(f"DELETE FROM {self.sql_name} WHERE {EXPIRES} < {watermark}")

    def replace(self, query: str) -> None:
        """Put the rows of a query, as for ``put``, in the place of all rows."""
        self.session.execute(
            f"CREATE OR REPLACE TABLE folded AS SELECT {self.columns}, {self.next_id} + row_number() OVER () - 1 AS {ID}, "
            f"{EXPIRES}::BIGINT AS {EXPIRES} FROM ({query})"
        )
        self.session.execute(f"DROP TABLE {self.sql_name}")
        self.session.execute(f"ALTER TABLE folded RENAME TO {self.sql_name}")
        self.next_id += self.rows
        self.is_anew = True

    def _number(self, statement: str) -> int:
        found = self.session.execute(statement).fetchall()
        return int(found[0][0]) if found else 0

    # -- the changelog

    def is_garbage(self, rows: int) -> bool:
        """Return whether the log, with what is about to be added, is more than twice what lives."""
        fresh = self.next_id - max(1, self.puts.written)
        return self.puts.rows + self.removals.rows + fresh > 2 * rows + _SLACK_ROWS

    def fill(self, rows: pa.Table, watermark: int | None) -> None:
        """Take rows of a segment back into the working copy, as the watermark of the flow was at the commit."""
        watermark = self.own_watermark(watermark)
        self.session.register("incoming", rows)
        alive = f"{EXPIRES} IS NULL OR {EXPIRES} >= {watermark}" if watermark is not None else "true"
        self.session.execute(
            f"INSERT INTO {self.sql_name} SELECT {self.columns}, {ID}, {EXPIRES} FROM incoming "
            f"WHERE ({alive}) AND {ID} NOT IN (SELECT {ID} FROM {self._gone})"
        )
        self.session.unregister("incoming")

    def fill_gone(self, rows: pa.Table) -> None:
        """Take removals back into the working copy."""
        self.session.register("incoming", rows)
        self.session.execute(f"INSERT INTO {self._gone} SELECT {ID}, n FROM incoming")
        self.session.unregister("incoming")

    def logs(self) -> Iterator[tuple[_Log, str, str, int]]:
        """Yield each log with the table it is of, the column of its numbers, and the next number."""
        yield self.puts, self.sql_name, ID, self.next_id
        yield self.removals, self._gone, "n", self.next_gone

    def forget_log(self) -> None:
        """Everything is to be written anew."""
        self.session.execute(f"DELETE FROM {self._gone}")
        self.puts.segments, self.removals.segments = [], []
        self.puts.written = 0
        self.removals.written = self.next_gone
        self.is_anew = False


class StateStore:
    """The state of one flow. Used by one thread.

    Args:
        location: The table it belongs to.
        flow: The flow.
        tables: Name of each of its tables to its columns.
        shape: What it was made by, to be compared with what made a stored one.
        lags: Name of a table to how far its watermark is behind, for those that are.
    """

    def __init__(
        self,
        location: TableLocation,
        flow: str,
        tables: Mapping[str, pa.Schema],
        shape: Mapping[str, Any],
        lags: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.location, self.flow, self.shape = location, flow, dict(shape)
        self.number = 0
        self.meta: dict[str, Any] = {}
        self._spill = str(
            Path(tempfile.gettempdir()) / f"waxlake-state-{uuid.uuid4().hex}"
        )  # made when memory is short
        self.session = duckdb.connect(config={"memory_limit": _MEMORY_LIMIT, "temp_directory": self._spill})
        self.session.execute("SET enable_external_access = false; SET TimeZone = 'UTC'")
        self.session.execute("SET preserve_insertion_order = false")
        self.tables = {
            name: StateTable(self.session, name, schema, lags.get(name, 0)) for name, schema in tables.items()
        }
        self._filesystem: pa_fs.FileSystem | None = None
        self._named: set[str] = set()
        self._pending: set[str] = set()

    @property
    def filesystem(self) -> pa_fs.FileSystem:
        """The table's folder."""
        if self._filesystem is None:
            self._filesystem = self.location.filesystem()
        return self._filesystem

    def close(self) -> None:
        """Free the working copy."""
        self.session.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    def load(self, number: int, manifest: Mapping[str, Any] | None = None) -> None:
        """Take the state of a commit.

        Args:
            number: Number of its manifest.
            manifest: The manifest, if it was read already.

        Raises:
            TerminalError: A file of it is gone. Not retryable.
        """
        manifest = manifest or read_manifest(self.location, self.flow, number, self.filesystem)
        self.number, self.meta = number, manifest["meta"]
        watermark = self.meta.get("watermark")
        self._named = {_manifest_path(self.flow, number)}
        for name, said in manifest["tables"].items():
            table = self.tables[name]
            for log, key in ((table.removals, "removals"), (table.puts, "puts")):
                log.segments, log.written = said[key], said["written"][key]
                for segment in log.segments:
                    self._named.add(segment["path"])
                    for rows in self._read(segment["path"]):
                        if key == "removals":
                            table.fill_gone(rows)
                        else:
                            table.fill(rows, watermark)
            table.next_id, table.next_gone = table.puts.written, table.removals.written

    def _read(self, path: str) -> Iterator[pa.Table]:
        try:
            with (
                delta_errors(f"read the state of table '{self.location.label}'"),
                self.filesystem.open_input_file(path) as stream,
            ):
                for batch in pq.ParquetFile(stream).iter_batches(_READ_ROWS):
                    yield pa.Table.from_batches([batch])
        except TerminalError as error:
            raise _lost(self.location, error) from error

    def write(self, meta: Mapping[str, Any]) -> int:
        """Write what changed, and a manifest; return its number, to be committed with the output.

        Args:
            meta: Facts that belong to the state; ``watermark`` is the one by which rows have expired.
        """
        watermark = meta.get("watermark")
        said: dict[str, Any] = {}
        with delta_errors(f"write the state of table '{self.location.label}'"):
            self.filesystem.create_dir(_FOLDER, recursive=True)
            for name, table in self.tables.items():
                rows = table.rows
                if table.is_anew or table.is_garbage(rows):
                    table.forget_log()
                for log, source, column, following in table.logs():
                    self._write_log(log, source, column, following, table.own_watermark(watermark))
                said[name] = {
                    "rows": rows,
                    "columns": {f.name: str(f.type) for f in table.schema},
                    "puts": table.puts.segments,
                    "removals": table.removals.segments,
                    "written": {"puts": table.puts.written, "removals": table.removals.written},
                    "lag_us": table.lag_us,
                }
            number = secrets.randbits(62) + 1
            manifest = {"format": 1, "shape": self.shape, "meta": dict(meta), "tables": said}
            # buffered: a store's stream takes the bytes of a buffer, not the object that Arrow would hand it
            with self.filesystem.open_output_stream(_manifest_path(self.flow, number), buffer_size=1 << 16) as stream:
                stream.write(json.dumps(manifest).encode())
        self.meta = dict(meta)
        paths = (s["path"] for t in said.values() for log in ("puts", "removals") for s in t[log])
        self._pending = {_manifest_path(self.flow, number), *paths}
        failpoint("state-written")
        return number

    def _write_log(self, log: _Log, source: str, column: str, following: int, watermark: int | None) -> None:
        if watermark is not None and log.kind == "put":
            log.segments = [s for s in log.segments if s["expires"] is None or s["expires"] >= watermark]
        fresh = following - max(1, log.written)
        if fresh <= 0:
            return
        due = log.due(fresh)
        merged = log.segments[len(log.segments) - due :]
        first = merged[0]["first"] if merged else max(1, log.written)
        log.segments = log.segments[: len(log.segments) - due]
        log.written = following
        segment = self._write_segment(log.kind, f"SELECT * FROM {source} WHERE {column} >= {first}", first)
        if segment is not None:
            log.segments.append(segment)

    def _write_segment(self, kind: str, query: str, first: int) -> dict[str, Any] | None:
        """Write the rows of a query as one file; None if there are none."""
        path = f"{_FOLDER}/{_prefix(self.flow)}{uuid.uuid4()}.parquet"
        expires = f"CASE WHEN count(*) = count({EXPIRES}) THEN max({EXPIRES}) END" if kind == "put" else "NULL"
        count, last = self.session.execute(f"SELECT count(*), {expires} FROM ({query})").fetchall()[0]
        if not count:
            return None
        reader = self.session.sql(query).to_arrow_reader(_READ_ROWS)
        with (
            self.filesystem.open_output_stream(path) as stream,
            pq.ParquetWriter(stream, reader.schema, compression="zstd", compression_level=1) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
        return {"path": path, "rows": int(count), "first": first, "expires": last}

    def committed(self, number: int) -> None:
        """The commit that names the manifest is durable: files that only older manifests name can go."""
        gone, self._named, self.number = self._named - self._pending, self._pending, number
        has_merged = any(path.endswith(".parquet") for path in gone)
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted another time
            for path in gone:
                self.filesystem.delete_file(path)
            if has_merged:
                self._sweep()

    def _sweep(self) -> None:
        """Delete files of commits that did not happen, once they are old enough that none can still name them."""
        for info in self.filesystem.get_file_info(pa_fs.FileSelector(_FOLDER)):
            path = f"{_FOLDER}/{info.base_name}"
            if info.mtime is None or path in self._named or not info.base_name.startswith(_prefix(self.flow)):
                continue
            if utc_now() - info.mtime.replace(tzinfo=info.mtime.tzinfo or timezone.utc) > _ORPHAN_AGE:
                self.filesystem.delete_file(path)
