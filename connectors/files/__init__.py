"""Files as a source: new files under a local or fsspec path into micro-batches, each file exactly once."""

from connectors.files.connector import FilesConnector, FilesSource
from connectors.files.settings import FilesSettings

__all__ = ["FilesConnector", "FilesSettings", "FilesSource"]
