"""Look whether a database can be read, name everything that is missing at once, and create what may be created.

Called by the connector before a run is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from psycopg2 import sql

from connectors.postgres.catalog import SourceTable
from connectors.postgres.client import format_lsn, parse_lsn, postgres_errors, server_label
from connectors.postgres.settings import PostgresSettings
from waxlake.stream.errors import SourceMoved, TerminalError

__all__ = ["Preparation", "Slot", "check_confirmed", "find_slot", "lost_slot", "missing_tables"]

_MIN_VERSION: Final = 130_000
_SLOT: Final = """
SELECT plugin, database, active_pid, confirmed_flush_lsn::text, restart_lsn::text, wal_status,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text, safe_wal_size
FROM pg_replication_slots WHERE slot_name = %s"""
_ROLE: Final = """
SELECT rolreplication OR rolsuper OR EXISTS (
    SELECT FROM pg_roles g WHERE g.rolname IN ('rds_replication', 'cloudsqlsuperuser') AND pg_has_role(r.oid, g.oid, 'MEMBER'))
FROM pg_roles r WHERE rolname = current_user"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replication slot as it is now.

    Attributes:
        name: Its name.
        plugin: Its output plugin.
        database: The database it belongs to.
        active_pid: Who reads it, or None.
        confirmed: Position up to which its reader holds everything durably.
        restart: Where the log that it holds back begins.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        server: The server's position now.
        safe_bytes: Log that may still be written before it may be lost; None if there is no limit.
    """

    name: str
    plugin: str
    database: str
    active_pid: int | None
    confirmed: int
    restart: int
    wal_status: str
    server: int
    safe_bytes: int | None

    @property
    def lag_bytes(self) -> int:
        """Log that its reader does not hold yet."""
        return max(0, self.server - self.confirmed)

    @property
    def is_lost(self) -> bool:
        """Whether it can never be read again."""
        return self.wal_status == "lost" or not self.restart


def lost_slot(reader: str, slot: Slot | None) -> SourceMoved:
    """Return the error for a slot that is lost, or that is not there any more.

    Args:
        reader: Who reads it.
        slot: The slot, if there is one.
    """
    return SourceMoved(
        f"cannot go on reading {reader}",
        code="POSTGRES_SLOT_LOST",
        found="no such slot" if slot is None else f"slot {slot.name!r} with wal_status lost",
        expected="a slot that still has the changes since the last run",
        remedy="Set on_slot_lost='resnapshot' to load the tables again; raise max_slot_wal_keep_size if the server gave it up",
    )


def check_confirmed(reader: str, slot: Slot | None, start: int) -> None:
    """Look whether a slot has what comes from a position on: below the confirmed one the server jumps without a word.

    Args:
        reader: Who reads it.
        slot: The slot, if there is one.
        start: Position to begin at.

    Raises:
        SourceMoved: ``POSTGRES_SLOT_LOST``, ``POSTGRES_SLOT_AHEAD``. Not retryable.
    """
    if slot is None or slot.is_lost:
        raise lost_slot(reader, slot)
    if start < slot.confirmed:
        raise SourceMoved(
            f"cannot go on reading {reader}",
            code="POSTGRES_SLOT_AHEAD",
            found=f"slot {slot.name!r} confirmed up to {format_lsn(slot.confirmed)}",
            expected=f"at most {format_lsn(start)}, what the tables hold",
            remedy="Somebody else moved the slot, or made it. Set on_slot_lost='resnapshot' to load the tables again",
        )


def find_slot(connection: Any, name: str) -> Slot | None:
    """Return a slot, or None."""
    with postgres_errors(f"look at slot {name!r}"), connection.cursor() as cursor:
        cursor.execute(_SLOT, (name,))
        row = cursor.fetchone()
    if row is None:
        return None
    plugin, database, pid, confirmed, restart, status, server, safe = row
    return Slot(
        name=name,
        plugin=plugin,
        database=database or "",
        active_pid=pid,
        confirmed=parse_lsn(confirmed) if confirmed else 0,
        restart=parse_lsn(restart) if restart else 0,
        wal_status=status or "lost",
        server=parse_lsn(server),
        safe_bytes=safe,
    )


def missing_tables(settings: PostgresSettings, found: Mapping[str, SourceTable]) -> TerminalError | None:
    """Return the error for tables that are not there, or None."""
    missing = [name for name in settings.tables if name not in found]
    if not missing:
        return None
    return TerminalError(
        f"cannot read PostgreSQL {server_label(settings.dsn.get_secret_value())}",
        code="POSTGRES_TABLE_MISSING",
        found=f"no table {', '.join(missing)}",
        expected="tables named schema.table, as the server writes them",
        remedy="Correct tables=; a table that was renamed goes on under its new name where it was",
    )


@dataclass(slots=True)
class Preparation:
    """Checks one database for one source, and makes it ready.

    Args:
        connection: An autocommit connection.
        settings: The source.
        tables: The tables, by name.
    """

    connection: Any
    settings: PostgresSettings
    tables: Mapping[str, SourceTable]
    _problems: list[str] = field(default_factory=list)
    _remedies: list[str] = field(default_factory=list)

    def run(self, *, creates_slot: bool) -> dict[str, SourceTable]:
        """Check everything, create what is missing, and return the tables with their publications' conditions.

        Args:
            creates_slot: Whether a slot that is not there is to be made.

        Raises:
            TerminalError: ``POSTGRES_NOT_READY`` names each privilege or setting that is missing, with the statement that
                gives it. Not retryable.
        """
        self._check_server(self._slot())
        self._check_tables()
        self._raise_problems()
        filters = self._publish()
        self._raise_problems()
        if creates_slot:
            self._make_slot()
        self._raise_problems()
        return {name: replace(table, row_filter=filters.get(name, "")) for name, table in self.tables.items()}

    def _slot(self) -> Slot | None:
        return find_slot(self.connection, self.settings.slot)

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with postgres_errors("check a database"), self.connection.cursor() as cursor:
            cursor.execute(query, tuple(values) or None)
            return list(cursor.fetchall())

    def _setting(self, name: str) -> str:
        return str(self._ask("SELECT current_setting(%s)", [name])[0][0])

    def _problem(self, text: str, remedy: str) -> None:
        self._problems.append(text)
        if remedy not in self._remedies:
            self._remedies.append(remedy)

    def _raise_problems(self) -> None:
        if self._problems:
            raise TerminalError(
                f"cannot read PostgreSQL {server_label(self.settings.dsn.get_secret_value())}",
                code="POSTGRES_NOT_READY",
                found="; ".join(self._problems),
                remedy="; ".join(self._remedies),
            )

    def _check_server(self, slot: Slot | None) -> None:
        if self.connection.server_version < _MIN_VERSION:
            self._problem(f"server version {self.connection.server_version // 10_000}", "Upgrade it to 13 or later")
        if self._setting("wal_level") != "logical":
            self._problem(
                f"wal_level {self._setting('wal_level')}",
                "ALTER SYSTEM SET wal_level = 'logical' and restart the server",
            )
        if not self._ask(_ROLE)[0][0]:
            user = self._ask("SELECT quote_ident(current_user)")[0][0]
            self._problem("a user without the REPLICATION right", f"ALTER ROLE {user} REPLICATION")
        used = self._ask("SELECT count(*) FROM pg_replication_slots")[0][0]
        most, needed = int(self._setting("max_replication_slots")), 1 if slot is None else 0
        if used + needed > most:
            self._problem(
                f"max_replication_slots {most}, all in use",
                "Raise max_replication_slots, or drop a slot (waxlake slots shows them)",
            )
        self._check_slot(slot)

    def _check_slot(self, slot: Slot | None) -> None:
        name, database = self.settings.slot, self._ask("SELECT current_database()")[0][0]
        if slot is None:
            if not self.settings.create:
                self._problem(f"no slot {name!r}", f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
            return
        if slot.plugin != "pgoutput":
            self._problem(
                f"slot {name!r} of plugin {slot.plugin!r}", "Use a slot of plugin pgoutput: choose another slot="
            )
        elif slot.database != database:
            self._problem(
                f"slot {name!r} of database {slot.database!r}", "Choose another slot=; a slot serves one database"
            )

    def _check_tables(self) -> None:
        for table in self.tables.values():
            if not table.can_select:
                user = self._ask("SELECT quote_ident(current_user)")[0][0]
                schema = table.name.split(".", 1)[0]
                self._problem(
                    f"no SELECT right on {table.name}",
                    f"GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {table.name} TO {user}",
                )
            if not table.is_logged:
                self._problem(f"{table.name} is unlogged or temporary", f"ALTER TABLE {table.name} SET LOGGED")
            if not table.key and self.settings.on_missing_key == "fail":
                self._problem(
                    f"{table.name} has no primary key",
                    "Add one, or set on_missing_key='append' to take inserts alone",
                )
            elif not table.key and self.settings.load_window and self.settings.initial_load:
                self._problem(
                    f"{table.name} has no primary key, so its load cannot wait for load_window while changes are taken",
                    "Add one, or read it over a slot of its own without load_window",
                )
            elif table.key and table.identity == "n":
                self._problem(
                    f"{table.name} has REPLICA IDENTITY NOTHING", f"ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT"
                )

    def _publish(self) -> dict[str, str]:
        """Look for each table in its publication, add it where it is missing; return row filters."""
        wanted = {
            self.settings.publication_name: [t for t in self.tables.values() if t.key],
            self.settings.append_publication_name: [t for t in self.tables.values() if not t.key],
        }
        filters: dict[str, str] = {}
        for publication, tables in wanted.items():
            if not tables:
                continue
            is_append = publication == self.settings.append_publication_name
            self._make_publication(publication, tables, is_append=is_append)
            filters.update(self._published(publication, tables))
        return filters

    def _make_publication(self, name: str, tables: Sequence[SourceTable], *, is_append: bool) -> None:
        missing = self._unpublished(name, tables)
        exists = self._is_published_in_full(name, is_append=is_append)
        if exists and not missing:
            return
        listed = sql.SQL(", ").join(sql.Identifier(*table.name.split(".", 1)) for table in missing or tables)
        if exists:
            statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(name), listed)
        else:
            operations = "insert, truncate" if is_append else "insert, update, delete, truncate"
            statement = sql.SQL(
                "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = {}, publish_via_partition_root = true)"
            ).format(sql.Identifier(name), listed, sql.Literal(operations))
        text = statement.as_string(self.connection)
        what = (
            f"publication {name!r} without {', '.join(t.name for t in missing)}"
            if exists
            else f"no publication {name!r}"
        )
        if not self.settings.create:
            self._problem(what, text)
            return
        try:
            with postgres_errors("publish tables"), self.connection.cursor() as cursor:
                cursor.execute(statement)
        except TerminalError as error:
            if error.code != "POSTGRES_PRIVILEGE":
                raise
            self._problem(f"{what}, and no right to create it ({error.found})", f"Let its owner run: {text}")

    def _is_published_in_full(self, name: str, *, is_append: bool) -> bool:
        """Return whether a publication is there; one that leaves out what is needed is a problem."""
        found = self._ask("SELECT pubinsert, pubupdate, pubdelete FROM pg_publication WHERE pubname = %s", [name])
        if found and not all(found[0][:1] if is_append else found[0]):
            operations = "insert, truncate" if is_append else "insert, update, delete, truncate"
            self._problem(
                f"publication {name!r} leaves out some changes",
                f"ALTER PUBLICATION {name} SET (publish = '{operations}')",
            )
        return bool(found)

    def _unpublished(self, publication: str, tables: Sequence[SourceTable]) -> list[SourceTable]:
        query = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s"
        published = {row[0] for row in self._ask(query, [publication])}
        return [table for table in tables if table.name not in published]

    def _published(self, publication: str, tables: Sequence[SourceTable]) -> dict[str, str]:
        """Return the row filter of each table that has one."""
        if self.connection.server_version < 150_000:
            return {}
        names = [table.name for table in tables]
        query = """SELECT schemaname || '.' || tablename, rowfilter FROM pg_publication_tables
                   WHERE pubname = %s AND schemaname || '.' || tablename = ANY(%s) AND rowfilter IS NOT NULL"""
        return dict(self._ask(query, [publication, names]))

    def _make_slot(self) -> None:
        with postgres_errors(f"create slot {self.settings.slot!r}"), self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (self.settings.slot,))
