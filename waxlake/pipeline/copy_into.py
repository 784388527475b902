"""COPY INTO: load the files of a path that a table does not hold yet, in one commit that also says which those are.

The same parts as a pipeline's: the files connector and its ledger read, the Delta sink commits rows and position together. So
a crash leaves all of a copy or nothing, a repeated copy skips what is loaded, and of two copies at once the later one takes
what the other has left.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from connectors.files import FilesConnector, FilesSettings
from connectors.files.reader import PARTITION
from sinks.delta import CommitReceipt, DeltaSink, DeltaTarget, FlushPolicy, SinkControl
from sinks.delta.protocol import new_run_number
from waxlake.pipeline.graph import resolve_path
from waxlake.stream.batch import MicroBatch
from waxlake.stream.delta_table import TableLocation, arrow_schema
from waxlake.stream.errors import CommitConflict, SchemaGrown, SourceMoved, UsageError, UserError, shorten
from waxlake.stream.position import app_id, identity_app_id, identity_version
from waxlake.stream.source import PartitionPlan, Reader, SourcePlan, SourceState

if TYPE_CHECKING:
    from waxlake.pipeline.spec import Spec

__all__ = ["CopyOptions", "CopyResult", "copy_into", "parse_copy"]

_RESCUED: Final = "_rescued_data"
_ATTEMPTS: Final = 5
_ALL_AT_ONCE: Final = FlushPolicy(
    max_rows=1 << 62, max_bytes=1 << 62, max_age_s=math.inf, max_idle_s=math.inf, max_files=1 << 62
)
_IDLE_S: Final = 0.05
_COPY: Final = re.compile(
    r"""\s*COPY\s+INTO\s+(?P<table>[\w.`"]+)\s+FROM\s+'(?P<path>(?:[^']|'')+)'\s+FILEFORMAT\s*=\s*(?P<format>\w+)
    (?:\s+PATTERN\s*=\s*'(?P<pattern>(?:[^']|'')+)')?
    (?:\s+FORMAT_OPTIONS\s*\((?P<format_options>[^)]*)\))?
    (?:\s+COPY_OPTIONS\s*\((?P<copy_options>[^)]*)\))?\s*;?\s*""",
    re.I | re.X,
)
_PAIR: Final = re.compile(r"\s*'((?:[^']|'')+)'\s*=\s*'((?:[^']|'')*)'\s*(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How to copy.

    Attributes:
        format: Format of the files.
        options: Options of ``read_files``.
        merges_schema: Add columns that the table lacks; else they stop the copy.
        is_forced: Load again what is loaded already.
    """

    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    merges_schema: bool = False
    is_forced: bool = False


@dataclass(slots=True)
class CopyResult:
    """What a copy did: rows added, and in how many commits."""

    rows: int = 0
    commits: int = 0

    def add(self, receipt: CommitReceipt) -> None:
        """Count a commit."""
        self.rows += receipt.rows
        self.commits += 1


def parse_copy(text: str) -> tuple[str, str, CopyOptions] | None:
    """Return table, path and options of a COPY INTO statement; None for another statement.

    Raises:
        UsageError: ``COPY_SYNTAX``. Not retryable.
    """
    if not re.match(r"\s*COPY\s+INTO\b", text, re.I):
        return None
    found = _COPY.fullmatch(text)
    if found is None:
        raise UsageError(
            "cannot read this COPY INTO",
            code="COPY_SYNTAX",
            found=shorten(text),
            expected="COPY INTO t FROM 'path' FILEFORMAT = CSV [PATTERN = 'glob'] [FORMAT_OPTIONS ('header' = 'true')] "
            "[COPY_OPTIONS ('mergeSchema' = 'true', 'force' = 'true')]",
        )
    options: dict[str, Any] = {_snake(name): _value(value) for name, value in _pairs(found["format_options"]).items()}
    if found["pattern"]:
        options["path_glob_filter"] = found["pattern"]
    merges = options.pop("merge_schema", False) is True
    asked = {_snake(name): _value(value) for name, value in _pairs(found["copy_options"]).items()}
    for name in asked:
        if name not in ("force", "merge_schema"):
            raise UsageError(f"unknown COPY_OPTIONS {name!r}", code="OPTION_INVALID", expected="force, mergeSchema")
    return (
        re.sub(r'[`"]', "", found["table"]),
        found["path"].replace("''", "'"),
        CopyOptions(
            format=found["format"].lower(),
            options=options,
            merges_schema=merges or asked.get("merge_schema") is True,
            is_forced=asked.get("force") is True,
        ),
    )


def _pairs(text: str | None) -> dict[str, str]:
    found, rest = {}, (text or "").strip()
    while rest:
        match = _PAIR.match(rest)
        if match is None:
            raise UsageError("cannot read the options", code="COPY_SYNTAX", found=rest, expected="'name' = 'value', …")
        found[match[1].replace("''", "'")], rest = match[2].replace("''", "'"), rest[match.end() :]
    return found


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _value(text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), text)


def copy_into(spec: Spec, table: str, path: str, options: CopyOptions) -> CopyResult:
    """Load new files of a path into a table; create the table if it is not there.

    Args:
        spec: Names the storage.
        table: ``table`` or ``schema.table``; no flow may write it.
        path: Folder, glob or file.
        options: How.

    Raises:
        UserError: ``COPY_ROWS_REJECTED``: rows do not fit the table, which has no ``_rescued_data`` column. Nothing of this
            copy was written. Not retryable.
        TerminalError: ``NEW_COLUMN`` without ``mergeSchema``. Not retryable.
        ExternalError: The path or the storage cannot be used.

    Guarantee: each file once, whatever dies in between and whoever copies at the same time.
    """
    copy = _Copy(spec, table, path, options)
    result = CopyResult()
    before = copy.load_new(result)
    if options.is_forced and before:
        copy.load_again(before, result)
    return result


class _Copy:
    """One copy."""

    def __init__(self, spec: Spec, table: str, path: str, options: CopyOptions) -> None:
        self._table, self._location, self._options = table, spec.table_location(table), options
        self._settings = FilesSettings.of(
            resolve_path(spec, path),
            format=options.format,
            storage_options=options.options.get("storage_options", spec.storage_options),
            **{name: value for name, value in options.options.items() if name != "storage_options"},
        )
        settings = self._settings
        key = repr(("copy", table, settings.path, settings.format, settings.path_glob_filter, settings.recursive))
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._ledger, self._flow = spec.ledger_location(digest), f"copy_{digest}"

    def load_new(self, result: CopyResult) -> int:
        """Load what is new; return the position that the table held before, 0 for none."""
        before: int | None = None
        for attempt in range(1, _ATTEMPTS + 1):
            connector = self._connector()
            state = connector.inspect()
            stored = self._stored(state)
            before = (stored or 0) if before is None else before
            start = state.begin[PARTITION] if stored is None else stored
            try:
                self._load(connector, state, self._flow, start, state.partitions[PARTITION].high, result)
                return before
            except CommitConflict:  # another copy was first: what it left is loaded now
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def load_again(self, until: int, result: CopyResult) -> None:
        """Load once more the files that lie before a position."""
        connector = self._connector()
        self._load(connector, connector.inspect(), f"{self._flow}_{uuid.uuid4().hex}", 0, until, result)

    def _connector(self) -> FilesConnector:
        mode = "add_new_columns" if self._options.merges_schema else "fail_on_new_columns"
        update: dict[str, Any] = {"schema_evolution_mode": mode}
        if self._location.exists() and self._settings.declared_schema is None:
            columns = [item for item in arrow_schema(self._location.open()) if item.name != _RESCUED]
            update["declared_schema"] = pa.schema(columns)
        return FilesConnector(self._settings.model_copy(update=update), self._ledger)

    def _stored(self, state: SourceState) -> int | None:
        if not self._location.exists():
            return None
        handle = self._location.open()
        known = handle.transaction_version(identity_app_id(self._flow, state.name))
        if known is not None and known != identity_version(state.identity):
            raise SourceMoved(
                f"cannot copy {state.name} into table '{self._table}'",
                code="SOURCE_RECREATED",
                found=f"another ledger of files: {state.identity}",
                expected="the one that says what is loaded already",
                remedy="Its folder was deleted. Restore it, or copy into another table",
            )
        found = handle.transaction_version(app_id(self._flow, state.identity, PARTITION))
        return None if found is None else int(found)

    def _load(
        self, connector: FilesConnector, state: SourceState, flow: str, start: int, mark: int, result: CopyResult
    ) -> None:
        """Load what lies between two positions; where columns are added, go on with them."""
        while start < mark:
            part = PartitionPlan(start=start, mark=mark)
            plan = SourcePlan(identity=state.identity, name=state.name, partitions={PARTITION: part})
            loading = _Loading(self._table, self._location, plan, flow, result)
            try:
                loading.run(connector.reader(plan, (PARTITION,), frozenset()))
                return
            except SchemaGrown:
                start = loading.position
                connector = self._connector()


class _Loading:
    """One pass from reader to sink; what it read is committed at its end, in one commit."""

    def __init__(self, table: str, location: TableLocation, plan: SourcePlan, flow: str, result: CopyResult) -> None:
        self._table, self._location, self._plan, self._flow = table, location, plan, flow
        self.position = plan.partitions[PARTITION].start
        identities = {flow: {identity_app_id(flow, plan.name): identity_version(plan.identity)}}
        control = SinkControl(
            run_id=uuid.uuid4().hex, run_number=new_run_number(), on_commit=result.add, identities=identities
        )
        self._writer = DeltaSink(
            target=DeltaTarget(location=location), flow=flow, flush=_ALL_AT_ONCE, control=control
        ).build_part("copy", "table", None)
        self._keeps_rescued = location.exists() and _RESCUED in arrow_schema(location.open()).names
        self._count = self._bad = 0
        self._sample = ""

    def run(self, reader: Reader) -> None:
        """Read to the end and commit.

        Raises:
            SchemaGrown: What comes next has new columns; what was read before is committed.
        """
        growth: SchemaGrown | None = None
        last: MicroBatch | None = None
        try:
            while not reader.is_done and growth is None:
                try:
                    batches = reader.read()
                except SchemaGrown as error:
                    growth, batches = error, []
                for batch in batches:
                    last = self._taken(batch)
                if not batches and growth is None:
                    time.sleep(_IDLE_S)
            if self._bad:
                raise self._rejected()
            if last is not None:
                end = replace(
                    last, table=last.table.slice(0, 0), start=last.end, is_last=True, partition_count=1, facts={}
                )
                self._writer.write_batch([end])
                self.position = last.end
        finally:
            self._writer.close()
            reader.close()
        if growth is not None:
            raise growth

    def _taken(self, batch: MicroBatch) -> MicroBatch:
        """Give a batch to the writer, unless a row was rejected before: then only count."""
        table = batch.table
        self._count += table.num_rows
        index = table.schema.get_field_index(_RESCUED)
        if index >= 0 and not self._keeps_rescued:
            rescued = table.column(index).drop_null()
            self._bad += len(rescued)
            self._sample = self._sample or (shorten(rescued[0].as_py(), 200) if len(rescued) else "")
            table = table.remove_column(index)
        batch = replace(batch, table=table, flow=self._flow)
        if not self._bad:
            self._writer.write_batch([batch])
        return batch

    def _rejected(self) -> UserError:
        return UserError(
            f"cannot copy into table '{self._table}': {self._bad:,} of {self._count:,} rows do not fit its columns",
            code="COPY_ROWS_REJECTED",
            found=f"such as {self._sample}",
            expected="values of the table's types",
            remedy="Nothing of this copy was written. Correct the files, or give the table a column _rescued_data STRING",
        )
