"""A MySQL or MariaDB server: connected, checked for what a replica needs, asked for its tables and its binlog."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

from connectors.mysql.columns import Column, column_from_catalog
from connectors.mysql.dump import BinlogDump
from connectors.mysql.errors import mysql_errors
from connectors.mysql.gtid import GtidSet, parse_text
from connectors.mysql.position import binlog_position, file_number
from connectors.mysql.settings import MySQLSettings
from waxlake.stream.errors import SourceChanged, TerminalError
from waxlake.stream.position import RowPosition

__all__ = ["Client", "Server", "SourceTable"]

_CONNECT_S = 10
_READ_S = 600
_VARIABLES: Final = (
    "log_bin", "binlog_format", "binlog_row_image", "binlog_row_metadata", "binlog_row_value_options", "log_bin_compress",
    "binlog_transaction_compression", "gtid_mode", "gtid_domain_id", "server_id", "server_uuid", "version",
)  # fmt: skip
_IDENTIFYING: Final = ("server_uuid", "gtid_domain_id", "server_id")
_WANTED: Final = {
    "log_bin": ("ON", "MYSQL_LOG_BIN_OFF", "Start the server with log_bin"),
    "binlog_format": ("ROW", "MYSQL_BINLOG_FORMAT", "SET GLOBAL binlog_format=ROW, and let old sessions end"),
    "binlog_row_image": ("FULL", "MYSQL_ROW_IMAGE", "SET GLOBAL binlog_row_image=FULL, and let old sessions end"),
    "binlog_row_metadata": ("FULL", "MYSQL_METADATA_MISSING", "SET GLOBAL binlog_row_metadata=FULL"),
    "binlog_row_value_options": ("", "MYSQL_PARTIAL_JSON", "SET GLOBAL binlog_row_value_options=''"),
    "log_bin_compress": ("OFF", "MYSQL_BINLOG_COMPRESSED", "SET GLOBAL log_bin_compress=OFF"),
    "binlog_transaction_compression": (
        "OFF",
        "MYSQL_BINLOG_COMPRESSED",
        "SET GLOBAL binlog_transaction_compression=OFF",
    ),
}
_PRIVILEGES: Final = {
    "REPLICATION SLAVE": ("REPLICATION SLAVE",),
    "REPLICATION CLIENT": ("REPLICATION CLIENT", "BINLOG MONITOR"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A table of the source as it is now.

    Attributes:
        schema: Database.
        name: Table.
        columns: Its columns that are read, in order.
        key: Names of the columns of its primary key, else of a NOT NULL unique one; empty if there is none.
        left_out: Names of its columns that are not read.
        dropped: Names of columns that it had once; older changes have them.
        row_bytes: Mean size of a row, as the server estimates it.
        rows: Number of rows, as the server estimates it.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    row_bytes: int = 0
    rows: int = 0

    def remembering(self, seen: Sequence[Column]) -> SourceTable:
        """Return the table with the columns that it had once, too."""
        names = {column.name for column in self.columns} | self.left_out
        gone = tuple(column for column in seen if column.name not in names)
        dropped = frozenset(column.name for column in gone)
        return replace(self, columns=(*self.columns, *gone), dropped=dropped) if gone else self

    @property
    def full_name(self) -> str:
        """``schema.table``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server said of itself.

    Attributes:
        identity: That which makes it *that* server.
        is_mariadb: Whether it is MariaDB.
        has_gtids: Whether every transaction has a global identity.
        log_name: Binlog file names without their number, as ``binlog``.
        digits: Digits of that number, at least.
        first: Position where its binlog begins.
        last: Position where its binlog ends now.
        charsets: Collation id to character set.
        executed: MySQL: the transactions before ``last``, as it writes them.
        number: How many servers there were before it.
    """

    identity: str
    is_mariadb: bool
    has_gtids: bool
    log_name: str
    digits: int
    first: int
    last: int
    charsets: Mapping[int, str] = field(repr=False)
    executed: str = ""
    number: int = 0

    def numbered(self, number: int) -> Server:
        """Return the server as the one after ``number`` others; only for one that is the first as yet."""
        first, last = (
            binlog_position(self.file_name(position), RowPosition.unpack(position).minor, number)
            for position in (self.first, self.last)
        )
        return replace(self, number=number, first=first, last=last)

    def file_name(self, position: int) -> str:
        """Return the name of the binlog file of a position."""
        return f"{self.log_name}.{file_number(position):0{self.digits}d}"


class Client:
    """Connections to one server.

    Args:
        settings: Where it is and who we are.
    """

    def __init__(self, settings: MySQLSettings) -> None:
        self._settings = settings
        self.what = f"mysql://{settings.url}"

    def connect(self, *, reads_s: float = _READ_S) -> Any:
        """Return a connection in UTC, autocommit.

        Raises:
            TerminalError: Wrong user or password. Not retryable.
            TransientError: The server does not answer. Retryable.
        """
        url = self._settings.url
        with mysql_errors(f"connect to {self.what}"):
            return _connection_class()(
                host=url.host,
                port=url.port,
                user=url.user,
                password=url.password,
                database=url.database or None,
                charset="utf8mb4",
                connect_timeout=_CONNECT_S,
                read_timeout=reads_s,
                autocommit=True,
                init_command="SET time_zone = '+00:00', net_write_timeout = 600, sql_mode = 'ANSI_QUOTES'",
                **_tls(url.options),
            )

    def ask(self, connection: Any, query: str, arguments: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query, by column name in upper case."""
        with mysql_errors(f"ask {self.what}"), connection.cursor() as cursor:
            cursor.execute(query, arguments or None)
            names = [column[0].upper() for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def survey(self, connection: Any) -> Server:
        """Check what a replica needs, the first thing that is missing by name, and return what the server is.

        Raises:
            TerminalError: A setting or a privilege is missing. Not retryable.
        """
        found = self.ask(
            connection, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({', '.join(map(repr, _VARIABLES))})"
        )
        values = {str(row["VARIABLE_NAME"]).lower(): str(row["VALUE"]) for row in found}
        self._check_settings(values)
        is_mariadb = "mariadb" in values["version"].lower()
        self._check_grants(connection)
        last, executed = self._end(connection)
        logs = self.ask(connection, "SHOW BINARY LOGS")
        first = str(logs[0]["LOG_NAME"]) if logs else last[0]
        charsets = self.ask(
            connection, "SELECT id, character_set_name FROM information_schema.collations WHERE id IS NOT NULL"
        )
        return Server(
            identity=_identity(values),
            is_mariadb=is_mariadb,
            has_gtids=is_mariadb or values.get("gtid_mode", "").upper() == "ON",
            log_name=last[0].rpartition(".")[0],
            digits=len(last[0].rpartition(".")[2]),
            first=binlog_position(first, 4),
            last=binlog_position(*last),
            executed=executed,
            charsets={int(row["ID"]): str(row["CHARACTER_SET_NAME"]) for row in charsets},
        )

    def _end(self, connection: Any) -> tuple[tuple[str, int], str]:
        """Return file and offset where the binlog ends now, and what MySQL has executed up to there."""
        try:
            rows = self.ask(connection, "SHOW MASTER STATUS")
        except TerminalError as error:
            if error.code != "MYSQL_ERROR":  # MySQL 8.4 knows only the new words
                raise
            rows = self.ask(connection, "SHOW BINARY LOG STATUS")
        if not rows:
            raise self._wrong("log_bin", "OFF")
        executed = "".join(str(rows[0].get("EXECUTED_GTID_SET") or "").split())
        return (str(rows[0]["FILE"]), int(rows[0]["POSITION"])), executed

    def end(self, connection: Any, server: Server) -> int:
        """Return the position where the binlog ends now."""
        return binlog_position(*self._end(connection)[0], server.number)

    def files(self, connection: Any, server: Server) -> Sequence[int]:
        """Return the positions where the binlog files of a server begin, the oldest first."""
        rows = self.ask(connection, "SHOW BINARY LOGS")
        return [binlog_position(str(row["LOG_NAME"]), 4, server.number) for row in rows]

    def connect_to(self, server: Server) -> Any:
        """Return a connection to a server that was surveyed.

        Raises:
            SourceChanged: ``MYSQL_SERVER_CHANGED``: another one answers by now. Planning again settles it.
        """
        connection = self.connect()
        names = ", ".join(map(repr, _IDENTIFYING))
        rows = self.ask(connection, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        found = _identity({str(row["VARIABLE_NAME"]).lower(): str(row["VALUE"]) for row in rows})
        if found != server.identity:
            connection._force_close()
            raise SourceChanged(
                f"cannot go on reading {self.what}",
                code="MYSQL_SERVER_CHANGED",
                found=f"server {found}",
                expected=f"server {server.identity}, of which the run was planned",
                remedy="Run again: it looks for its place in the log of this server",
            )
        return connection

    def gtids_at(self, server: Server, position: int) -> GtidSet | None:
        """Return the transactions before a position of MariaDB's binlog; None if the server cannot tell."""
        connection = self.connect_to(server)
        try:
            place = (server.file_name(position), RowPosition.unpack(position).minor)
            rows = self.ask(connection, "SELECT BINLOG_GTID_POS(%s, %s) AS found", place)
        finally:
            connection.close()
        return None if rows[0]["FOUND"] is None else parse_text(str(rows[0]["FOUND"]), is_mariadb=True)

    def _check_settings(self, values: Mapping[str, str]) -> None:
        for name, (wanted, _, _) in _WANTED.items():
            if name in values and values[name].upper() != wanted:
                raise self._wrong(name, values[name])
        if "binlog_row_metadata" not in values:
            raise TerminalError(
                f"cannot read {self.what}",
                code="MYSQL_VERSION",
                found=f"version {values['version']}, which does not know binlog_row_metadata",
                expected="MySQL 8.0 or later, MariaDB 10.5 or later",
            )

    def _wrong(self, name: str, found: str) -> TerminalError:
        wanted, code, remedy = _WANTED[name]
        return TerminalError(
            f"cannot read {self.what}", code=code, found=f"{name}={found}", expected=f"{name}={wanted}", remedy=remedy
        )

    def _check_grants(self, connection: Any) -> None:
        lines = [str(next(iter(row.values()))).upper() for row in self.ask(connection, "SHOW GRANTS")]
        everywhere = " ".join(line for line in lines if " ON *.* " in line)
        if "ALL PRIVILEGES ON *.*" in everywhere or any(" ON " not in line for line in lines):  # a role may have them
            return
        missing = [name for name, words in _PRIVILEGES.items() if not any(word in everywhere for word in words)]
        if missing:
            raise TerminalError(
                f"cannot read {self.what} as user '{self._settings.url.user}'",
                code="MYSQL_PRIVILEGE_MISSING",
                found=f"no {' and no '.join(missing)}",
                expected="REPLICATION SLAVE and REPLICATION CLIENT on *.*, SELECT on the tables",
                remedy=f"GRANT {', '.join(missing)} ON *.* TO '{self._settings.url.user}'",
            )

    def tables(self, connection: Any) -> tuple[SourceTable, ...]:
        """Return the tables that the settings name, sorted.

        Raises:
            TerminalError: ``MYSQL_NOT_FOUND``, ``MYSQL_NO_KEY``. Not retryable.
            SchemaError: A column of a type that cannot be read. Not retryable.
        """
        patterns = self._settings.patterns
        schemas = sorted({pattern.split(".", 1)[0] for pattern in patterns})
        listed = self.ask(connection, _LIST_TABLES)
        found: dict[str, SourceTable] = {}
        for pattern in patterns:
            names = [row for row in listed if fnmatchcase(f"{row['TABLE_SCHEMA']}.{row['TABLE_NAME']}", pattern)]
            if not names:
                raise TerminalError(
                    f"cannot read table '{pattern}' of {self.what}",
                    code="MYSQL_NOT_FOUND",
                    found=f"no such table, or no SELECT privilege on it, in {', '.join(schemas)}",
                    remedy="Check the name, and GRANT SELECT ON it",
                )
            for row in names:
                table = self._described(connection, row)
                found[table.full_name] = table
        return tuple(found[name] for name in sorted(found))

    def _described(self, connection: Any, row: Mapping[str, Any]) -> SourceTable:
        schema, name = str(row["TABLE_SCHEMA"]), str(row["TABLE_NAME"])
        rows = self.ask(connection, _LIST_COLUMNS, (schema, name))
        excluded = set(self._settings.exclude_columns)
        names = [str(item["COLUMN_NAME"]) for item in rows]
        left_out = frozenset(n for n in names if excluded & {n, f"{name}.{n}", f"{schema}.{name}.{n}"})
        columns = tuple(
            column_from_catalog(item, f"{schema}.{name}") for item in rows if item["COLUMN_NAME"] not in left_out
        )
        key = self._key(connection, schema, name)
        if not key and self._settings.on_missing_key == "fail":
            raise TerminalError(
                f"cannot read table '{schema}.{name}'",
                code="MYSQL_NO_KEY",
                found="neither a primary key nor a NOT NULL unique one",
                remedy="Give it a key, or set on_missing_key='append'",
            )
        return SourceTable(
            schema=schema,
            name=name,
            columns=columns,
            key=key,
            left_out=left_out,
            row_bytes=int(row["AVG_ROW_LENGTH"] or 0),
            rows=int(row["TABLE_ROWS"] or 0),
        )

    def _key(self, connection: Any, schema: str, name: str) -> tuple[str, ...]:
        keys: dict[str, list[dict[str, Any]]] = {}
        for row in self.ask(connection, _LIST_KEYS, (schema, name)):
            keys.setdefault(str(row["INDEX_NAME"]), []).append(row)
        if "PRIMARY" in keys:
            return tuple(str(row["COLUMN_NAME"]) for row in keys["PRIMARY"])
        for parts in keys.values():
            if all(row["NULLABLE"] != "YES" and row["COLUMN_NAME"] and row["SUB_PART"] is None for row in parts):
                return tuple(str(row["COLUMN_NAME"]) for row in parts)
        return ()

    def dump(self, server: Server, start: int) -> BinlogDump:
        """Return the stream of events from a position on.

        Raises:
            SourceMoved: The server has no such file any more. Not retryable.
            TransientError: It does not answer. Retryable.
        """
        return BinlogDump(
            self.connect_to(server),
            f"binlog of {self.what}",
            file=server.file_name(start),
            offset=RowPosition.unpack(start).minor,
            server_id=self._settings.server_id or (1 << 31) + secrets.randbits(30),
        )


def _identity(values: Mapping[str, str]) -> str:
    """Return what tells a server from others: MySQL's UUID, MariaDB's number."""
    return values.get("server_uuid") or f"{values.get('gtid_domain_id', 0)}-{values.get('server_id')}"


@lru_cache(maxsize=1)
def _connection_class() -> Any:
    """Return PyMySQL's connection; where TLS is used if the server offers it, it does not read the machine's certificates."""
    import ssl

    from pymysql.connections import Connection

    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE

    class OpportunisticConnection(Connection):  # type: ignore[misc]
        def _create_ssl_ctx(self, sslp: Any) -> Any:
            return super()._create_ssl_ctx(sslp) if sslp else unverified

    return OpportunisticConnection


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if name != "ssl"}
    if given:
        return {**given, "ssl_verify_cert": "ssl_ca" in given}
    return {"ssl": {"check_hostname": False}} if options.get("ssl", "").lower() in ("1", "true", "required") else {}


_LIST_TABLES: Final = """
SELECT table_schema, table_name, avg_row_length, table_rows FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')
"""
_LIST_COLUMNS: Final = """
SELECT column_name, data_type, column_type, numeric_precision, numeric_scale, datetime_precision, character_set_name,
  character_maximum_length
FROM information_schema.columns WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position
"""
_LIST_KEYS: Final = """
SELECT index_name, column_name, nullable, sub_part FROM information_schema.statistics
WHERE table_schema = %s AND table_name = %s AND non_unique = 0 ORDER BY index_name, seq_in_index
"""
