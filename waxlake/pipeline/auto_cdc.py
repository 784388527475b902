"""AUTO CDC as it is declared and checked: change streams into current rows or histories.

The merge itself is ``sinks.cdc``; what a rule means, and what happens to ties, late changes and NULLs, is in docs/auto-cdc.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from waxlake.pipeline.definitions import DatabaseRead, Expectation, FlowDefinition, Read, TableRead, calling_line
from waxlake.pipeline.registry import register_flow
from waxlake.pipeline.stream import Branch, Stream, as_schema, read_stream
from waxlake.stream.ddl import DEFAULT, GENERATED
from waxlake.stream.errors import DefinitionError

if TYPE_CHECKING:
    from sinks.cdc import ChangeRules, TargetShape
    from waxlake.pipeline.graph import Dataset, Flow

__all__ = [
    "KEY_RULE",
    "SEQUENCE_RULE",
    "MergePlan",
    "create_auto_cdc_flow",
    "create_auto_cdc_from_snapshot_flow",
    "flow_expectations",
    "merge_plan",
    "target_schema",
]

KEY_RULE = "auto_cdc_key_not_null"
SEQUENCE_RULE = "auto_cdc_sequence_not_null"
_REFUSED = {
    "delta.enableChangeDataFeed": "a change data feed needs files that delta-rs cannot commit. Keep the change rows in a table "
    "of their own instead",
    "delta.appendOnly": "a merge replaces files",
}


@dataclass(slots=True)
class MergePlan:
    """How one table is merged into.

    Attributes:
        shape: What all its flows agree on.
        rules: Flow name to its rules.
        hidden: Columns of the changes that the table does not get unless ``column_list`` names them.
        changes: Columns of the change rows of all flows, for the quarantine table.
    """

    shape: TargetShape
    rules: dict[str, ChangeRules] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    changes: pa.Schema = field(default_factory=lambda: pa.schema([]))

    def sink_options(self) -> dict[str, Any]:
        """Return what the sink of the table takes besides what every sink does."""
        return {"rules": self.rules, "hidden": self.hidden, "shape": self.shape}


def create_auto_cdc_flow(
    target: str,
    source: str | Stream,
    keys: Sequence[str],
    sequence_by: str | Sequence[str],
    apply_as_deletes: str | None = None,
    apply_as_truncates: str | None = None,
    ignore_null_updates: bool = False,
    column_list: Sequence[str] | None = None,
    except_column_list: Sequence[str] | None = None,
    stored_as_scd_type: int | str = 1,
    track_history_column_list: Sequence[str] | None = None,
    track_history_except_column_list: Sequence[str] | None = None,
    name: str | None = None,
    once: bool = False,
    ignore_null_updates_column_list: Sequence[str] | None = None,
    ignore_null_updates_except_column_list: Sequence[str] | None = None,
) -> None:
    """Declare a flow that applies a stream of changes to a table made with ``create_streaming_table``.

    Args:
        target: The table.
        source: Table or view of change rows, or a stream.
        keys: Columns that identify a row.
        sequence_by: Column or SQL expression that orders the changes of a key; ``struct(a, b)`` or several columns order by
            the first, then the next.
        apply_as_deletes: SQL condition of changes that delete.
        apply_as_truncates: SQL condition of changes that delete every row.
        ignore_null_updates: NULL leaves a column as it is.
        column_list: Columns of the target; None for all but metadata columns.
        except_column_list: Columns that the target does not get.
        stored_as_scd_type: 1 for current rows, 2 for a history with ``__START_AT`` and ``__END_AT``.
        track_history_column_list: Columns whose change opens a version; None for all.
        track_history_except_column_list: Columns whose change does not.
        name: Flow name, the identity of its positions; None takes the target's.
        once: End for good when what the source holds is read, as for a first load. A full refresh runs it again.
        ignore_null_updates_column_list: Columns that NULL leaves as they are.
        ignore_null_updates_except_column_list: Columns that NULL does not leave as they are; all others it does.

    Raises:
        DefinitionError: Arguments that are missing or exclude each other. Not retryable.
    """
    from sinks.cdc import ChangeRules

    line = calling_line()
    _require(bool(keys), "keys", "at least one column", line)
    _require(bool(sequence_by), "sequence_by", "a column or expression", line)
    _require(isinstance(source, str | Stream) and bool(source), "source", "a name or a stream", line)
    _require(str(stored_as_scd_type) in ("1", "2"), "stored_as_scd_type", "1 or 2", line)
    _require(
        ignore_null_updates_column_list is None or ignore_null_updates_except_column_list is None,
        "ignore_null_updates_column_list",
        "it or ignore_null_updates_except_column_list",
        line,
    )
    tracks = track_history_column_list is not None or track_history_except_column_list is not None
    _require(
        not tracks or str(stored_as_scd_type) == "2", "track_history_column_list", "stored_as_scd_type=2 with it", line
    )
    rules = ChangeRules(
        keys=_names(keys) or (),
        sequence_by=sequence_by if isinstance(sequence_by, str) else f"struct({', '.join(sequence_by)})",
        apply_as_deletes=apply_as_deletes,
        apply_as_truncates=apply_as_truncates,
        ignore_null_updates=_names(ignore_null_updates_column_list)
        or (ignore_null_updates or ignore_null_updates_except_column_list is not None),
        ignore_null_updates_except=_names(ignore_null_updates_except_column_list) or (),
        column_list=_names(column_list),
        except_column_list=_names(except_column_list),
        scd_type=int(stored_as_scd_type),
        track_history_column_list=_names(track_history_column_list),
        track_history_except_column_list=_names(track_history_except_column_list),
    )
    read = source if isinstance(source, Stream) else read_stream(source)
    register_flow(
        FlowDefinition(name=name or target, target=target, function=lambda: read, where=line, changes=rules, once=once)
    )


def create_auto_cdc_from_snapshot_flow(
    target: str,
    source: str | Callable[[int | None], Any],
    keys: Sequence[str],
    stored_as_scd_type: int | str = 1,
    track_history_column_list: Sequence[str] | None = None,
    track_history_except_column_list: Sequence[str] | None = None,
    name: str | None = None,
    schema: str | pa.Schema | None = None,
) -> None:
    """Declare a flow that keeps a table equal to (or a history of) another one, each version of which is a full snapshot.

    Args:
        target: Table made with ``create_streaming_table``.
        source: Table or materialized view of this pipeline, or a Delta table at a URI. A new flow begins with its latest
            version; then every version is applied, in order. ``__START_AT`` and ``__END_AT`` are version numbers.
            Or a function: it is given the last version that it returned (None at first), and returns (rows, version) of the next
            snapshot, or None if there is none. Versions are whole numbers that grow. It is asked until it returns None.
        keys: Columns that identify a row.
        stored_as_scd_type: 1 for current rows, 2 for a history.
        track_history_column_list: Columns whose change opens a version; None for all.
        track_history_except_column_list: Columns whose change does not.
        name: Flow name, the identity of its positions; None takes the target's.
        schema: Columns of a function's snapshots; None takes those of the first one, which must be there then.

    Raises:
        DefinitionError: Arguments that are missing or exclude each other. Not retryable.
    """
    line, columns = calling_line(), _names(keys) or ()
    _require(bool(columns), "keys", "at least one column", line)
    _require(
        bool(source) and (isinstance(source, str) or callable(source)), "source", "a name, a URI or a function", line
    )
    _require(schema is None or not isinstance(source, str), "schema", "a function as source with it", line)
    read: Read
    if isinstance(source, str):
        read = TableRead(name=source, snapshot_keys=columns, where=line)
    else:
        from connectors.delta.snapshot_function import SnapshotFunction

        declared = as_schema(schema) if schema is not None else None
        read = DatabaseRead(settings=SnapshotFunction(name or target, source, columns, declared, line), where=line)
    create_auto_cdc_flow(
        target,
        Stream((Branch(read),)),
        keys,
        sequence_by="_snapshot_version",
        apply_as_deletes="_change_type = 'delete'",
        stored_as_scd_type=stored_as_scd_type,
        track_history_column_list=track_history_column_list,
        track_history_except_column_list=track_history_except_column_list,
        name=name,
    )


def _names(columns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if columns is None:
        return None
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _require(condition: bool, argument: str, expected: str, line: str) -> None:
    if not condition:
        raise DefinitionError(
            f"create_auto_cdc_flow() cannot take this {argument}",
            where=line,
            code="ARGUMENT_INVALID",
            expected=expected,
        )


def flow_expectations(dataset: Dataset, flow: Flow) -> tuple[Expectation, ...]:
    """Return the rules for the change rows of a flow: the table's, which pass deletes, and that keys and sequences are there."""
    rules = flow.changes
    if rules is None:
        return dataset.expectations
    removal = rules.removal_condition()
    own = [replace(r, sql=f"({r.sql}) OR {removal}") if removal else r for r in dataset.expectations]
    added = [(KEY_RULE, rules.key_condition()), (SEQUENCE_RULE, rules.sequence_condition())]
    return (*own, *(Expectation(name=n, sql=text, action="quarantine", where=flow.where) for n, text in added))


def _refuse_properties(dataset: Dataset) -> None:
    """Stop if the table has a property, or columns, that a merge cannot keep to."""
    for item in dataset.definition.schema or ():
        if any(key.encode() in (item.metadata or {}) for key in (DEFAULT, GENERATED)):
            raise DefinitionError(
                f"column '{item.name}' of table '{dataset.name}' cannot have a default or be generated",
                where=dataset.where,
                code="AUTO_CDC_TABLE_PROPERTY",
                remedy="Changes are merged into it: make the column in the stream of changes",
            )
    for key, why in _REFUSED.items():
        if str(dataset.definition.properties.get(key, "false")).lower() == "true":
            raise DefinitionError(
                f"table '{dataset.name}' cannot have {key}: {why}", where=dataset.where, code="AUTO_CDC_TABLE_PROPERTY"
            )


def target_schema(dataset: Dataset, shape: TargetShape) -> pa.Schema:
    """Return the columns of a merged table: those declared, which must be those that the flows make.

    Raises:
        DefinitionError: The declared columns are others. Not retryable.
    """
    from waxlake.stream.schema import compare_schemas, delta_schema

    if dataset.definition.schema is None:
        return shape.table
    declared = delta_schema(dataset.definition.schema)
    change = compare_schemas(declared, shape.table)
    if change:
        raise DefinitionError(
            f"the declared schema of '{dataset.name}' is not what its AUTO CDC flows make",
            where=dataset.where,
            code="SCHEMA_MISMATCH",
            found=", ".join(f"{f.name} {f.type}" for f in shape.table),
            expected=", ".join(f"{f.name} {f.type}" for f in declared),
            remedy="Declare these columns, __START_AT and __END_AT included for a history, or choose them with column_list",
        )
    return pa.schema([f.with_nullable(True) for f in declared])


def merge_plan(dataset: Dataset, parts: Sequence[Any]) -> MergePlan:
    """Return how a table is merged into by its compiled flows.

    Args:
        dataset: The table.
        parts: Its ``CheckedFlow`` entries.

    Raises:
        DefinitionError: Rules that do not fit the change rows, or each other. Not retryable.
    """
    from waxlake.pipeline.definitions import located

    plan: MergePlan | None = None
    for part in parts:
        hidden = part.connector.metadata_columns
        with located(part.flow.where):
            bound = part.flow.changes.bind(part.transform.output, hidden=hidden)
            shape = bound.shape if plan is None else plan.shape.joined(bound.shape)
        if plan is None:
            plan = MergePlan(shape)
        plan.shape = shape
        plan.rules[part.flow.name] = part.flow.changes
        plan.hidden = tuple(dict.fromkeys((*plan.hidden, *hidden)))
        known = set(plan.changes.names)
        fresh = [f.with_nullable(True) for f in part.transform.output if f.name not in known]
        plan.changes = pa.schema([*plan.changes, *fresh])
    assert plan is not None
    _refuse_properties(dataset)
    return plan
