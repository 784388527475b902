"""The formats of a files source, a module each: files of bytes into rows of columns."""

from connectors.files.formats.compression import are_compressed, decompressed, is_compressed
from connectors.files.formats.protocol import Format, Raw, RowsOfFiles

__all__ = ["Format", "Raw", "RowsOfFiles", "are_compressed", "decompressed", "is_compressed"]
