"""Character sets of MySQL as Python decodes them: what stands in a row event is in the column's own set."""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import Final

__all__ = ["decode_text", "is_supported", "is_utf8", "keeps_ascii"]

_UTF8: Final = frozenset({"utf8", "utf8mb3", "utf8mb4", "ascii"})
_CODECS: Final = {
    "latin2": "iso8859_2",
    "latin5": "iso8859_9",
    "latin7": "iso8859_13",
    "greek": "iso8859_7",
    "hebrew": "iso8859_8",
    "tis620": "tis_620",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "macroman": "mac_roman",
    "macce": "mac_latin2",
    "gbk": "gbk",
    "gb2312": "gb2312",
    "gb18030": "gb18030",
    "big5": "big5",
    "cp932": "cp932",
    "sjis": "cp932",
    "ujis": "euc_jp",
    "eucjpms": "euc_jp",
    "euckr": "cp949",
    "ucs2": "utf_16_be",
    "utf16": "utf_16_be",
    "utf16le": "utf_16_le",
    "utf32": "utf_32_be",
}
_WIDE: Final = frozenset({"ucs2", "utf16", "utf16le", "utf32"})


def is_supported(charset: str) -> bool:
    """Return whether text of a character set can be decoded."""
    return charset in _UTF8 or charset == "latin1" or charset in _CODECS


def is_utf8(charset: str) -> bool:
    """Return whether the bytes of a character set are UTF-8 as they are."""
    return charset in _UTF8


def keeps_ascii(charset: str) -> bool:
    """Return whether bytes below 128 mean ASCII, and nothing else, in a character set."""
    return charset not in _WIDE and charset not in {"gbk", "gb18030", "big5", "cp932", "sjis"}


def decode_text(value: bytes, charset: str) -> str:
    """Return the text of a value.

    Raises:
        UnicodeDecodeError: The bytes are none in this character set.
    """
    if charset == "latin1":
        return codecs.charmap_decode(value, "strict", _latin1())[0]
    return value.decode("utf-8" if charset in _UTF8 else _CODECS[charset])


@lru_cache(maxsize=1)
def _latin1() -> str:
    """Return the table of MySQL's latin1: cp1252, with control characters where that has none."""
    return "".join(bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(256))
