"""What AUTO CDC is told about a stream of changes, checked against its columns, and the form changes take for the merge.

A prepared change has the columns of its target, and beside them its sequence, its kind, and which columns it leaves as they
are. ``docs/auto-cdc.md`` says what each rule means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from waxlake.stream.changes import UNCHANGED_COLUMNS
from waxlake.stream.engine import open_session, quote_name, quote_text
from waxlake.stream.errors import SchemaError, UserError
from waxlake.stream.schema import cast_exact, delta_schema, no_rows
from waxlake.stream.settings import nearest

__all__ = [
    "DELETED",
    "END_AT",
    "FLOW",
    "KIND",
    "SEQUENCE",
    "START_AT",
    "TRUNCATED",
    "UNSET",
    "UPSERTED",
    "BoundRules",
    "ChangeRules",
    "TargetShape",
]

START_AT: Final = "__START_AT"
END_AT: Final = "__END_AT"
_PREFIX: Final = "__waxlake_"
SEQUENCE: Final = "__waxlake_sequence"
KIND: Final = "__waxlake_kind"
UNSET: Final = "__waxlake_unset"
FLOW: Final = "__waxlake_flow"
UPSERTED, DELETED, TRUNCATED = 0, 1, 2
_STRUCT = re.compile(r"^\s*struct\s*\((.*)\)\s*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRules:
    """What the changes of one flow mean. Columns are those of the change rows.

    Attributes:
        keys: Columns that identify a row.
        sequence_by: SQL expression that orders the changes of a key; a struct orders by its fields.
        apply_as_deletes: SQL condition of changes that delete their key.
        apply_as_truncates: SQL condition of changes that delete every key.
        ignore_null_updates: NULL leaves a column as it is: for all columns (True), none (False), or those named.
        ignore_null_updates_except: Columns of which that does not hold, with True.
        column_list: Columns of the target; None for all.
        except_column_list: Columns that the target does not get.
        scd_type: 1 keeps the current rows, 2 their history.
        track_history_column_list: Columns whose change opens a new version; None for all.
        track_history_except_column_list: Columns whose change does not.
    """

    keys: tuple[str, ...]
    sequence_by: str
    apply_as_deletes: str | None = None
    apply_as_truncates: str | None = None
    ignore_null_updates: bool | tuple[str, ...] = False
    ignore_null_updates_except: tuple[str, ...] = ()
    column_list: tuple[str, ...] | None = None
    except_column_list: tuple[str, ...] | None = None
    scd_type: int = 1
    track_history_column_list: tuple[str, ...] | None = None
    track_history_except_column_list: tuple[str, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every SQL text and column name of the rules, to find the columns that they use."""
        texts = [*self.keys, self.sequence_by, self.apply_as_deletes or "", self.apply_as_truncates or ""]
        return (*texts, *(self.column_list or ()))

    def key_condition(self) -> str:
        """Return the SQL condition of a change whose key is whole."""
        whole = " AND ".join(f"{quote_name(key)} IS NOT NULL" for key in self.keys)
        return (
            f"({whole}) OR coalesce(({self.apply_as_truncates})::BOOLEAN, false)" if self.apply_as_truncates else whole
        )

    def sequence_condition(self) -> str:
        """Return the SQL condition of a change that has a sequence."""
        found = _STRUCT.match(self.sequence_by)
        parts = _struct_parts(found[1]) if found else None
        return (
            " AND ".join(f"{quote_name(part)} IS NOT NULL" for part in parts)
            if parts
            else f"({self.sequence_by}) IS NOT NULL"
        )

    def removal_condition(self) -> str:
        """Return the SQL condition of a change that carries no row to be judged; empty if there is none."""
        parts = [c for c in (self.apply_as_deletes, self.apply_as_truncates) if c]
        return " OR ".join(f"coalesce(({part})::BOOLEAN, false)" for part in parts)

    def bind(self, schema: pa.Schema, *, hidden: Sequence[str] = ()) -> BoundRules:
        """Check the rules against the columns of the change rows.

        Args:
            schema: Columns of the change rows, with Delta's types.
            hidden: Columns that the target gets only where ``column_list`` names them.

        Raises:
            UserError: An unknown column, a sequence that has no order, rules that exclude each other. Not retryable.
        """
        self._check_lists(schema)
        columns = self._selected(schema, hidden)
        for key in self.keys:
            if key not in columns:
                raise UserError(
                    f"the key column '{key}' is not among the columns of the target",
                    code="AUTO_CDC_KEY_LEFT_OUT",
                    expected=", ".join(columns),
                    remedy="Add it to column_list, or take it out of except_column_list",
                )
        shape = TargetShape(
            keys=self.keys,
            columns=pa.schema([schema.field(name).with_nullable(True) for name in columns]),
            sequence=self._sequence_type(schema),
            scd_type=self.scd_type,
            tracked=self._tracked(columns),
            is_partial=bool(self.ignore_null_updates) or UNCHANGED_COLUMNS in schema.names,
        )
        for condition, what in ((self.apply_as_deletes, "deletes"), (self.apply_as_truncates, "truncates")):
            if condition is not None:
                _probe(schema, f"({condition})::BOOLEAN", f"apply_as_{what}")
        return BoundRules(self, schema, shape)

    def _check_lists(self, schema: pa.Schema) -> None:
        if self.column_list is not None and self.except_column_list is not None:
            raise UserError(
                "column_list and except_column_list exclude each other",
                code="ARGUMENT_INVALID",
                remedy="Give one of them",
            )
        if self.track_history_column_list is not None and self.track_history_except_column_list is not None:
            raise UserError(
                "track_history_column_list and track_history_except_column_list exclude each other",
                code="ARGUMENT_INVALID",
                remedy="Give one of them",
            )
        ignoring = self.ignore_null_updates if isinstance(self.ignore_null_updates, tuple) else ()
        lists: Mapping[str, Sequence[str]] = {
            "keys": self.keys,
            "column_list": self.column_list or (),
            "except_column_list": self.except_column_list or (),
            "track_history_column_list": self.track_history_column_list or (),
            "track_history_except_column_list": self.track_history_except_column_list or (),
            "ignore_null_updates_column_list": ignoring,
            "ignore_null_updates_except_column_list": self.ignore_null_updates_except,
        }
        for argument, names in lists.items():
            for name in names:
                if name not in schema.names:
                    raise UserError(
                        f"unknown column '{name}' in {argument}",
                        code="UNKNOWN_COLUMN",
                        expected=", ".join(schema.names),
                        remedy=nearest(name, schema.names),
                    )
        for key in self.keys:
            if pa.types.is_nested(schema.field(key).type):
                raise UserError(
                    f"the key column '{key}' cannot be a key", code="AUTO_CDC_KEY_TYPE", found=str(schema.field(key).type),
                    expected="a column that is no struct, list or map",
                )  # fmt: skip

    def _selected(self, schema: pa.Schema, hidden: Sequence[str]) -> list[str]:
        if self.column_list is not None:
            columns = [name for name in schema.names if name in self.column_list]
        else:
            left_out = {*hidden, UNCHANGED_COLUMNS, *(self.except_column_list or ())}
            columns = [name for name in schema.names if name not in left_out]
        reserved = [n for n in columns if n.startswith(_PREFIX) or (self.scd_type == 2 and n in (START_AT, END_AT))]
        if reserved:
            raise UserError(
                f"the column '{reserved[0]}' has a name that AUTO CDC uses itself",
                code="AUTO_CDC_RESERVED_COLUMN",
                remedy="Rename it, or leave it out with except_column_list",
            )
        return columns

    def _sequence_type(self, schema: pa.Schema) -> pa.DataType:
        made = _probe(schema, sequence_sql(self.sequence_by), "sequence_by")
        kind: pa.DataType = delta_schema(pa.schema([("sequence_by", made)])).field(0).type
        parts = [child.type for child in kind] if pa.types.is_struct(kind) else [kind]
        if any(pa.types.is_nested(part) or pa.types.is_null(part) for part in parts):
            raise UserError(
                "the values of sequence_by have no order",
                code="AUTO_CDC_SEQUENCE_NOT_ORDERABLE",
                found=str(kind),
                expected="numbers, times, text, or a struct of them",
            )
        return kind

    def _tracked(self, columns: Sequence[str]) -> tuple[str, ...]:
        rest = [name for name in columns if name not in self.keys]
        if self.track_history_column_list is not None:
            return tuple(name for name in rest if name in self.track_history_column_list)
        return tuple(name for name in rest if name not in (self.track_history_except_column_list or ()))


def sequence_sql(text: str) -> str:
    """Return DuckDB's form of a sequence: ``struct(a, b)`` becomes a struct with these names."""
    found = _STRUCT.match(text)
    parts = _struct_parts(found[1]) if found else None
    if parts is None:
        return f"({text})"
    return "{" + ", ".join(f"{quote_text(part)}: {quote_name(part)}" for part in parts) + "}"


def _struct_parts(text: str) -> list[str] | None:
    """Return the column names that ``struct(…)`` lists; None if there is more in it than names."""
    parts = [part.strip().strip('"`') for part in text.split(",")]
    return parts if all(re.fullmatch(r"\w+", part) for part in parts) else None


def _probe(schema: pa.Schema, expression: str, argument: str) -> pa.DataType:
    """Return the type of an expression over the change rows."""
    session = open_session()
    try:
        session.register("changes", no_rows(schema))
        return session.sql(f"SELECT {expression} AS value FROM changes").to_arrow_table().schema.field(0).type
    except duckdb.Error as exc:
        code = "UNKNOWN_COLUMN" if "not found" in str(exc) else "SQL_INVALID"
        raise UserError(f"{argument} does not fit the change rows: {str(exc).strip()}", code=code) from exc
    finally:
        session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetShape:
    """What all flows of one target agree on.

    Attributes:
        keys: Key columns.
        columns: Columns of the target that come from the changes.
        sequence: Type of the sequence.
        scd_type: 1 or 2.
        tracked: Columns whose change opens a version (type 2).
        is_partial: Whether a change may leave columns as they are.
    """

    keys: tuple[str, ...]
    columns: pa.Schema
    sequence: pa.DataType
    scd_type: int
    tracked: tuple[str, ...] = ()
    is_partial: bool = False

    @property
    def names(self) -> list[str]:
        """Names of ``columns``."""
        return list(self.columns.names)

    @property
    def values(self) -> list[str]:
        """Names of the columns that are no keys."""
        return [name for name in self.columns.names if name not in self.keys]

    @property
    def table(self) -> pa.Schema:
        """Columns of the target table."""
        if self.scd_type == 1:
            return self.columns
        span = [pa.field(START_AT, self.sequence), pa.field(END_AT, self.sequence)]
        return pa.schema([*self.columns, *span])

    @property
    def changes(self) -> pa.Schema:
        """Columns of prepared changes."""
        return pa.schema(
            [
                *self.columns,
                pa.field(SEQUENCE, self.sequence),
                pa.field(KIND, pa.int8()),
                pa.field(UNSET, pa.list_(pa.string())),
                pa.field(FLOW, pa.int32()),
            ]
        )

    @property
    def hidden(self) -> pa.Schema:
        """Columns of the data files that the table's schema does not name, so that no reader sees them."""
        if self.scd_type == 2:
            return pa.schema([pa.field(UNSET, pa.list_(pa.string()))] if self.is_partial else [])
        fields = [pa.field(SEQUENCE, self.sequence)]
        if self.is_partial:
            entry = pa.struct([pa.field("name", pa.string()), pa.field("sequence", self.sequence)])
            fields.append(pa.field(UNSET, pa.list_(entry)))
        return pa.schema(fields)

    @property
    def stored(self) -> pa.Schema:
        """Columns of the data files."""
        return pa.schema([*self.table, *self.hidden])

    def joined(self, other: TargetShape) -> TargetShape:
        """Return the shape of a target that both feed.

        Raises:
            SchemaError: They do not agree on keys, sequence type, SCD type, tracked columns or a column's type.
                Not retryable.
        """
        for what, mine, theirs in (
            ("keys", self.keys, other.keys),
            ("the type of sequence_by", self.sequence, other.sequence),
            ("stored_as_scd_type", self.scd_type, other.scd_type),
        ):
            if mine != theirs:
                raise _disagreement(what, theirs, mine)
        fields = {item.name: item for item in self.columns}
        for item in other.columns:
            if fields.setdefault(item.name, item).type != item.type:
                raise _disagreement(f"column '{item.name}'", item.type, fields[item.name].type)
        shared = set(self.columns.names) & set(other.columns.names)
        if (set(self.tracked) ^ set(other.tracked)) & shared:
            raise _disagreement("the tracked columns", ", ".join(other.tracked), ", ".join(self.tracked))
        return TargetShape(
            keys=self.keys,
            columns=pa.schema(list(fields.values())),
            sequence=self.sequence,
            scd_type=self.scd_type,
            tracked=tuple(dict.fromkeys((*self.tracked, *other.tracked))),
            is_partial=self.is_partial or other.is_partial,
        )


def _disagreement(what: str, found: object, expected: object) -> SchemaError:
    return SchemaError(
        f"the AUTO CDC flows of one table do not agree on {what}",
        code="AUTO_CDC_FLOWS_DISAGREE",
        found=found,
        expected=f"{expected}, as the first flow says",
    )


@dataclass(frozen=True, slots=True)
class BoundRules:
    """Rules with the columns of the change rows they were checked against."""

    rules: ChangeRules
    source: pa.Schema
    shape: TargetShape
    _query: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_query", self._text())

    def prepare(self, session: duckdb.DuckDBPyConnection, changes: pa.Table, flow: int = 0) -> pa.Table:
        """Return change rows as the merge takes them.

        Args:
            session: Session of the calling thread.
            changes: Change rows, with the columns the rules were bound to.
            flow: Number of the flow among those of the table.

        Raises:
            SchemaError: A key or a sequence is NULL. Not retryable.
            UserError: An expression failed on a row. Not retryable.
        """
        session.register("changes", changes)
        try:
            made: pa.Table = session.sql(self._query).to_arrow_table()
        except duckdb.Error as exc:
            raise UserError(f"an AUTO CDC expression failed on a row: {exc}", code="SQL_FAILED") from exc
        finally:
            session.unregister("changes")
        prepared = changes.select(self.shape.names)
        for name in (SEQUENCE, KIND, UNSET):
            prepared = prepared.append_column(name, made.column(name))
        prepared = prepared.append_column(FLOW, pa.repeat(pa.scalar(flow, pa.int32()), len(prepared)))
        prepared = cast_exact(prepared, self.shape.changes, what="a merge")
        self._check_not_null(prepared)
        return prepared

    def _check_not_null(self, prepared: pa.Table) -> None:
        rows = prepared.filter(pc.less(prepared.column(KIND), TRUNCATED))
        for name, table in (*((key, rows) for key in self.rules.keys), (SEQUENCE, prepared)):
            column = table.column(name)
            lost = column.null_count
            if pa.types.is_struct(column.type):
                lost += sum(
                    chunk.flatten()[i].null_count for chunk in column.chunks for i in range(column.type.num_fields)
                )
            if lost:
                what = "sequence_by" if name == SEQUENCE else f"key column '{name}'"
                raise SchemaError(
                    "cannot apply changes",
                    code="AUTO_CDC_NULL_SEQUENCE" if name == SEQUENCE else "AUTO_CDC_NULL_KEY",
                    found=f"{lost} NULLs of {what}",
                    expected="a value in each change",
                    remedy="Filter or quarantine such changes before the merge",
                )

    def _text(self) -> str:
        rules = self.rules
        kind = str(UPSERTED)
        if rules.apply_as_deletes:
            kind = f"CASE WHEN coalesce(({rules.apply_as_deletes})::BOOLEAN, false) THEN {DELETED} ELSE {kind} END"
        if rules.apply_as_truncates:
            kind = f"CASE WHEN coalesce(({rules.apply_as_truncates})::BOOLEAN, false) THEN {TRUNCATED} ELSE {kind} END"
        return (
            f"SELECT {sequence_sql(rules.sequence_by)} AS {SEQUENCE}, ({kind})::TINYINT AS {KIND}, "
            f"{self._unset()} AS {UNSET} FROM changes"
        )

    def _unset(self) -> str:
        """Return SQL for the columns that a change leaves as they are; NULL if there are none."""
        parts = []
        values = self.shape.values
        if UNCHANGED_COLUMNS in self.source.names:
            known = ", ".join(map(quote_text, values))
            parts.append(
                f"list_filter(coalesce({UNCHANGED_COLUMNS}, []), lambda x: x IN ({known}))" if values else "[]"
            )
        ignoring = self.rules.ignore_null_updates
        named: Sequence[str] = values if isinstance(ignoring, bool) and ignoring else ignoring or ()
        names = [n for n in values if n in named and n not in self.rules.ignore_null_updates_except]
        if names:
            cases = ", ".join(f"CASE WHEN {quote_name(n)} IS NULL THEN {quote_text(n)} END" for n in names)
            parts.append(f"list_filter([{cases}], lambda x: x IS NOT NULL)")
        if not parts:
            return "NULL::VARCHAR[]"
        whole = parts[0] if len(parts) == 1 else f"list_distinct({parts[0]} || {parts[1]})"
        return f"CASE WHEN len({whole}) > 0 THEN {whole} END::VARCHAR[]"
