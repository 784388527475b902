"""Tables and queries of any database, polled by a cursor column; for databases whose log cannot be read."""

from connectors.query.connector import QueryConnector, QuerySource
from connectors.query.settings import QuerySettings

__all__ = ["QueryConnector", "QuerySettings", "QuerySource"]
