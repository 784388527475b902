"""Many tables of a database by one declaration: for each a target, kept as current rows, as a history, or as a log of changes.

A convenience on top of ``create_streaming_table``, ``create_auto_cdc_flow`` and ``append_flow``; nothing here is new to a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from waxlake.pipeline.auto_cdc import create_auto_cdc_flow
from waxlake.pipeline.declare import append_flow, create_streaming_table
from waxlake.pipeline.definitions import calling_line, located
from waxlake.pipeline.stream import Stream
from waxlake.stream.changes import CHANGE_COLUMNS, UNCHANGED_COLUMNS
from waxlake.stream.engine import quote_name, quote_text
from waxlake.stream.errors import UsageError

if TYPE_CHECKING:
    from waxlake.pipeline.target_options import TargetOptions

__all__ = ["ingest_database"]

_ORDER = ("_commit_position", "_change_index")
_LEAVES = "_change_type IN ('delete', 'truncate')"


def ingest_database(
    read: Callable[[str], Stream],
    tables: Mapping[str, Mapping[str, Any] | Sequence[str]],
    *,
    schema: str | None = None,
    **defaults: Any,
) -> None:
    """Declare a target for each table of a database.

    Args:
        read: Returns the changes of a table, such as ``functools.partial(wl.read_postgres, dsn)``.
        tables: Table of the database to its options, those of ``TargetOptions``; or to its keys alone.
        schema: Schema of the targets; that of the pipeline by default.
        defaults: Options of every table that does not set them itself.

    Raises:
        DefinitionError: An unknown option, options that exclude each other, two targets of one name. Not retryable.
    """
    from waxlake.pipeline.target_options import TargetOptions

    line = calling_line()
    taken: dict[str, str] = {}
    for table, given in tables.items():
        values = dict(given) if isinstance(given, Mapping) else {"keys": given}
        with located(line):
            options: TargetOptions = TargetOptions.build(f"ingest_database(), table '{table}'", {**defaults, **values})
            name = options.name or table.rpartition(".")[2]
            target = f"{schema}.{name}" if schema else name
            if target in taken:
                raise UsageError(
                    f"ingest_database() makes two tables '{target}'",
                    code="DUPLICATE_DATASET",
                    found=f"from '{taken[target]}' and '{table}'",
                    remedy="Give one of them name=",
                )
        taken[target] = table
        _declare(target, read(table), options)


def _declare(target: str, stream: Stream, options: TargetOptions) -> None:
    create_streaming_table(
        target,
        comment=options.comment,
        partition_cols=options.partition_cols,
        table_properties=options.table_properties,
    )
    if options.scd_type == "append_only":
        append_flow(target=target, name=target)(lambda: _log(stream, options))
        return
    deletes = "_change_type = 'delete'"
    if options.row_filter is not None:
        # A row that was there and leaves the filter is deleted; one that never met it is nothing to the target.
        meets = f"coalesce(({options.row_filter}), false)"
        stream = stream.where(f"{_LEAVES} OR _change_type = 'update' OR {meets}")
        leaves = f"_change_type <> 'truncate' AND NOT {meets}"
        if options.rename_columns:  # the filter knows the names of the source
            stream = stream.with_columns(_change_type=f"CASE WHEN {leaves} THEN 'delete' ELSE _change_type END")
        else:
            deletes = f"{deletes} OR ({leaves})"
    create_auto_cdc_flow(
        target,
        _renamed(stream, options),
        options.at_target(options.keys),
        _ORDER,
        deletes,
        apply_as_truncates="_change_type = 'truncate'",
        column_list=options.at_target(options.include_columns) or None,
        except_column_list=options.at_target(options.exclude_columns) or None,
        stored_as_scd_type=options.scd_type,
        track_history_column_list=options.at_target(options.track_history_columns) or None,
    )


def _log(stream: Stream, options: TargetOptions) -> Stream:
    if options.row_filter is not None:
        stream = stream.where(f"{_LEAVES} OR ({options.row_filter})")
    stream = _renamed(stream, options)
    columns = [quote_name(name) for name in options.at_target(options.include_columns)] or ["*"]
    stream = stream.select(*columns, *CHANGE_COLUMNS.names)
    return stream.drop(*options.at_target(options.exclude_columns)) if options.exclude_columns else stream


def _renamed(stream: Stream, options: TargetOptions) -> Stream:
    """Return the stream with the target's names, also where it names the columns that the source did not send."""
    names = options.rename_columns
    if not names:
        return stream
    cases = " ".join(f"WHEN {quote_text(old)} THEN {quote_text(new)}" for old, new in names.items())
    columns = {new: quote_name(old) for old, new in names.items()}
    columns[UNCHANGED_COLUMNS] = f"list_transform({UNCHANGED_COLUMNS}, lambda x: CASE x {cases} ELSE x END)"
    return stream.with_columns(**columns).drop(*names)
