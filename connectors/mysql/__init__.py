"""Tables of MySQL and MariaDB in: settings, the connector that the planner uses, and the input for a hand-written dataflow."""

from connectors.mysql.connector import MySQLConnector, MySQLSource
from connectors.mysql.settings import MySQLSettings

__all__ = ["MySQLConnector", "MySQLSettings", "MySQLSource"]
