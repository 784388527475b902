"""What a database says of the tables to be read: keys, columns, types, sizes. Called by the connector; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from connectors.postgres.client import postgres_errors
from connectors.postgres.ledger import KnownColumn
from connectors.postgres.settings import PostgresSettings
from connectors.postgres.types import PostgresType
from waxlake.stream.changes import CHANGE_COLUMNS
from waxlake.stream.schema import no_rows

__all__ = ["SourceTable", "TypeCatalog", "read_tables", "union_of"]

_CHUNK_BYTES: Final = 24 << 20
_VECTORS: Final = ("int2vector", "oidvector")
_TABLES: Final = """
SELECT n.nspname || '.' || c.relname, c.oid::int8, c.relkind::text, c.relreplident::text, c.reltuples::float8,
       CASE WHEN c.relkind = 'r' THEN pg_table_size(c.oid) ELSE 0 END,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
       pg_has_role(c.relowner, 'USAGE'), c.relpersistence::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (n.nspname, c.relname) IN %s AND c.relkind IN ('r', 'p')"""
_COLUMNS: Final = """
SELECT attrelid::int8, attname::text, atttypid::int8, atttypmod, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid::int8 = ANY(%s) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attrelid, attnum"""
_PUBLISHED: Final = """
SELECT c.oid::int8, p.attnames::text[] FROM pg_publication_tables p
JOIN pg_namespace n ON n.nspname = p.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE p.pubname = ANY(%s) AND c.oid::int8 = ANY(%s)"""
_COLUMN_LISTS_VERSION: Final = 150_000
_KEYS: Final = """
SELECT i.indrelid::int8, i.indisprimary, array(
    SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place)
FROM pg_index i WHERE i.indrelid::int8 = ANY(%s) AND (i.indisprimary OR i.indisreplident) ORDER BY i.indisprimary"""
_TYPES: Final = """
SELECT t.oid::int8, CASE WHEN n.nspname = 'pg_catalog' THEN t.typname ELSE n.nspname || '.' || t.typname END::text,
       t.typtype::text, t.typcategory::text, t.typelem::int8, t.typbasetype::int8, t.typtypmod
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"""


@dataclass(slots=True)
class TypeCatalog:
    """Finds types by oid; asks once, and again for one it does not know."""

    connection: Any
    _rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def knows(self, oid: int) -> bool:
        """Return whether a type was there when the types were read."""
        return oid in self._rows

    def resolve(self, oid: int, modifier: int) -> PostgresType:
        """Return a type, domains and arrays looked through; one that is gone is text."""
        if oid not in self._rows:
            with postgres_errors("read the types of a database"), self.connection.cursor() as cursor:
                cursor.execute(_TYPES)
                self._rows = {row[0]: row for row in cursor.fetchall()}
        if oid not in self._rows:
            return PostgresType(name="text")
        _, name, kind, category, element, base, own_modifier = self._rows[oid]
        if kind == "d":
            return self.resolve(base, own_modifier if modifier < 0 else modifier)
        if category == "A" and element and name not in _VECTORS:
            inner = self.resolve(element, modifier)
            return PostgresType(name="text") if inner.is_array else replace(inner, is_array=True)
        return PostgresType(name=name, modifier=modifier if name == "numeric" else -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A table to be read.

    Attributes:
        oid: What it is, whatever it is called; its partition key.
        name: ``schema.table``.
        is_partitioned: Whether it is the root of partitions.
        identity: REPLICA IDENTITY: d(efault), f(ull), i(ndex), n(othing).
        key: Columns of the primary key, else of the index that is the replica identity; empty for none.
        key_types: SQL types of these.
        columns: Columns it has or once had, each with the type it had first.
        present: Columns it has now, with the types they have now.
        can_select: Whether this user may read it.
        is_owned: Whether this user may add it to a publication.
        is_logged: Whether its changes reach the log at all.
        row_bytes: Average bytes of a row; 0 if not known.
        row_filter: Condition of the publication, or empty.
    """

    oid: int
    name: str
    is_partitioned: bool
    identity: str
    key: tuple[str, ...]
    key_types: tuple[str, ...]
    columns: tuple[KnownColumn, ...]
    present: tuple[KnownColumn, ...]
    can_select: bool
    is_owned: bool
    is_logged: bool
    row_bytes: int
    row_filter: str = ""

    @property
    def partition(self) -> str:
        """Partition key of its changes."""
        return str(self.oid)

    @property
    def load_partition(self) -> str:
        """Partition key of its first load."""
        return f"{self.oid}:load"

    @property
    def schema(self) -> pa.Schema:
        """Its columns as a batch has them, without change columns."""
        now = {column.name for column in self.present}
        gone = {"comment": "Dropped at the source; kept here, NULL since"}
        return pa.schema(
            [pa.field(c.name, c.type.arrow, metadata=None if c.name in now else gone) for c in self.columns]
        )

    def empty(self) -> pa.Table:
        """Return no rows, change columns last."""
        return no_rows(pa.schema([*self.schema, *CHANGE_COLUMNS]))

    def chunk_rows(self, most: int) -> int:
        """Return how many rows a chunk of its first load holds."""
        return most if not self.row_bytes else max(1, min(most, _CHUNK_BYTES // self.row_bytes))


def read_tables(
    connection: Any,
    types: TypeCatalog,
    settings: PostgresSettings,
    seen: Mapping[int, Sequence[KnownColumn]],
) -> dict[str, SourceTable]:
    """Return the tables that are there, by name.

    Args:
        connection: A connection to the database.
        types: Its types.
        settings: Names the tables.
        seen: Table oid to columns that were seen before.
    """
    names = tuple(tuple(name.split(".", 1)) for name in settings.tables)
    with postgres_errors("read the catalog of a database"), connection.cursor() as cursor:
        cursor.execute(_TABLES, (names,))
        tables = cursor.fetchall()
        oids = [row[1] for row in tables]
        cursor.execute(_COLUMNS, (oids,))
        columns = _grouped(cursor.fetchall())
        if connection.server_version >= _COLUMN_LISTS_VERSION:  # a first load has the columns that the log has
            names_of = [settings.publication_name, settings.append_publication_name]
            cursor.execute(_PUBLISHED, (names_of, oids))
            for oid, published in cursor.fetchall():
                columns[oid] = [column for column in columns.get(oid, ()) if column[0] in published]
        cursor.execute(_KEYS, (oids,))
        keys = {oid: tuple(names) for oid, _, names in cursor.fetchall()}  # the primary key comes last and wins
    found = {}
    for name, oid, kind, identity, rows, size, can_select, is_owned, persistence in tables:
        present = tuple(
            KnownColumn(name=c, type=_type_of(types, settings, name, c, type_oid, modifier))
            for c, type_oid, modifier, _ in columns.get(oid, ())
        )
        sql_types = {c: sql for c, _, _, sql in columns.get(oid, ())}
        key = keys.get(oid, ())
        before = tuple(seen.get(oid, ()))
        known = {column.name for column in before}
        found[name] = SourceTable(
            oid=oid,
            name=name,
            is_partitioned=kind == "p",
            identity=identity,
            key=key,
            key_types=tuple(sql_types.get(column, "text") for column in key),
            columns=(*before, *(column for column in present if column.name not in known)),
            present=present,
            can_select=can_select,
            is_owned=is_owned,
            is_logged=persistence == "p",
            row_bytes=int(size / rows) if rows and rows > 0 else 0,
        )
    return found


def _type_of(
    types: TypeCatalog, settings: PostgresSettings, table: str, column: str, oid: int, modifier: int
) -> PostgresType:
    if settings.is_text(table, column):
        return PostgresType(name="text")
    return types.resolve(oid, modifier)


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    groups: dict[int, list[tuple[Any, ...]]] = {}
    for oid, *rest in rows:
        groups.setdefault(oid, []).append(tuple(rest))
    return groups


def union_of(tables: Iterable[SourceTable]) -> pa.Schema:
    """Return the columns of all tables together, change columns last.

    Raises:
        pa.ArrowInvalid: Two tables have a column of one name and different types.
    """
    schemas = [table.schema.remove_metadata() for table in tables]
    return pa.unify_schemas([*schemas, CHANGE_COLUMNS])
