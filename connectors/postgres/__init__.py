"""PostgreSQL as a source: first loads and changes of many tables over one replication slot."""

from connectors.postgres.connector import PostgresConnector, PostgresSource
from connectors.postgres.settings import PostgresSettings

__all__ = ["PostgresConnector", "PostgresSettings", "PostgresSource"]
