"""What can be set about a MySQL source; called by ``read_mysql`` and ``MySQLSource``, read by everything else here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BeforeValidator, Field, field_validator

from waxlake.stream.delta_table import TableLocation
from waxlake.stream.errors import UsageError
from waxlake.stream.load_window import LOAD_WINDOW_HELP, checked_window
from waxlake.stream.settings import Settings

if TYPE_CHECKING:
    from connectors.mysql.connector import MySQLConnector

__all__ = ["MySQLSettings", "ServerURL"]

_SCHEMES = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")
_URL_OPTIONS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl")


class ServerURL:
    """``mysql://user:password@host:port/database?ssl_ca=...``; ``repr`` and ``str`` hide the password."""

    __slots__ = ("_password", "database", "host", "options", "port", "user")

    def __init__(self, text: str) -> None:
        parts = urlsplit(text)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError("expected mysql://user:password@host:port/database")
        self.host, self.port = parts.hostname, parts.port or 3306
        self.user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self.database = unquote(parts.path.strip("/"))
        self.options = dict(parse_qsl(parts.query))
        unknown = sorted(set(self.options) - set(_URL_OPTIONS))
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r} in the URL, expected some of {', '.join(_URL_OPTIONS)}")

    @property
    def password(self) -> str:
        """The secret."""
        return self._password

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServerURL) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.host, self.port, self.user, self._password, self.database, tuple(sorted(self.options.items()))

    def __str__(self) -> str:
        """Return host and port, for messages."""
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"ServerURL('mysql://{self.user}:***@{self.host}:{self.port}/{self.database}')"


def _as_url(value: object) -> object:
    return ServerURL(value) if isinstance(value, str) else value


class MySQLSettings(Settings):
    """Settings of a MySQL source; equal settings are equal objects, so that two tables can share one read."""

    url: Annotated[ServerURL, BeforeValidator(_as_url)] = Field(
        description="mysql://user:password@host:port/database; TLS by ?ssl=true or ?ssl_ca=/path/ca.pem (ssl_cert, ssl_key)"
    )
    tables: tuple[str, ...] = Field(
        min_length=1,
        description="Tables to follow: database.table, or table in the URL's database; * matches any letters",
    )
    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.:-]*$",
        description="What the source is called in positions, host:port of the URL by default: keep it when a server with another "
        "address takes the place of the one before",
    )
    initial_load: bool = Field(
        default=True,
        description="Whether a table that is read for the first time is loaded first, as rows of type 'read'",
    )
    backfill_new_columns: bool = Field(
        default=False,
        description="Load a table again when its target gets a column, so that older rows have it, too; for targets with keys",
    )
    load_chunk_rows: int = Field(default=50_000, ge=1, le=10_000_000, description="Rows in one chunk of a first load")
    load_workers: int = Field(default=2, ge=1, le=16, description="Tables that are loaded at the same time")
    load_window: str = Field(default="", description=LOAD_WINDOW_HELP)
    on_missing_key: Literal["fail", "append"] = Field(
        default="fail",
        description="What to do about a table with neither a primary key nor a NOT NULL unique one: stop, or append its changes "
        "(an update as a delete and an insert)",
    )
    exclude_columns: tuple[str, ...] = Field(
        default=(), description="Columns that are left out, by name: column, table.column or database.table.column"
    )
    on_binlog_lost: Literal["fail", "resnapshot"] = Field(
        default="fail",
        description="What to do when the server no longer has the changes since the last run: stop, or load the tables again",
    )
    lag_warning_bytes: int = Field(
        default=1 << 30, ge=1, description="Log bytes that tables are behind from which on `waxlake status` warns"
    )
    server_id: int | None = Field(
        default=None,
        ge=1,
        lt=1 << 32,
        description="Number of this replica, unique among all of the server; random if not given",
    )
    max_rows_per_batch: int = Field(
        default=200_000, ge=1, le=10_000_000, description="Rows after which a batch is closed"
    )
    max_bytes_per_batch: int = Field(
        default=8 << 20,
        ge=1,
        le=1 << 30,
        description="Bytes of binlog after which batches are made; also bounds memory",
    )

    @field_validator("tables", "exclude_columns", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("load_window")
    @classmethod
    def _valid_window(cls, value: str) -> str:
        return checked_window(value)

    @classmethod
    def of(cls, url: str, tables: Any, **options: Any) -> MySQLSettings:
        """Return settings.

        Raises:
            UsageError: An unknown option (names the nearest valid one), a URL or a value that is wrong. Not retryable.
        """
        settings: MySQLSettings = cls.build("read_mysql", {"url": url, "tables": tables, **options})
        if not settings.url.database and any("." not in table for table in settings.tables):
            raise UsageError(
                "read_mysql: a table without its database",
                code="OPTION_INVALID",
                found=", ".join(settings.tables),
                expected="database.table, or a database in the URL",
            )
        return settings

    @property
    def patterns(self) -> tuple[str, ...]:
        """The tables with their database."""
        return tuple(name if "." in name else f"{self.url.database}.{name}" for name in self.tables)

    @property
    def source_name(self) -> str:
        """What the source is called, wherever its server is."""
        return self.name or str(self.url)

    @property
    def label(self) -> str:
        """What users call it: ``mysql:`` and the tables."""
        return f"mysql:{','.join(self.patterns)}"

    def connector(self, ledger: Callable[[str], TableLocation]) -> MySQLConnector:
        """Return the connector; ``ledger`` finds a place for its ledger."""
        from connectors.mysql.connector import MySQLConnector

        return MySQLConnector(self, ledger(f"mysql-{self.source_name.replace(':', '-')}"))
