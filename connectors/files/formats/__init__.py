"""The formats of a files source, a module each: files of bytes into rows of columns."""

from connectors.files.formats.compression import decompressed, is_compressed
from connectors.files.formats.protocol import Format, Raw

__all__ = ["Format", "Raw", "decompressed", "is_compressed"]
