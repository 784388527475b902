"""What a declared schema says besides names and types: defaults, generated columns, constraints, comments.

Defaults and generated columns are computed by the flow that fills the table. They are not stored in Delta's metadata: delta-rs
does not write the feature of defaults, and refuses to append where it cannot evaluate a generation expression itself. Comments,
properties and CHECK constraints are stored, and kept as the definition says; what others added stays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from sinks.delta.constraints import CONSTRAINT_PREFIX, WRITTEN_PREFIX, constraints_of
from waxlake.pipeline.definitions import DatasetDefinition
from waxlake.stream.ddl import DEFAULT, GENERATED
from waxlake.stream.delta_table import TableLocation, delta_errors
from waxlake.stream.engine import open_session
from waxlake.stream.errors import DefinitionError, shorten
from waxlake.stream.schema import no_rows

__all__ = ["DerivedColumn", "check_constraints", "derived_columns", "keep_declared", "without_constraints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedColumn:
    """A column that a flow need not make: ``sql`` does, always if it is generated, else where the flow leaves it out."""

    name: str
    sql: str
    is_generated: bool


def derived_columns(schema: pa.Schema | None) -> tuple[DerivedColumn, ...]:
    """Return the defaults and generated columns of a declared schema, defaults first."""
    found = []
    for item in schema or ():
        metadata = item.metadata or {}
        for key in (DEFAULT, GENERATED):
            if key.encode() in metadata:
                sql = metadata[key.encode()].decode()
                found.append(DerivedColumn(name=item.name, sql=sql, is_generated=key == GENERATED))
    return tuple(sorted(found, key=lambda column: column.is_generated))


def without_constraints(properties: Mapping[str, str]) -> dict[str, str]:
    """Return table properties that are no constraints."""
    return {key: value for key, value in properties.items() if not key.startswith(CONSTRAINT_PREFIX)}


def check_constraints(definition: DatasetDefinition, schema: pa.Schema) -> None:
    """Compile the CHECK constraints of a table, here and as delta-rs would.

    Raises:
        DefinitionError: ``CONSTRAINT_INVALID``. Not retryable.
    """
    constraints = constraints_of(definition.properties)
    if not constraints:
        return
    if definition.is_merged:
        raise _invalid(definition, next(iter(constraints)), "changes are merged into the table", "a rule of its flow")
    session = open_session()
    try:
        session.register("checked", no_rows(schema))
        for name, condition in constraints.items():
            try:
                session.sql(f"SELECT ({condition})::BOOLEAN FROM checked").to_arrow_table()
            except duckdb.Error as exc:
                raise _invalid(definition, name, shorten(exc, 300), "a condition over its columns") from exc
    finally:
        session.close()
    with tempfile.TemporaryDirectory(prefix="waxlake-check-") as folder:
        for name, condition in constraints.items():
            try:
                handle = DeltaTable.create(folder, schema, mode="overwrite", configuration={})
                handle.alter.add_constraint({name: condition})
                write_deltalake(DeltaTable(folder), no_rows(schema), mode="append", schema_mode="merge")
            except DeltaError as exc:
                raise _invalid(definition, name, shorten(exc, 300), "functions that delta-rs has, too") from exc


def _invalid(definition: DatasetDefinition, name: str, found: str, expected: str) -> DefinitionError:
    return DefinitionError(
        f"constraint '{name}' of table '{definition.name}' cannot be kept",
        where=definition.where,
        code="CONSTRAINT_INVALID",
        found=found,
        expected=expected,
        remedy="Use an expectation with fail, drop or quarantine instead",
    )


def keep_declared(location: TableLocation, handle: DeltaTable, definition: DatasetDefinition) -> DeltaTable:
    """Give a stored table the comments, properties and constraints of its definition; others that it has stay.

    Raises:
        DefinitionError: ``CONSTRAINT_VIOLATED``: rows that are there already break a new constraint. Not retryable.
    """
    with delta_errors(f"change table '{location.label}'"):
        metadata = handle.metadata()
        if definition.comment is not None and definition.comment != (metadata.description or ""):
            handle.alter.set_table_description(definition.comment)
            handle = location.open()
        known = metadata.configuration
        wanted = without_constraints(definition.properties)
        changed = {key: str(value) for key, value in wanted.items() if known.get(key) != str(value)}
        if changed:
            handle.alter.set_table_properties(changed, raise_if_not_exists=False)
            handle = location.open()
        handle = _with_comments(location, handle, definition)
    return _with_constraints(location, handle, definition)


def _with_comments(location: TableLocation, handle: DeltaTable, definition: DatasetDefinition) -> DeltaTable:
    stored = {item.name: item.metadata or {} for item in handle.schema().fields}
    for item in definition.schema or ():
        comment = (item.metadata or {}).get(b"comment")
        if comment is None or item.name not in stored:
            continue
        if stored[item.name].get("comment") != comment.decode():
            handle.alter.set_column_metadata(item.name, {"comment": comment.decode()})
            handle = location.open()
    return handle


def _with_constraints(location: TableLocation, handle: DeltaTable, definition: DatasetDefinition) -> DeltaTable:
    stored = constraints_of(handle.metadata().configuration)
    for name, condition in constraints_of(definition.properties).items():
        if stored.get(name) == condition:
            continue
        try:
            if name in stored:
                handle.alter.drop_constraint(name)
                handle = location.open()
            handle.alter.add_constraint({name: condition})
        except DeltaError as exc:
            raise DefinitionError(
                f"constraint '{name}' cannot be added to table '{definition.name}'",
                where=definition.where,
                code="CONSTRAINT_VIOLATED",
                found=shorten(exc, 300),
                expected=f"rows that keep {condition}",
                remedy="Correct the rows or the constraint, or fill the table anew with --full-refresh",
            ) from exc
        handle = location.open()
        with delta_errors(f"change table '{location.label}'"):
            handle.alter.set_table_properties({WRITTEN_PREFIX + name: condition}, raise_if_not_exists=False)
        handle = location.open()
    return handle
